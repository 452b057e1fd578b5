"""Exact AUROC, AP and PRO of images and pixels, from arrays.

Pixels are ranked without sorting all of them at once. All curves change direction only at the scores of anomalous
pixels, so it is enough to know, for each distinct score of an anomalous pixel, how many normal pixels have a higher
score and how many have at least this score. Scores are processed in ranges from the highest to the lowest, each with at
most `RANGE_PIXELS` anomalous pixels, and the normal pixels of a range are processed in chunks, so that the memory for
the ranking does not grow with the number of maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

PRO_LIMIT = 0.3  # highest false positive rate of the PRO
STRICT_PRO_LIMIT = 0.05  # likewise
PUBLISHED_PRO_STEPS = 200
CHUNK_PIXELS = 1 << 23
RANGE_PIXELS = 1 << 20
BINS = 1 << 10  # number of parts that a range with too many pixels is split into
MAX_SPLITS = 8  # times that ranges are split again
NAN = float("nan")
NO_PIXEL_LEFT = -2  # fills the mask of a defective image of whose defect preprocessing leaves no pixel


def compute_imagewise_retrieval_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """AUROC and AP of image scores.

    Args:
        scores: (n,).
        labels: (n,), > 0 is anomalous.

    Returns:
        `auroc` and `ap` in [0, 1]; nan if all images are of one kind.
    """
    scores, labels = np.asarray(scores, np.float64).ravel(), np.asarray(labels).ravel() > 0
    if labels.all() or not labels.any():
        return {"auroc": NAN, "ap": NAN}
    return {"auroc": float(roc_auc_score(labels, scores)), "ap": float(average_precision_score(labels, scores))}


def compute_pixelwise_retrieval_metrics(maps: ArrayLike, masks: ArrayLike) -> dict[str, float]:
    """AUROC and AP of anomaly maps.

    Args:
        maps: (n, H, W).
        masks: (n, H, W); > 0 is anomalous, < 0 is unknown and does not count.

    Returns:
        `auroc` and `ap` in [0, 1]; nan if all known pixels are of one kind.
    """
    results = pixel_metrics(maps, masks)
    return {"auroc": results["auroc"], "ap": results["ap"]}


def compute_pro(masks: ArrayLike, maps: ArrayLike, limit: float = PRO_LIMIT) -> float:
    """Per-region overlap (Bergmann et al., "Uninformed Students", 2020): the normalised area under the curve.

    Args:
        masks: (n, H, W); > 0 is anomalous, in 8-connected regions, < 0 is unknown and does not count.
        maps: (n, H, W).
        limit: the highest false positive rate, in (0, 1].

    Returns:
        A value in [0, 1]; nan if all known pixels are of one kind.
    """
    return pixel_metrics(maps, masks, limit)["pro"]


def pixel_metrics(maps: ArrayLike, masks: ArrayLike, limit: float = PRO_LIMIT) -> dict[str, float]:
    """`auroc`, `ap` and `pro` (up to a false positive rate of `limit`) from one ranking of the pixels."""
    results = all_pixel_metrics(maps, masks, (limit,))
    return {"auroc": results["auroc"], "ap": results["ap"], "pro": results["pro"][0]}


def all_pixel_metrics(maps: ArrayLike, masks: ArrayLike, limits: Sequence[float]) -> dict[str, Any]:
    """All metrics that follow from one ranking of the pixels, exact for any number of pixels.

    Args:
        maps: (n, H, W).
        masks: (n, H, W); > 0 is anomalous, < 0 is unknown and does not count.
        limits: the highest false positive rate of each PRO.

    Returns:
        `auroc`, `ap`, `f1_max` with `f1_max_threshold` (a score ≥ it is anomalous), and `pro`, a list; all but the
        threshold in [0, 1]. Everything is nan if all known pixels are of one kind.
    """
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps but {len(masks)} masks; there must be one mask for each map")
    census = _count(maps, masks)
    if not census.positives or not census.negatives:
        return dict.fromkeys(("auroc", "ap", "f1_max", "f1_max_threshold"), NAN) | {"pro": [NAN] * len(limits)}
    curves = _Curves(census, limits)
    for low, high in _score_ranges(maps, masks, census):
        curves.add(_rank(maps, masks, low, high, curves.false_positives))
    f1_max, threshold = curves.f1_max
    return {
        "auroc": curves.auroc, "ap": curves.ap, "f1_max": f1_max, "f1_max_threshold": threshold,
        "pro": [climb.pro for climb in curves.climbs],
    }  # fmt: skip


def f1_max(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """The best F1 over all thresholds, and the lowest score that counts as anomalous for it.

    Args:
        scores: (n,).
        labels: (n,), > 0 is anomalous.

    Returns:
        F1 in [0, 1] and the score; (nan, nan) if all labels are of one kind.
    """
    scores, labels = np.asarray(scores, np.float64).ravel(), np.asarray(labels).ravel() > 0
    if labels.all() or not labels.any():
        return NAN, NAN
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    return float(f1[best]), float(thresholds[best])


class _Census(NamedTuple):
    """Counts of the known pixels."""

    positives: int
    negatives: int
    regions: int
    low: float  # lowest score of an anomalous pixel
    high: float  # highest score of an anomalous pixel


class _Steps(NamedTuple):
    """A part of the curves: one entry for each distinct score of an anomalous pixel, in descending order."""

    values: NDArray  # the scores
    positives: NDArray[np.int64]  # number of anomalous pixels with this score
    overlap: NDArray[np.float64]  # sum of 1/area of the regions that these pixels lie in
    above: NDArray[np.int64]  # number of normal pixels with a higher score
    at_least: NDArray[np.int64]  # number of normal pixels with this score or a higher one
    false_positives: int  # number of normal pixels in this part of the curves and all before it


class _Curves:
    """Areas under the curves, added up part by part from the highest score to the lowest."""

    def __init__(self, census: _Census, limits: Sequence[float]) -> None:
        self._census = census
        self.false_positives = 0  # normal pixels so far
        self._true_positives = 0  # anomalous pixels so far
        self._misordered = 0.0  # pairs of pixels in which the normal one has the higher score
        self._precision = 0.0  # sum of the precision at each anomalous pixel
        self.f1_max = (0.0, NAN)  # and its threshold
        self.climbs = [_Climb(census, limit) for limit in limits]

    def add(self, steps: _Steps) -> None:
        """Add the next part of the curves."""
        self.false_positives = steps.false_positives
        if not len(steps.positives):
            return
        # a normal pixel with the same score counts half
        self._misordered += float((steps.positives * (steps.above + steps.at_least)).sum(dtype=np.float64)) / 2
        reached = self._true_positives + steps.positives.cumsum()
        self._precision += float((reached / (reached + steps.at_least) * steps.positives).sum())
        f1 = 2 * reached / (reached + steps.at_least + self._census.positives)
        best = int(f1.argmax())  # the threshold of the best F1 is always the score of an anomalous pixel
        if f1[best] > self.f1_max[0]:
            self.f1_max = float(f1[best]), float(steps.values[best])
        self._true_positives = int(reached[-1])
        for climb in self.climbs:
            climb.add(steps)

    @property
    def auroc(self) -> float:
        """AUROC, after the last part."""
        return 1 - self._misordered / (self._census.positives * self._census.negatives)

    @property
    def ap(self) -> float:
        """Average precision, after the last part."""
        return self._precision / self._census.positives


class _Climb:
    """The area under the PRO curve up to a false positive rate of `limit`."""

    def __init__(self, census: _Census, limit: float) -> None:
        self._census, self._limit = census, limit
        self._area = 0.0
        self._rate, self._height = 0.0, 0.0  # the end of the curve so far

    def add(self, steps: _Steps) -> None:
        """Add the next part of the curve, which rises at the scores of anomalous pixels.

        It rises vertically, or with a slope where normal pixels have the same score.
        """
        if self._rate >= self._limit:
            return
        climbed = self._height + steps.overlap.cumsum() / self._census.regions
        rates = np.stack([steps.above, steps.at_least], 1).ravel() / self._census.negatives
        fpr = np.r_[self._rate, rates]
        pro = np.r_[self._height, np.stack([np.r_[self._height, climbed[:-1]], climbed], 1).ravel()]
        self._area += _area_up_to(fpr, pro, self._limit)
        self._rate, self._height = float(fpr[-1]), float(pro[-1])

    @property
    def pro(self) -> float:
        """PRO, after the last part."""
        return (self._area + max(0.0, self._limit - self._rate) * self._height) / self._limit


def _area_up_to(x: NDArray, y: NDArray, limit: float) -> float:
    """Area under the curve from x[0] to `limit`, or to its end if that comes first; x ascends."""
    inside = x <= limit
    if inside.all():
        return float(np.trapezoid(y, x))
    return (
        float(np.trapezoid(np.r_[y[inside], np.interp(limit, x, y)], np.r_[x[inside], limit])) if inside.any() else 0.0
    )


def _count(maps: ArrayLike, masks: ArrayLike) -> _Census:
    positives = negatives = regions = 0
    low, high = math.inf, -math.inf
    for anomaly_map, mask in zip(maps, masks, strict=True):
        mask = np.asarray(mask)
        anomalous = mask > 0
        negatives += int((mask == 0).sum())
        if anomalous.any():
            values = np.asarray(anomaly_map)[anomalous]
            positives += len(values)
            regions += cv2.connectedComponents(anomalous.astype(np.uint8), connectivity=8)[0] - 1
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return _Census(positives, negatives, regions, low, high)


def _score_ranges(maps: ArrayLike, masks: ArrayLike, census: _Census) -> list[tuple[float, float]]:
    """Ranges (low ≤ score < high) in descending order that cover all scores of anomalous pixels.

    Each has at most `RANGE_PIXELS` anomalous pixels, unless more than that have scores too close to separate.
    """
    ranges = [(census.low, math.inf)]
    counts = [census.positives]
    for _ in range(MAX_SPLITS):
        too_large = [i for i, count in enumerate(counts) if count > RANGE_PIXELS]
        if not too_large:
            break
        edges = [low for low, _ in ranges]
        for i in too_large:
            low, high = ranges[i]
            edges += list(np.linspace(low, min(high, census.high), BINS + 1)[1:-1])
        edges = np.unique(edges)
        ranges, counts = _merge(edges, _histogram(maps, masks, edges))
    return ranges[::-1]


def _histogram(maps: ArrayLike, masks: ArrayLike, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of anomalous pixels with a score from each edge up to the next."""
    counts = np.zeros(len(edges), np.int64)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        values = np.asarray(anomaly_map)[np.asarray(mask) > 0].astype(np.float64)
        counts += np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges))
    return counts


