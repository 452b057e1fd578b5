"""The focal loss of the LAS branch (paper section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

GAMMA = 2.0
SMOOTH = 1e-5


def focal_loss(scores: Tensor, targets: Tensor, among: Tensor | None = None) -> Tensor:
    """The mean of −(1−pt)² log pt, where pt is the probability of the true class, with smoothed targets.

    Args:
        scores: (N,) in [0, 1], the probability of being anomalous.
        targets: (N,), 0 or 1.
        among: (N,) bool, the rows that count; all by default.

    Returns:
        A 0-d tensor ≥ 0; nan if no row counts.
    """
    anomalous = targets.to(scores.dtype).clamp(SMOOTH, 1 - SMOOTH)
    normal = (1 - targets.to(scores.dtype)).clamp(SMOOTH, 1 - SMOOTH)
    pt = normal * (1 - scores) + anomalous * scores + SMOOTH
    losses = -((1 - pt) ** GAMMA) * torch.log(pt)
    return losses.mean() if among is None else (losses * among).sum() / among.sum()
