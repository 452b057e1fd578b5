"""The scripts of shell/, run from another folder, with an interpreter that has imported PyTorch."""

import os
import shutil
import subprocess
import sys

import pytest
from forked import python_for_scripts
from helpers import NET, ROOT, make_mvtec

SCRIPTS = sorted(p.name for p in (ROOT / "shell").glob("run-*.sh"))


def script(name, *arguments, cwd, **variables):
    base = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHON": str(python_for_scripts()),
    }
    return subprocess.run(
        ["bash", str(ROOT / "shell" / name), *arguments], cwd=cwd, env=base | {k: str(v) for k, v in variables.items()},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip


def test_there_is_one_for_each_benchmark():
    names = ("mvtec", "visa", "mpdd", "wfdd", "mad-man", "mad-sys", "custom", "demo")
    assert set(SCRIPTS) == {f"run-{n}.sh" for n in names}


def test_demo_needs_nothing_and_run_again_reuses_what_is_there(tmp_path):
    where = {"DEMO_DATA": "data", "RESULTS": "r", "OMP_NUM_THREADS": 1}  # below the folder it is called in
    small = {
        "NET_FLAGS": "--meta_epochs 1 --step 1 --dsc_hidden 16",
        "DATASET_FLAGS": "-d wall --resize 64 --imagesize 64 --num_workers 0",
    }
    done = script("run-demo.sh", cwd=tmp_path, **where, **small)
    assert done.returncode == 0, done.stdout
    assert "folder_wall" in done.stdout
    assert done.stdout.strip().splitlines()[-1][len("00:00:00 ") :] == f"report: {tmp_path}/r/report.html"
    assert (tmp_path / "r" / "report.html").is_file()
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")}
    again = script("run-demo.sh", cwd=tmp_path, **where, **small)
    assert again.returncode == 0, again.stdout
    assert "training finished before" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "data").rglob("*")} == made


