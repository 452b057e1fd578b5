"""Names of classes, kinds and folders that are not text, or hold control characters."""

import os
import shutil
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from helpers import DATASET, cli, last_line, make_mvtec, shaped
from test_runs import run

from utils import LONGEST_ROW, printable, row_name

ODD = os.fsdecode(b"caf\xe9\a\nx")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("bottle", "d_bottle"), ("50 % grün 日本", "d_50 % grün 日本"), (os.fsdecode(b"caf\xe9"), "d_caf%E9"), ("bell\x07\n", "d_bell%07%0A"),
        ("a/../../b", "d_a%2F..%2F..%2Fb"), ("\u2028\ud800\ufffe", "d_%E2%80%A8%ED%A0%80%EF%BF%BE"),
    ],
)  # fmt: skip
def test_rows_are_text_and_lead_nowhere(name, row):
    assert row_name("d", name) == row


def test_long_names_that_had_to_be_escaped_are_cut_and_stay_apart():
    rows = {row_name("d", os.fsdecode(b"\x83" * 100 + end)) for end in (b"a", b"b")}
    assert len(rows) == 2
    assert all(len(row) <= LONGEST_ROW and row.startswith("d_%83") for row in rows)
    assert row_name("d", "x" * 200) == "d_" + "x" * 200  # as it always was


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """(data path, textures, results, what the run gave), the names of all of which are not text."""
    root = tmp_path_factory.mktemp("odd")
    data, textures = make_mvtec(root)
    disc = data / "disc"
    (disc / "train/good/000.png").rename(disc / "train/good" / os.fsdecode(b"\xff\r0.png"))
    for part in ("test", "ground_truth"):
        (disc / part / "blot").rename(disc / part / os.fsdecode(b"bl\xe9\not"))
    disc.rename(data / ODD)
    data = data.rename(root / os.fsdecode(b"dat\xe9"))
    labels = ("--run_name", os.fsdecode(b"r\xe9"), "--log_group", "g\x07")
    flags = ("--distribution", 1, "--fg", 1)
    return (
        data,
        textures,
        root / "r",
        run(data, textures, root / "r", *flags, name="mvtec", main=labels, net=("--meta_epochs", 1)),
    )


def test_a_class_whose_name_is_no_text_works_wholly(odd):
    _, _, results, done = odd
    assert done.exit_code == 0, done.output
    row = "mvtec_caf%E9%07%0Ax"
    assert list(pd.read_csv(results / "results.csv")["Row Names"]) == [row, "Mean"]
    scores = pd.read_csv(results / "per_image.csv")
    assert len(scores) == 6
    assert scores["path"][0].endswith("/caf%E9%07%0Ax/test/bl%E9%0Aot/000.png")
    assert pd.read_excel(results / "distribution/mvtec_distribution.xlsx")["Class"].tolist() == [row]
    assert openpyxl.load_workbook(results / "results.xlsx").sheetnames == ["results", "settings", row]
    assert "caf%E9%07%0Ax" in (results / "report.html").read_text(encoding="utf-8")
    assert len(list((results / "eval" / row).iterdir())) == 6
    assert list((results / "models/backbone_0" / row / "tb").iterdir())


def test_every_command_takes_such_a_class(odd, tmp_path):
    data, textures, results, _ = odd
    sheet = ["--out", tmp_path / "p", *DATASET[1:], "mvtec", data, textures]
    calls = [
        ("check", "mvtec", data), ("preview", *sheet), ("report", results, "--out", tmp_path / "c.html"),
        ("foreground", "--out", tmp_path / "f", "--test", "mvtec", data),
        ("mad-sys", data, textures, tmp_path / "m", "--beta", 0.5, "--count", 1, "-d", ODD),
    ]  # fmt: skip
    for arguments in calls:
        done = cli(*arguments)
        assert done.returncode == 0, (arguments[0], done.stdout)
        assert "caf%E9%07%0Ax" in done.stdout
    assert (tmp_path / "p" / "mvtec_caf%E9%07%0Ax.png").is_file()


def test_classes_that_would_share_a_row_and_folders_that_tensorboard_cannot_write_are_refused_early(tmp_path):
    data, textures = make_mvtec(tmp_path)
    shutil.copytree(data / "disc", data / os.fsdecode(b"caf\xe9"))
    shutil.copytree(data / "disc", data / "caf%E9")
    done = run(data, textures, tmp_path / "r")
    assert done.exit_code == 2
    assert last_line(done) == (
        "Error: two classes would both be called folder_caf%E9 in the results; rename the folder of one of them"
    )
    places = os.fsdecode(bytes(tmp_path) + b"/r\xe9"), tmp_path / "s"
    for results, models in (places, places[::-1]):
        done = run(data, textures, results, "-d", "disc", main=("--models_path", models) if models == places[0] else ())
        assert done.exit_code == 2
        assert "the name is not UTF-8, and TensorBoard cannot write there; give another" in last_line(done)
        assert not Path(results).exists()


def test_lists_of_splits_hold_a_carriage_return_in_one_row(tmp_path):
    import csv

    data = shaped(tmp_path / "x", "good")
    odd = data / "disc/good/a\rb.png"
    (data / "disc/good/000.png").rename(odd)
    done = run(data, "builtin", tmp_path / "r", net=("--meta_epochs", 1))
    assert done.exit_code == 0, done.output
    with (tmp_path / "r/splits/folder_disc.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert {len(row) for row in rows} == {2}
    assert str(odd) in {row[0] for row in rows}
    assert printable(str(odd)).endswith("a%0Db.png")
