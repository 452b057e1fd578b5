"""Global anomaly synthesis (GAS): noise on features, moved by gradient ascent (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from synthesis.arithmetic import Workspace, linear, mean_bce, quantile
from synthesis.ascent import EndOfPath, Path, distances, start_from_centre
from synthesis.slope import AutogradSlope, ClosedFormSlope, Fused, choose_slope, score_both_halves

if TYPE_CHECKING:
    from model import Discriminator

PROJECT_EVERY = 5  # updates
MANIFOLD_RADIUS = 0.5


class GASResult(NamedTuple):
    """The result of gradient ascent on the features.

    Attributes:
        loss: L_n + L_g of the last pass, 0-d, with its graph to D and A.
        true_scores, fake_scores: (N,), the scores of that pass.
        r_g: 0-d, the `radius` quantile of ‖g − c‖ before the last projection; at the end if there was none.
    """

    loss: Tensor
    true_scores: Tensor
    fake_scores: Tensor
    r_g: Tensor


def gas(
    discriminator: Discriminator,
    true: Tensor,
    noise: Tensor,
    centre: Tensor,
    *,
    r_t: Tensor,
    svd: int,
    step: int = 20,
    mining: int = 1,
    radius: float = 0.75,
    true_y: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    fused: Fused | None = None,
    workspace: Workspace | None = None,
) -> GASResult:
    """Global anomaly synthesis (paper section 3.2, algorithm 1): noise on normal features, moved by gradient ascent.

    D's first layer is linear, y = W·x + b, and D does not change during the updates. So y is computed once and then
    updated itself: an update of g by a·∇ with ∇ = (∂L_g/∂y)·W changes y by a·(∂L_g/∂y)·(W·Wᵀ), and y also suffices for
    the lengths and projections of h = g − q (see `Path`). Up to rounding, the result is that of updating the features.

    Args:
        discriminator: D in train mode; each of the step+1 passes updates its running statistics.
        true: t = A(f(I)), (N, C). The hypersphere needs its graph; on the manifold the graph of `true_y` is enough.
        noise: ε, (N, C).
        centre: c, (P, C), N a multiple of P.
        r_t: 0-d, the radius of the normal features.
        svd: 0 manifold, 1 hypersphere.
        step: number of updates, ≥ 0.
        mining: 0 skips the updates.
        radius: quantile for `r_g`, in [0, 1].
        true_y: W·t + b, (N, hidden), with its graph; computed if the caller does not have it.
        dtype: of the matrix products of the updates and of the backward pass.
        fused: compiled forms of the elementwise part, see `compile_updates`.
        workspace: of the previous step, whose backward pass must be over.
    """
    first = discriminator.first
    if true_y is None:
        true_y = linear(true, first.weight, first.bias, dtype)
    workspace = workspace or Workspace()
    with torch.no_grad():
        constant_true = true.detach()
        start = start_from_centre(noise, constant_true, centre, workspace) if svd else noise  # (N, C)
        centre_y = linear(centre, first.weight, first.bias)  # (P, hidden)
        origin_y = centre_y.repeat(len(true) // len(centre), 1) if svd else true_y.detach()  # (N, hidden)
        path = Path(first.weight.detach(), start, dtype, workspace)
        slope = choose_slope(discriminator, true_y.detach(), origin_y, path, fused)

        def radius_of_path() -> Tensor:
            return quantile(distances(path, svd, constant_true, true_y, centre, centre_y), radius)

        r_g = _ascend(slope, path, step if mining else 0, r_t if svd else MANIFOLD_RADIUS, bool(svd), radius_of_path)
    differentiable_origin_y = linear(centre, first.weight, first.bias, dtype) if svd else true_y
    fake_y = EndOfPath.apply(differentiable_origin_y, true if svd else None, first.weight, path)  # (N, hidden)
    true_scores, fake_scores = score_both_halves(discriminator, true_y, fake_y)
    loss = mean_bce(true_scores, 0.0) + mean_bce(fake_scores, 1.0)
    return GASResult(loss, true_scores.detach(), fake_scores.detach(), r_g)


def _ascend(
    slope: ClosedFormSlope | AutogradSlope,
    path: Path,
    updates: int,
    low: Tensor | float,
    keep: bool,
    radius_of_path: Callable[[], Tensor],
) -> Tensor:
    """Update, and project to [low, 2·low] after every fifth update; returns r_g as of before the last projection."""
    r_g = None
    for k in range(1, updates + 1):
        slope.push()
        if k % PROJECT_EVERY == 0:
            slope.sync_path()
            r_g = radius_of_path()
            path.project(low, 2 * low, keep=keep)
            slope.refresh()
    slope.sync_path()
    return radius_of_path() if r_g is None else r_g
