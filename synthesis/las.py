"""Local anomaly synthesis (LAS): defects drawn on the image (paper section 3.3)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import perlin
from loss import focal_loss
from synthesis.arithmetic import quantile
from utils import InputError

BETA_RANGE = (0.2, 0.8)
MAX_DRAWS = 1000


def las_mask(
    rng: np.random.Generator,
    size: tuple[int, int],
    grid: tuple[int, int],
    foreground: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """The mask of a synthetic local anomaly (paper section 3.3).

    Args:
        rng: random generator.
        size: (H, W) of the image.
        grid: (H', W') of the first layer's map.
        foreground: (H, W), True where anomalies are allowed; everywhere by default.

    Returns:
        The mask (H, W), and `mask_s` (H', W') in {0, 1}, its max-pool, with at least one 1.

    Raises:
        InputError: the foreground has (almost) no pixel.
    """
    for _ in range(MAX_DRAWS if foreground is None or foreground.any() else 0):
        mask = perlin.perlin_mask(rng, size)
        if foreground is not None:
            mask &= foreground
        if mask.any():
            return mask, pool_mask(mask, grid)
    share = 0.0 if foreground is None else float(foreground.mean())
    raise InputError(f"no anomaly fits into the foreground: it covers {share:.2%} of the image")


def pool_mask(mask: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Max-pool of a mask, (H, W) → (H', W') in {0, 1}."""
    return F.adaptive_max_pool2d(torch.from_numpy(mask).float()[None], grid)[0].numpy()


def draw_beta(rng: np.random.Generator, mean: float, std: float) -> float:
    """The transparency of the texture: a sample of Normal(mean, std), clipped to [0.2, 0.8]."""
    return float(np.clip(rng.normal(mean, std), *BETA_RANGE))


def blend(image: Tensor, texture: Tensor, mask: Tensor, beta: float) -> Tensor:
    """I·(1−m) + (1−β)·T·m + β·I·m, (3, H, W).

    Args:
        image: I, (3, H, W), normalised.
        texture: T, likewise.
        mask: m, (H, W) in {0, 1}.
        beta: β in [0, 1].
    """
    return image * (1 - mask) + ((1 - beta) * texture + beta * image) * mask


def local_loss(scores: Tensor, anomalous: Tensor, share: float) -> Tensor:
    """The focal loss of the LAS scores of which the easiest do not count.

    Args:
        scores: (N,) in [0, 1].
        anomalous: (N,) bool.
        share: p, of the rows that do not count, in [0, 1].
    """
    if share <= 0:
        return focal_loss(scores, anomalous)
    difficulty = (scores.detach() - anomalous.float()) ** 2  # (N,)
    return focal_loss(scores, anomalous, difficulty >= quantile(difficulty, share))
