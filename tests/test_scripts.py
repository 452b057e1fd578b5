"""The scripts of shell/, run from another folder, with the interpreter of the tests."""

import os
import subprocess
import sys

import pytest
from helpers import NET, ROOT, excel_copy

SCRIPTS = sorted(p.name for p in (ROOT / "shell").glob("run-*.sh"))


def script(name, *arguments, cwd, **variables):
    base = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHON": sys.executable,
        "GLASS_EXCEL_DIR": str(excel_copy()),
    }
    return subprocess.run(
        ["bash", str(ROOT / "shell" / name), *arguments], cwd=cwd, env=base | {k: str(v) for k, v in variables.items()},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip


def test_there_is_one_for_each_benchmark():
    names = ("mvtec", "visa", "mpdd", "wfdd", "mad-man", "mad-sys", "custom")
    assert set(SCRIPTS) == {f"run-{n}.sh" for n in names}


@pytest.mark.parametrize("name", SCRIPTS)
def test_missing_variable_is_said_in_one_line(name, tmp_path):
    done = script(name, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith(f"{name}: DATAPATH is not set")
    assert len(done.stdout.strip().splitlines()) == 1


def test_custom_data_then_mad_man_with_its_models(tiny, tmp_path):
    flags = " ".join(NET[1:])
    small = "--resize 64 --imagesize 64 --batch_size 4 --num_workers 0"
    done = script(
        "run-custom.sh", "--gpu", "-1", cwd=tmp_path, DATAPATH=tiny[0], AUGPATH=tiny[1], CLASSES="disc",
        NET_FLAGS=f"{flags} --meta_epochs 1", DATASET_FLAGS=small, RESULTS=tmp_path / "r",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "r" / "results.csv").read_text().splitlines()[1].startswith("mvtec_disc,")
    assert "manifold (--distribution 2)" in done.stdout

    for person in ("Person_1", "Person_2"):
        (tmp_path / "MAD-man" / person).mkdir(parents=True)
        (tmp_path / "MAD-man" / person / "disc").symlink_to(tiny[0] / "disc")
    done = script(
        "run-mad-man.sh", "--gpu", "-1", cwd=tmp_path, DATAPATH=tmp_path, CLASSES="disc", MODELS=tmp_path / "r" / "models",
        NET_FLAGS=flags, DATASET_FLAGS=small, RESULTS=tmp_path / "mad",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    rows = [(tmp_path / "mad" / p / "results.csv").read_text().splitlines()[1] for p in ("Person_1", "Person_2")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("name", "folder"), [("run-mad-man.sh", "Person_"), ("run-mad-sys.sh", "Beta_")])
def test_no_subsets(name, folder, tmp_path):
    done = script(name, cwd=tmp_path, DATAPATH=tmp_path, MODELS=tmp_path)
    assert done.returncode == 2
    assert f"holds no folder {folder}*" in done.stdout
