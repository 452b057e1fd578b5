"""The gradient that the ascent follows: ∂L_g/∂y for the outputs y of D's first layer.

`ClosedFormSlope` computes it in closed form for a D of two layers, `AutogradSlope` by autograd for any other depth.
tests/synthesis/test_method.py compares the two with each other and with the direct form in tests/reference.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from synthesis.arithmetic import ROWS_AT_A_TIME, mean_bce
from synthesis.ascent import Path
from utils import LOGGER

if TYPE_CHECKING:
    from model import Discriminator


def choose_slope(
    discriminator: Discriminator, true_y: Tensor, origin_y: Tensor, path: Path, fused: Fused | None
) -> ClosedFormSlope | AutogradSlope:
    """The faster of the two ways to compute ∂L_g/∂y that the depth of D allows."""
    if len(discriminator.body) == 1:
        return ClosedFormSlope(discriminator, true_y, origin_y, path, fused)
    return AutogradSlope(discriminator, true_y, origin_y, path)


def score_both_halves(discriminator: Discriminator, true_y: Tensor, fake_y: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of normal and of anomalous features, (N,) each, from their y (N, hidden).

    Both halves pass D together, so that its batch norm uses the statistics of both.
    """
    scores = discriminator.after_first(torch.cat([true_y, fake_y])).squeeze(1)
    return scores[: len(true_y)], scores[len(true_y) :]


class AutogradSlope:
    """Moves g along ∂L_g/∂y, computed by autograd, for a D of any depth."""

    def __init__(self, discriminator: Discriminator, true_y: Tensor, origin_y: Tensor, path: Path) -> None:
        self.discriminator, self.true_y, self.origin_y, self.path = discriminator, true_y, origin_y, path

    def push(self) -> None:
        """One update."""
        with torch.enable_grad():
            fake_y = (self.origin_y + self.path.y).requires_grad_(True)
            loss = mean_bce(score_both_halves(self.discriminator, self.true_y, fake_y)[1], 1.0)
            (slope,) = torch.autograd.grad(loss, fake_y)
        y_change = torch.empty_like(slope)
        self.path.push(slice(None), slope, y_change)
        self.path.y += y_change

    def refresh(self) -> None:
        """Nothing to do after a projection: `push` reads the y of the path."""

    def sync_path(self) -> None:
        """Nothing to do: `push` updates the y of the path."""


