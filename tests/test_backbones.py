"""Backbone names, weights, and the cut network."""

import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from helpers import ROOT

import backbones
from common import NetworkFeatureAggregator
from training import preparing
from utils import InputError, WorkError

SHAPE = (3, 64, 64)


@pytest.mark.parametrize("name", [*backbones.TORCHVISION, *backbones.TIMM])
def test_every_published_name_is_a_model(name):
    library, model = backbones.resolve(name)
    known = timm.is_model(model) if library == "timm" else model in torchvision.models.list_models()
    assert known
    if library == "timm" and "." in model:  # the tag of the weights exists too
        assert model in timm.list_pretrained()


@pytest.mark.parametrize("name", ["resnet19", "timm:nothing_such", "torchvision:nothing_such", "eval(1)"])
def test_unknown_name_says_what_is_possible(name):
    with pytest.raises(InputError, match=r"unknown .*(possible|similar names|see timm)"):
        backbones.resolve(name)


def test_seed_suffix():
    assert backbones.split_seed("resnet18.seed-31") == ("resnet18", 31)
    assert backbones.split_seed("timm:vit_tiny_patch16_224.augreg_in21k") == (
        "timm:vit_tiny_patch16_224.augreg_in21k", None
    )  # fmt: skip


def test_random_weights_come_from_the_seed_alone():
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, same, other = (backbones.load("resnet18", "random", seed) for seed in (1, 1, 2))
    assert torch.equal(one.conv1.weight, same.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)
    assert torch.equal(torch.random.get_rng_state(), state)


def whole_network_maps(backbone, layers, images):
    """What a hook that keeps references holds after the whole network has run, as in the published code."""
    held = {}
    handles = [
        backbone.get_submodule(name).register_forward_hook(lambda _m, _i, out, n=name: held.__setitem__(n, out))
        for name in layers
    ]
    with torch.no_grad():
        backbone.eval()(images)
    for handle in handles:
        handle.remove()
    return [held[name] for name in layers]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["layer2", "layer3"]),
        ("resnet18", ["layer2.1.conv2", "layer2.0.bn2"]),  # the second is changed twice in place
        ("resnet18", ["layer3", "layer1.0.relu"]),  # deeper first; a module that runs twice
        ("alexnet", ["features.3", "features.8"]),
        ("vgg11", ["features.3", "features.6"]),
        ("densenet121", ["features.denseblock1", "features.denseblock2"]),
        ("mnasnet_100", ["blocks.2", "blocks.4"]),
        ("efficientnet_b1", ["blocks.1", "blocks.3"]),
        ("torchvision:convnext_tiny", ["features.1", "features.3"]),
    ],
)
def test_cut_network_gives_the_whole_networks_maps(name, layers):
    backbone = backbones.load(name, "random")
    size = 64 if "resnet" in name else 96
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    cut = NetworkFeatureAggregator(backbone, layers, "cpu", (3, size, size))
    for ours, expected in zip(cut(images), whole_network_maps(backbone, layers, images), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-5)
    count = sum(p.numel() for p in cut.parameters())
    assert count < sum(p.numel() for p in backbone.parameters())
    assert cut.feature_shapes == [tuple(m.shape[1:]) for m in cut(images)]


def test_a_module_that_is_used_without_being_called_stays():
    """EVA asks its `rope` for an embedding; the blocks beyond the cut go all the same."""
    backbone = backbones.load("timm:eva02_tiny_patch14_224", "random")
    cut = NetworkFeatureAggregator(backbone, ["blocks.1"], "cpu", (3, 56, 56))
    assert tuple(cut(torch.randn(1, 3, 56, 56))[0].shape) == (1, 192, 4, 4)
    assert sum(p.numel() for p in cut.parameters()) < 0.4 * sum(p.numel() for p in backbone.parameters())


def test_cut_wide_resnet_holds_the_parameters_that_are_needed():
    backbone = backbones.load("wideresnet50", "random")
    cut = NetworkFeatureAggregator(backbone, ["layer2", "layer3"], "cpu", SHAPE)
    assert sum(p.numel() for p in cut.parameters()) == pytest.approx(24.9e6, rel=0.01)
    # the given network is whole still, its batch norms are its own
    assert isinstance(backbone.fc, torch.nn.Linear)
    assert isinstance(backbone.bn1, torch.nn.BatchNorm2d)
    trained = NetworkFeatureAggregator(backbone, ["layer2", "layer3"], "cpu", SHAPE, train_backbone=True)
    assert isinstance(trained.backbone.bn1, torch.nn.BatchNorm2d)
    assert torch.equal(trained.backbone.conv1.weight, backbone.conv1.weight)


