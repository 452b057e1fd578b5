"""What earlier runs left is looked at before the first class trains; what is damaged is said in one line."""

import json
import shutil

import pytest
from helpers import make_mvtec
from test_runs import run
from test_waste import kept_class

from inference import checkpoint
from reporting import class_record, page
from reporting import tables as report
from training import class_run, earlier
from training.trainer import Trainer
from utils import WorkError

HEADER = "Row Names,image_auroc,image_ap,pixel_auroc,pixel_ap,pixel_pro,best_epoch\n"
SETTINGS = {
    "command": ["main.py"], "arguments": {"main": {"seed": 0}}, "models": {}, "versions": {"torch": "2"},
    "device": {"kind": "cpu", "name": "x", "threads": 1}, "written": "2026-01-01", "duration_seconds": 1.0,
    "later_calls": [{"command": [], "written": "2026-01-02"}],
}  # fmt: skip


def leave(folder):
    """What a run leaves, without a run."""
    report.write_results(folder, {"folder_a": kept_class("folder_a")["figures"]})
    report.write_settings(folder, SETTINGS)
    class_record.save(folder, "folder_a", kept_class("folder_a"))
    return folder


def changed(**values):
    return json.dumps({**SETTINGS, **values})


def class_with(**values):
    return json.dumps({**kept_class("folder_a"), **values})


def test_a_last_epoch_without_pixel_metrics_is_shown(tmp_path):
    """Masks are missing, so the table has no pixel AUROC of the last epoch; a test alone then writes the page anew."""
    last = {"last_epoch": 3, "last_image_auroc": 0.9, "last_pixel_auroc": float("nan")}
    report.write_results(tmp_path, {"folder_a": kept_class("folder_a")["figures"] | last})
    class_record.save(tmp_path, "folder_a", kept_class("folder_a"))
    page.write(tmp_path)
    text = " ".join((tmp_path / page.FILE).read_text().split())
    assert "the last epoch, 3, has image AUROC 90.00 % and pixel AUROC – %" in text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("results.csv", b""), ("results.csv", b"\0\0\0\0"), ("results.csv", b"\xff\xfeR\0o\0w\0"),
        ("results.csv", b"PK\x03\x04"), ("results.csv", HEADER + "folder_a,1,1\n"), ("results.csv", HEADER + ",1,1,1,1,1,1\n"),
        ("results.csv", HEADER + "folder_a,1,1,1,1,1,much\n"), ("results.csv", HEADER + '"folder_a,1,1,1,1,1,1\n'),
        ("results.csv", HEADER.replace(",", ";")), ("results.csv", "Row Names,image_auroc\nfolder_a,1\n"),
        ("results.csv", HEADER + "a,1,1,1,1,1,1\na,1,1,1,1,1,1\n"), ("results.csv", None),
        ("settings.json", "{"), ("settings.json", "[]"), ("settings.json", "null"), ("settings.json", b"\xff\xfe{"),
        ("settings.json", "[" * 100_000), ("settings.json", changed(later_calls=[{}])), ("settings.json", None),
        ("settings.json", changed(arguments=[1])), ("settings.json", changed(versions="2")),
        ("settings.json", changed(duration_seconds="long")), ("settings.json", changed(device={})),
        ("settings.json", changed(command="python")),
        ("report/folder_a.json", "no"), ("report/folder_a.json", "[]"), ("report/folder_a.json", "{}"),
        ("report/folder_a.json", '{"row": "folder_a"}'), ("report/folder_a.json", class_with(figures=None)),
        ("report/folder_a.json", class_with(images=[{"path": "a"}])), ("report/folder_a.json", class_with(history=[{}])),
        ("report/folder_a.json", class_with(gallery=[{"index": 7}])), ("report/folder_a.json", class_with(row=3)),
        ("report/folder_a.json", class_with(thresholds={"image": 1})), ("report/folder_a.json", class_with(curves=[1])),
        ("results.xlsx", None), ("per_image.csv", None), ("report.html", None), ("report", "a file"), ("splits", "a file"),
    ],
)  # fmt: skip
def test_damage_is_said_in_one_line(tmp_path, file, content):
    path = leave(tmp_path) / file
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WorkError) as raised:
        earlier.check_results(tmp_path)
    assert str(path) in str(raised.value)
    assert str(raised.value).endswith("move it away")
    assert "\n" not in str(raised.value)


