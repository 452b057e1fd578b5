"""Regions above the pixel threshold: as a flood fill finds them, in the image's own pixels, in every output."""

import csv
import json

import numpy as np
import pytest
import reference
import torch
from helpers import cli, noise_image
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from glass import load_checkpoint
from inference import checkpoint
from inference.predict import as_json
from inference.regions import MOST_LISTED, Region, as_cell, find_regions
from inference.table import EARLIER_COLUMNS, PredictionsTable

MAPS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([np.float32(v) for v in (0, 0.2, 0.5, 0.7, 1)]))
)


@given(MAPS, st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(1, 6))
def test_regions_are_those_of_a_flood_fill(anomaly_map, threshold, min_area):
    found = find_regions(anomaly_map, anomaly_map > threshold, min_area)
    expected = reference.regions(anomaly_map, threshold, min_area)
    assert [(r.box, r.area, r.highest) for r in found] == [(box, area, highest) for box, area, _, highest in expected]
    for region, (_, _, centre, _) in zip(found, expected, strict=True):
        assert region.centre == pytest.approx(centre)


def test_corners_touch_and_the_order_is_that_of_the_peaks():
    anomaly_map = np.zeros((6, 8), np.float32)
    anomaly_map[0, 0], anomaly_map[1, 1], anomaly_map[4, 5:8] = 0.6, 0.7, (0.8, 0.9, 0.8)
    assert find_regions(anomaly_map, anomaly_map > 0.5) == (
        Region((5, 4, 3, 1), 3, (6.0, 4.0), pytest.approx(0.9)), Region((0, 0, 2, 2), 2, (0.5, 0.5), pytest.approx(0.7)),
    )  # fmt: skip
    assert [r.area for r in find_regions(anomaly_map, anomaly_map > 0.5, min_area=3)] == [3]


def test_a_cell_lists_the_first_regions_and_stays_short():
    assert as_cell(None) == ""
    assert as_cell(()) == "[]"
    one = Region((30_000, 30_000, 29_999, 29_999), 899_940_001, (29_999.25, 29_999.75), 0.123456789)
    text = as_cell([one] * (MOST_LISTED + 1))
    assert len(text) < 32_767  # characters of a cell in Excel
    listed = json.loads(text)
    assert len(listed) == MOST_LISTED
    assert listed[0] == {
        "box": [30_000, 30_000, 29_999, 29_999], "area": 899_940_001, "centre": [29_999.2, 29_999.8], "highest": 0.123457,
    }  # fmt: skip


def defective(tiny):
    return tiny[0] / "disc/test/blot"


def rows_of(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sensitive(folder, tiny, tmp_path_factory):
    """A checkpoint with a pixel threshold that a tenth of the pixels exceed."""
    pictures = sorted(defective(tiny).iterdir())
    maps = [result.map for result in load_checkpoint(folder).predict_images(pictures)]
    state = torch.load(checkpoint.find_best(folder)[0], weights_only=True)
    state["thresholds"]["pixel"] = float(np.quantile(maps, 0.9))
    path = tmp_path_factory.mktemp("sensitive") / "ckpt_best_0.pth"
    torch.save(state, path)
    return path


def test_table_lines_and_library_tell_the_same_regions(sensitive, tiny, tmp_path):
    model = load_checkpoint(sensitive)
    done = cli("predict", defective(tiny), "--checkpoint", sensitive, "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stdout
    # the progress bar has the same stream here, and ends without a new line
    lines = [json.loads(line[line.index("{") :]) for line in done.stdout.splitlines() if "{" in line]
    rows, marked = rows_of(tmp_path), 0
    assert len(lines) == len(rows) > 0
    for row, line in zip(rows, lines, strict=True):
        result = model.predict_image(row["path"])
        assert [r.area for r in result.regions] == [
            area for _, area, _, _ in reference.regions(result.map, model.thresholds.pixel)
        ]
        assert sum(r.area for r in result.regions) == result.mask.sum()
        assert int(row["region_count"]) == line["region_count"] == len(result.regions)
        assert json.loads(row["regions"]) == line["regions"] == [r.plain() for r in result.regions[:MOST_LISTED]]
        marked += len(result.regions)
    assert marked  # otherwise nothing was compared


def test_min_area_drops_small_regions_and_nothing_else(folder, tiny, tmp_path):
    path = sorted(defective(tiny).iterdir())[0]
    every, large = load_checkpoint(folder), load_checkpoint(folder, min_area=20)
    for model in (every, large):  # so that there are regions of many sizes
        model.result = lambda score, anomaly_map, judge=model: type(judge).result(judge, score, noise)
    noise = np.random.default_rng(0).random((64, 64), np.float32) * 2 * every.thresholds.pixel
    before, after = every.predict_image(path), large.predict_image(path)
    assert (before.score, before.decision) == (after.score, after.decision)
    assert (before.mask == after.mask).all()
    assert after.regions == tuple(r for r in before.regions if r.area >= 20)
    assert len(after.regions) < len(before.regions)
    assert every.identity() != large.identity()


def test_another_min_area_does_not_continue_a_table(folder, tiny, tmp_path):
    arguments = ("predict", defective(tiny), "--checkpoint", folder, "--out", tmp_path)
    assert cli(*arguments, "--min_area", 5).returncode == 0
    assert cli(*arguments, "--min_area", 5, "--continue").returncode == 0
    refused = cli(*arguments, "--min_area", 6, "--continue")
    assert refused.returncode == 2
    assert "another --min_area (min_area)" in refused.stdout
    assert cli(*arguments, "--min_area", 0).returncode == 2


def test_regions_lie_in_the_original_image(model):
    """The pixels of a region are those of the mask, also in an image that is resized and cropped."""
    model.thresholds, kept = type(model.thresholds)(0.0, 0.0), model.thresholds
    try:
        result = model.predict_image(noise_image(150, 90))
    finally:
        model.thresholds = kept
    assert result.mask.shape == (90, 150)
    (region,) = [r for r in result.regions if r.area == max(r.area for r in result.regions)]
    x, y, width, height = region.box
    assert result.map[y : y + height, x : x + width].max() == region.highest == result.map.max()
    assert x + width <= 150
    assert y + height <= 90


def test_without_thresholds_there_are_no_regions_to_tell(model):
    kept, model.thresholds = model.thresholds, None
    try:
        result = model.predict_image(noise_image(64, 64))
    finally:
        model.thresholds = kept
    assert result.regions is None
    row = {"path": "a", "score": "0.1", "error": "", "region_count": "", "regions": as_cell(result.regions)}
    assert as_json(row)["regions"] is as_json(row)["region_count"] is None


def test_a_table_of_an_earlier_version_is_continued(tmp_path):
    (tmp_path / "predictions.csv").write_text(",".join(EARLIER_COLUMNS) + "\n/a.png,0.5,0.5,0,0.01,,\n")
    table = PredictionsTable(tmp_path, True, {}, False)
    table.add([{"path": "/b.png", "score": "0.7", "region_count": 0, "regions": "[]"}])
    table.close()
    assert table.done == {"/a.png"}
    first, second = rows_of(tmp_path)
    assert (first["score"], first["regions"], first["region_count"]) == ("0.5", "", "")
    assert (second["score"], second["regions"], second["region_count"]) == ("0.7", "[]", "0")
