"""The method's parts against their slow forms, on random settings."""

import numpy as np
import pytest
import reference
import torch
from helpers import fill, make_glass
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

import perlin
from common import RescaleSegmentor
from inference.pooling import ChannelPooling, FusedPooling
from loss import focal_loss
from model import Discriminator, Projection
from synthesis import arithmetic, las
from training.trainer import compute_mean_embedding
from utils import InputError


@given(
    layers=st.sampled_from([("layer2",), ("layer1", "layer2"), ("layer2", "layer3"), ("layer3", "layer1", "layer2")]),
    size=st.tuples(st.integers(33, 80), st.integers(33, 80)),
    patchsize=st.sampled_from([1, 3, 5]),
    pretrain=st.sampled_from([16, 64, 96, 100, 128, 384]),
    target=st.sampled_from([16, 50, 64, 96, 128, 384]),
)
@settings(max_examples=12)
def test_embedding_is_the_unfolded_one(layers, size, patchsize, pretrain, target):
    model = make_glass(
        layers=layers, size=size, patchsize=patchsize, pretrain_embed_dimension=pretrain, target_embed_dimension=target
    )
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    ours, shapes = model._embed(images)
    expected = reference.embed(model.features.aggregator(images), patchsize, pretrain, target)
    assert shapes[0] == model.grid
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@given(
    channels=st.lists(st.sampled_from([8, 12, 24, 32]), min_size=1, max_size=3),
    patchsize=st.sampled_from([1, 3, 5]),
    pretrain=st.integers(1, 60),
    target=st.integers(1, 60),
)
def test_fused_pooling_wherever_it_says_it_applies(channels, patchsize, pretrain, target):
    maps = [torch.randn(2, c, 6 - i, 9 - i) for i, c in enumerate(channels)]
    if FusedPooling.applies(channels, patchsize, pretrain, target):
        ours = FusedPooling(channels, patchsize, pretrain, target)(maps)
        torch.testing.assert_close(ours, reference.embed(maps, patchsize, pretrain, target), rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="whole rows"):
            FusedPooling(channels, patchsize, pretrain, target)


@given(
    channels=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    patchsize=st.sampled_from([1, 3, 5, 7]),
    seed=st.integers(0, 99),
)
def test_channel_pooling_is_the_mean_of_each_channels_neighbourhood(channels, height, width, patchsize, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(2, c, height - i, width - i, generator=generator) for i, c in enumerate(channels)]
    pooling = ChannelPooling(patchsize)
    ours = pooling(maps)
    assert ours.shape == (2 * height * width, sum(channels))
    torch.testing.assert_close(ours, reference.embed_channels(maps, patchsize), rtol=1e-4, atol=1e-5)
    assert [tuple(part.shape) for part in pooling.parts(maps)] == [tuple(x.shape) for x in maps]


def test_the_pooling_of_channels_decides_both_dimensions():
    model = make_glass(pooling="channels", pretrain_embed_dimension=None, target_embed_dimension=None)
    assert (model.pretrain_embed_dimension, model.target_embed_dimension) == (384, 384)
    assert model.config["pooling"] == "channels"
    assert model.features.shape == (64, 384)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = reference.embed_channels(model.features.aggregator(images), 3)
    torch.testing.assert_close(model._embed(images)[0], expected, rtol=1e-4, atol=1e-5)
    direct = model.scorer().score_features(expected)
    torch.testing.assert_close(model.scorer().score_images(images), direct, rtol=1e-4, atol=1e-5)
    same = make_glass(pooling="channels", pretrain_embed_dimension=384, target_embed_dimension=384)
    assert same.settings == model.settings


def test_other_dimensions_than_the_number_of_channels_are_refused():
    given = {"pretrain_embed_dimension": None, "target_embed_dimension": 96}
    with pytest.raises(InputError, match=r"--target_embed_dimension 96: with --pooling channels .* 384; omit it"):
        make_glass(pooling="channels", **given)
    with pytest.raises(InputError, match="pretrain_embed_dimension is not given: --pooling published needs a length"):
        make_glass(**given)
    with pytest.raises(InputError, match="pooling 'mean': must be one of published, channels"):
        make_glass(pooling="mean")


@pytest.mark.parametrize(
    ("channels", "pretrain", "target"),
    [((128, 256), 384, 384), ((512, 1024), 1536, 1536), ((512,), 1536, 1536), ((256, 512, 1024), 768, 768)],
)
def test_usual_settings_are_fused(channels, pretrain, target):
    assert FusedPooling.applies(channels, 3, pretrain, target)


