"""The server: the address it listens on, its start and its end."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import uvicorn

from serving import mqtt, webhook
from serving.app import make_app
from serving.guard import is_loopback
from serving.service import Options, Service
from utils import LOGGER, InputError, make_folder, one_at_a_time, reason_of

SHORTEST_TOKEN = 16
LAST_REQUESTS = 30  # seconds that requests under way have at the end
CONNECTIONS = 512  # at once; further ones are refused (503)
BACKLOG = 128


@dataclass(frozen=True)
class Address:
    """Where the service listens, and the token that it asks for; "" asks for none."""

    host: str
    port: int
    token: str

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)


def check(address: Address, url: str | None, secret: str) -> None:
    """Check what needs no model.

    Args:
        address: to listen on.
        url: of a webhook; None without one.
        secret: of its signatures.

    Raises:
        InputError: another machine could reach the service without a token, or something is not as it must be.
    """
    if not address.local and not address.token:
        raise InputError(
            f"--host {address.host} can be reached by other machines: give --token (or GLASS_TOKEN), at least "
            f"{SHORTEST_TOKEN} characters"
        )
    if address.token and len(address.token) < SHORTEST_TOKEN:
        raise InputError(
            f"--token has {len(address.token)} characters, at least {SHORTEST_TOKEN} are needed; "
            "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    if url is not None:
        webhook.check_url(url)
        webhook.check_secret(secret)


def serve(options: Options, address: Address) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what is under way.

    Raises:
        InputError: the options cannot work, the port is taken, or another process serves this store.
        WorkError: the store or a model cannot be used.
    """
    if options.mqtt is not None:
        mqtt.parse_address(options.mqtt)
    with one_at_a_time(make_folder(options.store, "--store"), "--store"), bind(address) as listening:
        service = Service(options)
        # with a token, no page of another site can ask, and a proxy may pass on the name that it is known by
        app = make_app(service, address.token, address.local and not address.token)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        LOGGER.info("serving %s at http://%s:%d/", ", ".join(service.shelf.names()), shown, port)
        for folder in service.folders:
            LOGGER.info("watching %s for %s", folder.path, folder.recipe)
        _run(app, listening)
        LOGGER.info("stopped; what was under way is finished")


def _run(app: Any, listening: socket.socket) -> None:
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="on", ws="none",
        timeout_graceful_shutdown=LAST_REQUESTS, limit_concurrency=CONNECTIONS, backlog=BACKLOG,
    )  # fmt: skip
    with suppress(KeyboardInterrupt):  # uvicorn repeats the signal after it has ended in good order
        uvicorn.Server(config).run(sockets=[listening])


def bind(address: Address) -> socket.socket:
    """A socket at the address.

    Raises:
        InputError: there is no such address, or the port is taken.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)  # uvicorn listens once the models are loaded
    except OSError as error:
        raise InputError(
            f"--host {address.host} --port {address.port}: {reason_of(error)}; give another port, or 0 for a free one"
        ) from error
    return listening