@pytest.mark.parametrize(
    ("name", "layers", "size", "grid"),
    [
        ("timm:vit_tiny_patch16_224", ["blocks.2", "blocks.5"], (64, 96), (4, 6)),
        ("timm:deit_tiny_distilled_patch16_224", ["blocks.3"], (80, 64), (5, 4)),
        ("timm:vit_small_patch14_dinov2.lvd142m", ["blocks.1"], (70, 70), (5, 5)),
        ("timm:vit_small_patch14_reg4_dinov2.lvd142m", ["blocks.1"], (70, 100), (5, 7)),
        ("timm:swin_tiny_patch4_window7_224", ["layers.0", "layers.1"], (224, 224), (56, 56)),
        ("timm:convnext_atto", ["stages.1"], (64, 64), (8, 8)),
        ("torchvision:swin_t", ["features.1", "features.3"], (64, 96), (16, 24)),
        ("torchvision:vit_b_32", ["encoder.layers.encoder_layer_1"], (224, 224), (7, 7)),
    ],
)
def test_transformers_give_maps(name, layers, size, grid):
    cut = NetworkFeatureAggregator(backbones.load(name, "random"), layers, "cpu", (3, *size))
    maps = cut(torch.randn(2, 3, *size))
    assert tuple(maps[0].shape[2:]) == grid
    assert maps[0].shape[:2] == (2, cut.feature_shapes[0][0])


def test_tokens_keep_their_place():
    """Changing one corner of the image moves the feature of that corner most."""
    cut = NetworkFeatureAggregator(
        backbones.load("timm:vit_tiny_patch16_224", "random"), ["blocks.0"], "cpu", (3, 64, 96)
    )
    image = torch.zeros(1, 3, 64, 96)
    changed = image.clone()
    changed[:, :, 48:, 80:] = 3
    (before,), (after,) = cut(image), cut(changed)
    moved = (after - before).norm(dim=1)[0]
    assert divmod(int(moved.argmax()), 6) == (3, 5)


def test_unknown_layer_names_what_is_there():
    backbone = backbones.load("resnet18", "random")
    with pytest.raises(InputError, match=r"no layer 'layer22'.*layer1.*similar names: layer2"):
        NetworkFeatureAggregator(backbone, ["layer22"], "cpu", SHAPE)


def test_layer_without_a_grid():
    with pytest.raises(InputError, match="not a grid of patches"):
        NetworkFeatureAggregator(backbones.load("resnet18", "random"), ["fc"], "cpu", SHAPE)


# ---------------------------------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def state():
    return backbones.load("resnet18", "random", 3).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_may_end_after_the_last_layer(tmp_path, state, suffix):
    cut = {k: v for k, v in state.items() if not k.startswith(("layer4", "fc"))}
    path = tmp_path / f"cut{suffix}"
    torch.save(cut, path) if suffix == ".pth" else safetensors.torch.save_file(cut, path)
    backbone = backbones.load("resnet18", path)
    aggregator = NetworkFeatureAggregator(backbone, ["layer2", "layer3"], "cpu", SHAPE)
    norm = {key: state[f"layer3.1.bn2.{key}"] for key in ("weight", "bias", "running_mean", "running_var")}
    scale = norm["weight"] / (norm["running_var"] + 1e-5).sqrt()  # the batch norm is folded into the convolution
    folded = aggregator.backbone.layer3[1].conv2
    torch.testing.assert_close(folded.weight, state["layer3.1.conv2.weight"] * scale[:, None, None, None])
    torch.testing.assert_close(folded.bias, norm["bias"] - norm["running_mean"] * scale)
    with pytest.raises(InputError, match=r"lack tensors that layers layer4 need: layer4\.0\.bn1\.bias"):
        NetworkFeatureAggregator(backbone, ["layer4"], "cpu", SHAPE)


def test_missing_keys_are_named(tmp_path, state):
    torch.save({k: v for k, v in state.items() if k != "layer3.1.conv2.weight"}, tmp_path / "w.pth")
    backbone = backbones.load("resnet18", tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"lack .* layer3\.1\.conv2\.weight;"):
        NetworkFeatureAggregator(backbone, ["layer2", "layer3"], "cpu", SHAPE)


def test_wrapped_and_prefixed_state_dicts(tmp_path, state):
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    assert torch.equal(backbones.load("resnet18", tmp_path / "w.pth").fc.weight, state["fc.weight"])


