"""Whole runs of the command line: what they leave behind, how they are continued, what they refuse."""

import csv
import json
import os
import signal
import time

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from forked import Forked, run_main
from helpers import DATASET, NET, cli, cli_process, make_mvtec, train_cli
from test_datasets import make_visa

import backbones
import main as front
from reporting import drawing
from training import saving
from utils import one_at_a_time


def read_results(folder):
    with (folder / "results.csv").open() as file:
        return {row["Row Names"]: row for row in csv.DictReader(file)}


def test_what_a_run_leaves_behind(trained):
    results, printed = trained
    rows = read_results(results)
    assert list(rows) == ["custom_disc", "Mean"]
    assert 0 <= float(rows["custom_disc"]["image_auroc"]) <= 1
    assert float(rows["custom_disc"]["last_epoch"]) == 1
    model = results / "models" / "backbone_0" / "custom_disc"
    assert (model / "ckpt.pth").is_file()
    assert len(list(model.glob("ckpt_best_*.pth"))) == 1
    assert list((model / "tb").iterdir())
    settings = json.loads((results / "settings.json").read_text())
    assert settings["arguments"]["net"]["dsc_hidden"] == 32
    assert settings["models"]["backbone_0/custom_disc"]["svd"] == 0
    assert settings["versions"]["torch"] == torch.__version__.split("+")[0]
    assert settings["duration_seconds"] > 0
    assert (results / "results.xlsx").is_file()
    for kind in ("training", "eval"):
        pictures = sorted(p.name for p in (results / kind / "custom_disc").iterdir())
        assert pictures == [f"{k}_00{i}.png" for k in ("blot", "good") for i in range(3)]
        assert cv2.imread(str(results / kind / "custom_disc" / pictures[0])).shape == (
            64,
            3 * 64 + drawing.BAR_WIDTH,
            3,
        )
    assert "the epoch was chosen on the test set" in printed
    assert "epoch 2/2" in printed
    assert not [p for p in results.rglob("*") if p.name.endswith(".tmp") or p.name.startswith(".")]


def test_same_command_twice_gives_the_same(trained, tiny, tmp_path):
    done = train_cli(*tiny, tmp_path, dataset=("-d", "disc", "--num_workers", 2))
    assert done.returncode == 0, done.stdout
    first, again = (
        torch.load(r / "models/backbone_0/custom_disc/ckpt.pth", weights_only=True) for r in (trained[0], tmp_path)
    )
    for key, value in first["discriminator"].items():
        assert torch.equal(value, again["discriminator"][key]), key
    assert (trained[0] / "results.csv").read_text() == (tmp_path / "results.csv").read_text()


def test_finished_run_is_not_trained_again(trained, tiny):
    done = train_cli(*tiny, trained[0], dataset=("-d", "disc"))
    assert done.returncode == 0
    assert "training finished before (epochs: 2), skipped; delete" in done.stdout


def test_scoring_with_another_runs_checkpoints(trained, tiny, tmp_path):
    models = trained[0] / "models"
    subset = tmp_path / "Person_1"
    (subset / "disc").mkdir(parents=True)
    for part in ("test", "ground_truth"):  # no training images
        (subset / "disc" / part).symlink_to(tiny[0] / "disc" / part)
    done = train_cli(subset, tmp_path / "none", tmp_path / "out", main=("--test", "test", "--models_path", models))
    assert done.returncode == 0, done.stdout
    ours, theirs = read_results(tmp_path / "out")["custom_disc"], read_results(trained[0])["custom_disc"]
    for name in ("image_auroc", "pixel_auroc", "pixel_pro", "best_epoch"):
        assert ours[name] == theirs[name]


