"""The algebra that makes gradient ascent fast: features are pushed as outputs of D's first layer.

Symbols, for N rows of features of width C and a first layer with `hidden` outputs:

    W (hidden, C), b       weight and bias of D's first layer; they stay as they are during the ascent
    q (N, C)               origin of a row: its feature t on the manifold, the centre c on the hypersphere
    e (N, C)               start: where h is before the first update (the noise; on the hypersphere t + noise − c)
    h = g − q (N, C)       what ascent moves; kept as a·e + H·B, with a (N,) and H (N, r)
    y = W·h (N, hidden)    moves along with h

Invariants: after every update and projection `Path.y` equals W·h up to rounding, and `Path.squares()` equals ‖h‖².
Both hold for the two choices of B (see `Path`). tests/synthesis/test_method.py compares losses, gradients and radii
with the plain ascent on features in tests/reference.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthesis.arithmetic import EPS, Workspace, linear, multiply, ring_factor, row_dots

STEP_LENGTH = 0.001  # of a gradient ascent update


class Path:
    """Where the features stand: h = g − q of each row, q being t on the manifold and c on the hypersphere.

    h is kept as a·e + H·B, e the start, a (N,) and H (N, r). Where the hidden layer is narrow, B = W and H gathers
    the gradients to y, so that an update costs one product with W·Wᵀ; where it is wider than twice the features,
    B = 1 and H is h itself, since two products with W cost less. y = W·h moves along.

    Args:
        weight: W, (hidden, C).
        start: e, (N, C).
        dtype: of the products of updates and gradients.
        workspace: for what is large.
    """

    def __init__(self, weight: Tensor, start: Tensor, dtype: torch.dtype, workspace: Workspace) -> None:
        hidden, width = weight.shape
        self.direct = 2 * width < hidden
        self.weight, self.dtype, self.workspace = weight, dtype, workspace
        self._weight = weight.to(dtype)
        self.y: Tensor | None = linear(start, weight)  # (N, hidden), until `PathsEnd` takes it
        if self.direct:
            self.increments = workspace.copy("increments", start)
        else:
            self._gram = linear(weight, weight).to(dtype)
            self.increments = workspace.take("increments", self.y).zero_()
            self.start, self.start_y = start, workspace.copy("start_y", self.y)
            self.start_square = row_dots(start, start)
            self.factor = start.new_ones(len(start))
        self.projections: list[tuple[Tensor, ...]] = []
        self._buffer: Tensor | None = None

    def push(self, rows: slice, slope: Tensor, moved: Tensor) -> None:
        """One update of some rows.

        Args:
            slope: their ∂L_g/∂y, (n, hidden).
            moved: gets how their y moves, (n, hidden). To add it to `y` is left to the caller.
        """
        if self.direct:
            direction = (slope.to(self.dtype) @ self._weight).float()
            norm = direction.norm(dim=1)
        else:
            direction = slope
            multiply(slope, self._gram, moved)
            norm = torch.mul(slope, moved, out=self._products(slope)).sum(1).clamp(min=0).sqrt()
        length = (STEP_LENGTH / (norm + EPS)).unsqueeze(1)
        self.increments[rows].addcmul_(direction, length)
        if self.direct:
            multiply(direction, self._weight.T, moved)
        moved.mul_(length)

    def _products(self, like: Tensor) -> Tensor:
        """A buffer, (n, hidden)."""
        if self._buffer is None or len(self._buffer) < len(like):
            self._buffer = torch.empty_like(like)
        return self._buffer[: len(like)]

    def squares(self) -> Tensor:
        """‖h‖², (N,)."""
        if self.direct:
            return row_dots(self.increments, self.increments)
        found = self.factor**2 * self.start_square + self.factor * row_dots(self.increments, self.start_y)
        return (found + row_dots(self.increments, self.y)).clamp(min=0)

    def dots(self, x: Tensor, x_y: Tensor) -> Tensor:
        """h·x row by row, x (N, C) and x_y = W·x."""
        if self.direct:
            return row_dots(self.increments, x)
        return self.factor * row_dots(self.start, x) + row_dots(self.increments, x_y)

    def project(self, low: Tensor | float, high: Tensor | float, keep: bool) -> None:
        """Bring ‖h‖ into [low, high]; `keep` what the gradient through the projection needs."""
        norm = self.squares().sqrt()
        scale = ring_factor(norm, low, high)
        if keep:
            inside = (norm >= low) & (norm <= high)
            # derivative of clamp(n)/(n + EPS) by n, over n
            bend = (inside.to(norm.dtype) - scale) / ((norm + EPS) * norm.clamp(min=EPS))
            number = len(self.projections)
            increments = self.workspace.copy(f"increments {number}", self.increments)
            if self.direct:
                self.projections.append((scale, bend, increments))
            else:
                along = self.factor * self.start_square + row_dots(self.increments, self.start_y)  # e·h
                kept = increments, self.workspace.copy(f"y {number}", self.y), self.factor, along
                self.projections.append((scale, bend, *kept))
        column = scale.unsqueeze(1)
        self.increments *= column
        self.y *= column
        if not self.direct:
            self.factor = self.factor * scale

    def gradient_to_weight(self, y_gradient: Tensor) -> Tensor:
        """Of y = W·h to W, h taken as it is; (hidden, C)."""
        turned = y_gradient.T.to(self.dtype)
        if self.direct:
            return (turned @ self.increments.to(self.dtype)).float()
        found = (turned @ (self.start * self.factor.unsqueeze(1)).to(self.dtype)).float()
        return found.addmm_((turned @ self.increments.to(self.dtype)).float(), self.weight)

    def gradient_to_start(self, y_gradient: Tensor) -> Tensor:
        """Of y = W·h to e, back through the projections; (N, C).

        The gradient to h is x = Q·B + s·e, and a projection turns it into scale·x + bend·(h·x)·h.
        """
        if self.direct:
            x = (y_gradient.to(self.dtype) @ self._weight).float()
            for scale, bend, h in reversed(self.projections):
                turn = bend * row_dots(h, x)
                x.mul_(scale.unsqueeze(1)).addcmul_(h, turn.unsqueeze(1))
            return x
        q, s = self.workspace.copy("y", y_gradient), torch.zeros_like(self.factor)
        for scale, bend, increments, y, factor, along in reversed(self.projections):
            turn = bend * (row_dots(q, y) + s * along)
            q.mul_(scale.unsqueeze(1)).addcmul_(increments, turn.unsqueeze(1))
            s = s * scale + factor * turn
        return (q.to(self.dtype) @ self._weight).float().addcmul_(self.start, s.unsqueeze(1))


class PathsEnd(torch.autograd.Function):
    """y of g = q + h at the end of the path: that of q, W·h added; differentiable to it, W and, through h, t.

    `origin_y` has the rows of the features, or those of one image, to be repeated.
    """

    @staticmethod
    def forward(ctx: Any, origin_y: Tensor, true: Tensor | None, weight: Tensor, path: Path) -> Tensor:
        """y of g at the end of the path, (N, hidden)."""
        ctx.path, ctx.rows = path, len(origin_y)
        # the output refers to `ctx`: were it still reachable from the path that `ctx` holds, the two would keep each
        # other alive until the cyclic garbage collector runs, which a device that is out of memory does not start
        y, path.y = path.y, None
        y.unflatten(0, (-1, len(origin_y))).add_(origin_y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """Gradients to `origin_y`, `true` and `weight`."""
        to_origin = gradient if ctx.rows == len(gradient) else gradient.unflatten(0, (-1, ctx.rows)).sum(0)
        to_true = ctx.path.gradient_to_start(gradient) if ctx.needs_input_grad[1] else None
        to_weight = ctx.path.gradient_to_weight(gradient) if ctx.needs_input_grad[2] else None
        return to_origin, to_true, to_weight, None


def from_centre(noise: Tensor, true: Tensor, centre: Tensor, workspace: Workspace) -> Tensor:
    """h = t + ε − c, (N, C), where the hypersphere's path starts."""
    start = workspace.copy("start", noise).add_(true)
    start.unflatten(0, (len(true) // len(centre), -1)).sub_(centre)
    return start


def distances(path: Path, svd: int, true: Tensor, true_y: Tensor, centre: Tensor, centre_y: Tensor) -> Tensor:
    """‖g − c‖, (N,)."""
    squares = path.squares()
    if svd:
        return squares.sqrt()
    shape = (len(true) // len(centre), -1)
    offset = torch.sub(true.unflatten(0, shape), centre).flatten(0, 1)
    offset_y = true_y if path.direct else torch.sub(true_y.detach().unflatten(0, shape), centre_y).flatten(0, 1)
    return (squares + 2 * path.dots(offset, offset_y) + row_dots(offset, offset)).clamp(min=0).sqrt()
