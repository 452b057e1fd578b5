"""AUROC, AP and PRO of images and pixels, exact, from arrays.

Pixels are ranked without sorting them all at once. Every metric here changes only where the score passes an
anomalous pixel's, so it is enough to know, for each distinct score of an anomalous pixel, how many normal
pixels score above it and how many at least it. Normal pixels are visited in chunks; what is kept grows with
the anomalous pixels alone, at most 24 bytes each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

PRO_LIMIT = 0.3  # of the false positive rate
PUBLISHED_PRO_STEPS = 200
CHUNK_PIXELS = 1 << 23
BLOCK_PIXELS = 1 << 18
NAN = float("nan")


class PackedMasks(Sequence):
    """Ground truth masks kept as bits, (n, H, W) when read.

    A read mask is int8: 0 normal, 1 anomalous, −1 everywhere for an image whose mask is not known.
    """

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self._bits = np.zeros((count, math.ceil(size[0] * size[1] / 8)), np.uint8)
        self._known = np.ones(count, bool)
        self._size = tuple(size)

    def __len__(self) -> int:
        return len(self._bits)

    def __setitem__(self, index: int, mask: NDArray) -> None:
        """Store an (H, W) mask; > 0 is anomalous, any value < 0 makes the whole mask unknown."""
        self._known[index] = not (mask < 0).any()
        self._bits[index] = np.packbits(mask > 0)

    def __getitem__(self, index: int) -> NDArray[np.int8]:
        if not self._known[index]:
            return np.full(self._size, -1, np.int8)
        flat = np.unpackbits(self._bits[index], count=self._size[0] * self._size[1])
        return flat.view(np.int8).reshape(self._size)


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
    ranking = _rank(maps, masks)
    return {"auroc": ranking.auroc(), "ap": ranking.ap()}


def compute_pro(masks: ArrayLike, maps: ArrayLike, limit: float = PRO_LIMIT) -> float:
    """Per-region overlap (Bergmann et al., "Uninformed Students", 2020): area under the curve, over `limit`.

    Args:
        masks: (n, H, W); > 0 is anomalous, in 8-connected regions, < 0 is not known and left out.
        maps: (n, H, W).
        limit: of the false positive rate, in (0, 1].

    Returns:
        A value in [0, 1]; nan where the known pixels are all of one kind.
    """
    return _rank(maps, masks).pro(limit)


def pixel_metrics(maps: ArrayLike, masks: ArrayLike) -> dict[str, float]:
    """`auroc`, `ap` and `pro` with the pixels ranked once."""
    ranking = _rank(maps, masks)
    return {"auroc": ranking.auroc(), "ap": ranking.ap(), "pro": ranking.pro(PRO_LIMIT)}


class _Steps(NamedTuple):
    """A stretch of the curves, by distinct score of an anomalous pixel in descending order."""

    positives: NDArray[np.int64]  # anomalous pixels with this score
    overlap: NDArray[np.float64]  # sum of 1/area of the regions they lie in
    above: NDArray[np.int64]  # normal pixels with a higher score
    at_least: NDArray[np.int64]  # normal pixels with this score or a higher one


@dataclass(frozen=True)
class _Ranking:
    """Everything the curves need, by anomalous pixel in ascending order of score."""

    values: NDArray  # score
    region: NDArray[np.int32]
    below: NDArray[np.unsignedinteger]  # normal pixels with a lower score
    up_to: NDArray[np.unsignedinteger]  # normal pixels with this score or a lower one
    areas: NDArray[np.int64]  # of each region
    negatives: int

    @property
    def _empty(self) -> bool:
        return not len(self.values) or not self.negatives

    def _steps(self) -> Iterator[_Steps]:
        """The curves from the highest score down, a bounded piece at a time; equal scores stay together."""
        stop = len(self.values)
        while stop:
            start = int(np.searchsorted(self.values, self.values[max(0, stop - BLOCK_PIXELS)], side="left"))
            piece = slice(start, stop)
            values = self.values[piece][::-1]
            first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
            yield _Steps(
                positives=np.diff(np.r_[first, len(values)]),
                overlap=np.add.reduceat(1 / self.areas[self.region[piece][::-1]], first),
                above=self.negatives - self.up_to[piece][::-1][first].astype(np.int64),
                at_least=self.negatives - self.below[piece][::-1][first].astype(np.int64),
            )
            stop = start

    def auroc(self) -> float:
        if self._empty:
            return NAN
        # a normal pixel of equal score counts half
        lost = sum((s.positives * (s.above + s.at_least)).sum(dtype=np.float64) / 2 for s in self._steps())
        return float(1 - lost / (len(self.values) * self.negatives))

    def ap(self) -> float:
        if self._empty:
            return NAN
        total, found = 0.0, 0
        for s in self._steps():
            reached = found + s.positives.cumsum()
            total += (reached / (reached + s.at_least) * s.positives).sum()
            found = int(reached[-1])
        return float(total / len(self.values))

    def pro(self, limit: float) -> float:
        if self._empty:
            return NAN
        area, rate, height = 0.0, 0.0, 0.0
        for s in self._steps():
            # the curve climbs at the scores of anomalous pixels (slanting where normal ones share a score),
            # and is level in between
            climbed = height + s.overlap.cumsum() / len(self.areas)
            fpr = np.r_[rate, np.stack([s.above, s.at_least], 1).ravel() / self.negatives]
            pro = np.r_[height, np.stack([np.r_[height, climbed[:-1]], climbed], 1).ravel()]
            area += _area_up_to(fpr, pro, limit)
            rate, height = fpr[-1], pro[-1]
            if rate >= limit:
                break
        return float((area + max(0.0, limit - rate) * height) / limit)


def _area_up_to(x: NDArray, y: NDArray, limit: float) -> float:
    """Area under the curve from x[0] to `limit` (or to its end before that); x ascends."""
    inside = x <= limit
    if inside.all():
        return float(np.trapezoid(y, x))
    return (
        float(np.trapezoid(np.r_[y[inside], np.interp(limit, x, y)], np.r_[x[inside], limit])) if inside.any() else 0.0
    )


def _chunks(maps: ArrayLike) -> Iterator[tuple[int, int]]:
    """Index ranges of about `CHUNK_PIXELS` pixels."""
    size = max(1, CHUNK_PIXELS // max(1, int(np.prod(np.shape(maps[0]))))) if len(maps) else 1
    for start in range(0, len(maps), size):
        yield start, min(start + size, len(maps))


def _rank(maps: ArrayLike, masks: ArrayLike) -> _Ranking:
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps, but {len(masks)} masks")
    values, region, areas = _anomalous_pixels(maps, masks)
    order = np.argsort(values)
    values = values[order]
    region = region[order]
    del order
    counts = np.uint32 if np.size(maps) < 2**32 else np.uint64
    below, up_to = np.zeros(len(values), counts), np.zeros(len(values), counts)
    negatives = 0
    for start, stop in _chunks(maps):
        normal = np.concatenate([np.asarray(maps[i])[np.asarray(masks[i]) == 0] for i in range(start, stop)])
        normal.sort()
        negatives += len(normal)
        for at in range(0, len(values), BLOCK_PIXELS):
            piece = slice(at, at + BLOCK_PIXELS)
            below[piece] += np.searchsorted(normal, values[piece], side="left").astype(counts)
            up_to[piece] += np.searchsorted(normal, values[piece], side="right").astype(counts)
    return _Ranking(values, region, below, up_to, areas, negatives)


def _anomalous_pixels(maps: ArrayLike, masks: ArrayLike) -> tuple[NDArray, NDArray[np.int32], NDArray[np.int64]]:
    """Score and region of every anomalous pixel, and the area of each region."""
    values, region, areas, count = [], [], [], 0
    for one_map, mask in zip(maps, masks, strict=True):
        anomalous = np.asarray(mask) > 0
        if anomalous.any():
            labels = cv2.connectedComponents(anomalous.astype(np.uint8), connectivity=8)[1][anomalous]
            values.append(np.asarray(one_map)[anomalous])
            region.append(labels + np.int32(count - 1))
            areas.append(np.bincount(labels)[1:])
            count += len(areas[-1])
    if not values:
        return np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, np.int64)
    return np.concatenate(values), np.concatenate(region), np.concatenate(areas)


def compute_pro_published(masks: ArrayLike, maps: ArrayLike) -> float:
    """PRO as the published code computes it, to compare with its numbers; higher than `compute_pro`.

    200 thresholds; a region's overlap is counted with the prediction dilated 5×5, the false positives without;
    false positive rates under 0.3 are stretched to [0, 1]. A dilated thresholded map is a thresholded
    max-filtered map, so each map is filtered once.

    Args:
        masks: (n, H, W); > 0 is anomalous.
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
        normal = one_map[mask == 0]
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
