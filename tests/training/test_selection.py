"""Which epoch is kept, on what it is chosen, and the thresholds that go with it."""

import csv
import json
import math
import re

import numpy as np
import pytest
import torch
from helpers import make_glass, make_mvtec
from hypothesis import given
from hypothesis import strategies as st
from test_runs import rows, run
from test_training import Killed, batches, model, test_batches

from datasets import ImageSettings, TrainDataset
from datasets.base import Sample
from datasets.textures import open_textures
from datasets.validation import DRAWS, GoodImages, ValidationDataset, hold_out
from inference import checkpoint
from inference import thresholds as thresholds_module
from inference.thresholds import HELD_OUT, TRAINING, Thresholds, best_f1, normalise, quantile
from training.calibration import calibrate
from training.state import TrainingState
from utils import InputError

test_batches.__test__ = False


# ------------------------------------------------------------------------------------ thresholds


@given(count=st.integers(1, 300), share=st.sampled_from([0.0, 0.01, 0.05, 0.3]), seed=st.integers(0, 2**16))
def test_threshold_is_the_lowest_that_keeps_the_rate(count, share, seed):
    scores = np.random.default_rng(seed).random(count)
    threshold = quantile(scores, share)
    assert (scores > threshold).mean() <= share + 1e-12
    lower = scores[scores < threshold]
    if len(lower):
        assert (scores > lower.max()).mean() > share


