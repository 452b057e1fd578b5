"""`onnx/ort.py` in an environment with only onnxruntime, NumPy, OpenCV and Pillow gives the results of torch."""

import csv
import json
import os
import re
import subprocess
import venv
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import onnx
import pandas as pd
import pytest
from helpers import ROOT, cli, export_onnx
from onnx import TensorProto, helper
from PIL import Image
from test_tiling import in_tiles, sheets  # noqa: F401 fixtures

from tools import script

NEEDED = ("onnxruntime", "numpy", "opencv-python-headless", "pillow")


def parts_of(name, seen):
    """The top folders and files of a package and of its requirements."""
    if name in seen:
        return
    seen.add(name)
    package = metadata.distribution(name)
    tops = {file.parts[0] for file in package.files if file.parts[0] != ".."}
    yield from (Path(package.locate_file(top)) for top in tops if top != "__pycache__")
    for requirement in package.requires or ():
        if "extra ==" not in requirement:
            try:
                yield from parts_of(re.match(r"[\w.-]+", requirement)[0], seen)
            except metadata.PackageNotFoundError:
                continue  # of another platform


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """A Python with only these packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    seen = set()
    for name in NEEDED:
        for path in parts_of(name, seen):
            target = site / path.name
            if not target.exists():
                target.symlink_to(path)
    python = folder / "bin" / "python"
    for name in ("torch", "torchvision", "tqdm", "click", "sklearn", "pandas", "scipy"):
        assert subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode, name
    return python


@pytest.fixture(scope="module")
def folder(trained):
    return trained[0] / "models" / "backbone_0" / "custom_disc"


@pytest.fixture(scope="module")
def graph(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("graph") / "model.onnx"
    assert export_onnx(folder, "--out", out).returncode == 0
    return out


def ort(python, *arguments, **kwargs):
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(python), str(ROOT / "onnx" / "ort.py"), *map(str, arguments)], env=env, text=True, timeout=100,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/", **kwargs,
    )  # fmt: skip


def table(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def files_of(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_ort_and_predict_write_the_same_files(bare, graph, folder, tiny, tmp_path):
    pictures = tiny[0] / "disc" / "test"
    with_torch = cli("predict", pictures, "--checkpoint", folder, "--out", tmp_path / "torch", "--save")
    without = ort(bare, graph, pictures, "--out", tmp_path / "ort", "--save")
    assert with_torch.returncode == without.returncode == 0, without.stdout
    ours, theirs = table(tmp_path / "ort"), table(tmp_path / "torch")
    assert list(ours) == list(theirs)
    for path, row in ours.items():
        assert float(row["score"]) == pytest.approx(float(theirs[path]["score"]), abs=1e-3)
        assert float(row["normalised_score"]) == pytest.approx(float(theirs[path]["normalised_score"]), abs=2e-3)
        assert row["decision"] == theirs[path]["decision"]
        regions = [json.loads(table[path]["regions"]) for table in (ours, theirs)]
        assert int(row["region_count"]) == len(regions[0])
        assert [r["box"] for r in regions[0]] == [r["box"] for r in regions[1]]
    assert files_of(tmp_path / "ort") == files_of(tmp_path / "torch")
    for path in (tmp_path / "ort" / "maps").rglob("*.tiff"):
        other = np.asarray(Image.open(tmp_path / "torch" / path.relative_to(tmp_path / "ort")))
        np.testing.assert_allclose(np.asarray(Image.open(path)), other, atol=5e-3)


def test_ort_cuts_tiles_as_the_training_did(bare, in_tiles, sheets, tmp_path):  # noqa: F811
    out = tmp_path / "tiles.onnx"
    done = export_onnx(in_tiles[0] / "models/backbone_0/mvtec_cloth", "--out", out)
    assert done.returncode == 0, done.stdout
    done = ort(bare, out, sheets[0] / "cloth/test", "--out", tmp_path / "o", "--save", "--maps", "npy")
    assert done.returncode == 0, done.stdout
    rows = table(tmp_path / "o")
    for one in pd.read_csv(in_tiles[0] / "per_image.csv").itertuples():
        assert float(rows[one.path]["score"]) == pytest.approx(one.score, abs=1e-3)
        assert int(rows[one.path]["decision"]) == one.decision
    assert np.load(tmp_path / "o/maps/good/0.npy").shape == (256, 256)


def test_json_lines_and_bad_images(bare, graph, tiny, tmp_path):
    (tmp_path / "empty.png").touch()
    done = ort(bare, graph, tiny[0] / "disc/test/good", tmp_path / "empty.png", "--json")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["error"] is None for line in lines] == [True, True, True, False]
    assert done.stdout.strip().splitlines()[-1] == "Error: 1 of 4 images could not be judged"


@pytest.fixture(scope="module")
def foreign_files(graph, tmp_path_factory):
    """Files that are not graphs of this project."""
    root = tmp_path_factory.mktemp("strange")
    (root / "text.onnx").write_text("no graph")
    (root / "empty.onnx").touch()
    (root / "cut.onnx").write_bytes(graph.read_bytes()[:3000])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "score")]
    node = helper.make_node("Identity", ["image"], ["score"])
    other = helper.make_model(
        helper.make_graph([node], "other", value[:1], value[1:]), opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )  # fmt: skip
    onnx.save(other, root / "other.onnx")
    helper.set_model_props(other, {"glass": "no JSON"})
    onnx.save(other, root / "lies.onnx")
    cv2.imwrite(str(root / "good.png"), np.zeros((64, 64, 3), np.uint8))
    return root


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("{s}/none.onnx", "{s}/good.png", "--json"), 2, "no model"),
        (("{s}/text.onnx", "{s}/good.png", "--json"), 1, "is not an ONNX graph that can be run"),
        (("{s}/empty.onnx", "{s}/good.png", "--json"), 1, "is not an ONNX graph"),
        (("{s}/cut.onnx", "{s}/good.png", "--json"), 1, "is not an ONNX graph"),
        (("{s}/other.onnx", "{s}/good.png", "--json"), 1, "is not an ONNX graph of GLASS"),
        (("{s}/lies.onnx", "{s}/good.png", "--json"), 1, "is not an ONNX graph of GLASS"),
        (("{g}", "{s}/none.png", "--json"), 2, "no such file or folder"),
        (("{g}", "{s}/good.png"), 2, "give --out DIR"),
        (("{g}", "{s}/good.png", "--json", "--provider", "abacus"), 2, "this onnxruntime has"),
        (("{g}", "{s}/good.png", "--json", "--tile", "9"), 2, "at least 16"),
        (("{g}", "{s}/good.png", "--out", "{s}/good.png/o"), 1, "cannot be written to"),
        (("{g}", "--json"), 2, "INPUT"),
    ],
)
def test_wrong_usage_ends_with_one_line(graph, foreign_files, capsys, arguments, code, says):
    try:
        found = script("ort").main([a.format(s=foreign_files, g=graph) for a in arguments])
    except SystemExit as stopped:  # argparse's own
        found = stopped.code
    assert found == code
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert says in last
