"""The evaluation of a model on a test set: predictions, the metrics that choose the epoch, and all other metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import metrics
from datasets.masks import NO_PIXEL_LEFT
from inference.thresholds import Thresholds
from training import device_metrics

METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro")


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
    masks: metrics.PackedMasks
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
    low, high = metrics.bootstrap_auroc(predictions.scores, labels)
    image_threshold, pixel_threshold = (thresholds.image, thresholds.pixel) if thresholds else (math.nan, math.nan)
    images = metrics.at_threshold(predictions.scores, labels, image_threshold)
    pixels = metrics.pixels_at_threshold(maps, predictions.masks, pixel_threshold)
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
