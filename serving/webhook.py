"""Results to a URL, signed, the oldest first, tried again until they are accepted."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from serving.journal import Message
from serving.numbers import Numbers
from serving.store import Store
from utils import LOGGER, InputError

TIMEOUT = 10.0  # seconds for a message
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 600.0  # seconds before another try
MOST_TRIES = 20  # with these pauses, two hours
SHORTEST_SECRET = 16


def check_url(url: str) -> None:
    """Check the URL of a webhook.

    Raises:
        InputError: it is not one of http or https, or holds a password.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise InputError(f"--webhook {url}: must be a URL such as https://host/path")
    if parts.username or parts.password:
        raise InputError("--webhook: no password in the URL; the receiver checks the signature instead")


def check_secret(secret: str) -> None:
    """Check the secret of the signatures.

    Raises:
        InputError: it is missing or short.
    """
    if len(secret) < SHORTEST_SECRET:
        raise InputError(
            f"--webhook needs --webhook_secret (or GLASS_WEBHOOK_SECRET), at least {SHORTEST_SECRET} characters, with "
            "which messages are signed"
        )


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The signature of a message: HMAC-SHA256 of `<timestamp>.<body>`, as hexadecimal digits."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Sender:
    """A thread that sends the messages in the store's outbox.

    Args:
        store: with the outbox.
        url: that accepts them with a status of 200 to 299.
        secret: of the signatures.
        numbers: counts.
    """

    def __init__(self, store: Store, url: str, secret: str, numbers: Numbers) -> None:
        self._store, self._url, self._secret, self._numbers = store, url, secret, numbers
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._wakes, self._closed = threading.Event(), False
        self._failures, self._resumes = 0, 0.0  # in a row, and when the receiver is tried again
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is a new message."""
        self._wakes.set()

    def close(self) -> None:
        """End after the message under way."""
        self._closed = True
        self._wakes.set()
        self._thread.join(TIMEOUT + 1)

    def _run(self) -> None:
        while not self._closed:
            try:
                now = time.time()
                message = self._store.outbox.due(now) if now >= self._resumes else None
                if message is not None:
                    self._send(message)
                    continue
                due = self._store.outbox.next_due()
            except Exception:  # a full disk, say: the thread has to live on
                LOGGER.exception("webhook")
                due = time.time() + FIRST_PAUSE
            self._wakes.wait(None if due is None else max(0.0, max(due, self._resumes) - time.time()))
            self._wakes.clear()

    def _send(self, message: Message) -> None:
        body, timestamp = message.body.encode(), str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "GLASS",
            "X-Glass-Timestamp": timestamp,
            "X-Glass-Signature": f"sha256={sign(self._secret, timestamp, body)}",
        }
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=TIMEOUT):
                pass
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._failed(message, error)
            return
        self._failures = 0
        self._store.outbox.remove(message)
        self._numbers.count("webhook_sent")

    def _failed(self, message: Message, error: Exception) -> None:
        self._numbers.count("webhook_failed")
        if message.tries + 1 >= MOST_TRIES:
            LOGGER.warning("webhook: a message was not accepted in %d tries and is given up: %s", MOST_TRIES, error)
            self._store.outbox.remove(message)
            self._numbers.count("webhook_dropped")
            return
        if not message.tries:
            LOGGER.warning("webhook: %s; trying again", error)
        # a receiver that refuses one message may accept others; one that is not there accepts none
        if not isinstance(error, urllib.error.HTTPError) or error.code >= 500 or error.code == 429:
            self._resumes = time.time() + _pause(self._failures)
            self._failures += 1
        self._store.outbox.retry(message, time.time() + _pause(message.tries))


def _pause(failures: int) -> float:
    """Seconds before another try."""
    return min(FIRST_PAUSE * 2**failures, LONGEST_PAUSE)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an error: it could lead anywhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
