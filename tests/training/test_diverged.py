"""A training that diverges, and weights that are no numbers: one line, and nothing bad is kept or judged by."""

import math
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from helpers import cli
from PIL import Image
from small import LAYERS, SIDE, small_batch, small_glass, small_network
from torch import nn

import backbones
from common import NetworkFeatureAggregator
from datasets.geometry import Geometry
from inference import checkpoint
from inference import judge as judgement
from inference.thresholds import HELD_OUT, Thresholds
from networks import weights
from synthesis import arithmetic
from training import saving
from training.calibration import calibrate
from training.state import weights_of
from utils import InputError, WorkError

SETTINGS = {"class_name": "disc", "resize": SIDE, "imagesize": SIDE, "keep_all": False}


def training_batches(count=2):
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(count, 4, 3, SIDE, SIDE, generator=rng)
    masks = (torch.rand(count, 4, 8, 8, generator=rng) > 0.7).float()
    return [{"image": i, "aug": i.flip(0), "mask_s": m} for i, m in zip(images, masks, strict=True)]


def judged_batches():
    images, masks = torch.randn(4, 3, SIDE, SIDE), torch.zeros(4, 1, SIDE, SIDE)
    masks[2:, :, 8:16, 8:16] = 1
    labels = np.array([False, False, True, True])
    return [{"image": images, "mask_gt": masks, "is_anomaly": labels, "image_path": list("abcd")}]


def ready(tmp_path, **settings):
    model = small_glass(meta_epochs=2, **settings)
    model.extra_config = dict(SETTINGS)
    model.set_model_dir(tmp_path, "disc")
    return model


def test_cross_entropy_of_scores_that_are_numbers_is_torchs_to_the_last_digit():
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    scores[:4] = torch.tensor([0.0, 1.0, 1e-38, 1 - 6e-8])
    for target in (0.0, 1.0):
        ours, theirs = scores.clone().requires_grad_(True), scores.clone().requires_grad_(True)
        loss = arithmetic.mean_bce(ours, target)
        expected = F.binary_cross_entropy(theirs, torch.full_like(theirs, target))
        (3 * loss).backward()
        (3 * expected).backward()
        assert loss.item() == expected.item()
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("settings", [{"svd": 0}, {"svd": 1}, {"dsc_layers": 1}, {"dsc_layers": 3}], ids=str)
def test_a_score_that_is_no_number_never_reaches_torchs_cross_entropy(settings, monkeypatch):
    seen = []

    def asserting(scores, *arguments):
        seen.append(bool(scores.isnan().any()))
        return F.binary_cross_entropy(scores, *arguments)

    fake = type("F", (), {**vars(F), "binary_cross_entropy": staticmethod(asserting)})
    monkeypatch.setattr(arithmetic, "F", fake)
    model = small_glass(**settings)
    batch = small_batch(model)
    with torch.no_grad():
        model.discriminator.tail[0].weight.fill_(math.nan)
    assert math.isnan(model.train_step(*batch)["loss"])
    assert seen
    assert not any(seen)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1e10}, {"lr": 1e20, "svd": 1}, {"lr": 1e30}, {"noise": 1e20}, {"noise": 1e38, "svd": 1},
        {"lr": 1e30, "pre_proj": 0}, {"lr": 1e10, "train_backbone": True}, {"lr": 1e30, "pre_proj": 3},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("judged", [False, True])
def test_a_diverged_training_ends_with_one_line_and_keeps_nothing(settings, judged, tmp_path):
    model = ready(tmp_path, **settings)
    with pytest.raises(WorkError, match=r"try a smaller --lr"):
        model.trainer(training_batches(), judged_batches() if judged else None, "disc")
    assert checkpoint.find_best(model.model_dir) is None
    state = checkpoint.load(model.model_dir / checkpoint.LATEST)  # that of the start
    assert state["record"]["epoch"] == 0


def test_weights_that_an_epochs_last_step_spoils_are_not_kept(tmp_path, monkeypatch):
    model = ready(tmp_path)
    step = model.train_step

    def last_step_spoils(*arguments):
        figures = step(*arguments)
        with torch.no_grad():
            model.pre_projection.layers[0].bias[3] = math.inf
        return figures

    monkeypatch.setattr(model, "train_step", last_step_spoils)
    with pytest.raises(WorkError, match=r"pre_projection\.layers\.0fc\.bias is not finite .* after epoch 0"):
        model.trainer(training_batches(1), None, "disc")
    assert checkpoint.find_best(model.model_dir) is None


