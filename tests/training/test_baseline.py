"""`--baseline`: what nearest neighbours on the same features say of the same test set."""

import csv
import shutil

import numpy as np
import pytest
import torch
from helpers import DATASET, NET, cli, make_mvtec, train_cli
from PIL import Image
from sklearn.metrics import roc_auc_score

from datasets.listing import list_images
from glass import load_checkpoint

COLUMNS = ["nn_image_auroc", "nn_pixel_auroc", "nn_pixel_ap", "nn_pixel_pro"]


def rows(results):
    with (results / "results.csv").open(newline="") as file:
        return {row["Row Names"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def with_baseline(tiny, tmp_path_factory):
    results = tmp_path_factory.mktemp("baseline")
    done = train_cli(*tiny, results, net=("--baseline",))
    assert done.returncode == 0, done.stdout
    return results, done.stdout


def test_image_auroc_is_that_of_all_distances(with_baseline, tiny):
    results, printed = with_baseline
    model = load_checkpoint(results / "models" / "backbone_0" / "custom_disc")

    def features(folder):
        pictures = [model.prepare(Image.open(path).convert("RGB")) for path in list_images(tiny[0] / "disc" / folder)]
        with torch.no_grad():
            return model.scorer.features.embed_alone(torch.stack(pictures)).unflatten(0, (len(pictures), -1))

    good = features("train/good").flatten(0, 1)  # fewer than 8,000, so all of them are kept
    scores, labels = [], []
    for folder, label in (("test/good", 0), ("test/blot", 1)):
        for patches in features(folder):
            scores.append(float(torch.cdist(patches[None], good[None])[0].amin(1).max()))
            labels.append(label)
    assert float(rows(results)["custom_disc"]["nn_image_auroc"]) == pytest.approx(roc_auc_score(labels, scores))
    assert "custom_disc: nearest neighbours without training: image_auroc" in printed


def test_all_classes_have_the_columns_and_the_mean_averages_them(with_baseline):
    table = rows(with_baseline[0])
    assert list(table["Mean"])[-4:] == COLUMNS
    for name in COLUMNS:
        values = [float(table[row][name]) for row in ("custom_disc", "custom_plate")]
        assert float(table["Mean"][name]) == pytest.approx(np.mean(values), abs=1e-5)
    page = (with_baseline[0] / "report.html").read_text()
    assert page.count("Nearest neighbours on the same features") == 2


def test_nothing_else_changes(with_baseline, trained, tiny, tmp_path):
    done = train_cli(*tiny, tmp_path / "r")
    assert done.returncode == 0, done.stdout
    without, table = rows(tmp_path / "r"), rows(with_baseline[0])
    assert not set(COLUMNS) & set(without["Mean"])
    for name, row in without.items():
        assert {key: value for key, value in table[name].items() if key not in COLUMNS} == row


def test_a_run_that_only_tests_and_tiles(with_baseline, tiny, tmp_path):
    models = with_baseline[0] / "models"
    done = train_cli(*tiny, tmp_path / "t", main=("--test", "test", "--models_path", models), net=("--baseline",))
    assert done.returncode == 0, done.stdout
    assert "--baseline has no effect on a test alone, which reads no training images" in done.stdout
    small = DATASET[: DATASET.index("--resize")]
    places = ("--gpu", -1, "--results_path", tmp_path / "r")
    done = cli(*places, *NET, "--baseline", *small, "--imagesize", 32, "--tile", 48, "-d", "disc", "custom", *tiny)
    assert done.returncode == 0, done.stdout
    assert 0 <= float(rows(tmp_path / "r")["custom_disc"]["nn_pixel_pro"]) <= 1


def test_a_test_set_of_one_kind_has_no_figures(tmp_path):
    data, textures = make_mvtec(tmp_path)
    shutil.rmtree(data / "disc" / "test" / "blot")
    shutil.rmtree(data / "disc" / "ground_truth")
    done = train_cli(data, textures, tmp_path / "r", net=("--baseline",))
    assert done.returncode == 0, done.stdout
    assert rows(tmp_path / "r")["custom_disc"]["nn_image_auroc"] == "nan"
