"""The evaluation of a model on a test set: predictions, the metrics that choose the epoch, and all other metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

import metrics
from datasets.truth import PackedMasks
from inference.thresholds import Thresholds
from metrics import NO_PIXEL_LEFT
from training import device_metrics

NEIGHBOURS = "nn_"  # prefix of the figures of nearest neighbours
OF_NEIGHBOURS = ("nn_image_auroc", "nn_pixel_auroc", "nn_pixel_ap", "nn_pixel_pro")
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro")
RESAMPLES = 1000  # of the bootstrap


@dataclass
class Predictions:
    """Scores and maps of a test set, with its ground truth.

    Attributes:
        scores: (n,) float32.
        maps: (n, H, W) float32; a tensor if the device ranks the pixels.
        labels: (n,), True is anomalous.
        masks: n masks (H, W) int8; a value below 0 is unknown.
        paths: of the images.
        truth: the masks on the device, if the device ranks the pixels.
    """

    scores: NDArray[np.float32]
    maps: NDArray[np.float32] | Tensor
    labels: NDArray[np.bool_]
    masks: PackedMasks
    paths: list[str]
    truth: device_metrics.DeviceTruth | None = None

    def without_scores(self) -> Predictions:
        """A copy without scores and maps; it has no view of the maps either, which would keep them in memory."""
        return replace(self, maps=np.empty((0, *self.maps.shape[1:]), np.float32), scores=np.empty(0, np.float32))

    def on_host(self) -> Predictions:
        """The same with the maps as an array."""
        return replace(self, maps=self.maps.cpu().numpy(), truth=None) if isinstance(self.maps, Tensor) else self


@dataclass
class Tested:
    """The result of testing a class: its figures, the predictions behind them, and the checkpoint's thresholds."""

    __test__ = False  # pytest would collect a class of this name

    figures: dict[str, Any]
    predictions: Predictions
    thresholds: Thresholds | None


def evaluate(predictions: Predictions) -> dict[str, float]:
    """The metrics named in `METRICS`, in [0, 1]; nan if the test set does not allow one."""
    image = metrics.compute_imagewise_retrieval_metrics(predictions.scores, predictions.labels)
    if isinstance(predictions.maps, Tensor):
        pixel = device_metrics.pixel_metrics(predictions.maps, predictions.truth)
    else:
        pixel = metrics.pixel_metrics(predictions.maps, predictions.masks)
    values = (image["auroc"], image["ap"], pixel["auroc"], pixel["ap"], pixel["pro"])
    return dict(zip(METRICS, values, strict=True))


def metrics_line(figures: Mapping[str, float]) -> str:
    """Those of `METRICS` that `figures` contains, in percent, for the log."""
    return "  ".join(f"{name} {100 * figures[name]:.2f}" for name in METRICS if name in figures)


def why_nan(figures: Mapping[str, float], masks: Sequence[NDArray[np.int8]] = ()) -> list[str]:
    """The reasons why some of `METRICS` could not be computed.

    Args:
        figures: with the metrics.
        masks: as in `Predictions`, for a more exact reason.
    """
    reasons = []
    if math.isnan(figures["image_auroc"]):
        reasons.append("image metrics cannot be computed: the test images are all good or all defective")
    if math.isnan(figures["pixel_auroc"]):
        reason = "pixel metrics cannot be computed: no mask with both normal and anomalous pixels"
        if lost := sum(bool(np.any(mask == NO_PIXEL_LEFT)) for mask in masks):
            reason += f"; of {lost} masks no anomalous pixel is left after resizing and crop"
        reasons.append(reason)
    return reasons


def judge(predictions: Predictions, thresholds: Thresholds | None) -> dict[str, float]:
    """All metrics of a test set: first `METRICS`, then the others, in the order of the report's columns.

    `*_f1`, `*_precision`, `*_recall` and `false_alarms` use the checkpoint's thresholds, and are nan without them;
    `*_f1_max` is the best F1 over all thresholds, which can only be known with the test set.
    """
    labels, maps = predictions.labels, predictions.on_host().maps
    image = metrics.compute_imagewise_retrieval_metrics(predictions.scores, labels)
    pixel = metrics.all_pixel_metrics(maps, predictions.masks, (metrics.PRO_LIMIT, metrics.STRICT_PRO_LIMIT))
    values = (image["auroc"], image["ap"], pixel["auroc"], pixel["ap"], pixel["pro"][0])
    low, high = bootstrap_auroc(predictions.scores, labels)
    image_threshold, pixel_threshold = (thresholds.image, thresholds.pixel) if thresholds else (math.nan, math.nan)
    images = at_threshold(predictions.scores, labels, image_threshold)
    pixels = pixels_at_threshold(maps, predictions.masks, pixel_threshold)
    return {
        **dict(zip(METRICS, values, strict=True)),
        "image_auroc_low": low, "image_auroc_high": high, "image_f1_max": metrics.f1_max(predictions.scores, labels)[0],
        "pixel_f1_max": pixel["f1_max"], "pixel_pro_5": pixel["pro"][1],
        "pixel_pro_published": metrics.compute_pro_published(predictions.masks, maps),
        "image_threshold": image_threshold, "image_f1": images["f1"], "image_precision": images["precision"],
        "image_recall": images["recall"], "false_alarms": images["false_alarms"],
        "pixel_threshold": pixel_threshold, "pixel_f1": pixels["f1"], "pixel_precision": pixels["precision"],
        "pixel_recall": pixels["recall"],
    }  # fmt: skip


