"""What an earlier run left: other training images are refused, other test images are not, damage says what to do."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from helpers import last_line, make_mvtec, spoil
from test_runs import run

from datasets import inventory
from datasets.inventory import Inventory, fingerprint
from inference import checkpoint
from utils import WorkError

SHARE = ("--val_share", 0.4, "--fg", 1)
ONE = ("--meta_epochs", 1, "--select", "last")


def own(root):
    """The class disc with 20 good images, foreground masks of all of them, and defects but no good test image."""
    data, textures = make_mvtec(root, train=20)
    (root / "own").mkdir()
    disc = (data / "disc").rename(root / "own" / "disc")
    (disc / "train" / "good").rename(disc / "good")
    (disc / "train").rmdir()
    (disc / "test" / "blot").rename(disc / "blot")
    shutil.rmtree(disc / "test")
    for image in (disc / "good").iterdir():
        mask = root / "own" / "fg_mask" / "disc" / image.name
        mask.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(mask), np.full((64, 64), 255, np.uint8))
    return root / "own", textures


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(data path, textures, results) of a finished training."""
    root = tmp_path_factory.mktemp("earlier")
    data, textures = own(root)
    first = run(data, textures, root / "r", *SHARE, net=ONE)
    assert first.exit_code == 0, first.output
    return data, textures, root / "r"


@pytest.fixture
def moved(done, tmp_path):
    """The same pictures at another place."""
    return shutil.copytree(done[0], tmp_path / "moved")


def snapshot(results):
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in results.rglob("*") if p.is_file()}


def change(data, how):
    good = data / "disc" / "good"
    if how == "added":
        shutil.copy(good / "000.png", good / "new.png")
        shutil.copy(data / "fg_mask/disc/000.png", data / "fg_mask/disc/new.png")
    elif how == "removed":
        (good / "003.png").unlink()
    elif how == "replaced":
        content = cv2.imread(str(good / "004.png"))
        cv2.imwrite(str(good / "004.png"), 255 - content)
    elif how == "mask":
        cv2.imwrite(str(data / "fg_mask/disc/005.png"), np.full((64, 64), 254, np.uint8))
    elif how == "good tests":  # the images held out for the test are then trained on
        (data / "disc/test/good").mkdir(parents=True)
        (data / "disc/good").rename(data / "disc/train_good")
        (data / "disc/train").mkdir()
        (data / "disc/train_good").rename(data / "disc/train/good")
        shutil.copy(data / "disc/train/good/000.png", data / "disc/test/good/000.png")


@pytest.mark.parametrize(
    ("how", "net", "says"),
    [
        (
            "added",
            (),
            "20 then in {then}, 21 now in {now}, 1 added (such as disc/good/new.png), foreground masks: 1 added",
        ),
        ("removed", (), "20 then in {then}, 19 now in {now}, 1 removed (such as disc/good/003.png)"),
        ("replaced", (), "20 then in {then}, 20 now in {now}, 1 changed (such as disc/good/004.png); give"),
        ("replaced", ("--meta_epochs", 2), "1 changed (such as disc/good/004.png); give"),
        ("mask", (), "20 now in {now}, foreground masks: 1 changed (such as fg_mask/disc/005.png); give"),
        ("good tests", (), "20 added (such as disc/train/good/000.png), 20 removed (such as disc/good/000.png)"),
    ],
)
def test_other_training_images_are_refused_and_nothing_is_changed(done, moved, how, net, says):
    data, textures, results = done
    change(moved, how)
    before = snapshot(results)
    again = run(moved, textures, results, *SHARE, net=(*ONE, *net))
    assert again.exit_code == 2, again.output
    assert says.format(then=data, now=moved) in last_line(again)
    assert "give another --results_path, restore the images, or delete" in last_line(again)
    assert snapshot(results) == before


def test_the_same_images_elsewhere_and_other_test_images_go_on(done, moved, tmp_path):
    _, textures, results = done
    copy = shutil.copytree(results, tmp_path / "copy")
    shutil.copy(moved / "disc/blot/000.png", moved / "disc/blot/new.png")
    folder = copy / "models/backbone_0/folder_disc"
    before = snapshot(folder)
    again = run(moved, textures, copy, *SHARE, net=ONE)
    assert again.exit_code == 0, again.output
    assert "training finished before (epochs: 1), skipped" in again.output
    assert snapshot(folder) == before  # its thresholds as well
    change(moved, "added")
    tested = run(
        moved, textures, tmp_path / "t", *SHARE, net=ONE, main=("--test", "test", "--models_path", copy / "models")
    )
    assert tested.exit_code == 0, tested.output
    assert (tmp_path / "t/eval/folder_disc/blot_new.png").exists()


def test_a_class_that_was_trained_on_other_images_stops_the_run_before_the_first_class(done, moved, tmp_path):
    _, textures, results = done
    copy = shutil.copytree(results, tmp_path / "copy")
    shutil.copytree(moved / "disc", moved / "cup")
    shutil.copytree(moved / "fg_mask/disc", moved / "fg_mask/cup")
    change(moved, "replaced")
    again = run(moved, textures, copy, *SHARE, net=ONE)
    assert again.exit_code == 2, again.output
    assert "class folder_disc: its training in" in last_line(again)
    assert not (copy / "models/backbone_0/folder_cup").exists()


def edit_checkpoints(folder, edit):
    for path in folder.glob("*.pth"):
        state = torch.load(path, weights_only=True)
        edit(state)
        torch.save(state, path)


