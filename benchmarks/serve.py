"""The service against the library in the same run, under abuse, and killed in the middle of a watched folder.

    .venv/bin/python benchmarks/serve.py MODEL IMAGES [--rounds 5] [--clients 8] [--soak 20000] [--watch 500]

MODEL is the folder of a class, IMAGES a folder of pictures for it. Throughput: `predict` on the pictures, and as many
requests by concurrent clients, in turns. Latency: the library one picture at a time, and one client, in turns. Soak:
good, broken, huge, cut off and aborted requests; memory after the first of them and at the end. Watch: a folder that
fills up, kill -9 in the middle, a second start; each file must be judged once. Medians and ratios are printed and
written to benchmarks/results/serve.csv.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch is imported, as for every command
from measuring import write_rows  # noqa: E402

from inference.inspector import Inspector, load_checkpoint  # noqa: E402
from inference.predict import PredictionOptions, find_pictures, predict  # noqa: E402

HOST = "127.0.0.1"
KINDS = ("good", "broken", "text", "huge", "forged", "cut", "aborted")
SHARES = (70, 8, 5, 4, 5, 4, 4)  # percent, in the order of KINDS
EXPECTED = {"good": 200, "broken": 422, "text": 415, "huge": 413, "forged": 413}
FIRST = 1000  # requests after which memory is measured first


class Server:
    """A process that serves a model on a free port."""

    def __init__(self, model: Path, store: Path, *options: object) -> None:
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = free.getsockname()[1]
        words = ["serve", "--models", model, "--store", store, "--port", self.port, "--gpu", -1, *options]
        self.process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), *map(str, words)], cwd=ROOT)
        while not self._answers():
            if self.process.poll() is not None:
                raise SystemExit("the service did not start")
            time.sleep(0.1)
        with self.client() as client:
            self.name = json.loads(ask(client, "GET", "/api/v1/recipes")[1])["recipes"][0]["name"]

    def _answers(self) -> bool:
        with suppress(OSError), self.client() as client:
            return ask(client, "GET", "/api/v1/health")[0] == 200
        return False

    @contextmanager
    def client(self) -> Iterator[http.client.HTTPConnection]:
        """A connection, which stays open."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        try:
            yield connection
        finally:
            connection.close()

    @property
    def predict(self) -> str:
        """The route that judges."""
        return f"/api/v1/recipes/{self.name}/predict"

    def memory(self) -> float:
        """Resident memory in MB."""
        with self.client() as client:
            text = ask(client, "GET", "/metrics")[1].decode()
        return float(text.split("\nglass_memory_bytes ")[1].split()[0]) / 1e6

    def end(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(kind)
        return self.process.wait(60)


def ask(client: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of an answer."""
    client.request(method, path, body)
    answer = client.getresponse()
    return answer.status, answer.read()


# -------------------------------------------------------------------------------- throughput, latency


def by_library(model: Inspector, folder: Path, times: int) -> float:
    """Pictures a second of a prediction run."""
    images = find_pictures([str(folder)]) * times
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        predict(model, images, PredictionOptions(Path(out), "", False, 8))
        return len(images) / (time.perf_counter() - start)


def by_clients(server: Server, bodies: Sequence[bytes], count: int) -> float:
    """Pictures a second of concurrent clients, each with a connection of its own."""

    def work(share: Sequence[bytes]) -> None:
        with server.client() as client:
            for body in share:
                status, answer = ask(client, "POST", server.predict, body)
                if status != 200:
                    raise SystemExit(f"{status}: {answer.decode()}")

    start = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, [bodies[i::count] for i in range(count)]))
    return len(bodies) / (time.perf_counter() - start)


def latencies(model: Inspector, server: Server, paths: Sequence[Path]) -> tuple[list[float], list[float]]:
    """Milliseconds of each picture by the library and by one client, in turns."""
    library, service = [], []
    with server.client() as client:
        for path in paths:
            start = time.perf_counter()
            model.predict_image(path)
            middle = time.perf_counter()
            ask(client, "POST", server.predict, path.read_bytes())
            library.append(1000 * (middle - start))
            service.append(1000 * (time.perf_counter() - middle))
    return library, service


# ----------------------------------------------------------------------------------------------- soak


def body_of(kind: str, good: bytes) -> bytes:
    """The body of a request of a kind."""
    if kind == "broken":
        return good[: len(good) // 2]
    if kind == "text":
        return b"no picture at all" * 1000
    if kind == "forged":  # a header of 100000x100000 pixels
        header = good[12:16] + 2 * (100_000).to_bytes(4, "big") + good[24:29]
        return good[:12] + header + zlib.crc32(header).to_bytes(4, "big") + good[33:]
    return good


def one_request(server: Server, kind: str, good: bytes) -> str:
    """Send a request; returns what came of it."""
    body = body_of(kind, good)
    if kind in ("cut", "aborted", "huge"):
        stated = 500_000_000 if kind == "huge" else len(body)
        head = f"POST {server.predict} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {stated}\r\n\r\n".encode()
        with socket.create_connection((HOST, server.port), timeout=60) as raw:
            raw.sendall(head + (body[: len(body) // 2] if kind == "cut" else body if kind == "aborted" else b""))
            return raw.recv(12).decode()[-3:] if kind == "huge" else "closed"
    with server.client() as client:
        return str(ask(client, "POST", server.predict, body)[0])


def soak(server: Server, bodies: Sequence[bytes], count: int, clients: int) -> dict[str, object]:
    """Send requests of all kinds at once; what was not as expected, and memory."""
    draw = random.Random(0)
    kinds = draw.choices(KINDS, SHARES, k=count)
    answers: Counter[tuple[str, str]] = Counter()
    first = min(FIRST, count // 4)

    def work(numbered: tuple[int, str]) -> None:
        number, kind = numbered
        try:
            answers[kind, one_request(server, kind, bodies[number % len(bodies)])] += 1
        except OSError as error:
            answers[kind, type(error).__name__] += 1

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, enumerate(kinds[:first])))
        before = server.memory()
        list(pool.map(work, enumerate(kinds[first:], first)))
    wrong = {
        f"{kind} {answer}": n for (kind, answer), n in answers.items() if answer != str(EXPECTED.get(kind, "closed"))
    }
    after = server.memory()
    return {
        "requests": count,
        "seconds": round(time.perf_counter() - start),
        "unexpected": json.dumps(wrong),
        "memory_after_first_mb": round(before),
        "memory_at_end_mb": round(after),
        "growth": round(after / before - 1, 3),
    }


# ---------------------------------------------------------------------------------------------- watch


def watch(model: Path, paths: Sequence[Path], count: int, work: Path) -> dict[str, object]:
    """Kill the service in the middle of a watched folder, and start it again."""
    folder, store = work / "line" / "in", work / "watch-store"
    folder.mkdir(parents=True)
    for number, path in zip(range(count), itertools.cycle(paths), strict=False):
        shutil.copyfile(path, folder / f"{number:05d}{path.suffix}")
    server = Server(model, store, "--watch", folder, "--move", "--keep", 10 * count)
    while len(os.listdir(folder)) > count * 0.6:
        time.sleep(0.01)
    server.end(signal.SIGKILL)
    left = len(os.listdir(folder))
    server = Server(model, store, "--watch", folder, "--move", "--keep", 10 * count)
    deadline = time.monotonic() + 600
    while os.listdir(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    server.end()
    moved = Counter(path.name for path in folder.parent.glob("*/*") if path.parent != folder)
    with sqlite3.connect(store / "store.sqlite3") as connection:
        judged = Counter(name for (name,) in connection.execute("SELECT name FROM pictures"))
    return {
        "files": count, "left_at_kill": left, "moved_once": sum(n == 1 for n in moved.values()),
        "judged_once": sum(n == 1 for n in judged.values()), "judged_twice": sum(n > 1 for n in judged.values()),
    }  # fmt: skip


# -------------------------------------------------------------------------------------------- command


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=200, help="of a round")
    parser.add_argument("--soak", type=int, default=20_000)
    parser.add_argument("--watch", type=int, default=500)
    args = parser.parse_args()
    paths = [image.path for image in find_pictures([str(args.images)])]
    bodies = [path.read_bytes() for path in paths]
    times = max(1, args.pictures // len(paths))
    model = load_checkpoint(args.model)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as work:
        server = Server(args.model, Path(work) / "store")
        for _ in range(2):  # both warm
            by_library(model, args.images, 1)
            by_clients(server, bodies, args.clients)
        pairs = [
            (by_library(model, args.images, times), by_clients(server, bodies * times, args.clients))
            for _ in range(args.rounds)
        ]
        library, service = (statistics.median(values) for values in zip(*pairs, strict=True))
        rows.append(row("throughput, pictures/s", library, service))
        library, service = (statistics.median(values) for values in latencies(model, server, paths * times))
        rows.append(row("p50 latency, ms", library, service))
        if args.soak:
            for key, value in soak(server, bodies, args.soak, args.clients).items():
                rows.append(row(f"soak: {key}", "", value))
        rows.append(row("exit code after SIGTERM", "", server.end()))
        if args.watch:
            for key, value in watch(args.model, paths, args.watch, Path(work)).items():
                rows.append(row(f"watch: {key}", "", value))
    for item in rows:
        print("  ".join(f"{value}" for value in item.values()))
    write_rows("serve", rows)


def row(what: str, library: object, service: object) -> dict[str, object]:
    """A row of the table."""
    if not isinstance(library, float) or not isinstance(service, float):
        return {"what": what, "library": library, "service": service, "ratio": ""}
    return {
        "what": what,
        "library": round(library, 2),
        "service": round(service, 2),
        "ratio": round(service / library, 3),
    }


if __name__ == "__main__":
    main()
