"""AUROC, AP and PRO of images and pixels, exact, from arrays.

Pixels are ranked without sorting them all at once. Every metric here changes only where the score passes an
anomalous pixel's, so it is enough to know, for each distinct score of an anomalous pixel, how many normal
pixels score above it and how many at least it. Scores are taken in ranges from the highest down, each with at
most `RANGE_PIXELS` anomalous pixels, and the normal pixels of a range are visited in chunks, so that the memory
that ranking takes does not grow with the number of maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

PRO_LIMIT = 0.3  # of the false positive rate
STRICT_PRO_LIMIT = 0.05
PUBLISHED_PRO_STEPS = 200
CHUNK_PIXELS = 1 << 23
RANGE_PIXELS = 1 << 20
BINS = 1 << 10  # a range with too many pixels is split into at a time
MAX_SPLITS = 8
NAN = float("nan")
NO_PIXEL_LEFT = -2  # everywhere in the mask of a defective image of whose defect the model sees no pixel


def compute_imagewise_retrieval_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """AUROC and AP of image scores.

    Args:
        scores: (n,).
        labels: (n,), > 0 is anomalous.

    Returns:
        `auroc` and `ap` in [0, 1]; nan where the images are all of one kind.
    """
    scores, labels = np.asarray(scores, np.float64).ravel(), np.asarray(labels).ravel() > 0
    if labels.all() or not labels.any():
        return {"auroc": NAN, "ap": NAN}
    return {"auroc": float(roc_auc_score(labels, scores)), "ap": float(average_precision_score(labels, scores))}


def compute_pixelwise_retrieval_metrics(maps: ArrayLike, masks: ArrayLike) -> dict[str, float]:
    """AUROC and AP of anomaly maps.

    Args:
        maps: (n, H, W).
        masks: (n, H, W); > 0 is anomalous, < 0 is not known and left out.

    Returns:
        `auroc` and `ap` in [0, 1]; nan where the known pixels are all of one kind.
    """
    found = pixel_metrics(maps, masks)
    return {"auroc": found["auroc"], "ap": found["ap"]}


def compute_pro(masks: ArrayLike, maps: ArrayLike, limit: float = PRO_LIMIT) -> float:
    """Per-region overlap (Bergmann et al., "Uninformed Students", 2020): area under the curve, over `limit`.

    Args:
        masks: (n, H, W); > 0 is anomalous, in 8-connected regions, < 0 is not known and left out.
        maps: (n, H, W).
        limit: of the false positive rate, in (0, 1].

    Returns:
        A value in [0, 1]; nan where the known pixels are all of one kind.
    """
    return pixel_metrics(maps, masks, limit)["pro"]


def pixel_metrics(maps: ArrayLike, masks: ArrayLike, limit: float = PRO_LIMIT) -> dict[str, float]:
    """`auroc`, `ap` and `pro` (to `limit` of the false positive rate) with the pixels ranked once."""
    found = all_pixel_metrics(maps, masks, (limit,))
    return {"auroc": found["auroc"], "ap": found["ap"], "pro": found["pro"][0]}


def all_pixel_metrics(maps: ArrayLike, masks: ArrayLike, limits: Sequence[float]) -> dict[str, Any]:
    """Everything that one ranking of the pixels tells, exact for any number of them.

    Args:
        maps: (n, H, W).
        masks: (n, H, W); > 0 is anomalous, < 0 is not known and left out.
        limits: of the false positive rate, one for each PRO.

    Returns:
        `auroc`, `ap`, `f1_max` with `f1_max_threshold` (score ≥ it is anomalous), and `pro`, a list; all but the
        threshold in [0, 1], nan where the known pixels are all of one kind.
    """
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps, but {len(masks)} masks")
    census = _count(maps, masks)
    if not census.positives or not census.negatives:
        return dict.fromkeys(("auroc", "ap", "f1_max", "f1_max_threshold"), NAN) | {"pro": [NAN] * len(limits)}
    curves = _Curves(census, limits)
    for low, high in _score_ranges(maps, masks, census):
        curves.add(_rank(maps, masks, low, high, curves.false))
    f1_max, threshold = curves.f1_max
    return {
        "auroc": curves.auroc, "ap": curves.ap, "f1_max": f1_max, "f1_max_threshold": threshold,
        "pro": [climb.pro for climb in curves.climbs],
    }  # fmt: skip


def f1_max(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """The best F1 that any threshold gives, and the lowest score counted as anomalous there.

    Args:
        scores: (n,).
        labels: (n,), > 0 is anomalous.

    Returns:
        F1 in [0, 1] and the score; (nan, nan) where all are of one kind.
    """
    scores, labels = np.asarray(scores, np.float64).ravel(), np.asarray(labels).ravel() > 0
    if labels.all() or not labels.any():
        return NAN, NAN
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    return float(f1[best]), float(thresholds[best])


class _Census(NamedTuple):
    """What the known pixels are."""

    positives: int
    negatives: int
    regions: int
    low: float  # of the anomalous pixels' scores
    high: float


class _Steps(NamedTuple):
    """A stretch of the curves, by distinct score of an anomalous pixel in descending order."""

    values: NDArray  # the scores
    positives: NDArray[np.int64]  # anomalous pixels with this score
    overlap: NDArray[np.float64]  # sum of 1/area of the regions they lie in
    above: NDArray[np.int64]  # normal pixels with a higher score
    at_least: NDArray[np.int64]  # normal pixels with this score or a higher one
    false: int  # normal pixels with the stretch's lowest possible score or a higher one


class _Curves:
    """Areas under the curves, stretch by stretch from the highest score down."""

    def __init__(self, census: _Census, limits: Sequence[float]) -> None:
        self._census = census
        self.false = 0  # normal pixels visited
        self._found = 0  # anomalous pixels visited
        self._lost, self._precision = 0.0, 0.0
        self.f1_max = (0.0, NAN)
        self.climbs = [_Climb(census, limit) for limit in limits]

    def add(self, steps: _Steps) -> None:
        self.false = steps.false
        if not len(steps.positives):
            return
        # a normal pixel of equal score counts half
        self._lost += float((steps.positives * (steps.above + steps.at_least)).sum(dtype=np.float64)) / 2
        reached = self._found + steps.positives.cumsum()
        self._precision += float((reached / (reached + steps.at_least) * steps.positives).sum())
        f1 = 2 * reached / (reached + steps.at_least + self._census.positives)
        best = int(f1.argmax())  # F1 is best where it has just taken an anomalous pixel in
        if f1[best] > self.f1_max[0]:
            self.f1_max = float(f1[best]), float(steps.values[best])
        self._found = int(reached[-1])
        for climb in self.climbs:
            climb.add(steps)

    @property
    def auroc(self) -> float:
        return 1 - self._lost / (self._census.positives * self._census.negatives)

    @property
    def ap(self) -> float:
        return self._precision / self._census.positives


class _Climb:
    """The PRO curve up to a false positive rate, and the area under it."""

    def __init__(self, census: _Census, limit: float) -> None:
        self._census, self._limit = census, limit
        self._area = 0.0
        self._rate, self._height = 0.0, 0.0  # where the curve stands

    def add(self, steps: _Steps) -> None:
        """The curve climbs at the scores of anomalous pixels (slanting where normal ones share a score)."""
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
        return (self._area + max(0.0, self._limit - self._rate) * self._height) / self._limit


def _area_up_to(x: NDArray, y: NDArray, limit: float) -> float:
    """Area under the curve from x[0] to `limit` (or to its end before that); x ascends."""
    inside = x <= limit
    if inside.all():
        return float(np.trapezoid(y, x))
    return (
        float(np.trapezoid(np.r_[y[inside], np.interp(limit, x, y)], np.r_[x[inside], limit])) if inside.any() else 0.0
    )


def _count(maps: ArrayLike, masks: ArrayLike) -> _Census:
    positives = negatives = regions = 0
    low, high = math.inf, -math.inf
    for one_map, mask in zip(maps, masks, strict=True):
        mask = np.asarray(mask)
        anomalous = mask > 0
        negatives += int((mask == 0).sum())
        if anomalous.any():
            values = np.asarray(one_map)[anomalous]
            positives += len(values)
            regions += cv2.connectedComponents(anomalous.astype(np.uint8), connectivity=8)[0] - 1
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return _Census(positives, negatives, regions, low, high)


def _score_ranges(maps: ArrayLike, masks: ArrayLike, census: _Census) -> list[tuple[float, float]]:
    """Ranges (low ≤ score < high), descending, that cover all scores of anomalous pixels, few pixels in each.

    None holds more than `RANGE_PIXELS` anomalous pixels, unless more than that have scores too close to part.
    """
    ranges = [(census.low, math.inf)]
    counts = [census.positives]
    for _ in range(MAX_SPLITS):
        heavy = [i for i, count in enumerate(counts) if count > RANGE_PIXELS]
        if not heavy:
            break
        edges = [low for low, _ in ranges]
        for i in heavy:
            low, high = ranges[i]
            edges += list(np.linspace(low, min(high, census.high), BINS + 1)[1:-1])
        edges = np.unique(edges)
        ranges, counts = _merge(edges, _histogram(maps, masks, edges))
    return ranges[::-1]


def _histogram(maps: ArrayLike, masks: ArrayLike, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many anomalous pixels score from each edge up to the next."""
    counts = np.zeros(len(edges), np.int64)
    for one_map, mask in zip(maps, masks, strict=True):
        values = np.asarray(one_map)[np.asarray(mask) > 0].astype(np.float64)
        counts += np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges))
    return counts