@given(
    svd=st.integers(0, 1),
    mining=st.integers(0, 1),
    step=st.sampled_from([0, 3, 5, 12]),
    p=st.sampled_from([0.0, 0.3, 0.5]),
    pre_proj=st.integers(0, 2),
    dsc_layers=st.integers(1, 3),
    hidden=st.sampled_from([24, 100]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=12)
def test_training_step_is_the_obvious_one(svd, mining, step, p, pre_proj, dsc_layers, hidden, seed):
    chosen = dict(
        svd=svd, mining=mining, step=step, p=p, pre_proj=pre_proj, dsc_layers=dsc_layers, dsc_hidden=hidden,
        pretrain_embed_dimension=32, target_embed_dimension=32, noise=0.05,
    )  # fmt: skip
    model, twin = (make_glass(seed=seed, scale=0.05, **chosen) for _ in range(2))
    rng = torch.Generator().manual_seed(seed)
    image, aug = (torch.randn(2, 3, 64, 64, generator=rng) for _ in range(2))
    mask_s = (torch.rand(2, 8, 8, generator=rng) > 0.7).float()
    model.c = twin._features(image).detach().unflatten(0, (2, -1)).mean(0) * 0.9
    ours = model.train_step(image, aug, mask_s)

    noise = 0.05 * torch.randn(2 * 64, 32, generator=twin.generator)
    twin.discriminator.train()
    expected = reference.train_loss(
        twin.discriminator, _graph(twin._features(image)), twin._features(aug), model.c.repeat(2, 1),
        mask_s.flatten() > 0, noise, svd=svd, step=step, mining=mining, radius=0.75, p=p, margin=0.5,
    )  # fmt: skip
    for name, value in expected.items():
        assert float(ours[name]) == pytest.approx(float(value.detach()), rel=2e-3, abs=1e-4), name
    expected["loss"].backward()
    for (name, a), (_, b) in zip(_gradients(model), _gradients(twin), strict=True):
        if not name.endswith("bias"):  # those that feed a batch norm have none
            assert (a - b).norm() <= 0.02 * b.norm() + 1e-5, name
    for key, value in model.discriminator.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(value, twin.discriminator.state_dict()[key], rtol=1e-4, atol=1e-5)


def _graph(t):
    """With pre_proj 0 nothing before D learns, but the slow form still asks for gradients to g."""
    return t if t.requires_grad else t.requires_grad_(True)


def _gradients(model):
    parts = [model.discriminator] + ([model.pre_projection] if model.pre_projection is not None else [])
    return [(name, p.grad) for part in parts for name, p in part.named_parameters()]


@pytest.mark.parametrize("chosen", [{"svd": 1, "pre_proj": 0}, {"dsc_layers": 1}, {"step": 0}, {"batch": 1}])
def test_settings_that_crash_the_published_code(chosen):
    chosen = dict(chosen)
    batch = chosen.pop("batch", 2)
    model = make_glass(**chosen)
    image, aug = torch.randn(2, batch, 3, 64, 64)
    model.c = torch.zeros(64, 96)
    figures = model.train_step(image, aug, torch.eye(8).expand(batch, 8, 8))
    assert all(np.isfinite(float(value)) for value in figures.values())


def test_trained_backbone_learns_and_keeps_to_eval_in_prediction():
    model = make_glass(train_backbone=True)
    image, aug = torch.randn(2, 2, 3, 64, 64)
    model.c = torch.zeros(64, 96)
    before = {k: v.clone() for k, v in model.features.aggregator.backbone.state_dict().items()}
    model.train_step(image, aug, torch.eye(8).expand(2, 8, 8))
    after = model.features.aggregator.backbone.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before if k.endswith("conv1.weight"))
    statistics = {k: v.clone() for k, v in after.items() if "running" in k}
    model._predict(image)
    assert all(torch.equal(v, model.features.aggregator.backbone.state_dict()[k]) for k, v in statistics.items())


# --------------------------------------------------------------------------------------------- LAS


@given(
    seed=st.integers(0, 2**32 - 1), size=st.tuples(st.integers(9, 60), st.integers(9, 60)),
    cells=st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8])),
)  # fmt: skip
def test_perlin_noise_is_the_pixelwise_one(seed, size, cells):
    ours = perlin.perlin_noise(np.random.default_rng(seed), size, cells)
    angles = 2 * np.pi * np.random.default_rng(seed).random((cells[0] + 1, cells[1] + 1))
    np.testing.assert_allclose(ours, reference.perlin_noise(angles, size, cells), atol=1e-5)


