"""AUROC, AP and PRO of images and pixels, exact, from arrays.

Pixels are ranked without sorting them all at once. Every metric here changes only where the score passes an
anomalous pixel's, so it is enough to know, for each distinct score of an anomalous pixel, how many normal
pixels score above it and how many at least it. Normal pixels are visited in chunks; what is kept grows with
the anomalous pixels alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

PRO_LIMIT = 0.3  # of the false positive rate
PUBLISHED_PRO_STEPS = 200
CHUNK_PIXELS = 1 << 23
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


@dataclass(frozen=True)
class _Ranking:
    """Everything the curves need, by distinct score of an anomalous pixel in descending order."""

    positives: NDArray[np.int64]  # anomalous pixels with this score
    overlap: NDArray[np.float64]  # sum of 1/area of their regions
    above: NDArray[np.int64]  # normal pixels with a higher score
    at_least: NDArray[np.int64]  # normal pixels with this score or a higher one
    negatives: int
    regions: int

    @property
    def _empty(self) -> bool:
        return not len(self.positives) or not self.negatives

    def auroc(self) -> float:
        if self._empty:
            return NAN
        # a normal pixel of equal score counts half
        lost = (self.positives * (self.above + self.at_least)).sum(dtype=np.float64) / 2
        return float(1 - lost / (self.positives.sum(dtype=np.float64) * self.negatives))

    def ap(self) -> float:
        if self._empty:
            return NAN
        found = self.positives.cumsum()
        precision = found / (found + self.at_least)
        return float((precision * self.positives).sum() / found[-1])

    def pro(self, limit: float) -> float:
        if self._empty:
            return NAN
        # the curve climbs at the scores of anomalous pixels (slanting where normal ones share a score),
        # and is level in between
        climbed = self.overlap.cumsum() / self.regions
        fpr = np.stack([self.above, self.at_least], 1).ravel() / self.negatives
        pro = np.stack([np.r_[0.0, climbed[:-1]], climbed], 1).ravel()
        fpr, pro = np.r_[0.0, fpr, 1.0], np.r_[0.0, pro, climbed[-1]]
        inside = fpr <= limit
        at_limit = np.interp(limit, fpr, pro) if not inside.all() else pro[-1]
        return float(np.trapezoid(np.r_[pro[inside], at_limit], np.r_[fpr[inside], limit]) / limit)


def _chunks(maps: ArrayLike) -> Iterator[tuple[int, int]]:
    """Index ranges of about `CHUNK_PIXELS` pixels."""
    size = max(1, CHUNK_PIXELS // max(1, int(np.prod(np.shape(maps[0]))))) if len(maps) else 1
    for start in range(0, len(maps), size):
        yield start, min(start + size, len(maps))


def _rank(maps: ArrayLike, masks: ArrayLike) -> _Ranking:
    if len(maps) != len(masks):
        raise ValueError(f"{len(maps)} maps, but {len(masks)} masks")
    values, weights, regions = _anomalous_pixels(maps, masks)
    order = np.argsort(values)[::-1]
    values, weights = values[order], weights[order]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.zeros(0, np.int64)
    distinct = values[first][::-1]  # ascending, as searchsorted wants it
    below, up_to = np.zeros(len(distinct), np.int64), np.zeros(len(distinct), np.int64)
    negatives = 0
    for start, stop in _chunks(maps):
        normal = np.concatenate([np.asarray(maps[i])[np.asarray(masks[i]) == 0] for i in range(start, stop)])
        normal.sort()
        negatives += len(normal)
        below += np.searchsorted(normal, distinct, side="left")
        up_to += np.searchsorted(normal, distinct, side="right")
    return _Ranking(
        positives=np.diff(np.r_[first, len(values)]),
        overlap=np.add.reduceat(weights, first) if len(first) else weights,
        above=(negatives - up_to)[::-1],
        at_least=(negatives - below)[::-1],
        negatives=negatives,
        regions=regions,
    )


def _anomalous_pixels(maps: ArrayLike, masks: ArrayLike) -> tuple[NDArray, NDArray[np.float64], int]:
    """Scores of all anomalous pixels, 1/area of the region each lies in, and the number of regions."""
    values, weights, regions = [], [], 0
    for one_map, mask in zip(maps, masks, strict=True):
        anomalous = np.asarray(mask) > 0
        if anomalous.any():
            count, labels = cv2.connectedComponents(anomalous.astype(np.uint8), connectivity=8)
            inside = labels[anomalous]
            values.append(np.asarray(one_map)[anomalous])
            weights.append(1 / np.bincount(inside)[inside])
            regions += count - 1
    if not values:
        return np.zeros(0, np.float32), np.zeros(0), 0
    return np.concatenate(values), np.concatenate(weights), regions


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
