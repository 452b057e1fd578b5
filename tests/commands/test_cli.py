"""The command line of a training: its options, their defaults, and what is refused before any work begins."""

import re

import click
import pytest
from click.testing import CliRunner
from helpers import cli

import backbones
import main as front
from commands import dataset, net
from commands.command import Command, describe, exit_code


def usage_error(*arguments):
    done = cli(*arguments)
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 2, done.stdout
    assert lines[-1].startswith("Error: ")
    assert "Traceback" not in done.stdout
    assert sum(line.startswith("Error") for line in lines) == 1
    return lines[-1]


@pytest.mark.parametrize("name", [None, *front.main.list_commands(None)])
def test_help_names_every_option_with_its_default(name):
    command = front.main if name is None else front.main.get_command(None, name)
    done = CliRunner().invoke(front.main, [*filter(None, [name]), "--help"], terminal_width=300)
    assert done.exit_code == 0
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=-)", done.output)]
    for option in (p for p in command.params if p.param_type_name == "option"):
        (entry,) = (e for e in entries if option.opts[-1] in e.split(" ")[:2])
        unset = name == "predict" and option.name == "out"  # together with --json it may be left out
        assert "[default: " in entry or "[required]" in entry or unset
        if isinstance(option.type, (click.IntRange, click.FloatRange)) and option.default is not None:
            assert "x" in entry.split("[default: ")[1], option.opts


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_must_be_finite(value):
    done = CliRunner().invoke(front.main, ["net", "--noise", value, "dataset", "mvtec", "a", "b"])
    assert done.exit_code == 2
    assert f"{value} is not a finite number" in done.output


@pytest.mark.parametrize("option", ["--meta_epochs", "--meta-epochs"])
def test_both_spellings(option):
    done = CliRunner().invoke(front.main, ["net", option, "0", "dataset", "mvtec", "a", "b"])
    assert done.exit_code == 2
    assert done.output.strip() == "Error: Invalid value for '--meta_epochs': 0 is not in the range x>=1."


