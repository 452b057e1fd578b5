"""Metrics against scikit-learn and the slow forms, and where they cannot be computed."""

import math
import tracemalloc

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

import metrics


@st.composite
def maps_and_masks(draw):
    """Few distinct scores, so that there are ties everywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, height, width = draw(st.integers(1, 4)), draw(st.integers(5, 14)), draw(st.integers(5, 14))
    masks = (rng.random((count, height, width)) < draw(st.sampled_from([0.05, 0.3]))).astype(np.uint8)
    masks[0, 0, 0], masks[0, -1, -1] = 1, 0
    maps = rng.integers(0, draw(st.sampled_from([2, 7, 1000])), masks.shape) + masks * rng.integers(0, 3)
    return (maps / 1000).astype(np.float32), masks


@given(maps_and_masks(), st.sampled_from([1, 100, 1 << 23]))
def test_pixels_agree_with_scikit_learn(data, chunk):
    maps, masks = data
    before, metrics.CHUNK_PIXELS = metrics.CHUNK_PIXELS, chunk
    try:
        ours = metrics.compute_pixelwise_retrieval_metrics(maps, masks)
    finally:
        metrics.CHUNK_PIXELS = before
    assert ours["auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert ours["ap"] == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12)


@given(maps_and_masks(), st.sampled_from([0.05, 0.3, 1.0]))
def test_pro_is_the_obvious_one(data, limit):
    maps, masks = data
    assert metrics.compute_pro(masks, maps, limit) == pytest.approx(reference.pro(masks, maps, limit), abs=1e-9)


def test_published_pro_is_the_obvious_one():
    rng = np.random.default_rng(3)
    masks = np.zeros((3, 40, 50), np.uint8)
    masks[0, 5:15, 5:20] = masks[0, 30:33, 40:48] = masks[2, 10:30, 10:14] = 1
    maps = (rng.random(masks.shape) + 0.5 * masks).astype(np.float32)
    assert metrics.compute_pro_published(masks, maps) == pytest.approx(reference.pro_published(masks, maps), abs=1e-6)
    assert metrics.compute_pro_published(masks, maps) > metrics.compute_pro(masks, maps)


def test_perfect_and_worst_maps():
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[0, :4] = 1
    best = metrics.pixel_metrics(masks.astype(np.float32), masks)
    assert best == {"auroc": 1.0, "ap": 1.0, "pro": 1.0}
    assert metrics.pixel_metrics(1.0 - masks, masks)["auroc"] == 0


def test_one_kind_alone_is_nan_never_zero():
    maps = np.random.default_rng(0).random((2, 8, 8))
    for masks in (np.zeros((2, 8, 8)), np.ones((2, 8, 8)), np.full((2, 8, 8), -1)):
        assert all(math.isnan(v) for v in metrics.pixel_metrics(maps, masks).values())
        assert math.isnan(metrics.compute_pro(masks, maps))
        assert math.isnan(metrics.compute_pro_published(masks, maps))
    for labels in ([0, 0], [1, 1]):
        assert all(math.isnan(v) for v in metrics.compute_imagewise_retrieval_metrics([0.1, 0.2], labels).values())


def test_unknown_masks_are_left_out():
    rng = np.random.default_rng(0)
    maps, masks = rng.random((3, 8, 8)), (rng.random((3, 8, 8)) > 0.8).astype(np.int8)
    masks[1] = -1
    assert metrics.pixel_metrics(maps, masks) == metrics.pixel_metrics(maps[[0, 2]], masks[[0, 2]])


def test_packed_masks_give_back_what_was_put_in():
    rng = np.random.default_rng(0)
    masks = (rng.random((3, 5, 7)) > 0.5).astype(np.int8)
    packed = metrics.PackedMasks(3, (5, 7))
    for i in range(3):
        packed[i] = masks[i]
    packed[1] = np.full((5, 7), -1)
    assert np.array_equal(packed[0], masks[0])
    assert np.array_equal(packed[2], masks[2])
    assert (packed[1] == -1).all()


def test_memory_beyond_the_maps_does_not_grow_with_the_images(monkeypatch):
    """Twice the good images, the same defects: the same peak."""
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 1 << 18)
    peaks = []
    for count in (100, 200):
        maps = np.random.default_rng(0).random((count, 128, 128), np.float32)
        masks = metrics.PackedMasks(count, (128, 128))
        masks[0] = np.eye(128)
        tracemalloc.start()
        metrics.pixel_metrics(maps, masks)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < maps.nbytes
