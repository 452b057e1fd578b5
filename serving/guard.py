"""What every request has to pass before a route sees it, and what every answer carries."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import json
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING

import anyio

from serving.numbers import Numbers
from serving.refusal import Refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = "/api/v1/health"  # the only route without a token
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
WITH_PICTURES = ("/predict", "/mask")  # ends of routes
SHORT = 100_000  # bytes of any other body
MOST_DRAINED, LONGEST_DRAIN = 200_000_000, 5.0  # bytes and seconds
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def is_loopback(host: str) -> bool:
    """Whether an address or name reaches this machine only from itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Body:
    """The body of a request, of which no more than a limit is handed on.

    Args:
        receive: its parts.
        limit: bytes.
    """

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._received, self._ended = receive, limit, 0, False

    async def __call__(self) -> Message:
        """The next part.

        Raises:
            Refusal: there is more than the limit.
        """
        message = await self._receive()
        self._received += len(message.get("body", b""))
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        if self._received > self._limit:
            raise Refusal(413, f"the request has more than {self._limit} bytes, which are accepted here")
        return message

    async def drain(self, scope: Scope) -> None:
        """Read and drop the rest of a body that is too large, within bounds.

        The server closes a connection whose body it has not read, and then many a client sees no answer.
        """
        headers = dict(scope["headers"])
        stated = headers.get(b"content-length", b"0")
        if b"expect" in headers or not stated.isdigit() or int(stated) > MOST_DRAINED:
            return  # the client waits for the answer before it sends the body, or would send too much
        with anyio.move_on_after(LONGEST_DRAIN):
            while not self._ended and self._received <= MOST_DRAINED:
                with suppress(Refusal):
                    await self()


class Guard:
    """ASGI middleware: the host that was asked for, the token, the origin of writing requests; headers and counts.

    Args:
        app: behind it.
        token: that every request but `OPEN` needs; "" needs none.
        local: whether only names of this machine are answered, as a service on a loopback address without a token has
            to do: a page of another site could reach it under a name of its own (DNS rebinding).
        body: most bytes of a body with pictures; others are short.
        numbers: counts requests.
    """

    def __init__(self, app: ASGIApp, token: str, local: bool, body: int, numbers: Numbers) -> None:
        self._app, self._local, self._body, self._numbers = app, local, body, numbers
        self._token = sha256(token.encode()).digest() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        body = _Body(receive, self._limit(scope))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == 413:
                    await body.drain(scope)
                own = {name for name, _ in message.get("headers", [])}
                message["headers"] = [*message.get("headers", []), *(pair for pair in HEADERS if pair[0] not in own)]
                self._count(scope, message["status"])
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, body, sending)
        else:
            await _answer(sending, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str, bool] | None:
        """Status, line and whether a token is asked for; None lets the request pass."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._local and not is_loopback(_without_port(host)):
            return 421, f"Host {host[:100]!r} is not this machine; ask for 127.0.0.1 or localhost", False
        if self._token and scope["path"] != OPEN and not self._knows_token(headers.get(b"authorization", "")):
            return 401, "this service needs its token: Authorization: Bearer TOKEN", True
        origin = headers.get(b"origin")
        if scope["method"] not in SAFE and origin is not None and origin.partition("://")[2] != host:
            return 403, "a page of another site may not write here", False
        stated = headers.get(b"content-length", "")
        if stated.isascii() and stated.isdigit() and int(stated) > self._limit(scope):
            return 413, f"the request has {stated} bytes; at most {self._limit(scope)} are accepted here", False
        return None

    def _limit(self, scope: Scope) -> int:
        return self._body if scope["path"].endswith(WITH_PICTURES) else SHORT

    def _knows_token(self, authorization: str) -> bool:
        kind, _, value = authorization.partition(" ")
        given = value.strip()
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("utf-8", "replace").partition(":")[2]
            except (binascii.Error, ValueError):
                return False
        elif kind.lower() != "bearer":
            return False
        # digests of one length, so that the time tells neither the length of the token nor how much of it is right
        return hmac.compare_digest(sha256(given.encode("utf-8", "replace")).digest(), self._token)

    def _count(self, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in SAFE | {"POST", "PUT", "DELETE"} else "other"
        self._numbers.count("requests", method=method, route=route, status=str(status))


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host


async def _answer(send: Send, status: int, line: str, ask: bool) -> None:
    body = json.dumps({"error": line}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if ask:
        headers.append((b"www-authenticate", b'Basic realm="GLASS", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