def test_unusable_weights(tmp_path, state):
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"something": torch.zeros(1)}, tmp_path / "foreign.pth")
    torch.save(state | {"conv1.weight": torch.zeros(1, 2)}, tmp_path / "shape.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"hook": print}, tmp_path / "code.pth")
    for file, reason in {
        "nothing.pth": "no such file", "text.pth": "cannot|can be read safely", "foreign.pth": "none of its keys",
        "shape.pth": r"conv1\.weight is", "list.pth": "holds a list", "code.pth": "can be read safely",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=reason):
            backbones.load("resnet18", tmp_path / file)


def test_pretrained_asks_torchvision_for_the_v1_weights(monkeypatch, state):
    asked = []

    def fetch(url, **options):
        asked.append((url, options))
        return dict(state)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
    backbone = backbones.load("resnet18")
    assert asked == [
        ("https://download.pytorch.org/models/resnet18-f37072fd.pth", {"check_hash": True, "weights_only": True})
    ]
    assert torch.equal(backbone.conv1.weight, state["conv1.weight"])
    for name in ("resnet50", "wideresnet50"):  # have newer weights too; theirs would be other results
        model = backbones.TORCHVISION[name]
        with pytest.raises(WorkError, match="belongs to another network"):
            backbones.load(name)
        assert asked[-1][0] == torchvision.models.get_model_weights(model).IMAGENET1K_V1.url


@pytest.mark.parametrize(
    ("name", "file"), [("resnet18", "resnet18-f37072fd.pth"), ("mnasnet_100", "timm/mnasnet_100.rmsp_in1k")]
)
def test_no_network_and_no_weights(tmp_path, name, file):
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-c", f"import backbones; backbones.load({name!r})"], cwd=ROOT, text=True,
        capture_output=True, timeout=120,
        env={"TORCH_HOME": str(tmp_path), "HF_HOME": str(tmp_path), "https_proxy": nowhere, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("utils.WorkError: backbone")
    assert file in last
    assert str(tmp_path) in last
    assert "--weights PATH" in last


def test_auto_takes_the_papers_network_where_it_is_to_be_had(monkeypatch):
    monkeypatch.setattr(backbones, "load", lambda name: None)
    assert backbones.choose()[0] == "wideresnet50"


def test_auto_takes_the_embedded_network_else_and_says_why(monkeypatch):
    def refuse(name):
        raise WorkError("no weights") from OSError("Network is unreachable")

    monkeypatch.setattr(backbones, "load", refuse)
    name, why = backbones.choose()
    assert name == "efficientnet_lite0"
    assert "wideresnet50" in why
    assert "OSError: Network is unreachable" in why


def kept_training(folder, **state):
    folder.mkdir(parents=True)
    torch.save({"discriminator": {}, **state}, folder / "ckpt.pth")


def test_auto_keeps_what_a_training_was_begun_with_and_looks_at_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "choose", lambda: ("chosen", "anew"))
    kept_training(tmp_path / "whole", config={"backbone": "wideresnet50"})
    kept_training(tmp_path / "small", config={"backbone": "efficientnet_lite0"})
    kept_training(tmp_path / "published", config=None)
    kept_training(tmp_path / "another", config={"backbone": "resnet50"})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "ckpt_best_3.pth").write_bytes(b"")

    def of(*names, given="auto"):
        return preparing.name_of_auto(given, "pretrained", [tmp_path / name for name in names])

    assert of("whole") == "wideresnet50"
    assert of("small", given="auto.seed-3") == "efficientnet_lite0.seed-3"
    for name in ("published", "another", "damaged", "none"):
        assert of(name) == "chosen"
        assert of(name, "small") == "efficientnet_lite0"
    assert of("whole", given="resnet18") == "resnet18"
    kept_training(tmp_path / "removed", config={"backbone": "resnet18_half"})
    with pytest.raises(InputError, match=r"'resnet18_half' was removed in version 1\.1\.0"):
        backbones.resolve(of("removed"))
    with pytest.raises(InputError, match=r"--weights w\.pth: the network that they belong to is not given"):
        preparing.name_of_auto("auto", "w.pth", [])


def test_cached_weights_of_another_network_are_no_traceback(monkeypatch):
    monkeypatch.setattr(backbones, "_fetch", lambda *_: {"nothing": torch.zeros(1)})
    with pytest.raises(WorkError, match="belongs to another network; delete it"):
        backbones.load("resnet18")
    assert backbones.choose()[0] == "efficientnet_lite0"