def _merge(edges: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[list[tuple[float, float]], list[int]]:
    """Join neighbouring bins as long as they have at most `RANGE_PIXELS` together; returns ranges and counts."""
    starts, sums = [0], [int(counts[0])]
    for i in range(1, len(edges)):
        if sums[-1] + counts[i] <= RANGE_PIXELS:
            sums[-1] += int(counts[i])
        else:
            starts.append(i)
            sums.append(int(counts[i]))
    lows = [float(edges[i]) for i in starts]
    return list(zip(lows, [*lows[1:], math.inf], strict=True)), sums


def _rank(maps: ArrayLike, masks: ArrayLike, low: float, high: float, false_positives: int) -> _Steps:
    """The part of the curves with scores in [low, high); `false_positives` normal pixels have a score ≥ `high`."""
    values, positives, overlap = _anomalous_pixels(maps, masks, low, high)
    below, up_to = np.zeros(len(values), np.int64), np.zeros(len(values), np.int64)
    negatives = 0
    for start, stop in _chunks(maps):
        normal = np.sort(np.concatenate([_normal_pixels(maps[i], masks[i], low, high) for i in range(start, stop)]))
        negatives += len(normal)
        below += np.searchsorted(normal, values, side="left")
        up_to += np.searchsorted(normal, values, side="right")
    total = false_positives + negatives
    return _Steps(values[::-1], positives[::-1], overlap[::-1], (total - up_to)[::-1], (total - below)[::-1], total)


def _normal_pixels(anomaly_map: ArrayLike, mask: ArrayLike, low: float, high: float) -> NDArray:
    anomaly_map = np.asarray(anomaly_map)
    return anomaly_map[(np.asarray(mask) == 0) & (anomaly_map >= low) & (anomaly_map < high)]


def _chunks(maps: ArrayLike) -> Iterator[tuple[int, int]]:
    """Ranges of indices of maps with about `CHUNK_PIXELS` pixels together."""
    size = max(1, CHUNK_PIXELS // max(1, int(np.prod(np.shape(maps[0]))))) if len(maps) else 1
    for start in range(0, len(maps), size):
        yield start, min(start + size, len(maps))


def _anomalous_pixels(
    maps: ArrayLike, masks: ArrayLike, low: float, high: float
) -> tuple[NDArray, NDArray[np.int64], NDArray[np.float64]]:
    """Distinct scores of anomalous pixels in [low, high), ascending; for each, their number and the sum of 1/area."""
    parts = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        anomalous = np.asarray(mask) > 0
        if anomalous.any():
            labels = cv2.connectedComponents(anomalous.astype(np.uint8), connectivity=8)[1][anomalous]
            values = np.asarray(anomaly_map)[anomalous]
            share = (1 / np.bincount(labels).clip(1))[labels]
            inside = (values >= low) & (values < high)
            parts.append(_by_score(values[inside], np.ones(inside.sum(), np.int64), share[inside]))
    return _by_score(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _by_score(
    values: NDArray, positives: NDArray[np.int64], overlap: NDArray[np.float64]
) -> tuple[NDArray, NDArray[np.int64], NDArray[np.float64]]:
    """Sort by score, and add up the values of equal scores."""
    order = np.argsort(values)
    values = values[order]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.zeros(0, np.int64)
    if not len(first):
        return values, positives[order], overlap[order]
    return values[first], np.add.reduceat(positives[order], first), np.add.reduceat(overlap[order], first)


def compute_pro_published(masks: ArrayLike, maps: ArrayLike) -> float:
    """PRO as the published code computes it, for comparison with its numbers; higher than `compute_pro`.

    It uses 200 thresholds. The overlap with a region counts a prediction dilated by 5×5 pixels, false positives count
    without dilation, and the false positive rates below 0.3 are stretched to [0, 1]. Dilating a thresholded map equals
    thresholding a max-filtered map, so each map is filtered only once. As in the published code, an image whose defect
    has no pixel left counts as normal.

    Args:
        masks: (n, H, W); > 0 is anomalous; < 0, except for `NO_PIXEL_LEFT`, is unknown and does not count.
        maps: (n, H, W).

    Returns:
        A value in [0, 1]; nan if all pixels are of one kind or the maps are constant.
    """
    low, high = float(np.min(maps)), float(np.max(maps))
    if not high > low:
        return NAN
    thresholds = np.arange(low, high, (high - low) / PUBLISHED_PRO_STEPS)
    overlap, regions = np.zeros(len(thresholds)), 0
    false_positives, negatives = np.zeros(len(thresholds)), 0
    for anomaly_map, mask in zip(maps, masks, strict=True):
        anomaly_map, mask = np.asarray(anomaly_map, np.float32), np.asarray(mask)
        count, labels = cv2.connectedComponents((mask > 0).astype(np.uint8), connectivity=8)
        dilated = cv2.dilate(anomaly_map, np.ones((5, 5), np.uint8))
        for region in range(1, count):
            overlap += _share_above(dilated[labels == region], thresholds)
        normal = anomaly_map[(mask == 0) | (mask == NO_PIXEL_LEFT)]
        false_positives += _share_above(normal, thresholds) * len(normal)
        regions, negatives = regions + count - 1, negatives + len(normal)
    if not regions or not negatives:
        return NAN
    pro, fpr = overlap / regions, false_positives / negatives
    pro, fpr = pro[fpr < PRO_LIMIT], fpr[fpr < PRO_LIMIT]
    if len(fpr) < 2:
        return NAN
    fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min() + 1e-10)
    return float(-np.trapezoid(pro, fpr))  # thresholds ascend, so rates descend


def _share_above(values: NDArray, thresholds: NDArray) -> NDArray[np.float64]:
    """The share of `values` above each threshold; 0 if there are no values."""
    ordered = np.sort(values.astype(np.float64, copy=False))
    return 1 - np.searchsorted(ordered, thresholds, side="right") / max(1, len(ordered))