def test_several_classes_and_backbones(tiny, tmp_path):
    done = train_cli(
        *tiny, tmp_path, net=("-b", "resnet18.seed-3", "-le", "0.layer2", "-le", "1.layer1", "--meta-epochs", "1")
    )
    assert done.returncode == 0, done.stdout
    assert list(read_results(tmp_path)) == [
        "custom_disc efficientnet_lite0", "custom_disc resnet18.seed-3", "custom_plate efficientnet_lite0",
        "custom_plate resnet18.seed-3", "Mean",
    ]  # fmt: skip
    config = torch.load(next(tmp_path.glob("models/backbone_1/custom_disc/ckpt_best_*")), weights_only=True)["config"]
    assert config["seed"] == 3
    assert config["layers_to_extract_from"] == ["layer1"]


def test_visa_end_to_end(tmp_path, tiny):
    make_visa(tmp_path / "visa")
    done = train_cli(tmp_path / "visa", tiny[1], tmp_path / "out", name="visa")
    assert done.returncode == 0, done.stdout
    assert "visa_candle" in read_results(tmp_path / "out")


def test_no_test_set_and_no_masks(tmp_path):
    data, textures = make_mvtec(tmp_path, good=2, defective=2)
    for file in (data / "disc" / "ground_truth").rglob("*.png"):
        file.unlink()
    done = train_cli(data, textures, tmp_path / "out")
    assert done.returncode == 0, done.stdout
    assert "2 defective test images have no mask" in done.stdout
    row = read_results(tmp_path / "out")["custom_disc"]
    assert row["pixel_auroc"] == row["pixel_pro"] == "nan"
    assert row["image_auroc"] != "nan"

    for file in (data / "disc" / "test").rglob("*.png"):
        file.unlink()
    done = train_cli(data, textures, tmp_path / "alone")
    assert done.returncode == 0, done.stdout
    assert "no test images" in done.stdout
    assert (tmp_path / "alone/models/backbone_0/custom_disc/ckpt_best_1.pth").is_file()


def test_judged_class_is_trained_in_the_same_run(tiny, tmp_path):
    """In this process, where the folder of verdicts is the test's own."""
    from training import distribution

    arguments = [*NET, *DATASET, "--distribution", 1, "-d", "disc", "custom", *tiny]
    done = CliRunner().invoke(front.main, [str(a) for a in ("--gpu", -1, "--results_path", tmp_path / "r", *arguments)])
    assert done.exit_code == 0, done.output
    flag, foreground = distribution.read_flags("custom", "custom_disc")
    assert flag == foreground
    assert (tmp_path / "r" / "judge" / "avg" / str(flag) / "custom_disc.png").is_file()
    assert (tmp_path / "r" / "judge" / "fft" / str(flag) / "custom_disc.png").is_file()
    assert (tmp_path / "r" / "models" / "backbone_0" / "custom_disc" / "ckpt.pth").is_file()


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """Results of a training of 15 epochs."""
    results = tmp_path_factory.mktemp("undisturbed")
    done = train_cli(*tiny, results, net=("--meta_epochs", 15), dataset=("-d", "disc"))
    assert done.returncode == 0, done.stdout
    return results


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_run_started_again_ends_with_the_same_weights(undisturbed, tiny, tmp_path, kill):
    arguments = ["--gpu", -1, "--results_path", tmp_path / "r", *NET, "--meta_epochs", 15, *DATASET, "-d", "disc"]
    call = [str(argument) for argument in (*arguments, "custom", *tiny)]

    def work():
        saving.SAVE_EVERY = 0  # after every epoch, or so short a training would end before it is due
        run_main(call)()

    running = Forked(work)
    latest = tmp_path / "r" / "models" / "backbone_0" / "custom_disc" / "ckpt.pth"
    deadline = time.monotonic() + 120
    while not list(latest.parent.glob("ckpt_best_*")) and time.monotonic() < deadline and running.is_running():
        time.sleep(0.02)
    os.kill(running.pid, kill)
    done = running.finish(timeout=60)
    if kill == signal.SIGINT:
        assert done.returncode == 130
        assert done.stdout.strip().splitlines()[-1] == "Error: stopped; the same command goes on where it was"
    done = cli(*arguments, "custom", *tiny)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout  # it was killed before its end
    states = [
        torch.load(results / "models/backbone_0/custom_disc/ckpt.pth", weights_only=True)
        for results in (tmp_path / "r", undisturbed)
    ]
    for part in ("discriminator", "pre_projection"):
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), key


