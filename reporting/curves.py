"""ROC and precision-recall curves of a tested class, with few enough points to be drawn and kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from training.evaluation import Predictions
from utils import evenly_chosen

POINTS = 400  # of a curve
PIXEL_STEPS = 256  # score steps at which pixels are counted
PIXELS_SAMPLED = 2000  # anomalous pixels of an image that place the steps

Curve = list[list[float]]  # the x and the y values


def curves(predictions: Predictions) -> dict[str, Curve]:
    """The curves `image_roc`, `image_pr`, `pixel_roc` and `pixel_pr`.

    Curves of images need good and defective images, those of pixels need normal and anomalous pixels; otherwise they
    are missing.
    """
    labels, result = predictions.labels, {}
    if labels.any() and not labels.all():
        fpr, tpr, _ = roc_curve(labels, predictions.scores)
        precision, recall, _ = precision_recall_curve(labels, predictions.scores)
        result = {"image_roc": _thin(fpr, tpr), "image_pr": _thin(recall[::-1], precision[::-1])}
    counts = _pixel_counts(predictions)
    if counts is not None and counts[0][-1] and counts[1][-1]:
        true_positives, false_positives = counts
        recall = true_positives / true_positives[-1]
        precision = true_positives / np.maximum(true_positives + false_positives, 1)
        result["pixel_roc"] = _thin(np.r_[0, false_positives / false_positives[-1]], np.r_[0, recall])
        result["pixel_pr"] = _thin(recall[true_positives > 0], precision[true_positives > 0])
    return result


def _thin(x: NDArray, y: NDArray) -> Curve:
    chosen = evenly_chosen(len(x), POINTS)
    return [np.round(x[chosen], 5).tolist(), np.round(y[chosen], 5).tolist()]


def _pixel_counts(predictions: Predictions) -> NDArray[np.int64] | None:
    """Numbers of anomalous and of normal pixels at or above each step, from the highest step down to the lowest.

    Returns:
        (2, steps), or None if there are no anomalous pixels.
    """
    maps, masks = predictions.maps, predictions.masks
    scores = [np.asarray(maps[i])[masks[i] > 0] for i in range(len(masks))]
    sample = [s[:: max(1, len(s) // PIXELS_SAMPLED)] for s in scores if len(s)]
    if not sample:
        return None
    # half of the steps are quantiles of the anomalous pixels' scores, the other half are spread over all scores
    edges = np.quantile(np.concatenate(sample), np.linspace(0, 1, PIXEL_STEPS // 2))
    low, high = min(float(np.min(m)) for m in maps), max(float(np.max(m)) for m in maps)
    edges = np.unique(np.r_[edges, np.linspace(low, high, PIXEL_STEPS // 2)])
    counts = np.zeros((2, len(edges)), np.int64)
    for i in range(len(masks)):
        anomaly_map, mask = np.asarray(maps[i]), masks[i]
        for row, pixels in enumerate((mask > 0, mask == 0)):
            steps = np.searchsorted(edges, anomaly_map[pixels].astype(np.float64), side="right") - 1
            counts[row] += np.bincount(steps.clip(0), minlength=len(edges))
    return counts[:, ::-1].cumsum(axis=1)
