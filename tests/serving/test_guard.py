"""Tokens and hosts, without a server."""

import asyncio
import base64

import pytest

from serving.guard import OPEN, Guard, is_loopback
from serving.numbers import Numbers
from serving.server import Address, check
from utils import InputError

TOKEN = "correct-horse-battery"


def status(path="/api/v1/recipes", token=TOKEN, local=False, method="GET", **headers):
    """The status that a guard gives a request; 200 where it passes."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    given = [(key.replace("_", "-").encode(), value.encode()) for key, value in {"host": "line:80", **headers}.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": given}
    asyncio.run(Guard(app, token, local, 1000, Numbers())(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def basic(text):
    return f"Basic {base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN} ", 200),
        (basic(f"anybody:{TOKEN}"), 200),
        (basic(f":{TOKEN}"), 200),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer ", 401),
        (TOKEN, 401),
        (f"Digest {TOKEN}", 401),
        (basic(TOKEN), 401),
        ("Basic !!!", 401),
        ("", 401),
    ],
)
def test_token(authorization, expected):
    assert status(authorization=authorization)[0] == expected


@pytest.mark.parametrize("path", ["/", "/docs", "/metrics", "/api/v1/openapi.json", OPEN + "/", OPEN.upper(), "//"])
def test_every_route_but_health_needs_the_token(path):
    got, headers = status(path)
    assert got == 401
    assert headers[b"www-authenticate"].startswith(b"Basic")
    assert b"content-security-policy" in headers
    assert status(OPEN)[0] == 200


def test_without_a_token_nothing_is_asked_for():
    assert status(token="")[0] == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("192.168.0.2", False), ("::", False), ("localhost.evil", False), ("", False)],
)  # fmt: skip
def test_addresses_of_this_machine(host, local):
    assert is_loopback(host) is local


def test_host_is_checked_where_only_this_machine_listens():
    assert status(local=True, token="", host="evil")[0] == 421
    assert status(local=True, token="", host="localhost:8000")[0] == 200
    assert status(local=False, token="", host="line.example")[0] == 200


def test_writing_from_another_site_is_refused_even_with_the_token():
    right = {"authorization": f"Bearer {TOKEN}", "method": "POST"}
    assert status(**right, origin="https://evil")[0] == 403
    assert status(**right, origin="http://line:80")[0] == 200
    assert status(**right)[0] == 200


@pytest.mark.parametrize(
    ("address", "url", "secret", "line"),
    [
        (Address("0.0.0.0", 1, ""), None, "", "give --token"),
        (Address("0.0.0.0", 1, "short"), None, "", "at least 16"),
        (Address("127.0.0.1", 1, "short"), None, "", "at least 16"),
        (Address("127.0.0.1", 1, ""), "ftp://host", "s" * 16, "must be a URL"),
        (Address("127.0.0.1", 1, ""), "http://", "s" * 16, "must be a URL"),
        (Address("127.0.0.1", 1, ""), "http://u:p@host", "s" * 16, "no password"),
        (Address("127.0.0.1", 1, ""), "http://host", "short", "--webhook_secret"),
    ],
)
def test_starts_that_are_refused(address, url, secret, line):
    with pytest.raises(InputError, match=line):
        check(address, url, secret)