def test_truncated_image_fails_with_its_path_also_in_a_worker(tmp_path):
    data, textures = make_mvtec(tmp_path)
    broken = data / "disc" / "train" / "good" / "002.png"
    broken.write_bytes(broken.read_bytes()[:300])
    for workers in (0, 2):
        done = train_cli(data, textures, tmp_path / "r", dataset=("--num_workers", workers))
        assert done.returncode == 1
        assert "Traceback" not in done.stdout
        assert f"Error: class custom_disc: {broken}: " in done.stdout.strip().splitlines()[-1]


def test_scoring_again_keeps_the_last_epochs_figures(trained, tiny):
    before = read_results(trained[0])
    done = train_cli(*tiny, trained[0], main=("--test", "test"), dataset=("-d", "disc"))
    assert done.returncode == 0, done.stdout
    assert read_results(trained[0]) == before


def test_testing_without_a_checkpoint(tiny, tmp_path):
    done = train_cli(*tiny, tmp_path, main=("--test", "test"))
    assert done.returncode == 2
    assert "no ckpt_best_*.pth" in done.stdout.strip().splitlines()[-1]


def test_testing_with_other_settings_than_the_checkpoints(trained, tiny, tmp_path):
    flags = ("--test", "test", "--models_path", trained[0] / "models")
    done = train_cli(*tiny, tmp_path, main=flags, dataset=("-d", "disc", "--resize", 70))
    assert done.returncode == 2
    assert "was trained with resize 64, but 70 is given" in done.stdout


def test_without_network_or_weights(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    call = ["--gpu", -1, "--results_path", tmp_path / "r"]
    done = cli_process(*call, "net", "-b", "wideresnet50", "dataset", "--fg", 0, "mvtec", *tiny)
    assert done.returncode == 1
    # PyTorch says on standard output, which may be written later, what it downloads
    last = next(line for line in done.stdout.splitlines() if line.startswith("Error: "))
    assert "wide_resnet50_2-95faca4d.pth" in last
    assert "--weights PATH" in last
    rest = ["dataset", "--fg", 0, "--num_workers", 0, "--resize", 64, "--imagesize", 64, "-d", "disc", "mvtec", *tiny]
    net = ["net", "--meta_epochs", 1, "--dsc_hidden", 16, "--step", 1]
    done = cli(*call, *net, *rest)
    assert done.returncode == 0, done.stdout
    assert (
        "backbone efficientnet_lite0: it is installed with the project, and the weights of wideresnet50" in done.stdout
    )
    done = cli(*call, *net, *rest)
    assert "backbone efficientnet_lite0: as the training in" in done.stdout
    done = cli(*call, "net", "--weights", "random", *rest)
    assert done.returncode == 2
    assert "name it with -b" in done.stdout


def test_resumed_class_keeps_its_variant(tiny, tmp_path):
    """The first run judges and writes a row; --distribution 4 would turn it round in the second."""
    for epochs in (1, 2):  # as if killed after one
        arguments = ["--gpu", -1, "--results_path", tmp_path / "r", *NET, "--meta_epochs", epochs, *DATASET]
        arguments += ["--distribution", 4, "-d", "disc", "custom", *tiny]
        done = CliRunner().invoke(front.main, [str(a) for a in arguments])
        assert done.exit_code == 0, done.output
    config = torch.load(tmp_path / "r/models/backbone_0/custom_disc/ckpt.pth", weights_only=True)["config"]
    table = pd.read_excel(tmp_path / "r/distribution/custom_distribution.xlsx")
    assert table.to_numpy().tolist() == [["custom_disc", config["svd"], config["svd"]]]
    assert config["verdict"] == config["svd"]


def test_every_kind_of_augmentation_with_masks_and_a_trained_backbone_resumes_exactly(tmp_path):
    data, textures = make_mvtec(tmp_path)
    for image in (data / "disc" / "train" / "good").iterdir():
        mask = cv2.imread(str(image), cv2.IMREAD_GRAYSCALE) > 90
        (data / "fg_mask" / "disc").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(data / "fg_mask" / "disc" / image.name), mask.astype("uint8") * 255)
    net, dataset = ("--train_backbone",), ("--augment", "--rand_aug", 0, "--fg", 1)
    states = []
    for results, parts in (("whole", [2]), ("parts", [1, 2])):
        for epochs in parts:
            flags = (*net, "--meta_epochs", epochs, "--eval_epochs", 2)
            done = train_cli(data, textures, tmp_path / results, net=flags, dataset=dataset)
            assert done.returncode == 0, done.stdout
        states.append(torch.load(tmp_path / results / "models/backbone_0/custom_disc/ckpt.pth", weights_only=True))
    for part in ("discriminator", "pre_projection", "backbone"):
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), key
    assert states[0]["config"]["rotate_degrees"] == 5
    assert states[0]["config"]["foreground"] is True
    plain = train_cli(data, textures, tmp_path / "test", dataset=("--augment", "--rand_aug", 0), main=(
        "--test", "test", "--models_path", tmp_path / "whole" / "models"))  # fmt: skip
    assert plain.returncode == 1
    assert "holds a trained backbone; give --train_backbone" in plain.stdout


