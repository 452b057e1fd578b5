"""Learning from marks: what is trained on and what is only tested, the comparison, installing, and going back."""

import hashlib
import time
from dataclasses import fields

import cv2
import numpy as np
import pytest
from helpers import cli, shape_of_part
from served import options_for, running

from serving.marked_data import draw
from serving.models import register
from serving.pictures import Filter, Judged
from serving.store import Store

NAME = "custom_disc"


def add(store, rng, mark, draws, mask=True):
    """A marked picture whose draw lies in the range."""
    while True:
        image, drawn = shape_of_part(rng, 64, mark == "defective")
        content = cv2.imencode(".png", image)[1].tobytes()
        sha = hashlib.sha256(content).hexdigest()
        if draws[0] <= draw(sha) < draws[1]:
            break
    values = {f.name: 0.5 for f in fields(Judged)} | dict(
        recipe=NAME, version=1, sha256=sha, name="part.png", received=time.time(), source="http", width=64, height=64,
        decision="good", regions=[],
    )  # fmt: skip
    number = store.pictures.add(Judged(**values), content, ".png")
    png = cv2.imencode(".png", drawn)[1].tobytes() if mask and mark == "defective" else None
    store.marks.put([number], mark, mask=png)
    return sha


@pytest.fixture
def store(trained, tmp_path):
    store = Store(tmp_path / "store")
    folder = trained[0] / "models" / "backbone_0" / NAME
    register(store, {NAME: next(folder.glob("ckpt_best_*.pth"))})
    yield store
    store.close()


def fill(store):
    """Two good and two defective pictures for each part."""
    rng = np.random.default_rng(3)
    return {
        part: [add(store, rng, mark, draws) for mark in ("good", "defective") for _ in range(2)]
        for part, draws in (("test", (0, 0.3)), ("train", (0.3, 1)))
    }


def retrain(store, tiny, *more):
    words = ["--store", store.folder, "--recipe", NAME, "--textures", tiny[1], "--gpu", -1, "--num_workers", 0, *more]
    return cli("retrain", *words)


def linked(folder):
    """SHA-256 of all files below a folder."""
    return {hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.png")}


def test_a_picture_of_the_test_is_never_trained_on(store, tiny):
    parts = fill(store)
    done = retrain(store, tiny, "--force")
    assert done.returncode == 0, done.stdout
    add(store, np.random.default_rng(9), "good", (0.3, 1))
    # another share would move them all, if they had not been drawn before
    done = retrain(store, tiny, "--force", "--test_share", 0.9)
    assert done.returncode == 0, done.stdout
    folders = sorted((store.folder / "retrain" / NAME).glob("2*"))
    assert len(folders) == 2
    for folder in folders:
        train = linked(folder / "data/disc/train") | linked(folder / "defects")
        assert train.isdisjoint(parts["test"])
        assert set(parts["train"]) <= train
        assert set(parts["test"]) <= linked(folder / "marked/disc/test")
    version = store.recipes.active(NAME)
    assert (version.number, version.origin) == (3, "retrained")
    comparison = version.figures["comparison"]
    assert len(comparison["pictures"]) == comparison["old"]["pictures"] == 6 + 4 + 1
    assert comparison["old"]["pixel_auroc"] is not None
    assert len(version.figures["reference"]["good"]) == 3 + 2 + 1
    assert (folders[0] / "comparison.html").exists()
    assert cli("retrain", "--store", store.folder, "--recipe", NAME, "--rollback").returncode == 0
    assert store.recipes.active(NAME).number == 2


def test_a_worse_version_is_kept_and_not_installed(store, tiny, monkeypatch):
    fill(store)
    monkeypatch.setattr("serving.comparing.worse", lambda old, new: "it is worse")
    done = retrain(store, tiny)
    assert (done.returncode, "not installed: it is worse" in done.stdout) == (0, True), done.stdout
    assert [v.active for v in store.recipes.versions(NAME)] == [False, True]
    again = retrain(store, tiny)
    assert (again.returncode, "--force installs that version" in again.stdout) == (2, True)
    assert retrain(store, tiny, "--force").returncode == 0
    assert store.recipes.active(NAME).number == 2


def test_a_stopped_training_goes_on_in_its_folder(store, tiny, monkeypatch):
    fill(store)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("serving.retraining.run_seeds", stop)
        assert retrain(store, tiny).returncode == 130
    assert len(store.recipes.versions(NAME)) == 1
    assert retrain(store, tiny).returncode == 0
    assert len(list((store.folder / "retrain" / NAME).glob("2*"))) == 1


def test_bad_input_is_one_line(store, tiny, tmp_path):
    def refused(code, text, done):
        assert (done.returncode, text in done.stdout.strip().splitlines()[-1]) == (code, True), done.stdout
        assert "Traceback" not in done.stdout

    refused(2, "no picture is marked", retrain(store, tiny))
    refused(2, "no recipe 'lid'", retrain(store, tiny, "--recipe", "lid"))
    refused(2, "there is no store.sqlite3", retrain(store, tiny, "--store", tmp_path))
    refused(2, "give --data", retrain(store, tiny, "--data", tmp_path / "gone"))
    refused(2, "give --textures", retrain(store, tiny, "--textures", tmp_path / "gone"))
    refused(2, "--rollback trains nothing", retrain(store, tiny, "--rollback"))
    refused(2, "nothing to undo", cli("retrain", "--store", store.folder, "--recipe", NAME, "--rollback"))
    fill(store)
    picture = next(iter(store.pictures.iterate(Filter(recipe=NAME))))
    store.pictures.path(picture).unlink()
    refused(1, "is missing", retrain(store, tiny))
    assert not list((store.folder / "retrain" / NAME).glob("*/plan.json"))


def test_what_is_worse():
    from serving.comparing import worse

    old = {"misses": 1, "false_alarms": 1, "image_auroc": 0.9}
    assert worse(old, old) is None
    assert worse(old, old | {"misses": 0, "false_alarms": 2, "image_auroc": 0.891}) is None
    assert "3 misses" in worse(old, old | {"misses": 2})
    assert "image AUROC" in worse(old, old | {"image_auroc": 0.88})
    assert worse(old, {"misses": None, "false_alarms": None, "image_auroc": None}) is None


def test_a_running_service_takes_the_new_version(trained, tiny, tmp_path):
    folder = trained[0] / "models" / "backbone_0" / NAME
    with running(options_for(folder, tmp_path / "store")) as client:
        beside = Store(tmp_path / "store")  # as another process has it
        fill(beside)
        picture = next(iter(beside.pictures.iterate(Filter(recipe=NAME))))
        content = beside.pictures.path(picture).read_bytes()
        assert client.json("POST", f"{client.base}/predict", content)["version"] == 1
        assert retrain(beside, tiny, "--force").returncode == 0
        assert client.json("POST", f"{client.base}/predict", content)["version"] == 2
        assert cli("retrain", "--store", beside.folder, "--recipe", NAME, "--rollback").returncode == 0
        assert client.json("POST", f"{client.base}/predict", content)["version"] == 1
        beside.close()