def test_an_environment_whose_making_failed_is_made_again(tmp_path):
    """Without Debian's python3-venv a folder with an interpreter and no pip is left behind."""
    for folder in ("shell", "requirements"):
        (tmp_path / folder).mkdir()
    for file in ("shell/common.sh", "shell/test.sh", "requirements.txt", "requirements/dev.txt"):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "requirements-dev.txt").write_text("nothing")
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "python3"
    shim.write_text(f"""#!/bin/sh
[ "$2" = venv ] || exec {sys.executable} "$@"
echo made >>{tmp_path}/made
{sys.executable} -m venv --without-pip "$4"
exit 1
""")
    shim.chmod(0o755)
    env = {"PATH": f"{shim.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run(
            ["bash", "shell/test.sh"], cwd=tmp_path, env=env, text=True, capture_output=True, timeout=60
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.strip().endswith("(on Debian: apt install python3-venv)")
        assert not (tmp_path / ".venv").exists()
    assert (tmp_path / "made").read_text() == "made\nmade\n"


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "run-demo.sh"])
def test_missing_variable_is_said_in_one_line(name, tmp_path):
    done = script(name, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith(f"{name}: DATAPATH is not set")
    assert len(done.stdout.strip().splitlines()) == 1


def test_mvtec_then_mad_man_with_its_models(tiny, tmp_path):
    # the dimensions of the published network, which the script gives, do not belong to this one
    flags = "-b efficientnet_lite0 --weights random --dsc_hidden 32 --step 5 --meta_epochs 2"
    small = "--resize 64 --imagesize 64 --batch_size 4 --num_workers 0"
    done = script(
        "run-mvtec.sh", "--gpu", "-1", cwd=tmp_path, DATAPATH=tiny[0], AUGPATH=tiny[1], CLASSES="disc",
        NET_FLAGS=f"{flags} --meta_epochs 1", DATASET_FLAGS=small, RESULTS=tmp_path / "r",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "r" / "results.csv").read_text().splitlines()[1].startswith("mvtec_disc,")
    assert "with foreground masks" in done.stdout

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


def test_custom_plain_folder_with_builtin_textures_leaves_a_usable_checkpoint(tmp_path):
    data, _ = make_mvtec(tmp_path)
    (tmp_path / "plain").mkdir()
    plain = (data / "disc" / "train" / "good").rename(tmp_path / "plain" / "disc")
    small = "--resize 64 --imagesize 64 --batch_size 4 --num_workers 0"
    flags = " ".join(NET[1:])
    done = script(
        "run-custom.sh", "--gpu", "-1", cwd=tmp_path, DATAPATH=plain.parent, NET_FLAGS=flags, DATASET_FLAGS=small,
        RESULTS=tmp_path / "r",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "manifold (--distribution 2)" in done.stdout
    models = tmp_path / "r" / "models"
    assert (models / "backbone_0" / "folder_disc" / "ckpt_best_1.pth").is_file()
    assert not (tmp_path / "r" / "results.csv").exists()
    # usable: it scores pictures that came later
    (tmp_path / "later" / "disc" / "test").mkdir(parents=True)
    (data / "disc" / "test" / "blot").rename(tmp_path / "later" / "disc" / "test" / "blot")
    done = script(
        "run-custom.sh", "--gpu", "-1", "--test", "test", "--models_path", str(models), cwd=tmp_path,
        DATAPATH=tmp_path / "later", NET_FLAGS=flags, DATASET_FLAGS=small, RESULTS=tmp_path / "s",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert len(list((tmp_path / "s" / "eval" / "folder_disc").glob("*.png"))) == 3


@pytest.mark.parametrize(("name", "folder"), [("run-mad-man.sh", "Person_"), ("run-mad-sys.sh", "Beta_")])
def test_no_subsets(name, folder, tmp_path):
    done = script(name, cwd=tmp_path, DATAPATH=tmp_path, MODELS=tmp_path)
    assert done.returncode == 2
    assert f"holds no folder {folder}*" in done.stdout


def test_an_interpreter_that_is_none(tiny, tmp_path):
    done = script("run-custom.sh", cwd=tmp_path, DATAPATH=tiny[0], PYTHON=tmp_path / "nope")
    assert done.returncode == 2
    assert done.stdout.strip() == (
        f"run-custom.sh: PYTHON={tmp_path / 'nope'} is not a program; name a Python interpreter, or leave it out"
    )


# ------------------------------------------------------------------------------- names of classes


def class_names(data, text):
    code = f'source "{ROOT}/shell/common.sh"; class_names "$1" "$2"; printf "%s\\n" ${{names[@]+"${{names[@]}}"}}'
    done = subprocess.run(
        ["bash", "-c", code, "x", str(data), text], cwd=data, text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n").split("\n")


def test_names_of_classes(tmp_path):
    for name in ("metal nut", "cap", "[x]*", "bob's", "a  b"):
        (tmp_path / name).mkdir()
    for text, names in (
        ("cap zip", ["cap", "zip"]), (" cap ", ["cap"]), ("", [""]),
        ("metal nut", ["metal nut"]), ("cap metal nut zip", ["cap", "metal nut", "zip"]),
        ("'metal nut' cap", ["metal nut", "cap"]), ('"a  b"', ["a  b"]), ("metal\\ nut", ["metal nut"]),
        ("metal nut\ncap\r\n \n[x]*\n", ["metal nut", "cap", "[x]*"]), ("[x]* cap", ["[x]*", "cap"]),
        ("bob's", ["bob's"]), ("bob's metal nut", ["bob's", "metal nut"]),
    ):  # fmt: skip
        assert class_names(tmp_path, text) == names, text
    (tmp_path / "metal").mkdir()
    (tmp_path / "nut").mkdir()
    assert class_names(tmp_path, "metal nut") == ["metal", "nut"]  # as it always was
    assert class_names(tmp_path, "metal nut\n") == ["metal nut"]


def test_scripts_called_through_links(tmp_path):
    (tmp_path / "real").symlink_to(ROOT / "shell")
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "to.sh").symlink_to("../real/run-custom.sh")  # relative, through a folder that is a link
    (tmp_path / "by.sh").symlink_to(tmp_path / "a b" / "to.sh")
    for name in ("by.sh", "real/run-custom.sh", "a b/to.sh"):
        done = subprocess.run(["bash", str(tmp_path / name)], text=True, capture_output=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.startswith(f"{name.split('/')[-1]}: DATAPATH is not set")
    code = f'source "{tmp_path}/real/common.sh"; echo "$ROOT"'
    assert subprocess.run(["bash", "-c", code], text=True, capture_output=True).stdout == f"{ROOT}\n"