def test_defaults_are_the_published_ones():
    of_net = net.command.make_context("net", []).params
    of_dataset = dataset.command.make_context("dataset", ["mvtec", "a", "b"]).params
    assert list(of_net["backbone_names"]) == ["auto"]  # wideresnet50, where its weights are
    assert list(of_net["layers_to_extract_from"]) == ["layer2", "layer3"]
    expected = {
        "patchsize": 3, "meta_epochs": 640,
        "eval_epochs": 1, "dsc_layers": 2, "dsc_hidden": 1024, "dsc_margin": 0.5, "pre_proj": 1, "mining": 1,
        "noise": 0.015, "radius": 0.75, "p": 0.5, "lr": 0.0001, "step": 20, "limit": 392, "train_backbone": False,
    }  # fmt: skip
    assert {k: of_net[k] for k in expected} == expected
    assert [backbones.default_dimension(name) for name in ("wideresnet50", "efficientnet_lite0")] == [1536, 152]
    poolings = [backbones.default_pooling(name) for name in ("wideresnet50", "resnet18", "efficientnet_lite0")]
    assert poolings == ["published", "published", "channels"]
    expected = {
        "batch_size": 8, "num_workers": 16, "resize": 288, "imagesize": 288, "distribution": 0, "fg": 1, "rand_aug": 1,
        "mean": 0.5, "std": 0.1, "hflip": 0, "rotate_degrees": 0,
    }  # fmt: skip
    assert {k: of_dataset[k] for k in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["net"], "one dataset command is needed"),
        (["dataset", "mvtec", "{data}"], "Missing argument 'AUG_PATH'"),
        (["dataset", "nothing", "{data}", "{aug}"], "possible: mvtec, visa, mpdd, wfdd, custom, folder"),
        (["dataset", "mvtec", "/no/where", "{aug}"], "DATA_PATH /no/where: no such folder"),
        (["dataset", "mvtec", "{data}", "/no/where"], "AUG_PATH /no/where: no such folder"),
        (["dataset", "-d", "disk", "mvtec", "{data}", "{aug}"], "unknown class 'disk'; {data} has disc, plate"),
        (["dataset", "mvtec", "{data}", "{empty}"], "no picture in it"),
        (["dataset", "mvtec", "{empty}", "{aug}"], "no class folder"),
        (["dataset", "--resize", "64", "mvtec", "{data}", "{aug}"], "--imagesize 288 is larger than --resize 64"),
        (["dataset", "--fg", "3", "mvtec", "{data}", "{aug}"], "3 is not in the range 0<=x<=2"),
        (["net", "--radius", "1.5", "dataset", "mvtec", "{data}", "{aug}"], "1.5 is not in the range 0<=x<=1"),
        (["net", "-b", "resnet19", "dataset", "mvtec", "{data}", "{aug}"], "unknown backbone 'resnet19'; possible: alexnet"),
        (["net", "-b", "resnet18", "--weights", "random", "-le", "layer9", "dataset", "--fg", "0", "mvtec", "{data}", "{aug}"], "no layer 'layer9'; possible: conv1"),
        (["net", "-b", "resnet18", "--weights", "no.pth", "dataset", "mvtec", "{data}", "{aug}"], "--weights no.pth: no such file"),
        (["net", "-b", "resnet18", "--weights", "random", "--patchsize", "2", "dataset", "mvtec", "{data}", "{aug}"], "2 is even; a patch has a centre"),
        (["net", "-b", "resnet18", "--weights", "random", "dataset", "--fg", "0", "--downsampling", "16", "mvtec", "{data}", "{aug}"], "--downsampling 16 contradicts"),
        (["--gpu", "99", "dataset", "mvtec", "{data}", "{aug}"], "-1 is the CPU"),
        (["--no_such_option", "dataset", "mvtec", "{data}", "{aug}"], "No such option"),
        (["--test", "train", "dataset", "mvtec", "{data}", "{aug}"], "'ckpt', 'test'"),
    ],
)  # fmt: skip
def test_usage_errors(tiny, tmp_path, arguments, says):
    (tmp_path / "empty").mkdir()
    places = {"data": tiny[0], "aug": tiny[1], "empty": tmp_path / "empty"}
    arguments = [a.format(**places) for a in arguments]
    if "99" in arguments or arguments[0].startswith("--"):
        arguments = ["--results_path", tmp_path / "r", *arguments]
    else:
        arguments = ["--gpu", -1, "--results_path", tmp_path / "r", *arguments]
    assert says.format(**places) in usage_error(*arguments)
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["net", "--resize", "5"], "--resize belongs to dataset"),
        (["net", "dataset", "--limit", "40"], "--limit belongs to net"),
        (["--batch-size", "4", "net"], "--batch_size belongs to dataset"),
    ],
)
def test_option_of_another_command(arguments, says):
    done = CliRunner().invoke(front.main, arguments)
    assert done.exit_code == 2
    assert says in done.output


def test_folder_of_a_class_given_for_the_data(tiny, tmp_path):
    assert f"give {tiny[0]}" in usage_error("--results_path", tmp_path, "dataset", "mvtec", tiny[0] / "disc", tiny[1])


def test_results_path_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    said = usage_error("--results_path", tmp_path / "file" / "sub", "dataset", "mvtec", *tiny)
    assert f"--results_path {tmp_path}/file/sub" in said


def test_a_stop_that_reaches_a_loaders_worker_first_is_a_stop():
    def refused():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")

    done = CliRunner().invoke(Command("x", callback=refused, stopped=front.main.stopped), [])
    assert done.exit_code == 130
    assert done.output == "Error: stopped; the same command goes on where it was\n"
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    assert exit_code(killed) == 1
    assert describe(killed).startswith("a loader's worker died")


def test_missing_textures_are_said_with_what_would_do(tmp_path):
    done = cli("net", "dataset", "folder", tmp_path)
    assert done.returncode == 2
    assert "Missing argument 'AUG_PATH': a folder of texture images, or the word builtin" in done.stdout