def test_other_backbone_weights_are_refused(trained, tiny, tmp_path):
    torch.save(backbones.load("efficientnet_lite0", "random", 9).state_dict(), tmp_path / "other.pth")
    for main_flags, says in (
        (("--test", "test"), "was trained with backbone_hash"), ((), "made with other settings (backbone_hash was"),
    ):  # fmt: skip
        models = ("--models_path", trained[0] / "models")
        arguments = ["--gpu", -1, "--results_path", tmp_path / "r", *main_flags, *models, *NET, *DATASET, "-d", "disc"]
        arguments[arguments.index("random")] = tmp_path / "other.pth"
        done = cli(*arguments, "custom", *tiny)
        assert done.returncode == 2, done.stdout
        assert says in done.stdout


def test_asking_for_another_variant_of_a_finished_class_is_refused(trained, tiny):
    done = train_cli(*tiny, trained[0], dataset=("-d", "disc", "--distribution", 3))
    assert done.returncode == 2
    assert "distribution was 2, is 3" in done.stdout


def test_a_results_folder_is_for_one_run_at_a_time(tiny, tmp_path):
    (tmp_path / "r").mkdir()
    with one_at_a_time(tmp_path / "r"):
        done = train_cli(*tiny, tmp_path / "r", run=cli_process)
        assert done.returncode == 2
        assert done.stdout.strip() == (
            f"Error: --results_path {tmp_path / 'r'} is in use by another run; wait until it ends, or give another folder"
        )
    assert not list((tmp_path / "r").iterdir())
    with one_at_a_time(tmp_path / "r"):  # and free again
        pass


def test_what_the_crop_leaves_out_is_said_in_training_and_when_judging(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "long").mkdir(parents=True)
    for i in range(4):
        cv2.imwrite(f"{tmp_path}/data/long/{i}.png", rng.integers(0, 256, (160, 80), np.uint8))
    done = train_cli(tmp_path / "data", "builtin", tmp_path / "r", net=("--meta_epochs", 1), name="folder")
    assert done.returncode == 0, done.stdout
    assert (
        "folder_long: the crop of the centre leaves out 50 % of a picture on average, where no defect is" in done.stdout
    )
    assert "--keep_all shows the model the whole picture" in done.stdout
    judged = ("predict", "--checkpoint", tmp_path / "r/models/backbone_0/folder_long", "--json", tmp_path / "data/long")
    assert "in 4 of 4 images the crop leaves out more than 10 % of the image" in cli(*judged).stdout
