"""A service behind a real server in a thread of the test's process, and a client."""

import http.client
import json
import threading
import time
from contextlib import contextmanager

import torch
import uvicorn

from serving.app import make_app
from serving.server import Address, bind
from serving.service import Options, Service


def options_for(folder, store, **others):
    values = dict(
        models=[folder], store=store, keep=1000, queue=64, batch_size=8, max_mb=1, max_pixels=1_000_000, min_area=1,
        device=torch.device("cpu"), weights=None, precision="fp32",
    )  # fmt: skip
    return Options(**values | others)


class Client:
    """Asks a running service."""

    def __init__(self, service, port):
        self.service, self.port, self.base = service, port, "/api/v1/recipes/custom_disc"

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            if isinstance(body, dict):
                body, headers = json.dumps(body), {"Content-Type": "application/json", **headers}
            connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def json(self, method, path, body=None, status=200):
        got, _, content = self.ask(method, path, body)
        assert got == status, content
        return json.loads(content)

    def predict(self, content, query="", status=200):
        return self.json("POST", f"{self.base}/predict{query}", content, status)


@contextmanager
def running(options, token=""):
    """A service behind a server, until the context ends."""
    listening = bind(Address("127.0.0.1", 0, token))
    service = Service(options)
    app = make_app(service, token, local=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Client(service, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