# --------------------------------------------------------------------------- figures at a threshold


def at_threshold(scores: ArrayLike, labels: ArrayLike, threshold: float) -> dict[str, float]:
    """`f1`, `precision`, `recall` and `false_alarms` (the false positive rate) if score > threshold is anomalous.

    Args:
        scores: (n,).
        labels: (n,), > 0 is anomalous, < 0 is unknown and does not count.
        threshold: of the scores; nan makes all values nan.

    Returns:
        Values in [0, 1]; nan if there is nothing to count.
    """
    scores, labels = np.asarray(scores).ravel(), np.asarray(labels).ravel()
    flagged = scores > threshold
    true_positives, false_positives = int((flagged & (labels > 0)).sum()), int((flagged & (labels == 0)).sum())
    return rates(true_positives, false_positives, int((labels > 0).sum()), int((labels == 0).sum()), threshold)


def pixels_at_threshold(maps: ArrayLike, masks: ArrayLike, threshold: float) -> dict[str, float]:
    """`at_threshold` for the pixels of maps (n, H, W) with masks (n, H, W), map by map."""
    counts = np.zeros(4, np.int64)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        flagged, mask = np.asarray(anomaly_map) > threshold, np.asarray(mask)
        anomalous, normal = mask > 0, mask == 0
        counts += [(flagged & anomalous).sum(), (flagged & normal).sum(), anomalous.sum(), normal.sum()]
    return rates(*counts.tolist(), threshold)


def rates(
    true_positives: int, false_positives: int, positives: int, negatives: int, threshold: float = 0.0
) -> dict[str, float]:
    """The values of `at_threshold` from counts; nan for a threshold that is nan."""
    if math.isnan(threshold):
        return dict.fromkeys(("f1", "precision", "recall", "false_alarms"), math.nan)
    flagged = true_positives + false_positives
    return {
        "f1": 2 * true_positives / (flagged + positives) if positives else math.nan,
        "precision": true_positives / flagged if flagged else math.nan,
        "recall": true_positives / positives if positives else math.nan,
        "false_alarms": false_positives / negatives if negatives else math.nan,
    }


def bootstrap_auroc(
    scores: ArrayLike, labels: ArrayLike, seed: int = 0, share: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap confidence interval of the AUROC; good and anomalous images are resampled separately.

    Args:
        scores: (n,).
        labels: (n,), > 0 is anomalous.
        seed: of the random draws.
        share: confidence level of the interval, in (0, 1).
        resamples: number of resamples.

    Returns:
        The ends of the interval, in [0, 1]; (nan, nan) if all labels are of one kind.
    """
    scores, labels = np.asarray(scores, np.float64).ravel(), np.asarray(labels).ravel() > 0
    good, bad = scores[~labels], scores[labels]
    if not len(good) or not len(bad):
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    ordered = np.sort(good)
    # AUROC is the share of pairs in which the anomalous image has the higher score, and equal scores count half. So it
    # only depends on how often the good images below each anomalous one are drawn.
    below, up_to = (np.searchsorted(ordered, bad, side=side) for side in ("left", "right"))
    aurocs = np.empty(resamples)
    for i in range(resamples):
        draws = np.bincount(rng.integers(len(good), size=len(good)), minlength=len(good))
        drawn_before = np.concatenate([[0], np.cumsum(draws)])
        chosen = rng.integers(len(bad), size=len(bad))
        aurocs[i] = (drawn_before[below[chosen]] + drawn_before[up_to[chosen]]).mean() / (2 * len(good))
    tail = (1 - share) / 2
    low, high = np.quantile(aurocs, [tail, 1 - tail])
    return float(low), float(high)
