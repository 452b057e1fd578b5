"""Real images and real features, in the shortest form that still proves something."""

import csv
import re

import pytest
from helpers import cli_process


@pytest.mark.real
def test_one_short_epoch_tells_broken_bottles_from_good_ones(real, tmp_path):
    done = cli_process(  # it has loader workers, whose ends this process would be told of
        "--gpu", -1, "--results_path", tmp_path,
        "net", "-b", "resnet18", "--weights", real / "weights" / "resnet18_in1k_to_layer3.pth",
        "--pretrain_embed_dimension", 384, "--target_embed_dimension", 384, "--meta_epochs", 1, "--limit", 120,
        "dataset", "--fg", 0, "--resize", 96, "--imagesize", 96, "--num_workers", 2, "-d", "bottle",
        "mvtec", real / "data" / "mvtec", real / "data" / "dtd" / "images",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"hypersphere \(from /.*/mvtec_distribution\.xlsx\)", done.stdout)
    with (tmp_path / "results.csv").open() as file:
        row = next(csv.DictReader(file))
    # 0.97 and 0.91 when this was written
    assert float(row["image_auroc"]) > 0.85
    assert float(row["pixel_auroc"]) > 0.75
    assert len(list((tmp_path / "eval" / "mvtec_bottle").glob("*.png"))) == 83