def _to_scores(
    y: Tensor, scale: Tensor, offset: Tensor, tail: Tensor, leak: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass of a block of y, (n, hidden).

    Returns:
        ∂L_g/∂(score before the sigmoid) of each row, (n,), and the block's share of the two column sums that
        `ClosedFormSlope._to_normalised` needs, (hidden,) each.
    """
    z = y * scale + offset
    active = F.leaky_relu(z, leak)
    d = _score_slope(active @ tail, count)  # (n,)
    return d, (torch.where(z > 0, 1.0, leak) * d.unsqueeze(1)).sum(0), (active * d.unsqueeze(1)).sum(0)


def _to_y(
    y: Tensor, d: Tensor, scale: Tensor, offset: Tensor, peak: Tensor, per_y: Tensor, constant: Tensor, leak: float
) -> Tensor:
    """The backward pass of a block of y: ∂L_g/∂y, (n, hidden)."""
    activation_slope = torch.where(y * scale + offset > 0, 1.0, leak)
    return activation_slope * d.unsqueeze(1) * peak - y * per_y - constant


class Fused(NamedTuple):
    """`_to_scores` and `_to_y`, compiled."""

    to_scores: Callable[..., tuple[Tensor, Tensor, Tensor]]
    to_y: Callable[..., Tensor]


@functools.cache
def compile_updates(device: torch.device) -> Fused:
    """Compile the elementwise part of an update (torch.compile) and run it once; cached for the process.

    Raises:
        Exception: the compiler is missing, or does not work with this version of torch.
    """
    # dynamic: for any number of rows, otherwise each batch size would be compiled again
    fused = Fused(torch.compile(_to_scores, dynamic=True), torch.compile(_to_y, dynamic=True))
    y, row, column = torch.ones(8, 4, device=device), torch.ones(4, device=device), torch.ones(8, device=device)
    with torch.no_grad():
        fused.to_scores(y, row, row, row, 0.2, 8)
        fused.to_y(y, column, row, row, row, row, row, 0.2)
    return fused


def try_to_compile(layers: int, updates: int, device: torch.device) -> Fused | None:
    """Compiled parts of the ascent; None, with a warning, if there is nothing to compile or no working compiler.

    Args:
        layers: number of layers of the discriminator.
        updates: number of updates of the ascent.
        device: of the training.
    """
    if layers != 2 or not updates:
        LOGGER.warning(
            "--compile: only gradient ascent with a --dsc_layers of 2 can be compiled; continuing without it"
        )
        return None
    try:
        return compile_updates(device)
    except Exception as error:  # a missing or incompatible compiler raises errors of many types
        lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
        reason = lines[0] if lines else type(error).__name__
        LOGGER.warning("--compile does not work here (%s); continuing without it", reason[:200])
        return None


def _score_slope(logits: Tensor, count: int) -> Tensor:
    """The gradient of mean(−log sigmoid(logits)) over `count` rows, (n,), with the limits of torch's backward pass."""
    scores = torch.sigmoid(logits)
    spread = scores * (1 - scores)
    return (scores - 1) / spread.clamp(min=1e-12) * spread / count


class ClosedFormSlope:
    """Moves g along ∂L_g/∂y in closed form, for a D of two layers, in two passes over the rows.

    Batch norm normalises both halves together, but the normal half does not move and is not part of L_g: only the sums
    of its columns are needed. Everything is relative to its mean (`shift`), so that sums of squares do not cancel. The
    rows are processed in blocks that stay in the processor's cache, with the same few buffers for all.

    Args:
        discriminator: D.
        true_y: y of t, (N, hidden).
        origin_y: y of q, (N, hidden).
        path: of g.
        fused: compiled forms of the elementwise part.
    """

    def __init__(
        self, discriminator: Discriminator, true_y: Tensor, origin_y: Tensor, path: Path, fused: Fused | None = None
    ) -> None:
        self.fused = fused
        _, self.norm, activation = discriminator.body[0]
        self.leak, self.tail = activation.negative_slope, discriminator.tail[0].weight[0]
        self.path, self.count = path, 2 * len(true_y)
        self.shift = true_y.mean(0)  # (hidden,)
        self.origin_y = origin_y
        size = len(true_y) if true_y.is_cuda else ROWS_AT_A_TIME
        self.blocks = [slice(i, min(i + size, len(true_y))) for i in range(0, len(true_y), size)]
        self.buffers = [true_y.new_empty(min(size, len(true_y)), true_y.shape[1]) for _ in range(3)]
        self.true_squares = torch.zeros_like(self.shift)
        for rows in self.blocks:
            shifted = torch.sub(true_y[rows], self.shift, out=self._buffer(0, rows))
            self.true_squares += shifted.square_().sum(0)
        self.y = path.workspace.take("y", path.y)  # y of g minus the shift, (N, hidden)
        self.slope = path.y.new_empty(len(path.y))  # ∂L_g/∂(score before the sigmoid), (N,)
        self.refresh()

    def _buffer(self, index: int, rows: slice) -> Tensor:
        return self.buffers[index][: rows.stop - rows.start]

    def refresh(self) -> None:
        """Compute y of g and its sums again after a projection of the path."""
        self.sums, self.squares = torch.zeros_like(self.shift), torch.zeros_like(self.shift)
        for rows in self.blocks:
            torch.sub(self.origin_y[rows], self.shift, out=self.y[rows]).add_(self.path.y[rows])
            self._add(rows)

    def _add(self, rows: slice) -> None:
        y = self.y[rows]
        self.sums += y.sum(0)
        self.squares += torch.mul(y, y, out=self._buffer(0, rows)).sum(0)

    def push(self) -> None:
        """One update."""
        mean = self.sums / self.count
        variance = ((self.true_squares + self.squares) / self.count - mean**2).clamp(min=0)
        self._track(mean + self.shift, variance)
        deviation = (variance + self.norm.eps).rsqrt()
        scale = self.norm.weight * deviation
        offset = torch.addcmul(self.norm.bias, mean, scale, value=-1)
        slope, product = self._to_normalised(scale, offset)
        # backward pass of batch norm: deviation·(dŷ − mean dŷ − ŷ·mean(dŷ·ŷ)), as factors of each column, (hidden,)
        peak = scale * self.tail
        per_y = deviation**2 * product / self.count
        constant = deviation * slope / self.count - mean * per_y
        self.sums, self.squares = torch.zeros_like(self.shift), torch.zeros_like(self.shift)
        for rows in self.blocks:
            y, z = self.y[rows], self._buffer(0, rows)
            if self.fused:
                dy = self.fused.to_y(y, self.slope[rows], scale, offset, peak, per_y, constant, self.leak)
            else:
                dy = self._buffer(1, rows)
                torch.addcmul(offset, y, scale, out=z)
                self._through_activation(rows, z, dy).mul_(peak)
                dy.sub_(torch.addcmul(constant, y, per_y, out=z))
            self.path.push(rows, dy, z)
            y += z
            self._add(rows)

    def _through_activation(self, rows: slice, z: Tensor, out: Tensor) -> Tensor:
        """The slope of each row times the slope of the activation at z, (n, hidden)."""
        slope = self.slope[rows].unsqueeze(1)
        return torch.ops.aten.leaky_relu_backward.grad_input(slope, z, self.leak, False, grad_input=out)

    def _to_normalised(self, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Run the forward pass up to the scores, which sets `slope`.

        Returns:
            The column sums of ∂L_g/∂ŷ and of ŷ·∂L_g/∂ŷ, (hidden,) each, where ŷ is the normalised y.
        """
        slopes, products = torch.zeros_like(self.shift), torch.zeros_like(self.shift)
        for rows in self.blocks:
            if self.fused:
                self.slope[rows], block_slopes, block_products = self.fused.to_scores(
                    self.y[rows], scale, offset, self.tail, self.leak, self.count // 2
                )
                slopes += block_slopes
                products += block_products
                continue
            z, active = self._buffer(0, rows), self._buffer(1, rows)
            torch.addcmul(offset, self.y[rows], scale, out=z)
            torch.ops.aten.leaky_relu.out(z, self.leak, out=active)
            d = self.slope[rows] = _score_slope(active @ self.tail, self.count // 2)
            products += d @ active
            slopes += self._through_activation(rows, z, active).sum(0)
        weighted = self.tail * slopes
        # active = (slope of the activation)·(weight·ŷ + bias)
        return self.norm.weight * weighted, self.tail * products - self.norm.bias * weighted

    def sync_path(self) -> None:
        """Write the current y to the path, which `push` leaves unchanged."""
        for rows in self.blocks:
            torch.add(self.y[rows], self.shift, out=self.path.y[rows]).sub_(self.origin_y[rows])

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics as a forward pass through the batch norm does."""
        unbiased = variance * (self.count / (self.count - 1))
        self.norm.running_mean.lerp_(mean, self.norm.momentum)
        self.norm.running_var.lerp_(unbiased, self.norm.momentum)
        self.norm.num_batches_tracked += 1
