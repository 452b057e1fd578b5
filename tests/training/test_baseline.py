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


def only_test(data, models, results, *net, dataset=()):
    main = ("--test", "test", "--models_path", models)
    return train_cli(data, "unused", results, main=main, net=net, dataset=("-d", "disc", *dataset))


def figures_of(table, row="custom_disc"):
    return [table[row][name] for name in COLUMNS]


def test_a_run_that_only_tests_has_the_same_figures(with_baseline, tiny, tmp_path):
    done = only_test(tiny[0], with_baseline[0] / "models", tmp_path / "t", "--baseline")
    assert done.returncode == 0, done.stdout
    assert figures_of(rows(tmp_path / "t")) == figures_of(rows(with_baseline[0]))


def test_a_test_without_training_images_has_a_warning(with_baseline, tiny, tmp_path):
    shutil.copytree(tiny[0], tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "disc" / "train")
    done = only_test(tmp_path / "data", with_baseline[0] / "models", tmp_path / "t", "--baseline")
    assert done.returncode == 0, done.stdout
    assert "custom_disc: --baseline has no effect without training images" in done.stdout
    assert not set(COLUMNS) & set(rows(tmp_path / "t")["Mean"])


def test_a_damaged_training_image_ends_a_test_unless_it_is_left_out(with_baseline, tiny, tmp_path):
    shutil.copytree(tiny[0], tmp_path / "data")
    path = tmp_path / "data" / "disc" / "train" / "good" / "000.png"
    path.write_bytes(path.read_bytes()[:300])
    models = with_baseline[0] / "models"
    done = only_test(tmp_path / "data", models, tmp_path / "t", "--baseline")
    assert done.returncode == 1
    assert "000.png: cannot be read" in done.stdout
    done = only_test(tmp_path / "data", models, tmp_path / "t", "--baseline", dataset=("--skip_bad",))
    assert done.returncode == 0, done.stdout
    assert figures_of(rows(tmp_path / "t"))[0] != "nan"


def test_testing_again_without_it_keeps_the_figures(with_baseline, tiny, tmp_path):
    results = shutil.copytree(with_baseline[0], tmp_path / "r")
    done = train_cli(*tiny, results, main=("--test", "test"))
    assert done.returncode == 0, done.stdout
    before, after = rows(with_baseline[0]), rows(results)
    for name in ("custom_disc", "custom_plate"):
        assert after[name] == before[name]
    # the kept values have six digits, so their mean may differ in the last one
    assert [float(v) for v in figures_of(after, "Mean")] == pytest.approx(
        [float(v) for v in figures_of(before, "Mean")], abs=2e-6
    )
    assert (results / "report.html").read_text().count("Nearest neighbours on the same features") == 2


def test_training_again_without_it_does_not_keep_figures_of_before(with_baseline, tiny, tmp_path):
    results = shutil.copytree(with_baseline[0], tmp_path / "r")
    shutil.rmtree(results / "models")
    done = train_cli(*tiny, results)
    assert done.returncode == 0, done.stdout
    assert figures_of(rows(results)) == ["nan"] * 4
    assert "Nearest neighbours" not in (results / "report.html").read_text()


def test_a_trained_backbone_is_no_baseline(tiny, tmp_path):
    done = train_cli(*tiny, tmp_path / "r", net=("--baseline", "--train_backbone"), dataset=("-d", "disc"))
    assert done.returncode == 0, done.stdout
    assert "--baseline has no effect with --train_backbone, which changes the features" in done.stdout
    assert not set(COLUMNS) & set(rows(tmp_path / "r")["Mean"])


def test_tiles(tiny, tmp_path):
    small = DATASET[: DATASET.index("--resize")]
    places = ("--gpu", -1, "--results_path", tmp_path / "r")
    tiles = (*small, "--imagesize", 32, "--tile", 48, "-d", "disc", "custom", *tiny)
    done = cli(*places, *NET, "--baseline", *tiles)
    assert done.returncode == 0, done.stdout
    trained = figures_of(rows(tmp_path / "r"))
    assert 0 <= float(trained[3]) <= 1
    again = ("--gpu", -1, "--results_path", tmp_path / "t", "--models_path", tmp_path / "r" / "models")
    done = cli(*again, "--test", "test", *NET, "--baseline", *tiles)
    assert done.returncode == 0, done.stdout
    assert figures_of(rows(tmp_path / "t")) == trained


def test_the_report_says_which_is_ahead(with_baseline, tmp_path):
    results = shutil.copytree(with_baseline[0], tmp_path / "r")
    row = rows(results)["custom_disc"]
    own, other = (f"{100 * float(row[name]):.2f}" for name in ("pixel_ap", "nn_pixel_ap"))
    ahead = "model" if float(own) > float(other) else "nearest neighbours"
    line = f"<td>pixel AP</td><td>{own}</td><td>{other}</td><td>{ahead}</td>"
    assert line in (results / "report.html").read_text()
    (results / "report.html").unlink()
    assert cli("report", results).returncode == 0
    assert line in (results / "report.html").read_text()


def test_several_seeds_have_means_and_deviations(tiny, tmp_path):
    seeds = ("--seed", 0, "--seed", 1)
    done = train_cli(*tiny, tmp_path / "r", main=seeds, net=("--baseline",), dataset=("-d", "disc"))
    assert done.returncode == 0, done.stdout
    row = rows(tmp_path / "r")["custom_disc"]
    for name in COLUMNS:
        values = [float(rows(tmp_path / "r" / f"seed_{seed}")["custom_disc"][name]) for seed in (0, 1)]
        assert float(row[name]) == pytest.approx(np.mean(values), abs=1e-5)
        assert float(row[f"{name}_std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-5)
    assert "nn_pixel_ap" in (tmp_path / "r" / "report.html").read_text()


def test_a_test_set_of_one_kind_has_no_figures(tmp_path):
    data, textures = make_mvtec(tmp_path)
    shutil.rmtree(data / "disc" / "test" / "blot")
    shutil.rmtree(data / "disc" / "ground_truth")
    done = train_cli(data, textures, tmp_path / "r", net=("--baseline",))
    assert done.returncode == 0, done.stdout
    assert rows(tmp_path / "r")["custom_disc"]["nn_image_auroc"] == "nan"
    assert "Nearest neighbours" not in (tmp_path / "r" / "report.html").read_text()
