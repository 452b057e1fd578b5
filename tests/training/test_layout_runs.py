"""A short run of the command line on each data set's own layout."""

import csv
import shutil

import pytest
import torch
from helpers import NET, cli, make_mvtec, make_visa
from test_runs import run
from test_scripts import script

from datasets import MVTecLayout

SMALL = "--resize 64 --imagesize 64 --batch_size 4 --num_workers 0"


def figures(results):
    with (results / "results.csv").open() as file:
        return {row["Row Names"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", ["mvtec", "mpdd", "wfdd"])
@pytest.mark.parametrize("place", ["{c}/ground_truth/blot", "ground_truth/{c}/blot", "ground_truth/blot"])
def test_masks_count_wherever_they_lie(tmp_path, name, place):
    data, textures = make_mvtec(tmp_path)
    masks = (data / "disc/ground_truth/blot").rename(tmp_path / "masks")
    (data / "disc/ground_truth").rmdir()
    target = data / place.format(c="disc")
    target.parent.mkdir(parents=True, exist_ok=True)
    masks.rename(target)
    done = run(data, textures, tmp_path / "r", name=name)
    assert done.exit_code == 0, done.output
    row = figures(tmp_path / "r")[f"{name}_disc"]
    assert 0 <= float(row["pixel_pro"]) <= 1  # nan, if no mask were found
    best = next((tmp_path / f"r/models/backbone_0/{name}_disc").glob("ckpt_best_*.pth"))
    assert torch.load(best, weights_only=True)["config"]["class_name"] == f"{name}_disc"


def test_visa(tmp_path):
    _, textures = make_mvtec(tmp_path)
    done = run(make_visa(tmp_path / "visa"), textures, tmp_path / "r", name="visa")
    assert done.exit_code == 0, done.output
    assert 0 <= float(figures(tmp_path / "r")["visa_candle"]["pixel_ap"]) <= 1


def test_shared_masks_of_two_classes_are_not_guessed(tmp_path):
    data, textures = make_mvtec(tmp_path, ("cup", "disc"))
    masks = (data / "disc/ground_truth").rename(data / "ground_truth")
    assert list((masks / "blot").iterdir())
    shutil.rmtree(data / "cup/ground_truth")
    done = run(data, textures, tmp_path / "r", name="mvtec")
    assert done.exit_code == 2
    assert "could hold masks of cup or disc; put them into" in done.output.strip().splitlines()[-1]


def test_weak_defects_are_scored_by_their_script(tmp_path):
    data, textures = make_mvtec(tmp_path, ("tile",))
    done = run(data, textures, tmp_path / "r", name="mvtec")
    assert done.exit_code == 0, done.output
    weak = tmp_path / "MAD-sys"
    made = cli("mad-sys", data, textures, weak, "--beta", "0.1", "0.9", "--count", 4)
    assert made.returncode == 0, made.stdout
    assert made.stdout.strip().endswith(f"{weak}: Beta_0.1, Beta_0.9, each with 7 test images of tile")
    assert len(MVTecLayout(weak / "Beta_0.1").test("tile")) == 7
    done = script(
        "run-mad-sys.sh", "--gpu", "-1", cwd=tmp_path, DATAPATH=weak, CLASSES="tile", MODELS=tmp_path / "r/models",
        NET_FLAGS=" ".join(NET[1:]), DATASET_FLAGS=f"{SMALL} --fg 0 --distribution 2", RESULTS=tmp_path / "mad",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    rows = [figures(tmp_path / "mad" / f"Beta_{b}")["mvtec_tile"] for b in ("0.1", "0.9")]
    assert rows[0] != rows[1]
    assert all(0 <= float(row["pixel_pro"]) <= 1 for row in rows)
