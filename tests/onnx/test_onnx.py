"""The exported graph compared with torch: every backbone family, every kind of export, and impossible exports."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from helpers import ROOT, export_onnx
from PIL import Image

import backbones
from common import RescaleSegmentor
from datasets.settings import ImageSettings
from glass import load_checkpoint
from inference import inspector as inference
from inference.features import PatchFeatures
from inference.head import ScoringHead, build_heads
from inference.scorer import Scorer
from inference.settings import Settings
from inference.thresholds import Thresholds
from tools import script

SCRIPT = ROOT / "onnx" / "pth2onnx.py"


def pictures(count, height, width, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 7, 7, 3)).astype(np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((width, height), Image.BICUBIC)) for one in small])


def run(graph, images):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"image": images}), strict=True))


@pytest.mark.parametrize(
    ("name", "layers", "size", "width"),
    [
        ("resnet18", ["layer2", "layer3"], 64, 96),
        ("resnet18", ["layer1", "layer2", "layer3"], 64, 100),  # pooled by the general form
        ("vgg11", ["features.10", "features.15"], 64, 96),
        ("densenet121", ["features.denseblock2", "features.denseblock3"], 64, 96),
        ("efficientnet_b1", ["blocks.2", "blocks.4"], 64, 96),
        ("efficientnet_lite0", ["layer2", "layer3"], 64, None),  # keeps the channels apart
        ("vit_small", ["blocks.3", "blocks.8"], 64, 96),
        ("vit_swin_base", ["layers.0", "layers.1"], 224, 96),
    ],
)
def test_every_backbone_family_gives_the_same_as_torch(name, layers, size, width):
    network = backbones.load(name, "random", 0)
    pooling = backbones.default_pooling(name)
    settings = Settings(layers, (3, size, size), width, width, pooling=pooling, dsc_hidden=32)
    features = PatchFeatures(network, settings, torch.device("cpu"))
    scorer = Scorer(
        features, ScoringHead(*build_heads(features.settings, "cpu")), RescaleSegmentor("cpu", (size, size))
    )
    state = {"config": {"layers_to_extract_from": layers, "backbone": name}, "thresholds": Thresholds(0.5, 0.5).plain()}
    ours = inference.Inspector(scorer, state, ImageSettings(resize=size + 9, imagesize=size))
    exporter = script("pth2onnx")
    graph = exporter.export(ours, exporter.GraphOptions()).SerializeToString()
    for images in (pictures(3, size + 30, 2 * size), pictures(1, size + 9, size + 9)):
        found = run(graph, images)
        scores, maps = ours.score(torch.stack([ours.prepare(Image.fromarray(one)) for one in images]))
        np.testing.assert_allclose(found["score"], scores, atol=2e-4)
        np.testing.assert_allclose(found["map"], maps, atol=2e-4)
        np.testing.assert_allclose(found["normalised"], ours.thresholds.normalise(found["score"]), atol=1e-5)


@pytest.fixture(scope="module")
def folder(trained):
    return trained[0] / "models" / "backbone_0" / "custom_disc"


def export_process(*arguments, cwd):
    """Run the export as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], cwd=cwd, text=True, timeout=200,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "apart"),
    [((), 2e-4), (("--static", "--input", "float"), 2e-4), (("--half",), 2e-2), (("--quantize", "int8"), 0.3)],
)
def test_each_kind_of_export(folder, tiny, tmp_path, flags, apart):
    out = tmp_path / "model.onnx"
    good = tiny[0] / "disc/train/good"
    more = ("--images", good, "--measure", tiny[0] / "disc/test") if "--quantize" in flags else ()
    done = export_onnx(folder, "--out", out, *flags, *more)
    assert done.returncode == 0, done.stdout
    assert "largest difference to torch: score" in done.stdout
    assert ("image AUROC on" in done.stdout) == bool(more)
    assert ("good images are above the threshold in int8" in done.stdout) == bool(more)
    about = json.loads({p.key: p.value for p in onnx.load(out).metadata_props}["glass"])
    model = load_checkpoint(folder)
    assert about["class_name"] == "custom_disc"
    assert about["thresholds"]["image"] == model.thresholds.image
    for path in sorted((tiny[0] / "disc/test").rglob("*.png")):
        image = np.asarray(Image.open(path).convert("RGB"))[None]
        found = run(out.read_bytes(), image.astype(np.float32) / 255 if "float" in flags else image)
        assert float(found["score"][0]) == pytest.approx(model.predict_image(path).score, abs=apart)
        assert found["map"].shape == (1, 64, 64)


def test_without_postprocessing_the_graph_gives_patch_scores(folder, tmp_path):
    done = export_onnx(folder, "--out", tmp_path / "m.onnx", "--no-postprocess")
    assert done.returncode == 0, done.stdout
    found = run((tmp_path / "m.onnx").read_bytes(), pictures(2, 64, 64))
    assert found["patch_scores"].shape == (2, 8, 8)
    np.testing.assert_allclose(found["patch_scores"].max((1, 2)), found["score"])


def test_the_only_checkpoint_is_found_and_several_are_listed(folder, tmp_path, monkeypatch):
    none = export_process(cwd=tmp_path)
    assert none.returncode == 2
    assert "no CHECKPOINT is given" in none.stdout
    for name in ("a", "b"):
        (tmp_path / "results/models/backbone_0" / name).mkdir(parents=True)
        best = next(folder.glob("ckpt_best_*.pth"))
        (tmp_path / "results/models/backbone_0" / name / best.name).write_bytes(best.read_bytes())
    monkeypatch.chdir(tmp_path)
    both = export_onnx()
    assert both.returncode == 2
    assert "which CHECKPOINT?" in both.stdout
    assert both.stdout.count(best.name) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("/none.pth",), 2, "no checkpoint /none.pth"),
        (("{ckpt}", "--quantize", "int8"), 2, "needs --images"),
        (("{ckpt}", "--quantize", "int8", "--images", "/none"), 2, "the folder holds no images"),
        (("{ckpt}", "--images", "/none"), 2, "--images /none needs --quantize int8"),
        (("{ckpt}", "--measure", "/none"), 2, "--measure /none needs --quantize int8"),
        (("{ckpt}", "--opset", "11"), 2, "not in the range"),
        (("{ckpt}", "--out", "/proc/none/m.onnx"), 1, "cannot write"),
    ],
)
def test_impossible_exports_end_with_one_line(folder, arguments, code, says):
    done = CliRunner().invoke(script("pth2onnx").main, [a.format(ckpt=folder) for a in arguments])
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == code, done.output
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert says in last
