"""The command: what it refuses, its end in good order, one process for a store."""

import http.client
import re
import socket
import threading
import time

import pytest
from forked import Forked, run_main
from helpers import cli

from serving.judging import JudgeQueue
from serving.models import register
from serving.store import Store


def last_line(done):
    return done.stdout.strip().splitlines()[-1]


def serve_words(folder, tmp_path, *more):
    words = ["serve", "--models", folder, "--store", tmp_path / "store", "--port", 0, "--gpu", -1, *more]
    return [str(word) for word in words]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--host", "0.0.0.0"], "give --token"),
        (["--token", "short"], "at least 16"),
        (["--move"], "it needs --watch"),
        (["--watch", "nowhere"], "no such folder"),
        (["--watch", "lid=."], "no recipe lid|no such folder"),
        (["--webhook", "http://host"], "--webhook_secret"),
        (["--mqtt", "host:x"], "possible are HOST"),
        (["--models", "nowhere"], "no such file or folder"),
        (["--models", "docs"], "no ckpt_best"),
        (["--host", "999.1.1.1", "--token", "t" * 16], "--host 999.1.1.1"),
        (["--keep", "-1"], "--keep"),
    ],
)
def test_refusals_are_one_line(folder, tmp_path, more, line):
    done = cli(*serve_words(folder, tmp_path, *more))
    assert done.returncode == 2
    assert re.search(line, last_line(done))
    assert "Traceback" not in done.stdout


def test_missing_packages_are_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("commands.serve.find_spec", lambda name: None if name == "uvicorn" else name)
    done = cli(*serve_words(folder, tmp_path))
    assert done.returncode == 2
    assert last_line(done).endswith(
        "serve needs uvicorn, which is not installed: pip install -r requirements/serve.txt"
    )


def test_nothing_to_serve(tmp_path):
    done = cli("serve", "--store", tmp_path / "store")
    assert (done.returncode, "give --models" in last_line(done)) == (2, True)


def test_two_models_of_one_class(folder, tmp_path):
    done = cli(*serve_words(folder, tmp_path, "--models", folder / "ckpt.pth"))
    assert (done.returncode, "both of custom_disc" in last_line(done)) == (2, True)


def test_port_that_is_taken(folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli(*serve_words(folder, tmp_path, "--port", taken.getsockname()[1]))
    assert (done.returncode, "in use" in last_line(done)) == (2, True)


def started(words):
    """A process that serves, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = Forked(run_main([*words, "--port", str(port)]))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_running():
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.02)
    return process, port


def test_sigterm_finishes_what_is_under_way(folder, tmp_path, pictures, monkeypatch):
    judge = JudgeQueue._judge

    def slowly(self, batch):
        time.sleep(1)
        judge(self, batch)

    monkeypatch.setattr(JudgeQueue, "_judge", slowly)  # in the copy that is forked, too
    process, port = started(serve_words(folder, tmp_path))
    answers = []

    def ask():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/api/v1/recipes/custom_disc/predict", pictures[0].read_bytes())
        answers.append(connection.getresponse().status)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.4)
    second = Forked(run_main(serve_words(folder, tmp_path)))  # of the same store
    refused = second.finish(60)
    process.process.terminate()  # SIGTERM
    thread.join()
    done = process.finish(30)
    assert answers == [200]
    assert done.returncode == 0, done.args
    assert "stopped; what was under way is finished" in done.stdout
    assert refused.returncode == 2
    assert "is in use by another run" in refused.stdout


def test_recipes_of_the_store_are_served_without_models(folder, tmp_path):
    for words in (serve_words(folder, tmp_path), ["serve", "--store", str(tmp_path / "store"), "--gpu", "-1"]):
        process, _ = started(words)
        process.process.terminate()
        done = process.finish(30)
        assert "serving custom_disc at http://127.0.0.1" in done.stdout
        assert done.returncode == 0


def test_checkpoint_that_the_store_does_not_know_becomes_a_version(folder, tmp_path):
    best = next(folder.glob("ckpt_best_*.pth"))
    store = Store(tmp_path)
    for path, active, count in ((best, 1, 1), (best, 1, 1), (folder / "ckpt.pth", 2, 2), (best, 2, 2)):
        register(store, {"custom_disc": path})
        assert store.recipes.active("custom_disc").number == active
        assert len(store.recipes.versions("custom_disc")) == count
    reference = store.recipes.version("custom_disc", 1).figures["reference"]
    assert (len(reference["good"]), len(reference["defective"]), len(reference["brightness"])) == (3, 3, 6)
    store.close()