@given(threshold=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_normalised_scores_keep_their_order_and_put_the_threshold_in_the_middle(threshold, seed):
    scores = np.sort(np.random.default_rng(seed).random(50))
    made = normalise(scores, threshold)
    assert (np.diff(made) >= 0).all()
    assert made.min() >= 0
    assert made.max() <= 1
    if 0.01 < threshold < 0.99:
        assert float(normalise(threshold, threshold)) == pytest.approx(0.5)
        clear = np.abs(scores - threshold) > 1e-4
        assert ((made > 0.5) == (scores > threshold))[clear].all()


@pytest.mark.parametrize("threshold", [0.0, 1e-9, 0.5, 1.0])
def test_normalised_decision_is_the_decision_at_any_threshold(threshold):
    assert float(normalise(threshold, threshold)) <= 0.5
    above = min(1.0, threshold + 5e-7)
    assert float(normalise(above, threshold)) >= 0.5 or above == threshold
    assert (np.diff(normalise(np.linspace(0, 1, 101), threshold)) >= 0).all()


def test_best_f1_lies_between_the_two_kinds():
    assert best_f1([0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1]) == pytest.approx(0.4)
    assert math.isnan(best_f1([0.1, 0.2], [0, 0]))
    assert best_f1([0.5, 0.5], [0, 1]) < 0.5  # nothing lies below: all are taken for anomalous


def test_what_a_threshold_from_few_images_says():
    made = thresholds_module.calibrate([0.1, 0.2, 0.3], [0.05, 0.1, 0.15], 0.01, TRAINING)
    assert (made.image, made.pixel, made.reached, made.images) == (0.3, 0.15, 0.0, 3)
    assert "too few images to tell a share of 1 %" in made.describe()
    assert "--val_share 0.1 holds images out" in made.describe()
    assert Thresholds.of(made.plain()).image == made.image
    assert Thresholds.of(None) is None


# ------------------------------------------------------------------------------------ validation


def samples(count, tmp_path):
    return [Sample(tmp_path / f"{i:03d}.png") for i in range(count)]


def test_held_out_images_are_few_fixed_and_by_name(tmp_path):
    some = samples(200, tmp_path)
    held = hold_out(some, 0.1, 3, "c")
    assert len(held) == 20
    assert held == hold_out(some, 0.1, 3, "c") != hold_out(some, 0.1, 4, "c")
    elsewhere = [Sample(tmp_path / "moved" / s.path.name) for s in some]
    assert hold_out(elsewhere, 0.1, 3, "c") == held
    assert len(hold_out(samples(30, tmp_path), 0.1, 0, "c")) == 8
    assert hold_out(some, 0, 0, "c") == []


@pytest.mark.parametrize(("count", "share"), [(15, 0.1), (40, 0.9)])
def test_too_few_images_to_hold_some_out(tmp_path, count, share):
    with pytest.raises(InputError, match=f"{count} good images"):
        hold_out(samples(count, tmp_path), share, 0, "c")


@pytest.mark.parametrize("augment", [False, True])
def test_validation_shows_all_held_out_images_and_every_second_with_a_defect(tmp_path, augment):
    data, textures = make_mvtec(tmp_path, train=6)
    options = {"hflip": 0.5, "rotate_degrees": 5.0} if augment else {}
    settings = ImageSettings(resize=64, imagesize=64, **options)
    train = TrainDataset(
        [Sample(p) for p in sorted((data / "disc/train/good").iterdir())], settings, open_textures(textures), (8, 8)
    )
    val = ValidationDataset(train)
    assert len(val) == 6 + 3 * DRAWS
    items, again = [val[i] for i in range(len(val))], [val[i] for i in range(len(val))]
    assert [item["is_anomaly"] for item in items] == [False] * 6 + [True] * 3 * DRAWS
    for item, same in zip(items, again, strict=True):
        assert torch.equal(item["image"], same["image"])
    for i in range(3 * DRAWS):
        changed = (items[6 + i]["image"] != items[2 * (i // DRAWS)]["image"]).any(0)
        mask = items[6 + i]["mask_gt"][0] > 0
        assert mask.any()
        assert not (changed & ~mask).any()
        assert changed[mask].float().mean() > 0.5
    assert [item["index"] for item in items] == list(range(len(val)))
    assert not torch.equal(items[6]["mask_gt"], items[7]["mask_gt"])
    assert torch.equal(GoodImages(train)[3]["image"], items[3]["image"])


# --------------------------------------------------------------------------------- choice of epoch


class Untouchable:
    dataset = ()

    def __iter__(self):
        raise AssertionError("a test image was looked at")


def test_validation_chooses_and_no_test_image_is_looked_at(tmp_path):
    ours = model(tmp_path, select="val")
    record = ours.trainer(batches(), Untouchable(), "class", val_loader=test_batches())
    assert record["last"]["epoch"] == 3
    best = max(range(4), key=lambda e: sum(record["history"][e][k] for k in ("image_auroc", "pixel_auroc")))
    assert record["best"]["epoch"] == best == checkpoint.find_best(ours.model_dir)[1]


def test_validation_is_needed_to_choose_by_it(tmp_path):
    with pytest.raises(InputError, match="needs a validation set"):
        model(tmp_path, select="val").trainer(batches(), test_batches(), "class")


def test_last_keeps_the_last_whatever_the_test_set_says(tmp_path, monkeypatch):
    monkeypatch.setattr("training.record.selection_value", lambda figures: -figures["epoch"])
    ours = model(tmp_path, select="last")
    ours.trainer(batches(), test_batches(), "class")
    assert checkpoint.find_best(ours.model_dir)[1] == 3


def test_patience_ends_a_training_that_gets_no_better(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("training.record.selection_value", lambda figures: -abs(figures["epoch"] - 1))
    ours = model(tmp_path, meta_epochs=10, patience=3)
    with caplog.at_level("INFO"):
        record = ours.trainer(batches(), test_batches(), "class")
    assert (record["epoch"], record["best"]["epoch"], len(record["history"])) == (5, 1, 5)
    assert "stopped after 5 epochs: no better one in 3 evaluations" in caplog.text
    again = model(tmp_path, meta_epochs=10, patience=3).trainer(batches(), test_batches(), "class")
    assert again == record
    more = model(tmp_path, meta_epochs=10, patience=5).trainer(batches(), test_batches(), "class")
    assert more["epoch"] == 7  # stale are 2, 3, 4, 5, 6
    with pytest.raises(InputError, match="patience"):
        model(tmp_path / "last", patience=1, select="last")


@pytest.mark.parametrize("select", ["last", "val"])
def test_killed_and_resumed_chooses_the_same(tmp_path, monkeypatch, select):
    whole = model(tmp_path / "a", select=select)
    record = whole.trainer(batches(), test_batches(), "class", val_loader=test_batches(5))
    with monkeypatch.context() as patch:

        def dying(self, record, is_best):
            if record.epoch == 3:
                raise Killed
            return save(self, record, is_best)

        save = TrainingState.save_epoch
        patch.setattr(TrainingState, "save_epoch", dying)
        with pytest.raises(Killed):
            model(tmp_path / "b", select=select).trainer(batches(), test_batches(), "class", val_loader=test_batches(5))
    resumed = model(tmp_path / "b", select=select)
    assert resumed.trainer(batches(), test_batches(), "class", val_loader=test_batches(5)) == record


# ------------------------------------------------------------------------------------- calibration


def test_checkpoint_carries_thresholds_and_the_tester_uses_them(tmp_path):
    ours = model(tmp_path, false_alarm=0.5)
    ours.trainer(batches(), test_batches(), "class")
    made = calibrate(ours, test_batches(), "class", HELD_OUT)
    state = checkpoint.load(checkpoint.find_best(ours.model_dir)[0])
    assert state["thresholds"] == made.plain()
    assert made.images == 2
    found = ours.predict(test_batches())
    good = np.sort(found.scores[~found.labels])
    assert made.image == pytest.approx(float(good[0]))  # one of two may lie above
    assert made.pixel == pytest.approx(float(np.sort(found.maps[~found.labels].max((1, 2)))[0]))
    assert not math.isnan(made.image_f1)
    assert not math.isnan(made.pixel_f1)
    figures = ours.tester(test_batches(), "class")
    assert figures["image_threshold"] == made.image
    assert figures["false_alarms"] == pytest.approx((found.scores[~found.labels] > made.image).mean())
    assert figures["image_f1"] <= figures["image_f1_max"] + 1e-12
    assert figures["pixel_f1"] <= figures["pixel_f1_max"] + 1e-12


def test_calibration_is_kept_until_another_rate_is_asked_for(tmp_path, monkeypatch):
    ours = model(tmp_path)
    ours.trainer(batches(), test_batches(), "class")
    made = calibrate(ours, test_batches(), "class", HELD_OUT)
    assert calibrate(ours, Untouchable(), "class", HELD_OUT) == made
    other = model(tmp_path, false_alarm=0.5)
    assert calibrate(other, test_batches(), "class", HELD_OUT).false_alarm == 0.5


def test_checkpoint_without_thresholds_is_tested_all_the_same(tmp_path):
    ours = model(tmp_path)
    ours.trainer(batches(), test_batches(), "class")
    figures = ours.tester(test_batches(), "class")
    assert math.isnan(figures["image_threshold"])
    assert math.isnan(figures["image_f1"])
    assert 0 <= figures["image_f1_max"] <= 1


# ------------------------------------------------------------------------------------ command line


def test_select_val_on_good_images_alone(tmp_path):
    _, textures = make_mvtec(tmp_path)
    data, _ = make_mvtec(tmp_path / "more", train=20)
    for kind in ("test", "ground_truth"):
        for file in sorted((data / "disc" / kind).rglob("*.png")):
            file.unlink()
    done = run(data, textures, tmp_path / "r", net=("--select", "val", "--patience", 5, "--false_alarm", 0.2))
    assert done.exit_code == 0, done.output
    folder = tmp_path / "r" / "models" / "backbone_0" / "folder_disc"
    state = checkpoint.load(checkpoint.find_best(folder)[0])
    assert state["thresholds"]["images"] == 8
    assert state["thresholds"]["source"] == HELD_OUT
    assert state["thresholds"]["image_f1"] == state["thresholds"]["image_f1"]  # not nan
    with open(tmp_path / "r" / "splits" / "folder_disc.csv", newline="") as file:
        parts = [row["part"] for row in csv.DictReader(file)]
    assert (parts.count("validation"), parts.count("train")) == (8, 12)
    assert not (tmp_path / "r" / "results.csv").exists()
    text = (tmp_path / "r" / "report.html").read_text()
    assert "no test images" in text.lower()
    # something to look at all the same: 8 held-out pictures, 4 of them four times with a synthetic defect
    assert "good images that were held out of the training, some of them shown again with a synthetic defect" in text
    assert len(re.findall(r'<figure class="card"[^>]*with a synthetic defect', text)) == 16
    assert text.count('<figure class="card"') == 24
    assert "AUROC on the test set" not in text
    assert not (tmp_path / "r" / "per_image.csv").exists()
    # the same command again keeps them, though what was kept of the class is damaged; without images held out they are those of the training
    (tmp_path / "r" / "report" / "folder_disc.json").write_text("no")
    assert run(data, textures, tmp_path / "r", net=("--select", "val", "--patience", 5)).exit_code == 0
    assert (tmp_path / "r" / "report.html").read_text().count('<figure class="card"') == 24
    assert run(data, textures, tmp_path / "s", net=("--select", "last")).exit_code == 0
    text = (tmp_path / "s" / "report.html").read_text()
    assert "good images of the training itself" in text
    assert text.count('<figure class="card"') == 20


def test_val_share_is_fixed_by_the_training(tmp_path):
    data, textures = make_mvtec(tmp_path, train=20)
    assert run(data, textures, tmp_path / "r", "--val_share", 0.4).exit_code == 0
    assert float(rows(tmp_path / "r")["folder_disc"]["image_threshold"]) > 0
    again = run(data, textures, tmp_path / "r", net=("--meta_epochs", 3))
    assert again.exit_code == 2
    assert "val_share was 0.4, is 0.0" in again.output


@pytest.mark.parametrize(
    ("net", "dataset", "says"),
    [
        (("--select", "val"), (), "there are 6 good images"),
        (("--select", "val"), ("--val_share", 0), "--select val needs images held out"),
        (("--select", "last", "--patience", 2), (), "--patience needs metrics to compare"),
        (("--select", "median"), (), "'median' is not one of 'best', 'last', 'val'"),
        (("--false_alarm", 1), (), "not in the range"),
    ],
)
def test_choices_that_cannot_work(tmp_path, net, dataset, says):
    data, textures = make_mvtec(tmp_path)
    done = run(data, textures, tmp_path / "r", *dataset, net=net)
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert not (tmp_path / "r" / "models").exists()


def test_pictures_of_every_evaluation(tmp_path):
    data, textures = make_mvtec(tmp_path)
    assert run(data, textures, tmp_path / "r", main=("--pictures", "every_eval")).exit_code == 0
    folder = tmp_path / "r" / "training" / "folder_disc"
    assert len(list((folder / "epoch_0").glob("*.png"))) == 6
    assert len(list(folder.glob("*.png"))) == 6


def test_history_tells_each_epoch(tmp_path):
    data, textures = make_mvtec(tmp_path)
    assert run(data, textures, tmp_path / "r").exit_code == 0
    kept = json.loads((tmp_path / "r" / "report" / "folder_disc.json").read_text())
    assert [row["epoch"] for row in kept["history"]] == [0, 1]
    assert all(row["loss"] > 0 and "image_auroc" in row for row in kept["history"])


def test_settings_unknown_to_the_choice(tmp_path):
    with pytest.raises(InputError, match="must be one of best, last, val"):
        make_glass(select="first")


def test_a_checkpoint_without_its_training_is_not_called_held_out(tmp_path):
    data, textures = make_mvtec(tmp_path, train=20)
    assert run(data, textures, tmp_path / "r").exit_code == 0
    folder = tmp_path / "r" / "models" / "backbone_0" / "folder_disc"
    (folder / "ckpt.pth").unlink()
    done = run(data, textures, tmp_path / "r", net=("--select", "val"))
    assert done.exit_code == 0, done.output
    assert checkpoint.load(checkpoint.find_best(folder)[0])["thresholds"]["source"] == TRAINING
    assert "the epoch was chosen on the test set" in done.output
