"""Watched folders: each file once, whatever happens; nothing outside of them."""

import json
import os
import shutil
import signal
import sqlite3
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from forked import Forked, run_main
from served import options_for, running

from serving import watch
from serving.pictures import Filter
from serving.watch import Folder
from utils import InputError


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    for name, seconds in (("SETTLED", 0.05), ("PATIENCE", 0.3), ("RESCAN", 0.1)):
        monkeypatch.setattr(watch, name, seconds)


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


@pytest.fixture
def line(tmp_path):
    (tmp_path / "line" / "in").mkdir(parents=True)
    return tmp_path / "line" / "in"


def watching(folder, line, tmp_path, **others):
    return running(options_for(folder, tmp_path / "store", watch=[str(line)], **others))


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def test_results_are_written_beside(folder, model, pictures, line, tmp_path):
    (line / "sub").mkdir()
    shutil.copy(pictures[0], line / "early.png")
    with watching(folder, line, tmp_path) as client:
        shutil.copy(pictures[-1], line / "sub" / "late.png")
        until(lambda: (line / "early.png.json").exists() and (line / "sub" / "late.png.json").exists())
        result = json.loads((line / "sub" / "late.png.json").read_text())
        assert result["score"] == pytest.approx(model.predict_image(pictures[-1]).score, abs=1e-5)
        assert result["decision"] == ("defective" if model.predict_image(pictures[-1]).decision else "good")
        assert client.service.store.pictures.count(Filter(source="watch")) == 2
    with watching(folder, line, tmp_path) as client:  # again, with a file that has changed
        shutil.copy(pictures[1], line / "early.png")
        until(lambda: client.service.store.pictures.count(Filter(source="watch")) == 3)
        time.sleep(0.5)
        assert client.service.store.pictures.count(Filter(source="watch")) == 3


@pytest.mark.parametrize("poll", [True, False])
def test_files_are_moved(folder, model, pictures, line, tmp_path, poll):
    with watching(folder, line, tmp_path, move=True, poll=poll) as client:
        shutil.copy(pictures[-1], line / "a.png")
        until(lambda: not names(line))
        shutil.copy(pictures[-1], line / "a.png")  # another one of this name
        until(lambda: not names(line))
        until(lambda: not client.service.store.journal.unfinished(str(line)))
    decision = "defective" if model.predict_image(pictures[-1]).decision else "good"
    assert names(line.parent / decision) == ["a.png", "a_2.png"]
    assert (line.parent / decision / "a.png").read_bytes() == pictures[-1].read_bytes()


def test_a_file_of_the_same_time_is_another_one_after_the_move(folder, pictures, line, tmp_path):
    with watching(folder, line, tmp_path, move=True) as client:
        for count in (1, 2):
            shutil.copy2(pictures[0], line / "a.png")
            until(lambda: not names(line))
            until(lambda count=count: client.service.store.pictures.count(Filter()) == count)


def test_broken_files_are_set_aside_once(folder, pictures, line, tmp_path, log):
    (line / "broken.png").write_bytes(pictures[0].read_bytes()[:300])
    (line / "text.jpg").write_text("no picture")
    (line / "notes.txt").write_text("is left alone")
    with watching(folder, line, tmp_path):
        until(lambda: (line / "broken.png.json").exists() and (line / "text.jpg.json").exists())
        time.sleep(0.4)
    assert "cannot be read" in json.loads((line / "broken.png.json").read_text())["error"]
    assert log.text.count("broken.png cannot be judged") == 1
    assert not (line / "notes.txt.json").exists()
    with watching(folder, line, tmp_path, move=True):
        (line / "again.png").write_bytes(b"")
        until(lambda: not (line / "again.png").exists())
    assert "again.png" in names(line.parent / "broken")


