"""The front door: which command is meant, what --help costs, options before a command's name."""

import json
import subprocess
import sys

import click
import pytest
from helpers import ROOT, cli

import main as front
from commands.program import CHAIN
from tools import flags

TABLE = front.main.list_commands(None)
HEAVY = {"torch", "torchvision", "pandas", "scipy", "cv2", "numpy", "PIL", "tqdm", "onnxruntime", "matplotlib"}


@pytest.mark.parametrize("command", [None, *TABLE])
def test_help_imports_nothing_heavy(command):
    """Imports are counted, not seconds: a machine may be busy."""
    words = ["--help"] if command is None else [command, "--help"]
    code = (
        "import json, sys; from main import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout
    assert HEAVY.isdisjoint(json.loads(done.stdout.splitlines()[-1]))


def test_help_lists_every_command_and_the_chain():
    done = cli("--help")
    assert done.returncode == 0
    assert "net [OPTIONS] dataset [OPTIONS] NAME DATA_PATH AUG_PATH" in done.stdout
    listed = done.stdout[done.stdout.index("Commands:") : done.stdout.index("Options:")].splitlines()
    assert [line.split()[0] for line in listed[1:] if line] == TABLE
    assert all(len(line.split()) > 3 for line in listed[1:] if line)


def test_every_command_has_its_name_and_says_what_it_does():
    for name in TABLE:
        command = front.main.get_command(None, name)
        assert command.name == name
        assert command.help
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, (name, option.opts)
                assert option.help.endswith((".", "]")), (name, option.opts)
    assert front.main.get_command(None, "nothing") is None


def test_no_command_shows_the_help_and_is_wrong_usage():
    done = cli()
    assert done.returncode == 2
    assert "Commands:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chekc"], "No such command 'chekc'; possible: net, dataset, predict"),
        (["--seed", 3, "chekc"], "No such command 'chekc'"),
        (["--results_path", "r", "check", "folder", "x"], "--results_path is not an option of check; python main.py check --help"),
        (["--test", "test", "predict", "x"], "--test is not an option of predict"),
        (["--seed", "-1", "demo", "x"], "-1 is not in the range"),
        (["dataset", "folder", "x", "builtin", "check"], "check stands alone"),
        (["net", "demo", "x"], "demo stands alone"),
        (["--out", "x", "net"], "--out belongs to predict, bundle, report, preview, foreground."),
        (["--batch_size", 4, "net"], "--batch_size belongs to dataset."),
    ],
)  # fmt: skip
def test_what_is_no_command_line(arguments, says):
    done = cli(*arguments)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1
    assert says in done.stdout


def test_options_before_the_name_count_and_those_after_it_win(tmp_path, monkeypatch):
    from generation import demo

    made = []
    monkeypatch.setattr(demo, "make", lambda folder, seed: made.append(seed))
    for words in (
        ["--seed", 3, "demo"],
        ["--seed=3", "demo"],
        ["demo", "--seed", 3],
        ["--seed", 4, "demo", "--seed", 3],
    ):
        done = cli(*words, tmp_path)
        assert done.returncode == 0, done.stdout
    assert made == [3, 3, 3, 3]


def test_a_folder_may_have_the_name_of_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("--results_path", "report", "dataset", "folder", "check", "builtin")
    assert done.returncode == 2
    assert "DATA_PATH check: no such folder" in done.stdout
    done = cli("check", "folder", "demo")
    assert done.returncode == 2
    assert "DATA_PATH demo: no such folder" in done.stdout


def test_the_chain_is_what_is_not_alone():
    assert set(CHAIN) <= set(TABLE)


def test_the_comparison_as_a_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "main.py", "report", tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert "is not the results folder of a finished run" in done.stderr


def test_the_document_of_options_is_what_the_commands_say():
    text = flags.TARGET.read_text(encoding="utf-8")
    assert flags.document() == text, "python -m tools.flags writes it again"
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")][1:-2] == TABLE
    for name in TABLE:
        for option in front.main.get_command(None, name).params:
            if isinstance(option, click.Option):
                assert f"{option.opts[-1]}`" in text


@pytest.mark.parametrize("name", ["check", "foreground"])
def test_modules_that_were_commands_name_the_command(name):
    done = subprocess.run(
        [sys.executable, "-m", f"datasets.{name}", "mvtec", "/none"], cwd=ROOT, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"Error: this module is no command; use python main.py {name}\n"
