"""When a training's state is written, what lies beside it, and that a training that ends early can be tested."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers import fill, make_mvtec
from test_runs import rows, run
from test_training import assert_same_weights, batches, test_batches

from glass import GLASS
from inference import checkpoint
from inference.thresholds import HELD_OUT
from training import saving
from training.calibration import calibrate
from training.state import TrainingState

test_batches.__test__ = False
SMALL = {"step": 1, "meta_epochs": 4}


def small_glass(**settings):
    """A model that is built in no time: two convolutions, a grid of 8x8 at 64 pixels."""
    layers = OrderedDict(layer2=torch.nn.Conv2d(3, 8, 8, 8), layer3=torch.nn.Conv2d(8, 8, 2, 2))
    backbone = torch.nn.Sequential(layers).eval()
    fill(backbone, 0)
    settings = {"pretrain_embed_dimension": 16, "target_embed_dimension": 16, "dsc_hidden": 16, "lr": 1e-3} | settings
    return GLASS("cpu").load(
        backbone=backbone,
        layers_to_extract_from=("layer2", "layer3"),
        device="cpu",
        input_shape=(3, 64, 64),
        **settings,
    )


def model(folder, **settings):
    made = small_glass(**settings)
    made.set_model_dir(folder, "class")
    return made


def die_in_epoch(monkeypatch, number, error=KeyboardInterrupt):
    """The process is stopped in the second step of an epoch (from 0) of two steps."""
    real, calls = GLASS.train_step, []

    def step(self, *args):
        calls.append(1)
        if len(calls) == 2 * number + 2:
            raise error
        return real(self, *args)

    monkeypatch.setattr(GLASS, "train_step", step)


def train(folder, epochs=4, **settings):
    made = model(folder, **{**SMALL, "meta_epochs": epochs, **settings})
    val = test_batches(5) if made.select == "val" else None
    return made, made.trainer(batches(2), test_batches(), "class", val_loader=val)


def stop(folder, monkeypatch, epoch=2, killed=False, **settings):
    """Train until a step of an epoch; `killed` as by a signal that nothing can catch."""
    with monkeypatch.context() as patch:
        die_in_epoch(patch, epoch)
        if killed:
            patch.setattr(TrainingState, "conclude", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            train(folder, **settings)


def names(folder):
    return sorted(path.name for path in (folder / "class").glob("*.pth"))


def test_state_is_written_when_due_and_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "training.record.selection_value", lambda figures: figures["epoch"]
    )  # every epoch is a new best one
    real, written = saving.save, []
    monkeypatch.setattr(saving, "save", lambda state, path: written.append(path.name) or real(state, path))
    train(tmp_path / "a")
    assert written == ["ckpt.pth", "ckpt_best_3.pth", "ckpt.pth"]
    written.clear()
    monkeypatch.setattr(saving, "SAVE_EVERY", 0)
    train(tmp_path / "b")
    assert len(written) == 1 + 2 * 4
    for name in ("ckpt.pth", "ckpt_best_3.pth"):
        one, other = (checkpoint.load(tmp_path / folder / "class" / name) for folder in "ab")
        assert all(torch.equal(value, other["discriminator"][key]) for key, value in one["discriminator"].items())
        assert one.get("record") == other.get("record")


@pytest.mark.parametrize("killed", [False, True])
def test_stopped_between_two_writings_it_resumes_to_the_same(tmp_path, monkeypatch, killed):
    whole, record = train(tmp_path / "whole")
    put = saving.Saver.put

    def sometimes(self, latest, best=None):
        monkeypatch.setattr(saving, "SAVE_EVERY", 0 if latest["record"]["epoch"] in (0, 1) else np.inf)
        put(self, latest, best)

    monkeypatch.setattr(saving.Saver, "put", sometimes)
    stop(tmp_path / "parts", monkeypatch, 3, killed)
    done = checkpoint.read_latest(tmp_path / "parts" / "class")["record"]["epoch"]
    assert done == (1 if killed else 3)
    again, resumed = train(tmp_path / "parts")
    assert_same_weights(again, whole)
    assert resumed == record
    assert names(tmp_path / "parts") == names(tmp_path / "whole")


@pytest.mark.parametrize(
    "settings", [{"select": "last"}, {"eval_epochs": 4}, {"select": "val", "eval_epochs": 4}], ids=str
)
@pytest.mark.parametrize("killed", [False, True])
def test_a_training_that_ended_early_has_a_checkpoint(tmp_path, monkeypatch, settings, killed):
    if killed:
        monkeypatch.setattr(saving, "SAVE_EVERY", 0)
    stop(tmp_path, monkeypatch, 2, killed, **settings)
    assert ("ckpt_best_1.pth" in names(tmp_path)) == (not killed)
    figures = model(tmp_path, **SMALL, **settings).tester(test_batches(), "class")
    assert figures["best_epoch"] == 1
    fewer, record = train(tmp_path, 1, **settings)
    assert record["epoch"] == 2
    assert calibrate(fewer, test_batches(), "class", HELD_OUT).images == 2
    assert fewer.tester(test_batches(), "class")["image_threshold"] >= 0
    assert names(tmp_path) == ["ckpt.pth", "ckpt_best_1.pth"]
    _, more = train(tmp_path, **settings)
    assert more["epoch"] == 4
    assert names(tmp_path) == ["ckpt.pth", f"ckpt_best_{more['best']['epoch']}.pth"]


def test_last_is_the_last_also_where_a_shorter_training_had_ended_before(tmp_path, monkeypatch):
    train(tmp_path, 1, select="last")
    monkeypatch.setattr(saving, "SAVE_EVERY", 0)
    stop(tmp_path, monkeypatch, 1, killed=True, select="last")  # two more epochs, and a step
    assert names(tmp_path) == ["ckpt.pth", "ckpt_best_0.pth"]
    assert model(tmp_path, **SMALL, select="last").tester(test_batches(), "class")["best_epoch"] == 1
    train(tmp_path, 2, select="last")
    assert names(tmp_path) == ["ckpt.pth", "ckpt_best_1.pth"]


def test_a_finished_class_is_skipped_without_reading_its_state(tmp_path, monkeypatch):
    record = train(tmp_path)[1]
    folder = tmp_path / "class"
    kept = json.loads((folder / checkpoint.RECORD).read_text())
    assert kept["record"] == record
    read, load = [], torch.load

    def counted(path, *args, **how):
        read.append((path.name, how.get("mmap", False)))
        return load(path, *args, **how)

    monkeypatch.setattr(torch, "load", counted)
    assert train(tmp_path)[1] == record
    assert read == []
    for text in (None, "{", "[]", json.dumps({**kept, "checkpoint": "of another", "record": {"epoch": 0}})):
        # as results of before have none, or a process was killed between the writing of the two
        (folder / checkpoint.RECORD).unlink(missing_ok=True)
        if text is not None:
            (folder / checkpoint.RECORD).write_text(text)
        assert train(tmp_path)[1] == record
        assert set(read) == {("ckpt.pth", True)}  # its tensors stay on the disk
        read.clear()
    more, _ = train(tmp_path, 5)
    assert [mapped for _, mapped in read] == [True, False]  # its plain values, then all of it
    assert train(tmp_path / "new", 5)[1] == TrainingState(more, "class").start().plain()


def test_last_with_images_held_out_from_the_command_line(tmp_path, monkeypatch):
    data, textures = make_mvtec(tmp_path, train=16)
    net, flags = ("--select", "last", "--step", 0), ("--val_share", 0.5)
    real, calls = GLASS.train_step, []

    def step(self, *args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(GLASS, "train_step", step)
    done = run(data, textures, tmp_path / "r", *flags, net=(*net, "--meta_epochs", 9))
    assert done.exit_code == 130
    done = run(data, textures, tmp_path / "r", *flags, main=("--test", "test"), net=net)
    assert done.exit_code == 0, done.output
    assert float(rows(tmp_path / "r")["folder_disc"]["best_epoch"]) == 1
    done = run(data, textures, tmp_path / "r", *flags, net=(*net, "--meta_epochs", 1))
    assert done.exit_code == 0, done.output
    assert float(rows(tmp_path / "r")["folder_disc"]["image_threshold"]) > 0
