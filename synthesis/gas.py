"""Global anomaly synthesis (GAS): noise on features, pushed uphill by gradient ascent (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from synthesis.arithmetic import Workspace, linear, mean_bce, quantile
from synthesis.ascent import Path, PathsEnd, distances, from_centre
from synthesis.slope import AnySlope, ClosedSlope, Fused, scores_of_both, slope_of

if TYPE_CHECKING:
    from model import Discriminator

PROJECT_EVERY = 5  # updates
MANIFOLD_RADIUS = 0.5


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
    """Global anomaly synthesis (paper section 3.2, algorithm 1): noise on normal features, pushed uphill.

    D's first layer is linear, y = W·x + b, and D stays as it is during the updates. So the features' y are made
    once and pushed themselves: an update of g by a·∇ with ∇ = (∂L_g/∂y)·W changes y by a·(∂L_g/∂y)·(W·Wᵀ), and
    lengths and projections of h = g − q need no more than y either (`Path`). The result is that of pushing the
    features, up to rounding.

    Args:
        discriminator: D in train mode; its running statistics move at each of the step+1 passes.
        true: t = A(f(I)), (N, C). The hypersphere needs its graph; on the manifold that of `true_y` is enough.
        noise: ε, (N, C).
        centre: c, (P, C), N a multiple of P.
        r_t: 0-d, radius of the normal features.
        svd: 0 manifold, 1 hypersphere.
        step: number of updates, ≥ 0.
        mining: 0 leaves the noise as it is.
        radius: quantile for `r_g`.
        true_y: W·t + b, (N, hidden), with its graph, where the caller has it.
        dtype: of the matrix products of the updates and of the backward pass.
        fused: compiled forms of the element-wise part, see `compile_updates`.
        workspace: of the step before, whose loss went backward already.
    """
    first = discriminator.first
    if true_y is None:
        true_y = linear(true, first.weight, first.bias, dtype)
    workspace = workspace or Workspace()
    with torch.no_grad():
        const = true.detach()
        start = from_centre(noise, const, centre, workspace) if svd else noise
        centre_y = linear(centre, first.weight, first.bias)
        origin_y = centre_y.repeat(len(true) // len(centre), 1) if svd else true_y.detach()
        path = Path(first.weight.detach(), start, dtype, workspace)
        uphill = slope_of(discriminator, true_y.detach(), origin_y, path, fused)

        def r_of_path() -> Tensor:
            return quantile(distances(path, svd, const, true_y, centre, centre_y), radius)

        r_g = _ascend(uphill, path, step if mining else 0, r_t if svd else MANIFOLD_RADIUS, bool(svd), r_of_path)
    end = linear(centre, first.weight, first.bias, dtype) if svd else true_y
    fake_y = PathsEnd.apply(end, true if svd else None, first.weight, path)
    true_scores, fake_scores = scores_of_both(discriminator, true_y, fake_y)
    loss = mean_bce(true_scores, 0.0) + mean_bce(fake_scores, 1.0)
    return GASResult(loss, true_scores.detach(), fake_scores.detach(), r_g)


def _ascend(
    uphill: ClosedSlope | AnySlope,
    path: Path,
    updates: int,
    low: Tensor | float,
    keep: bool,
    r_of_path: Callable[[], Tensor],
) -> Tensor:
    """The updates, with the projection to [low, 2·low] after every fifth; r_g as it was before the last projection."""
    r_g = None
    for k in range(1, updates + 1):
        uphill.push()
        if k % PROJECT_EVERY == 0:
            uphill.leave()
            r_g = r_of_path()
            path.project(low, 2 * low, keep=keep)
            uphill.moved()
    uphill.leave()
    return r_of_path() if r_g is None else r_g
