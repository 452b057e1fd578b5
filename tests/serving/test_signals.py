"""The webhook and MQTT, against receivers in the test's own process."""

import hashlib
import hmac
import http.server
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest
from served import options_for, running

from serving import webhook
from serving.mqtt import Publisher, parse_address, topic_of
from serving.numbers import Numbers
from serving.store import Store
from serving.webhook import Sender
from utils import InputError

SECRET = "a secret of enough length"


@contextmanager
def receiver(statuses):
    """A receiver that answers with these statuses, then 204; what it got."""
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses.pop(0) if statuses else 204)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self):
            got.append("followed a redirection")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        server.server_close()


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def test_results_are_sent_signed_and_again_until_accepted(folder, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(webhook, "FIRST_PAUSE", 0.05)
    with receiver([500, 302, 404]) as (url, got):
        options = options_for(folder, tmp_path / "store", webhook=url, secret=SECRET)
        with running(options) as client:
            sent = client.predict(pictures[0].read_bytes())["results"][0]
            until(lambda: len(client.service.store.outbox) == 0)
    assert len(got) == 4
    assert len({body for _, body in got}) == 1
    headers, body = got[-1]
    signed = headers["X-Glass-Timestamp"].encode() + b"." + body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-Glass-Signature"] == f"sha256={expected}"
    event = json.loads(body)
    assert (event["score"], event["picture"], event["recipe"]) == (sent["score"], sent["id"], "custom_disc")


def test_messages_wait_in_the_store_for_the_next_start(tmp_path):
    store, numbers = Store(tmp_path), Numbers()
    with receiver([]) as (url, _):
        pass  # nobody is there any more
    store.outbox.put({"n": 1})
    sender = Sender(store, url, SECRET, numbers)
    until(lambda: "webhook_failed_total 1" in numbers.text({}))
    started = time.monotonic()
    sender.close()
    assert time.monotonic() - started < 1
    assert len(store.outbox) == 1
    with receiver([]) as (url, got):
        store.outbox.retry(store.outbox.due(2e9), 0)
        sender = Sender(store, url, SECRET, numbers)
        until(lambda: len(store.outbox) == 0)
        sender.close()
    assert [body for _, body in got] == [b'{"n": 1}']
    store.close()


def test_a_message_is_given_up_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(webhook, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(webhook, "MOST_TRIES", 3)
    store, numbers = Store(tmp_path), Numbers()
    store.outbox.put({"n": 1})
    with receiver([400] * 9) as (url, got):
        sender = Sender(store, url, SECRET, numbers)
        until(lambda: len(store.outbox) == 0)
        sender.close()
    assert len(got) == 3
    assert "webhook_dropped_total 1" in numbers.text({})
    store.close()


# ------------------------------------------------------------------------------------------------ MQTT


class Broker:
    """As much of a broker as one publisher needs: CONNECT, PUBLISH of quality 1, PINGREQ."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port, self.got = self.socket.getsockname()[1], []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        connection, _ = self.socket.accept()
        with connection, connection.makefile("rb") as file:
            while head := file.read(1):
                body = file.read(self._length(file))
                if head[0] >> 4 == 1:
                    connection.sendall(b"\x20\x02\x00\x00")
                elif head[0] >> 4 == 3:
                    size = int.from_bytes(body[:2], "big")
                    self.got.append((body[2 : 2 + size].decode(), json.loads(body[4 + size :])))
                    connection.sendall(b"\x40\x02" + body[2 + size : 4 + size])

    @staticmethod
    def _length(file):
        length, shift = 0, 0
        while True:
            byte = file.read(1)[0]
            length |= (byte & 127) << shift
            if byte < 128:
                return length
            shift += 7


def test_results_are_published(folder, pictures, tmp_path):
    broker = Broker()
    options = options_for(folder, tmp_path / "store", mqtt=f"127.0.0.1:{broker.port}")
    with running(options) as client:
        sent = client.predict(pictures[0].read_bytes())["results"][0]
        until(lambda: broker.got)
    ((topic, event),) = broker.got
    assert topic == "glass/custom_disc"
    assert event["score"] == sent["score"]


def test_without_a_broker_nothing_waits(monkeypatch):
    monkeypatch.setattr("serving.mqtt.MOST_WAITING", 2)
    numbers = Numbers()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    publisher = Publisher(f"127.0.0.1:{port}", numbers)
    started = time.monotonic()
    for n in range(5):
        publisher.publish({"recipe": "a", "n": n})
    publisher.close()
    assert time.monotonic() - started < 5
    assert "mqtt_dropped_total 3" in numbers.text({})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("host", ("host", 1883, False)), ("host:99", ("host", 99, False)), ("mqtts://host", ("host", 8883, True))],
)
def test_addresses(text, expected):
    assert parse_address(text) == expected
    assert topic_of("a/b+c#d") == "glass/a_b_c_d"


@pytest.mark.parametrize("text", ["", "http://host", "host:x", "host:0", "mqtt://u:p@host", "host/path"])
def test_addresses_that_are_refused(text):
    with pytest.raises(InputError, match="possible are HOST"):
        parse_address(text)