def _merge(edges: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[list[tuple[float, float]], list[int]]:
    """Neighbouring bins joined while they hold at most `RANGE_PIXELS` together; with their counts."""
    starts, sums = [0], [int(counts[0])]
    for i in range(1, len(edges)):
        if sums[-1] + counts[i] <= RANGE_PIXELS:
            sums[-1] += int(counts[i])
        else:
            starts.append(i)
            sums.append(int(counts[i]))
    lows = [float(edges[i]) for i in starts]
    return list(zip(lows, [*lows[1:], math.inf], strict=True)), sums


def _rank(maps: ArrayLike, masks: ArrayLike, low: float, high: float, false: int) -> _Steps:
    """The stretch of scores in [low, high), `false` normal pixels scoring at least `high`."""
    values, positives, overlap = _anomalous_pixels(maps, masks, low, high)
    below, up_to = np.zeros(len(values), np.int64), np.zeros(len(values), np.int64)
    negatives = 0
    for start, stop in _chunks(maps):
        normal = np.sort(np.concatenate([_normal_pixels(maps[i], masks[i], low, high) for i in range(start, stop)]))
        negatives += len(normal)
        below += np.searchsorted(normal, values, side="left")
        up_to += np.searchsorted(normal, values, side="right")
    total = false + negatives
    return _Steps(values[::-1], positives[::-1], overlap[::-1], (total - up_to)[::-1], (total - below)[::-1], total)


def _normal_pixels(one_map: ArrayLike, mask: ArrayLike, low: float, high: float) -> NDArray:
    one_map = np.asarray(one_map)
    return one_map[(np.asarray(mask) == 0) & (one_map >= low) & (one_map < high)]


def _chunks(maps: ArrayLike) -> Iterator[tuple[int, int]]:
    """Index ranges of about `CHUNK_PIXELS` pixels."""
    size = max(1, CHUNK_PIXELS // max(1, int(np.prod(np.shape(maps[0]))))) if len(maps) else 1
    for start in range(0, len(maps), size):
        yield start, min(start + size, len(maps))


def _anomalous_pixels(
    maps: ArrayLike, masks: ArrayLike, low: float, high: float
) -> tuple[NDArray, NDArray[np.int64], NDArray[np.float64]]:
    """Distinct scores of anomalous pixels in [low, high), ascending; how many have each, their sum of 1/area."""
    parts = []
    for one_map, mask in zip(maps, masks, strict=True):
        anomalous = np.asarray(mask) > 0
        if anomalous.any():
            labels = cv2.connectedComponents(anomalous.astype(np.uint8), connectivity=8)[1][anomalous]
            values = np.asarray(one_map)[anomalous]
            share = (1 / np.bincount(labels).clip(1))[labels]
            inside = (values >= low) & (values < high)
            parts.append(_by_score(values[inside], np.ones(inside.sum(), np.int64), share[inside]))
    return _by_score(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _by_score(
    values: NDArray, positives: NDArray[np.int64], overlap: NDArray[np.float64]
) -> tuple[NDArray, NDArray[np.int64], NDArray[np.float64]]:
    """Sorted by score, equal scores added up."""
    order = np.argsort(values)
    values = values[order]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.zeros(0, np.int64)
    if not len(first):
        return values, positives[order], overlap[order]
    return values[first], np.add.reduceat(positives[order], first), np.add.reduceat(overlap[order], first)


def compute_pro_published(masks: ArrayLike, maps: ArrayLike) -> float:
    """PRO as the published code computes it, to compare with its numbers; higher than `compute_pro`.

    200 thresholds; a region's overlap is counted with the prediction dilated 5×5, the false positives without;
    false positive rates under 0.3 are stretched to [0, 1]. A dilated thresholded map is a thresholded
    max-filtered map, so each map is filtered once. An image of whose defect no pixel is left counts as normal, as
    there.

    Args:
        masks: (n, H, W); > 0 is anomalous, < 0 is not known and left out but for `NO_PIXEL_LEFT`.
        maps: (n, H, W).

    Returns:
        A value in [0, 1]; nan where the pixels are all of one kind or the maps are constant.
    """
    low, high = float(np.min(maps)), float(np.max(maps))
    if not high > low:
        return NAN
    thresholds = np.arange(low, high, (high - low) / PUBLISHED_PRO_STEPS)
    overlap, regions = np.zeros(len(thresholds)), 0
    false, negatives = np.zeros(len(thresholds)), 0
    for one_map, mask in zip(maps, masks, strict=True):
        one_map, mask = np.asarray(one_map, np.float32), np.asarray(mask)
        count, labels = cv2.connectedComponents((mask > 0).astype(np.uint8), connectivity=8)
        widened = cv2.dilate(one_map, np.ones((5, 5), np.uint8))
        for region in range(1, count):
            overlap += _share_above(widened[labels == region], thresholds)
        normal = one_map[(mask == 0) | (mask == NO_PIXEL_LEFT)]
        false += _share_above(normal, thresholds) * len(normal)
        regions, negatives = regions + count - 1, negatives + len(normal)
    if not regions or not negatives:
        return NAN
    pro, fpr = overlap / regions, false / negatives
    pro, fpr = pro[fpr < PRO_LIMIT], fpr[fpr < PRO_LIMIT]
    if len(fpr) < 2:
        return NAN
    fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min() + 1e-10)
    return float(-np.trapezoid(pro, fpr))  # thresholds ascend, so rates descend


def _share_above(values: NDArray, thresholds: NDArray) -> NDArray[np.float64]:
    """Share of `values` over each threshold; 0 of none."""
    ordered = np.sort(values.astype(np.float64, copy=False))
    return 1 - np.searchsorted(ordered, thresholds, side="right") / max(1, len(ordered))
