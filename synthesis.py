"""The paper's two ideas: local anomalies on the image (LAS) and global anomalies on the features (GAS)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import perlin
from errors import InputError

STEP_LENGTH = 0.001  # of a gradient ascent update
PROJECT_EVERY = 5  # updates
MANIFOLD_RADIUS = 0.5
EPS = 1e-10
BETA_RANGE = (0.2, 0.8)
MAX_DRAWS = 1000


# --------------------------------------------------------------------------------------------- LAS


def las_mask(
    rng: np.random.Generator,
    size: tuple[int, int],
    grid: tuple[int, int],
    foreground: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Where a synthetic local anomaly lies (paper section 3.3).

    Args:
        rng: source of all draws.
        size: (H, W) of the image.
        grid: (H', W') of the first layer's map.
        foreground: (H, W), True where anomalies may lie; everywhere by default.

    Returns:
        The mask (H, W), and `mask_s` (H', W') in {0, 1}, its max-pool, with at least one 1.

    Raises:
        InputError: the foreground leaves (almost) no pixel.
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
    """(H, W) → (H', W') in {0, 1}, its max-pool."""
    return F.adaptive_max_pool2d(torch.from_numpy(mask).float()[None], grid)[0].numpy()


def draw_beta(rng: np.random.Generator, mean: float, std: float) -> float:
    """Transparency of the texture: Normal(mean, std) clipped to [0.2, 0.8]."""
    return float(np.clip(rng.normal(mean, std), *BETA_RANGE))


def blend(image: Tensor, texture: Tensor, mask: Tensor, beta: float) -> Tensor:
    """I·(1−m) + (1−β)·T·m + β·I·m on normalised (3, H, W) tensors; mask (H, W) in {0, 1}."""
    return image * (1 - mask) + ((1 - beta) * texture + beta * image) * mask


# --------------------------------------------------------------------------------------------- GAS


class GASResult(NamedTuple):
    """What gradient ascent on the features leaves.

    `loss` is L_n + L_g of the last pass with its graph to D and A; `true_scores` and `fake_scores` (N,) are the
    scores of that pass; `r_g` is the radius quantile of ‖g − c‖ after the last update that is a multiple of
    five, before its projection.
    """

    loss: Tensor
    true_scores: Tensor
    fake_scores: Tensor
    r_g: Tensor


def project_to_ring(x: Tensor, centre: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Move each row of x (N, C) along its ray from `centre` so that its distance lies in [low, high]."""
    offset = x - centre
    norm = offset.norm(dim=1, keepdim=True)
    return centre + offset * (norm.clamp(low, high) / (norm + EPS))


def quantile(x: Tensor, q: float) -> Tensor:
    """0-d quantile by linear interpolation; nan of no values. (torch.quantile refuses over 16 million.)"""
    if x.numel() == 0:
        return x.new_tensor(float("nan"))
    position = q * (x.numel() - 1)
    low = int(position)
    ordered = x.flatten().sort().values
    return torch.lerp(ordered[low], ordered[min(low + 1, x.numel() - 1)], position - low)


def gas(
    discriminator: nn.Module,
    true: Tensor,
    noise: Tensor,
    centre: Tensor,
    *,
    r_t: Tensor,
    svd: int,
    step: int = 20,
    mining: int = 1,
    radius: float = 0.75,
) -> GASResult:
    """Global anomaly synthesis (paper section 3.2, algorithm 1): noise on normal features, pushed uphill.

    Args:
        discriminator: D in train mode; its running statistics move at each of the step+1 passes.
        true: t = A(f(I)), (N, C), with its graph.
        noise: ε, (N, C).
        centre: c, (N, C).
        r_t: 0-d, radius of the normal features.
        svd: 0 manifold, 1 hypersphere.
        step: number of updates, ≥ 0.
        mining: 0 leaves the noise as it is.
        radius: quantile for `r_g`.
    """
    true_const = true.detach()  # an update needs no gradient to t; only the last pass and the projection do
    fake = true + noise
    r_g = None
    for k in range(1, (step if mining else 0) + 1):
        fake = fake + STEP_LENGTH * _ascent_direction(discriminator, true_const, fake.detach())
        if k % PROJECT_EVERY == 0:
            r_g = quantile((fake - centre).detach().norm(dim=1), radius)
            if svd:
                fake = project_to_ring(fake, centre, r_t, 2 * r_t)
            else:
                fake = project_to_ring(fake, true, MANIFOLD_RADIUS, 2 * MANIFOLD_RADIUS)
    if r_g is None:
        r_g = quantile((fake - centre).detach().norm(dim=1), radius)
    true_scores, fake_scores = _scores(discriminator, true, fake)
    loss = _bce(true_scores, 0.0) + _bce(fake_scores, 1.0)
    return GASResult(loss, true_scores.detach(), fake_scores.detach(), r_g)


def _ascent_direction(discriminator: nn.Module, true: Tensor, fake: Tensor) -> Tensor:
    """∇/(‖∇‖ + 1e-10), row by row, ∇ the gradient of L_g to g. (N, C), no graph."""
    fake.requires_grad_(True)
    _, fake_scores = _scores(discriminator, true, fake)
    (gradient,) = torch.autograd.grad(_bce(fake_scores, 1.0), fake)
    return gradient / (gradient.norm(dim=1, keepdim=True) + EPS)


def _scores(discriminator: nn.Module, true: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves pass D together, so that its batch norm sees the statistics of both. (N,), (N,)."""
    scores = discriminator(torch.cat([true, fake])).squeeze(1)
    return scores[: len(true)], scores[len(true) :]


def _bce(scores: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy(scores, torch.full_like(scores, target))