def test_a_file_that_is_being_written_is_waited_for(folder, pictures, line, tmp_path):
    content = pictures[0].read_bytes()
    with watching(folder, line, tmp_path) as client, (line / "slow.png").open("wb") as file:
        for start in range(0, len(content), 1 + len(content) // 8):
            file.write(content[start : start + 1 + len(content) // 8])
            file.flush()
            assert client.service.store.pictures.count(Filter()) == 0
            time.sleep(0.1)
        file.close()
        until(lambda: (line / "slow.png.json").exists())
        assert "error" not in json.loads((line / "slow.png.json").read_text())
        assert client.service.store.pictures.count(Filter()) == 1


def test_links_are_not_followed(folder, pictures, line, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(pictures[0], outside / "secret.png")
    (line / "link.png").symlink_to(outside / "secret.png")
    (line / "folder").symlink_to(outside)
    os.mkfifo(line / "pipe.png")
    with watching(folder, line, tmp_path) as client:
        shutil.copy(pictures[0], line / "own.png")
        until(lambda: (line / "own.png.json").exists())
        assert client.service.store.pictures.count(Filter()) == 1
    assert names(outside) == ["secret.png"]


@pytest.mark.parametrize(
    ("text", "recipes", "line_"),
    [("{}", ["a", "b"], "say which one"), ("c={}", ["a", "b"], "say which|no recipe c"), ("{}/no", ["a"], "no such folder")],
)  # fmt: skip
def test_folders_that_are_refused(tmp_path, text, recipes, line_):
    with pytest.raises(InputError, match=line_):
        Folder.of(text.format(tmp_path), recipes, move=False)
    assert Folder.of(f"b={tmp_path}", ["a", "b"], move=False).recipe == "b"


def test_a_process_that_is_killed_judges_nothing_twice_and_loses_nothing(folder, pictures, line, tmp_path):
    count, store = 60, tmp_path / "store"
    for number in range(count):
        shutil.copy(pictures[number % len(pictures)], line / f"{number:03d}.png")
    words = ["serve", "--models", folder, "--store", store, "--port", 0, "--gpu", -1, "--watch", line, "--move"]
    words = [str(word) for word in [*words, "--batch_size", 2]]

    for left in (45, 30, 0):
        process = Forked(run_main(words))
        until(lambda left=left: len(names(line)) <= left, 60)
        os.kill(process.pid, signal.SIGTERM if left == 0 else signal.SIGKILL)
        assert process.finish(60).returncode == (0 if left == 0 else -signal.SIGKILL)
    moved = Counter(path.name for path in line.parent.glob("*/*") if path.parent != line)
    with sqlite3.connect(store / "store.sqlite3") as connection:
        judged = Counter(name for (name,) in connection.execute("SELECT name FROM pictures"))
        assert connection.execute("SELECT count(*) FROM watched WHERE NOT done").fetchone()[0] == 0
    everything = {f"{number:03d}.png": 1 for number in range(count)}
    assert judged == everything
    assert moved == everything


@pytest.mark.parametrize("place", ["Watcher._carry_out", "os.unlink", "Watcher._finish_new", "_move"])
@pytest.mark.parametrize("move", [True, False])
def test_the_end_at_any_place_is_made_good(folder, pictures, line, tmp_path, place, move, monkeypatch):
    """The process dies just before the result is written, before the file is moved, or between its two names."""
    if not move and place in ("os.unlink", "_move"):
        pytest.skip("nothing is moved")
    shutil.copy(pictures[0], line / "a.png")
    with monkeypatch.context() as patch:
        if place == "os.unlink":
            patch.setattr(watch, "os", SimpleNamespace(**{**vars(os), "unlink": lambda _: os._exit(9)}))
        else:
            patch.setattr(f"serving.watch.{place}", lambda *_: os._exit(9))
        words = ["serve", "--models", folder, "--store", tmp_path / "store", "--port", 0, "--gpu", -1, "--watch", line]
        dies = Forked(run_main([str(word) for word in [*words, *(["--move"] if move else [])]]))
        assert dies.finish(60).returncode == 9
    with watching(folder, line, tmp_path, move=move) as client:
        store = client.service.store
        until(lambda: not names(line) if move else (line / "a.png.json").exists())
        until(lambda: not store.journal.unfinished(str(line)))
        assert store.pictures.count(Filter()) == 1
    assert len(names(line.parent)) == (1 if move else 2)
