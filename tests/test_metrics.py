"""Metrics against scikit-learn and the slow forms, and where they cannot be computed."""

import math
import tracemalloc

import numpy as np
import pytest
import reference
import torch
from helpers import make_glass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

import metrics
from datasets.truth import PackedMasks
from training import evaluation
from training.evaluation import evaluate


@st.composite
def maps_and_masks(draw):
    """Few distinct scores, so that there are ties everywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, height, width = draw(st.integers(1, 4)), draw(st.integers(5, 14)), draw(st.integers(5, 14))
    masks = (rng.random((count, height, width)) < draw(st.sampled_from([0.05, 0.3]))).astype(np.uint8)
    masks[0, 0, 0], masks[0, -1, -1] = 1, 0
    maps = rng.integers(0, draw(st.sampled_from([2, 7, 1000])), masks.shape) + masks * rng.integers(0, 3)
    return (maps / 1000).astype(np.float32), masks


@pytest.fixture(params=[(1 << 23, 1 << 20), (1, 1), (100, 7)], ids=["whole", "single", "few"])
def pieces(request, monkeypatch):
    """However many pixels are visited at a time, the result is the same."""
    chunk, pixels = request.param
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", chunk)
    monkeypatch.setattr(metrics, "RANGE_PIXELS", pixels)
    monkeypatch.setattr(metrics, "BINS", 4)


same_for_every_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_for_every_example
@given(data=maps_and_masks())
def test_pixels_agree_with_scikit_learn(pieces, data):
    maps, masks = data
    ours = metrics.compute_pixelwise_retrieval_metrics(maps, masks)
    assert ours["auroc"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert ours["ap"] == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12)


@same_for_every_example
@given(data=maps_and_masks(), limit=st.sampled_from([0.05, 0.3, 1.0]))
def test_pro_is_the_obvious_one(pieces, data, limit):
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
    packed = PackedMasks(3, (5, 7))
    for i in range(3):
        packed[i] = masks[i]
    packed[1] = np.full((5, 7), -1)
    assert np.array_equal(packed[0], masks[0])
    assert np.array_equal(packed[2], masks[2])
    assert (packed[1] == -1).all()


def peak_beyond_maps(count, defective):
    """Bytes allocated at the peak of a test run over `count` images, without the maps."""

    def stream():
        for at in range(0, count, 10):
            masks = torch.zeros(10, 1, 64, 64, dtype=torch.int8)
            if at < defective:
                masks[:, :, 8:24, 8:24] = 1
            anomaly = torch.full((10,), at < defective)
            yield {
                "image": torch.randn(10, 3, 64, 64),
                "mask_gt": masks,
                "is_anomaly": anomaly,
                "image_path": ["x"] * 10,
            }

    class Loader:
        dataset = range(count)

        def __iter__(self):
            return stream()

    model = make_glass(layers=("layer1",), pretrain_embed_dimension=16, target_embed_dimension=16, dsc_hidden=8)
    tracemalloc.start()
    found = model.predict(Loader())
    evaluate(found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak - found.maps.nbytes, found.maps.nbytes


def test_memory_of_testing_does_not_grow_beyond_the_maps(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 1 << 17)
    monkeypatch.setattr(metrics, "RANGE_PIXELS", 1 << 11)
    peak_beyond_maps(50, 10)  # what is allocated once
    (small, small_maps), (large, large_maps) = peak_beyond_maps(100, 60), peak_beyond_maps(300, 180)
    grown = (large - small) / (large_maps - small_maps)
    assert grown < 0.06, f"{grown:.1%} of the maps' growth"  # the masks' bits are 3 %


@same_for_every_example
@given(data=maps_and_masks())
def test_best_f1_of_pixels_is_that_of_every_threshold_tried(pieces, data):
    maps, masks = data
    found = metrics.all_pixel_metrics(maps, masks, (0.3, 0.05))
    flat, truth = maps.ravel(), masks.ravel() > 0
    tried = {t: f1_score(truth, flat >= t) for t in np.unique(flat)}
    assert found["f1_max"] == pytest.approx(max(tried.values()), abs=1e-12)
    assert tried[np.float32(found["f1_max_threshold"])] == pytest.approx(max(tried.values()), abs=1e-12)
    assert found["pro"] == pytest.approx([reference.pro(masks, maps, 0.3), reference.pro(masks, maps, 0.05)], abs=1e-9)
    ours = evaluation.pixels_at_threshold(maps, masks, found["f1_max_threshold"] - 1e-6)
    assert ours["f1"] == pytest.approx(found["f1_max"])
    assert ours["recall"] == pytest.approx(recall_score(truth, flat > found["f1_max_threshold"] - 1e-6))


@st.composite
def scores_and_labels(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(4, 60))
    labels = np.r_[True, False, rng.random(count) < 0.5]
    return (rng.integers(0, draw(st.sampled_from([3, 10, 10**6])), len(labels)) / 10**6).astype(np.float32), labels


@given(data=scores_and_labels(), threshold=st.floats(0, 1))
def test_image_figures_agree_with_scikit_learn(data, threshold):
    scores, labels = data
    best, at = metrics.f1_max(scores, labels)
    tried = [f1_score(labels, scores >= t) for t in np.unique(scores)]
    assert best == pytest.approx(max(tried))
    assert f1_score(labels, scores >= np.float32(at)) == pytest.approx(best)
    ours = evaluation.at_threshold(scores, labels, threshold)
    flagged = scores > threshold
    assert ours["f1"] == pytest.approx(f1_score(labels, flagged, zero_division=0))
    assert ours["recall"] == pytest.approx(recall_score(labels, flagged))
    if flagged.any():
        assert ours["precision"] == pytest.approx(precision_score(labels, flagged))
    assert ours["false_alarms"] == pytest.approx((flagged & ~labels).sum() / (~labels).sum())


@given(data=scores_and_labels())
def test_what_keeps_the_order_changes_no_metric(data):
    scores, labels = data
    other = np.exp(3 * scores.astype(np.float64)) - 7
    before = metrics.compute_imagewise_retrieval_metrics(scores, labels)
    assert metrics.compute_imagewise_retrieval_metrics(other, labels) == pytest.approx(before)
    assert metrics.f1_max(other, labels)[0] == pytest.approx(metrics.f1_max(scores, labels)[0])
    assert evaluation.bootstrap_auroc(other, labels) == pytest.approx(evaluation.bootstrap_auroc(scores, labels))


def test_bootstrap_interval_is_that_of_drawing_images_anew():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2 == 0
    scores = rng.normal(0, 1, 80) + labels
    low, high = evaluation.bootstrap_auroc(scores, labels, seed=1)
    drawn = []
    for _ in range(1000):
        good, bad = (rng.choice(scores[kind], kind.sum()) for kind in (~labels, labels))
        drawn.append(roc_auc_score(np.r_[np.zeros(40), np.ones(40)], np.r_[good, bad]))
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.015)
    assert low < roc_auc_score(labels, scores) < high
    assert evaluation.bootstrap_auroc(scores, labels, seed=1) == (low, high)
    assert evaluation.bootstrap_auroc(labels, labels) == (1, 1)


def test_chance_is_a_half_and_the_binary_case_is_perfect():
    rng = np.random.default_rng(0)
    masks = (rng.random((6, 64, 64)) < 0.1).astype(np.int8)
    found = metrics.all_pixel_metrics(rng.random(masks.shape), masks, (0.3,))
    assert found["auroc"] == pytest.approx(0.5, abs=0.02)
    assert found["ap"] == pytest.approx(0.1, abs=0.02)
    perfect = metrics.all_pixel_metrics(masks.astype(np.float32), masks, (0.3, 0.05))
    assert perfect["f1_max"] == 1
    assert perfect["pro"] == [1, 1]


def test_without_a_threshold_there_are_no_figures_at_it():
    assert all(math.isnan(v) for v in evaluation.at_threshold([0.1, 0.9], [0, 1], math.nan).values())
    one_kind = evaluation.at_threshold([0.1, 0.9], [0, 0], 0.5)
    assert one_kind["false_alarms"] == 0.5
    assert math.isnan(one_kind["recall"])
    assert math.isnan(one_kind["f1"])