def test_what_runs_leave_is_taken(tmp_path):
    for_names = {name: kept_class("a")["figures"] for name in ("NA", "7", "nan", "mvtec_a,b", 'x"y')}
    report.write_results(leave(tmp_path), for_names)
    assert [*report.read_rows(tmp_path / "results.csv").index] == ["folder_a", *for_names, report.MEAN]
    earlier.check_results(tmp_path)
    earlier.check_results(tmp_path / "new")
    # what is written anew before it is read may be damaged
    (tmp_path / "report" / "folder_a.json").write_text("no")
    earlier.check_results(tmp_path, ["folder_a"])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A run over two classes: data, textures, results."""
    root = tmp_path_factory.mktemp("two")
    data, textures = make_mvtec(root, ("cup", "disc"), train=3, good=1, defective=1)
    done = run(data, textures, root / "r", net=("--meta_epochs", 1, "--step", 0))
    assert done.exit_code == 0, done.output
    return data, textures, root / "r"


def flip(path):
    """A bit of it, as on a disk that fails; torch takes it as it is."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "net", "code", "says"),
    [
        ("results.csv", (), 1, r"r/results.csv of an earlier run"),
        ("report/folder_gone.json", (), 1, "folder_gone.json of an earlier run"),
        (
            "models/backbone_0/folder_disc/ckpt.pth",
            ("--meta_epochs", 2),
            1,
            "ckpt_best_0.pth beside it is intact: --test test tests it, delete",
        ),
        ("models/backbone_0/folder_disc/ckpt_best_0.pth", (), 1, "ckpt.pth beside it is intact: delete"),
        (None, ("--lr", 0.5), 2, "folder_disc/ckpt.pth was made with other settings (lr was 0.0001, is 0.5)"),
    ],
)
def test_nothing_is_trained_before_it_is_said(two, tmp_path, monkeypatch, damage, net, code, says):
    data, textures, before = two
    results = tmp_path / "r"
    shutil.copytree(before, results)
    shutil.rmtree(results / "models" / "backbone_0" / "folder_cup")  # the first class is to be trained
    if damage is not None and damage.endswith(".pth"):
        flip(results / damage)
        checkpoint.load(results / damage)
    elif damage is not None:
        (results / damage).write_text("no")
    monkeypatch.setattr(Trainer, "train", None)
    done = run(data, textures, results, net=("--meta_epochs", 1, "--step", 0, *net))
    assert done.exit_code == code, done.output
    line = done.output.strip().splitlines()[-1]
    assert says in line
    assert damage is None or str(results / damage) in line
    assert not (results / "models" / "backbone_0" / "folder_cup").exists()


def test_a_test_is_refused_before_the_first_class_too(two, tmp_path, monkeypatch):
    data, textures, before = two
    monkeypatch.setattr(class_run, "score_chosen", None)
    main = ("--test", "test", "--models_path", before / "models")
    done = run(data, textures, tmp_path / "t", main=main, net=("--dsc_hidden", 16))
    assert done.exit_code == 2
    assert "was trained with dsc_hidden 32, but 16 is given" in done.output
    shutil.copytree(before / "models", tmp_path / "models")
    flip(tmp_path / "models/backbone_0/folder_disc/ckpt_best_0.pth")
    done = run(data, textures, tmp_path / "t", main=("--test", "test", "--models_path", tmp_path / "models"))
    assert done.exit_code == 1
    assert "folder_disc/ckpt_best_0.pth is damaged" in done.output.strip().splitlines()[-1]
