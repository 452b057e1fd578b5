"""Numbers of the published implementation, which ours must give."""

import json

import numpy as np
import pytest
import torch
from helpers import DATA, fill, make_glass

import metrics
import perlin
from training import distribution

EMBEDDING = np.load(DATA / "embedding.npz")
TRAIN_STEP = np.load(DATA / "train_step.npz")


@pytest.mark.parametrize("index", range(5))
def test_embedding_scores_and_maps(index):
    case = json.loads(EMBEDDING["meta"].item())[index]
    model = make_glass(
        case["net"], case["layers"], case["hw"], case["seed"], case.get("projection_scale", 0.1),
        pretrain_embed_dimension=case["pre"], target_embed_dimension=case["tgt"], patchsize=case["patchsize"],
    )  # fmt: skip
    images = torch.from_numpy(np.random.RandomState(case["seed"] + 5).normal(0, 1, (2, 3, *case["hw"]))).float()
    embedding, shapes = model._embed(images)
    expected = EMBEDDING[f"{index}.embedding"]
    assert shapes[0] == tuple(case["patch_shape"])
    np.testing.assert_allclose(embedding.numpy(), expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    scores, maps = model._predict(images)
    np.testing.assert_allclose(scores, EMBEDDING[f"{index}.image_score"], atol=2e-5)
    np.testing.assert_allclose(maps, EMBEDDING[f"{index}.anomaly_map"], atol=2e-5)
    assert scores.dtype == maps.dtype == np.float32


@pytest.mark.parametrize("index", range(6))
def test_train_step(index):
    case = dict(json.loads(TRAIN_STEP["meta"].item())[index])
    seed, batch = case.pop("seed"), case.pop("batch", 3)
    model = make_glass(seed=seed, noise=0.0, lr=1e-3, **case)
    rng = np.random.RandomState(seed + 5)
    image = torch.from_numpy(rng.normal(0, 1, (batch, 3, 64, 64))).float()
    aug = torch.from_numpy(rng.normal(0, 1, (batch, 3, 64, 64))).float()
    mask_s = torch.from_numpy((rng.rand(batch, 8, 8) > 0.7).astype(np.float32))
    with torch.no_grad():
        model.c = model._features(image).unflatten(0, (batch, -1)).mean(0)
    figures = model.train_step(image, aug, mask_s)
    for name in ("loss", "p_true", "p_fake", "r_t", "r_g", "r_f"):
        expected = float(TRAIN_STEP[f"{index}.{name}"])
        assert float(figures[name]) == pytest.approx(expected, rel=2e-4, abs=1e-5), name
    compare_weights(model, index)


def compare_weights(model, index):
    """Running statistics closely; of the weights the share that agrees, since Adam's first step is the sign's."""
    agree = total = 0
    for part in ("discriminator", "pre_projection"):
        for key, value in getattr(model, part).state_dict().items():
            expected = TRAIN_STEP[f"{index}.{part}.{key}"]
            if "running" in key or "num_batches" in key:
                np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-5)
            elif key.endswith("weight"):
                agree += np.isclose(value.numpy(), expected, rtol=1e-4, atol=1e-5).sum()
                total += expected.size
    assert agree / total >= 0.99


def test_metrics():
    golden = np.load(DATA / "metrics.npz")
    masks, maps = golden["masks"], golden["anomaly_maps"]
    image = metrics.compute_imagewise_retrieval_metrics(golden["image_scores"], golden["labels"])
    pixel = metrics.compute_pixelwise_retrieval_metrics(maps, masks)
    assert image == pytest.approx({"auroc": float(golden["image_auroc"]), "ap": float(golden["image_ap"])}, abs=1e-9)
    assert pixel == pytest.approx({"auroc": float(golden["pixel_auroc"]), "ap": float(golden["pixel_ap"])}, abs=1e-6)
    assert metrics.compute_pro(masks, maps) == pytest.approx(float(golden["pixel_pro"]), abs=1e-6)
    assert metrics.compute_pro(masks, maps, 0.05) == pytest.approx(float(golden["pixel_pro_5"]), abs=1e-6)
    published = metrics.compute_pro_published(masks, maps)
    assert published == pytest.approx(float(golden["pixel_pro_published"]), abs=1e-6)


@pytest.mark.parametrize("index", range(6))
def test_judge(index):
    golden = np.load(DATA / "distribution.npz")
    image = np.repeat(golden[f"{index}.image"][..., None], 3, axis=2)
    assert distribution.judge(image) == golden[f"{index}.flag"]


@pytest.mark.parametrize("angle", ["-90", "-37.5", "-3", "0", "21", "45", "90"])
def test_rotation(angle):
    golden = np.load(DATA / "rotation.npz")
    rotated = perlin.rotate(golden["input"].astype(np.float32), float(angle))
    difference = np.abs(rotated - golden[f"rotated_{angle}"])
    # OpenCV interpolates at 1/32 of a pixel
    assert difference.mean() < 0.02 * golden["input"].std()
    assert np.quantile(difference, 0.99) < 0.06 * golden["input"].std()


def test_fill_is_the_golden_rule():
    """The rule draws weights in the order of sorted keys; a change of key names would show here."""
    layer = torch.nn.BatchNorm1d(3)
    fill(layer, 7)
    rng = np.random.RandomState(7)
    assert layer.bias.tolist() == pytest.approx(rng.normal(0, 0.1, 3).tolist())
    assert layer.running_mean.tolist() == pytest.approx(rng.normal(0, 0.1, 3).tolist())
    assert layer.running_var.tolist() == pytest.approx(rng.uniform(0.5, 1.5, 3).tolist())
    assert layer.weight.tolist() == pytest.approx(rng.uniform(0.5, 1.5, 3).tolist())