def test_a_checkpoint_of_an_earlier_version_is_taken_up_and_knows_its_images_from_then_on(done, moved, tmp_path):
    _, textures, results = done
    copy = shutil.copytree(results, tmp_path / "copy")
    folder, split = copy / "models/backbone_0/folder_disc", (copy / "splits/folder_disc.csv").read_bytes()

    def forget(state):
        for key in ("data", "data_path", "data_images", "verdict"):
            del state["config"][key]
        state.get("thresholds", {}).pop("data", None)

    edit_checkpoints(folder, forget)
    (folder / "data.json").unlink()
    again = run(moved, textures, copy, *SHARE, net=ONE)
    assert again.exit_code == 0, again.output
    assert "of an earlier version, does not say which images it was trained on" in again.output
    assert "folder_disc: thresholds: " in again.output  # of which images the old ones were, nobody knows
    assert (copy / "splits/folder_disc.csv").read_bytes() == split
    assert not (folder / "data.json").exists()
    again = run(moved, textures, copy, *SHARE, net=(*ONE, "--meta_epochs", 2))
    assert again.exit_code == 0, again.output
    config = checkpoint.config_of(folder)
    assert inventory.load(folder, config["data"]).images == config["data_images"] == 20
    change(moved, "removed")
    (folder / "data.json").unlink()  # the list is lost: what it would name is left out, no more
    again = run(moved, textures, copy, *SHARE, net=(*ONE, "--meta_epochs", 2))
    assert again.exit_code == 2
    assert f"20 then in {moved}, 19 now in {moved}; give another" in last_line(again)


def test_images_that_were_left_out_as_damaged_are_no_other_images(tmp_path):
    data, textures = make_mvtec(tmp_path, train=3)
    shutil.rmtree(data / "disc/test")
    bad = spoil(data / "disc/train/good/002.png")
    for epochs, dataset in ((1, ("--skip_bad",)), (1, ()), (2, ("--skip_bad",))):
        again = run(data, textures, tmp_path / "r", *dataset, net=("--meta_epochs", epochs))
        assert again.exit_code == 0, again.output
    bad.unlink()
    assert run(data, textures, tmp_path / "r", net=("--meta_epochs", 2)).exit_code == 0


# ----------------------------------------------------------------------------------------- inventory


def test_a_fingerprint_sees_what_changed_at_the_same_size(tmp_path, monkeypatch):
    file = tmp_path / "a.bin"
    for whole in (1 << 20, 1000):  # read whole, and in blocks
        monkeypatch.setattr(inventory, "WHOLE", whole)
        monkeypatch.setattr(inventory, "BLOCK", 64)
        content = bytearray(np.random.default_rng(0).integers(0, 256, 50_000, np.uint8))
        file.write_bytes(content)
        before = fingerprint(file)
        shutil.copy(file, tmp_path / "b.bin")
        assert fingerprint(tmp_path / "b.bin") == before
        for start in range(0, 50_000, 10_000):
            other = bytearray(content)
            other[start : start + 1000] = bytes(1000)
            file.write_bytes(other)
            assert fingerprint(file) != before
    with pytest.raises(WorkError, match="cannot read"):
        fingerprint(tmp_path / "none")


def test_an_inventory_is_of_names_and_contents_wherever_they_lie(tmp_path):
    for root in ("a", "b"):
        (tmp_path / root).mkdir()
        for name in ("x", "\udcff\ny"):
            (tmp_path / root / name).write_text(name.encode("utf-8", "replace").decode())
    first, second = (
        Inventory.of(tmp_path / root, {"train": sorted((tmp_path / root).iterdir())}, {}) for root in ("a", "b")
    )
    assert first.digest == second.digest
    assert first.differences(second) == ""
    assert first.only([tmp_path / "a" / "x"]).digest != first.digest
    moved = Inventory(first.root, {**first.files, "x": ("test", first.files["x"][1])})
    assert moved.digest != first.digest
    assert first.differences(moved) == "1 changed (such as x)"
    first.save(tmp_path)
    assert inventory.load(tmp_path, first.digest) == first
    assert inventory.load(tmp_path, moved.digest) is None
    (tmp_path / inventory.FILE).write_text(json.dumps({"files": 3}))
    assert inventory.load(tmp_path, first.digest) is None


# ------------------------------------------------------------------------------ damaged checkpoints


def test_a_damaged_state_beside_a_sound_model_says_what_to_do(done, moved, tmp_path):
    _, textures, results = done
    copy = shutil.copytree(results, tmp_path / "copy")
    folder = copy / "models/backbone_0/folder_disc"
    latest = folder / checkpoint.LATEST
    latest.write_bytes(latest.read_bytes()[:1000])
    before = snapshot(copy)
    again = run(moved, textures, copy, *SHARE, net=ONE)
    assert again.exit_code == 1
    assert last_line(again).endswith(
        f"; ckpt_best_0.pth beside it is intact: --test test tests it, delete {latest} to keep that model as it is, or "
        f"delete {folder} to train again"
    )
    assert snapshot(copy) == before
    assert run(moved, textures, copy, *SHARE, net=ONE, main=("--test", "test")).exit_code == 0
    best = folder / "ckpt_best_0.pth"
    whole = best.read_bytes()
    best.write_bytes(b"nothing")
    for path in (latest, best):
        with pytest.raises(WorkError, match=rf"{path} is not a checkpoint.*; delete {folder} to train again$"):
            checkpoint.load(path)
    best.write_bytes(whole)
    latest.unlink()
    again = run(moved, textures, copy, *SHARE, net=ONE)
    assert again.exit_code == 0, again.output
    assert "is already trained (no ckpt.pth beside it)" in again.output