def test_masks_agree_with_the_published_statistics():
    import json

    import cv2
    from helpers import DATA

    golden = json.loads((DATA / "perlin_statistics.json").read_text())
    rng = np.random.default_rng(1)
    found = {"pixel_coverage": [], "patch_coverage": [], "pixel_components": []}
    for _ in range(golden["n"]):
        mask, mask_s = las.las_mask(rng, tuple(golden["image"]), tuple(golden["feature_map"]))
        found["pixel_coverage"].append(mask.mean())
        found["patch_coverage"].append(mask_s.mean())
        found["pixel_components"].append(cv2.connectedComponents(mask.astype(np.uint8))[0] - 1)
    for name, values in found.items():
        expected = golden[name]
        error = expected["std"] * np.sqrt(2 / golden["n"])
        assert abs(np.mean(values) - expected["mean"]) < 4 * error, name
        assert np.std(values) == pytest.approx(expected["std"], rel=0.15), name
        for percent in ("25", "50", "75"):
            own_share = np.mean(np.asarray(values) <= expected["quantiles"][percent])
            assert own_share == pytest.approx(int(percent) / 100, abs=0.06), (name, percent)


@given(seed=st.integers(0, 1000), size=st.tuples(st.integers(20, 70), st.integers(20, 70)))
def test_mask_keeps_to_the_foreground_and_its_pool_to_the_grid(seed, size):
    foreground = np.zeros(size, bool)
    foreground[: size[0] // 2] = True
    grid = (size[0] // 7, size[1] // 7)
    mask, mask_s = las.las_mask(np.random.default_rng(seed), size, grid, foreground)
    assert mask.any()
    assert not mask[~foreground].any()
    assert mask_s.shape == grid
    assert set(np.unique(mask_s)) <= {0, 1}
    assert mask_s.any()


def test_empty_foreground_is_an_error_not_a_loop():
    with pytest.raises(InputError, match=r"foreground.*0\.00%"):
        las.las_mask(np.random.default_rng(0), (32, 32), (4, 4), np.zeros((32, 32), bool))


def test_blend_mixes_inside_the_mask_only():
    image, texture = torch.full((3, 4, 4), 2.0), torch.full((3, 4, 4), -1.0)
    mask = torch.zeros(4, 4)
    mask[0] = 1
    out = las.blend(image, texture, mask, 0.3)
    assert torch.equal(out[:, 1:], image[:, 1:])
    assert out[:, 0].flatten().tolist() == pytest.approx([0.7 * -1 + 0.3 * 2] * 12)


def test_beta_is_clipped():
    rng = np.random.default_rng(0)
    drawn = [las.draw_beta(rng, 0.5, 0.4) for _ in range(500)]
    assert min(drawn) == 0.2
    assert max(drawn) == 0.8
    assert 0.4 < np.mean(drawn) < 0.6


# ------------------------------------------------------------------------------------- small parts


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_is_numpys(values, q):
    ours = float(arithmetic.quantile(torch.tensor(values), q))
    assert ours == pytest.approx(np.quantile(np.float32(values), q), rel=1e-5, abs=1e-3)


def test_quantile_of_nothing_is_nan():
    assert np.isnan(float(arithmetic.quantile(torch.zeros(0), 0.5)))


def test_focal_loss_by_hand():
    loss = focal_loss(torch.tensor([0.9, 0.2]), torch.tensor([True, False]))
    expected = -np.mean([0.1**2 * np.log(0.9), 0.2**2 * np.log(0.8)])
    assert float(loss) == pytest.approx(expected, rel=1e-3)


@given(
    grid=st.tuples(st.integers(2, 9), st.integers(2, 9)), size=st.tuples(st.integers(8, 60), st.integers(8, 60))
)  # fmt: skip
def test_map_is_resize_then_scipys_gaussian(grid, size):
    scores = torch.rand(2, *grid)
    ours = RescaleSegmentor("cpu", size).convert_to_segmentation(scores)
    resized = torch.nn.functional.interpolate(scores[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    expected = [gaussian_filter(one.double().numpy(), 4) for one in resized]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_state_dict_keys_are_the_published_ones():
    assert list(Projection(4, 4, 2).state_dict()) == [
        "layers.0fc.weight", "layers.0fc.bias", "layers.1fc.weight", "layers.1fc.bias"
    ]  # fmt: skip
    keys = list(Discriminator(4, 3, 8).state_dict())
    assert keys[0] == "body.block1.0.weight"
    assert "body.block2.1.running_mean" in keys
    assert keys[-1] == "tail.0.weight"


def test_centre_of_the_mean_is_the_mean_of_the_centres():
    model = make_glass()
    fill(model.pre_projection, 5)
    batches = [{"image": torch.randn(n, 3, 64, 64)} for n in (3, 1)]
    model.set_centre(compute_mean_embedding(model, batches))
    images = torch.cat([batch["image"] for batch in batches])
    expected = model._features(images).unflatten(0, (4, -1)).mean(0).detach()
    torch.testing.assert_close(model.c, expected, rtol=1e-4, atol=1e-5)
