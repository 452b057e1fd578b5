"""The algebra that makes gradient ascent fast: it moves the outputs of D's first layer instead of the features.

Symbols, for N rows of features of width C and a first layer with `hidden` outputs:

    W (hidden, C), b       weight and bias of D's first layer; they do not change during the ascent
    q (N, C)               origin of a row: its feature t on the manifold, the centre c on the hypersphere
    e (N, C)               start: the value of h before the first update (the noise; on the hypersphere t + noise − c)
    h = g − q (N, C)       what the ascent moves; stored as a·e + H·B, with a (N,) and H (N, r)
    y = W·h (N, hidden)    updated together with h

Invariants: after every update and projection, `Path.y` equals W·h up to rounding, and `Path.squares()` equals ‖h‖².
Both hold for either choice of B (see `Path`). tests/synthesis/test_method.py compares losses, gradients and radii with
the direct ascent on the features in tests/reference.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synthesis.arithmetic import EPS, Workspace, linear, multiply, ring_factor, row_dots

STEP_LENGTH = 0.001  # of a gradient ascent update


class Path:
    """The offset h = g − q of each row during the ascent; q is t on the manifold and c on the hypersphere.

    h is stored as a·e + H·B, where e is the start, a is (N,) and H is (N, r). With a narrow hidden layer, B = W and H
    accumulates the gradients with respect to y, so that an update takes one product with W·Wᵀ. With a hidden layer
    more than twice as wide as the features (`direct`), B = 1 and H is h itself, since two products with W cost less.

    Args:
        weight: W, (hidden, C).
        start: e, (N, C).
        dtype: of the products of updates and gradients.
        workspace: holds the large tensors.
    """

    def __init__(self, weight: Tensor, start: Tensor, dtype: torch.dtype, workspace: Workspace) -> None:
        hidden, width = weight.shape
        self.direct = 2 * width < hidden
        self.weight, self.dtype, self.workspace = weight, dtype, workspace
        self._weight = weight.to(dtype)
        self.y: Tensor | None = linear(start, weight)  # (N, hidden); None once `EndOfPath` has taken it
        if self.direct:
            self.increments = workspace.copy("increments", start)
        else:
            self._gram = linear(weight, weight).to(dtype)  # W·Wᵀ, (hidden, hidden)
            self.increments = workspace.take("increments", self.y).zero_()
            self.start, self.start_y = start, workspace.copy("start_y", self.y)
            self.start_square = row_dots(start, start)
            self.factor = start.new_ones(len(start))
        self.projections: list[tuple[Tensor, ...]] = []
        self._buffer: Tensor | None = None

    def push(self, rows: slice, slope: Tensor, y_change: Tensor) -> None:
        """One update of some rows.

        Args:
            rows: n rows of the features.
            slope: their ∂L_g/∂y, (n, hidden).
            y_change: receives the change of their y, (n, hidden); the caller adds it to `y`.
        """
        if self.direct:
            direction = (slope.to(self.dtype) @ self._weight).float()  # ∂L_g/∂h, (n, C)
            norm = direction.norm(dim=1)  # (n,)
        else:
            direction = slope
            multiply(slope, self._gram, y_change)
            # ‖∂L_g/∂h‖² = slope·(W·Wᵀ)·slopeᵀ
            norm = torch.mul(slope, y_change, out=self._product_buffer(slope)).sum(1).clamp(min=0).sqrt()
        length = (STEP_LENGTH / (norm + EPS)).unsqueeze(1)  # (n, 1)
        self.increments[rows].addcmul_(direction, length)
        if self.direct:
            multiply(direction, self._weight.T, y_change)
        y_change.mul_(length)

    def _product_buffer(self, like: Tensor) -> Tensor:
        """A buffer with the shape of `like`, (n, hidden)."""
        if self._buffer is None or len(self._buffer) < len(like):
            self._buffer = torch.empty_like(like)
        return self._buffer[: len(like)]

    def squares(self) -> Tensor:
        """‖h‖², (N,)."""
        if self.direct:
            return row_dots(self.increments, self.increments)
        of_start = self.factor**2 * self.start_square + self.factor * row_dots(self.increments, self.start_y)
        return (of_start + row_dots(self.increments, self.y)).clamp(min=0)

    def dots(self, x: Tensor, x_y: Tensor) -> Tensor:
        """h·x of each row, (N,), for x (N, C) and x_y = W·x (N, hidden)."""
        if self.direct:
            return row_dots(self.increments, x)
        return self.factor * row_dots(self.start, x) + row_dots(self.increments, x_y)

    def project(self, low: Tensor | float, high: Tensor | float, keep: bool) -> None:
        """Bring ‖h‖ into [low, high].

        Args:
            low, high: numbers or 0-d tensors.
            keep: store what the gradient through this projection needs.
        """
        norm = self.squares().sqrt()
        scale = ring_factor(norm, low, high)
        if keep:
            inside = (norm >= low) & (norm <= high)
            # derivative of clamp(n)/(n + EPS) with respect to n, divided by n
            radial = (inside.to(norm.dtype) - scale) / ((norm + EPS) * norm.clamp(min=EPS))
            number = len(self.projections)
            increments = self.workspace.copy(f"increments {number}", self.increments)
            if self.direct:
                self.projections.append((scale, radial, increments))
            else:
                start_dot = self.factor * self.start_square + row_dots(self.increments, self.start_y)  # e·h
                y = self.workspace.copy(f"y {number}", self.y)
                self.projections.append((scale, radial, increments, y, self.factor, start_dot))
        column = scale.unsqueeze(1)  # (N, 1)
        self.increments *= column
        self.y *= column
        if not self.direct:
            self.factor = self.factor * scale

    def gradient_to_weight(self, y_gradient: Tensor) -> Tensor:
        """The gradient with respect to W through y = W·h, for a constant h; (hidden, C)."""
        transposed = y_gradient.T.to(self.dtype)  # (hidden, N)
        if self.direct:
            return (transposed @ self.increments.to(self.dtype)).float()
        of_start = (transposed @ (self.start * self.factor.unsqueeze(1)).to(self.dtype)).float()
        return of_start.addmm_((transposed @ self.increments.to(self.dtype)).float(), self.weight)

    def gradient_to_start(self, y_gradient: Tensor) -> Tensor:
        """The gradient with respect to e through y = W·h and the projections; (N, C).

        The gradient with respect to h is x = Q·B + s·e, and passing a projection changes it to
        scale·x + radial·(h·x)·h.
        """
        if self.direct:
            x = (y_gradient.to(self.dtype) @ self._weight).float()  # (N, C)
            for scale, radial, h in reversed(self.projections):
                along_h = radial * row_dots(h, x)  # (N,)
                x.mul_(scale.unsqueeze(1)).addcmul_(h, along_h.unsqueeze(1))
            return x
        q, s = self.workspace.copy("y", y_gradient), torch.zeros_like(self.factor)  # (N, hidden), (N,)
        for scale, radial, increments, y, factor, start_dot in reversed(self.projections):
            along_h = radial * (row_dots(q, y) + s * start_dot)  # (N,)
            q.mul_(scale.unsqueeze(1)).addcmul_(increments, along_h.unsqueeze(1))
            s = s * scale + factor * along_h
        return (q.to(self.dtype) @ self._weight).float().addcmul_(self.start, s.unsqueeze(1))


class EndOfPath(torch.autograd.Function):
    """y of g = q + h at the end of the path, which is the y of q plus W·h.

    It is differentiable with respect to `origin_y`, W and, through h, t. `origin_y` has a row for each feature, or for
    each feature of one image; then it is repeated.
    """

    @staticmethod
    def forward(ctx: Any, origin_y: Tensor, true: Tensor | None, weight: Tensor, path: Path) -> Tensor:
        """y of g, (N, hidden)."""
        ctx.path, ctx.rows = path, len(origin_y)
        # the output refers to `ctx`: if the path that `ctx` holds still referred to the output, the two would keep each
        # other alive until the cyclic garbage collector runs, which a shortage of device memory does not trigger
        y, path.y = path.y, None
        y.unflatten(0, (-1, len(origin_y))).add_(origin_y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """Gradients with respect to `origin_y`, `true` and `weight`."""
        repeated = ctx.rows != len(gradient)
        origin_gradient = gradient.unflatten(0, (-1, ctx.rows)).sum(0) if repeated else gradient
        true_gradient = ctx.path.gradient_to_start(gradient) if ctx.needs_input_grad[1] else None
        weight_gradient = ctx.path.gradient_to_weight(gradient) if ctx.needs_input_grad[2] else None
        return origin_gradient, true_gradient, weight_gradient, None


def start_from_centre(noise: Tensor, true: Tensor, centre: Tensor, workspace: Workspace) -> Tensor:
    """h = t + ε − c, (N, C), the start of a path on the hypersphere.

    Args:
        noise: ε, (N, C).
        true: t, (N, C).
        centre: c, (P, C), N a multiple of P.
        workspace: holds the result.
    """
    start = workspace.copy("start", noise).add_(true)
    start.unflatten(0, (len(true) // len(centre), -1)).sub_(centre)
    return start


def distances(path: Path, svd: int, true: Tensor, true_y: Tensor, centre: Tensor, centre_y: Tensor) -> Tensor:
    """‖g − c‖, (N,).

    Args:
        path: of g.
        svd: 0 manifold, 1 hypersphere.
        true: t, (N, C).
        true_y: W·t + b, (N, hidden).
        centre: c, (P, C), N a multiple of P.
        centre_y: W·c + b, (P, hidden).
    """
    squares = path.squares()
    if svd:
        return squares.sqrt()
    shape = (len(true) // len(centre), -1)
    offset = torch.sub(true.unflatten(0, shape), centre).flatten(0, 1)  # t − c, (N, C)
    offset_y = true_y if path.direct else torch.sub(true_y.detach().unflatten(0, shape), centre_y).flatten(0, 1)
    return (squares + 2 * path.dots(offset, offset_y) + row_dots(offset, offset)).clamp(min=0).sqrt()