def test_a_picture_that_makes_the_backbone_overflow_is_said(tmp_path):
    broken = training_batches(1)
    broken[0]["image"][0, 0, 0, 0] = math.inf
    with pytest.raises(WorkError, match=r"features of the training images are not finite .* in epoch 0"):
        ready(tmp_path).trainer(broken, None, "disc")


def test_a_rate_that_float32_cannot_hold_is_refused_at_once():
    with pytest.raises(InputError, match=r"lr 1e\+39: must be at most 1e\+30"):
        small_glass(lr=1e39)


def spoil(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


@pytest.fixture
def kept(tmp_path):
    model = ready(tmp_path)
    model.settings = replace(model.settings, backbone="efficientnet_lite0")
    path = checkpoint.best_path(model.model_dir, 0)
    made = Thresholds(0.5, 0.5, source=HELD_OUT).plain()
    saving.save({**weights_of(model, {"epoch": 0}), "thresholds": made}, path)
    return path


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["discriminator", "pre_projection"])
def test_a_checkpoint_with_weights_that_are_no_numbers_is_refused(part, value, kept):
    key = next(iter(torch.load(kept, weights_only=True)[part]))
    spoil(kept, lambda state: state[part][key].view(-1)[1:2].fill_(value))
    with pytest.raises(WorkError, match=rf"not finite \({part}: {key}\)"):
        checkpoint.load(kept)
    done = cli("predict", "--gpu", -1, "--checkpoint", kept, "--json", kept)
    assert done.returncode == 1


def test_thresholds_that_are_no_numbers_count_as_none():
    assert Thresholds.of(Thresholds(math.nan, 0.5).plain()) is None
    assert Thresholds.of(Thresholds(0.5, math.nan).plain()) is None
    assert Thresholds.of(Thresholds(0.5, 0.5).plain()).image == 0.5


def test_no_threshold_is_made_of_scores_that_are_no_numbers(tmp_path, monkeypatch):
    model = ready(tmp_path)
    path = checkpoint.best_path(model.model_dir, 0)
    saving.save(weights_of(model, {"epoch": 0}), path)
    before = path.read_bytes()
    images = judged_batches()
    images[0]["image"][1] = math.nan
    with pytest.raises(WorkError, match=r"a score that is not finite"):
        calibrate(model, images, "disc", HELD_OUT)
    with pytest.raises(WorkError, match=r"a score that is not finite"):
        model.tester(images, "disc")
    assert path.read_bytes() == before


class Broken(judgement.Judge):
    """Gives a score that is no number for one of what it is shown."""

    geometry = Geometry(resize=SIDE, imagesize=SIDE)
    thresholds = Thresholds(0.5, 0.5)

    def score_pictures(self, pictures):
        scores = np.full(len(pictures), 0.1, np.float32)
        scores[-1] = math.nan
        return scores, np.zeros((len(pictures), SIDE, SIDE), np.float32)


@pytest.mark.parametrize("tile", [None, 64])
def test_a_score_that_is_no_number_passes_no_picture_as_good(tile):
    judge = Broken()
    judge.tiling = judgement.choose_tiling({"resize": SIDE, "imagesize": SIDE, "keep_all": False}, tile, None)
    with pytest.raises(WorkError, match="not finite"):
        judge.predict_image(Image.new("RGB", (128, 128)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_files_with_values_that_are_no_numbers_are_refused(suffix, value, tmp_path):
    state = {k: v.clone() for k, v in backbones.load("efficientnet_lite0").state_dict().items()}
    state["blocks.2.0.conv_pw.weight"].view(-1)[7] = value
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": state}, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
    with pytest.raises(InputError, match=r"not finite .* in blocks\.2\.0\.conv_pw\.weight"):
        backbones.load("efficientnet_lite0", path)


def test_fetched_weights_with_values_that_are_no_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *_, **__: {"conv1.weight": torch.full((2, 2), math.nan)}
    )
    with pytest.raises(WorkError, match=r"ImageNet weights of backbone 'resnet18' .* not finite \(conv1\.weight\)"):
        backbones._fetch("resnet18", "torchvision", "resnet18", nn.Identity())


def test_a_network_whose_layers_overflow_is_refused_before_any_training():
    network = small_network()
    with torch.no_grad():
        network.layer1[1].running_var.fill_(-1)
    with pytest.raises(InputError, match=r"not finite \(NaN or infinity\) in layer layer1"):
        NetworkFeatureAggregator(network, LAYERS, "cpu", (3, SIDE, SIDE))


def test_a_sound_checkpoint_still_loads(kept):
    assert isinstance(checkpoint.load(kept)["discriminator"], dict)
    assert weights.not_finite({"half": torch.ones(2).to(torch.float8_e4m3fn), "count": torch.tensor(3), "n": 1}) == []
