"""Pixel AUROC, AP and PRO from one sort on the device that computed the maps; `metrics` is the same on the host."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

import metrics
from training.feature_cache import free_on

# memory at the peak of the ranking if all scores are different, including the maps and the ground truth
BYTES_A_PIXEL = 92


class DeviceTruth:
    """The ground truth of a test set on a device, computed once.

    Args:
        masks: n masks (H, W); > 0 is anomalous, < 0 is unknown and does not count.
        size: (H, W).
        device: of the maps.
    """

    def __init__(self, masks: Sequence, size: tuple[int, int], device: torch.device) -> None:
        pixels = size[0] * size[1]
        known = np.ones(len(masks), bool)
        shares = np.zeros((len(masks), pixels), np.float32)
        positive = np.zeros((len(masks), pixels), bool)
        self.regions = 0
        for i, mask in enumerate(masks):
            known[i] = not (mask < 0).any()
            if known[i] and (mask > 0).any():
                count, labels = cv2.connectedComponents((mask > 0).astype(np.uint8), connectivity=8)
                area = np.bincount(labels.ravel())
                positive[i] = mask.ravel() > 0
                shares[i] = np.where(positive[i], 1 / area[labels.ravel()], 0)
                self.regions += count - 1
        self.images = torch.from_numpy(np.flatnonzero(known)).to(device)
        self.positive = torch.from_numpy(positive[known].ravel()).to(device)
        self.shares = torch.from_numpy(shares[known].ravel()).to(device)
        self.positives = int(positive[known].sum())
        self.negatives = int(known.sum()) * pixels - self.positives

    @staticmethod
    def fits(count: int, size: tuple[int, int], device: torch.device) -> bool:
        """Whether the device is a GPU with enough memory to rank `count` maps."""
        needed = BYTES_A_PIXEL * count * size[0] * size[1]
        return device.type == "cuda" and needed < free_on(device) // 2


def pixel_metrics(maps: Tensor, truth: DeviceTruth, limit: float = metrics.PRO_LIMIT) -> dict[str, float]:
    """`auroc`, `ap` and `pro` in [0, 1]; nan if all known pixels are of one kind.

    Args:
        maps: (n, H, W) float32.
        truth: of the same images.
        limit: the highest false positive rate of the PRO, in (0, 1].
    """
    if not truth.positives or not truth.negatives:
        return dict.fromkeys(("auroc", "ap", "pro"), metrics.NAN)
    scores, order = maps[truth.images].flatten().sort(descending=True)
    last = torch.ones_like(scores, dtype=torch.bool)  # whether a pixel is the last one with its score
    torch.ne(scores[1:], scores[:-1], out=last[:-1])
    del scores
    ends = last.nonzero()[:, 0]
    true_positives = truth.positive[order].cumsum(0)[ends]
    overlap = truth.shares[order].cumsum(0, dtype=torch.float64)[ends] / truth.regions
    del order
    false_positives = ends + 1 - true_positives
    recall, rate = true_positives.double() / truth.positives, false_positives.double() / truth.negatives
    zero = recall.new_zeros(1)
    recall, rate, overlap = (torch.cat([zero, x]) for x in (recall, rate, overlap))
    precision = true_positives.double() / (ends + 1)
    values = torch.trapezoid(recall, rate), (recall.diff() * precision).sum(), _area_up_to(rate, overlap, limit)
    return dict(zip(("auroc", "ap", "pro"), torch.stack(values).tolist(), strict=True))


def _area_up_to(x: Tensor, y: Tensor, limit: float) -> Tensor:
    """Area under the curve from 0 to `limit`, divided by `limit`; x ascends from 0 to 1."""
    at = torch.searchsorted(x, torch.tensor([limit], dtype=x.dtype, device=x.device), right=True).clamp(max=len(x) - 1)
    before = at - 1
    width = (x[at] - x[before]).clamp(min=1e-300)
    height = y[before] + (y[at] - y[before]) * ((limit - x[before]) / width).clamp(0, 1)
    inside = x <= limit
    steps = (x.diff() * (y[1:] + y[:-1]) / 2 * inside[1:]).sum()
    rest = (limit - x[before]) * (y[before] + height) / 2
    return (steps + torch.where(x[at] > limit, rest, 0.0)[0]) / limit  # with a limit at the end of x there is no rest
