"""Checkpoints and trainings of the version before the code was moved into wings: they load, score the same and go on."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers import DATA, DATASET, NET, cli, make_mvtec

from glass import load_checkpoint

BEFORE = DATA / "before"


def images():
    """Noise, a dark part with a blot, other noise."""
    for seed in range(3):
        image = np.random.default_rng(seed).integers(0, 256, (64, 80, 3)).astype(np.uint8)
        if seed == 1:
            image[:] = image.mean().astype(np.uint8)
            image[20:40, 20:40] = (20, 160, 200)
        yield image


def test_a_checkpoint_of_before_scores_the_same():
    model, kept = load_checkpoint(BEFORE / "whole"), json.loads((BEFORE / "predictions.json").read_text())
    assert model.thresholds.plain() == pytest.approx(kept["thresholds"], nan_ok=True)
    for image, expected in zip(images(), kept["results"], strict=True):
        result = model.predict_image(image)
        assert result.score == pytest.approx(expected["score"], abs=1e-6)
        assert result.normalised == pytest.approx(expected["normalised"], abs=1e-6)
        assert result.decision == expected["decision"]
        assert result.map.mean() == pytest.approx(expected["map_mean"], abs=1e-6)
        assert result.map.max() == pytest.approx(expected["map_max"], abs=1e-6)
        assert abs(int(result.mask.sum()) - expected["defective_pixels"]) <= 2


def row(path):
    return next(row for row in csv.DictReader(path.open(encoding="utf-8")) if row["Row Names"] == "custom_disc")


def test_a_training_begun_before_goes_on_to_the_same_end_or_is_refused(tmp_path):
    data, textures = make_mvtec(tmp_path, train=16)
    shutil.copytree(BEFORE / "begun", tmp_path / "r/models/backbone_0/custom_disc")
    net = ["resnet18" if word == "efficientnet_lite0" else word for word in NET]
    dataset = [*DATASET, "--val_share", 0.2, "--cache_gb", 0]
    paths = ["custom", data, textures]
    done = cli("--gpu", -1, "--results_path", tmp_path / "r", *net, "--dsc_hidden", 16, *dataset, *paths)
    if "its training in" in done.stdout:  # another version of OpenCV writes other files
        assert done.returncode == 2
        assert "was started with other images" in done.stdout.strip().splitlines()[-1]
        return
    assert done.returncode == 0, done.stdout
    assert "resumed after 1 of 2 epochs" in done.stdout
    found, expected = row(tmp_path / "r/results.csv"), row(BEFORE / "results.csv")
    assert found.keys() == expected.keys()
    for column, value in expected.items():
        if column != "Row Names":
            assert float(found[column]) == pytest.approx(float(value), abs=2e-3, nan_ok=True), column
