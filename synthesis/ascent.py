"""The paper's two ideas: local anomalies on the image (LAS) and global anomalies on the features (GAS).

GAS works on what the discriminator's first layer makes of the features, see `gas`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import perlin
from utils import InputError

if TYPE_CHECKING:
    from model import Discriminator

STEP_LENGTH = 0.001  # of a gradient ascent update
PROJECT_EVERY = 5  # updates
MANIFOLD_RADIUS = 0.5
EPS = 1e-10
BETA_RANGE = (0.2, 0.8)
MAX_DRAWS = 1000
ROWS_AT_A_TIME = 256  # of features on a CPU: a block of them stays in its cache


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


def ring_factor(norm: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """What brings an offset of this length to a length in [low, high]."""
    return norm.clamp(low, high) / (norm + EPS)


def quantile(x: Tensor, q: float, among: Tensor | None = None) -> Tensor:
    """0-d quantile by linear interpolation; nan of no values.

    Args:
        x: any shape.
        q: in [0, 1].
        among: which values count, bool of x's shape; all by default. Nothing waits for the device.
    """
    x = x.flatten()
    if among is None:
        count = torch.full((), x.numel(), device=x.device)
    else:
        among = among.flatten()
        count = among.sum()
        x = torch.where(among, x, math.inf)
    if not x.numel():
        return x.new_tensor(math.nan)
    ordered = x.sort().values  # torch.quantile refuses over 16 million
    position = q * (count - 1).to(torch.float64)
    low = position.floor().long().clamp(min=0)
    high = torch.minimum(low + 1, (count - 1).clamp(min=0))
    # indexing by [low] would fetch the number from the device
    at_low, at_high = ordered.gather(0, torch.stack([low, high])).unbind()
    found = torch.lerp(at_low, at_high, (position - low).to(x.dtype))
    return torch.where(count > 0, found, math.nan)


class _Linear(torch.autograd.Function):
    """x·weightᵀ + bias in float32, the products of its backward pass in another type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        return F.linear(x.float(), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = (saved.to(ctx.dtype) for saved in ctx.saved_tensors)
        to_bias = gradient.sum(0) if ctx.needs_input_grad[2] else None
        gradient = gradient.to(ctx.dtype)
        to_x = (gradient @ weight).float() if ctx.needs_input_grad[0] else None
        to_weight = (gradient.T @ x).float() if ctx.needs_input_grad[1] else None
        return to_x, to_weight, to_bias, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """x·weightᵀ + bias, (N, in) → (N, out).

    The product itself is always made in float32: rounded to bfloat16 it would carry rows across the kink of
    LeakyReLU, and the gradients would be off by several percent. The gradients' own products stand bfloat16.

    Args:
        dtype: of the products of the backward pass.
    """
    return _Linear.apply(x, weight, bias, dtype)


class Workspace:
    """Large tensors that one step after the other uses again: fresh memory costs more than what is written to it."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor) -> Tensor:
        """A tensor of the shape and type of `like`; what is in it is anything."""
        held = self._held.get(name)
        if held is None or (held.shape, held.dtype, held.device) != (like.shape, like.dtype, like.device):
            held = self._held[name] = torch.empty_like(like, memory_format=torch.contiguous_format)
        return held

    def copy(self, name: str, of: Tensor) -> Tensor:
        """A copy."""
        return self.take(name, of).copy_(of)


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
    lengths and projections of h = g − q need no more than y either (`_Path`). The result is that of pushing the
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
        start = _from_centre(noise, const, centre, workspace) if svd else noise
        centre_y = linear(centre, first.weight, first.bias)
        origin_y = centre_y.repeat(len(true) // len(centre), 1) if svd else true_y.detach()
        path = _Path(first.weight.detach(), start, dtype, workspace)
        uphill = _slope(discriminator, true_y.detach(), origin_y, path, fused)

        def r_of_path() -> Tensor:
            return quantile(_distances(path, svd, const, true_y, centre, centre_y), radius)

        r_g = _ascend(uphill, path, step if mining else 0, r_t if svd else MANIFOLD_RADIUS, bool(svd), r_of_path)
    end = linear(centre, first.weight, first.bias, dtype) if svd else true_y
    fake_y = _PathsEnd.apply(end, true if svd else None, first.weight, path)
    true_scores, fake_scores = _both(discriminator, true_y, fake_y)
    loss = _bce(true_scores, 0.0) + _bce(fake_scores, 1.0)
    return GASResult(loss, true_scores.detach(), fake_scores.detach(), r_g)


def _slope(
    discriminator: Discriminator, true_y: Tensor, origin_y: Tensor, path: _Path, fused: Fused | None
) -> _ClosedSlope | _AnySlope:
    """The way to ∂L_g/∂y that D's depth allows."""
    if len(discriminator.body) == 1:
        return _ClosedSlope(discriminator, true_y, origin_y, path, fused)
    return _AnySlope(discriminator, true_y, origin_y, path)


def _from_centre(noise: Tensor, true: Tensor, centre: Tensor, workspace: Workspace) -> Tensor:
    """h = t + ε − c, (N, C), where the hypersphere's path starts."""
    start = workspace.copy("start", noise).add_(true)
    start.unflatten(0, (len(true) // len(centre), -1)).sub_(centre)
    return start


def _ascend(
    uphill: _ClosedSlope | _AnySlope,
    path: _Path,
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


def _both(discriminator: Discriminator, true_y: Tensor, fake_y: Tensor) -> tuple[Tensor, Tensor]:
    """Both halves pass D together, so that its batch norm sees the statistics of both. (N,), (N,)."""
    scores = discriminator.after_first(torch.cat([true_y, fake_y])).squeeze(1)
    return scores[: len(true_y)], scores[len(true_y) :]


def _bce(scores: Tensor, target: float) -> Tensor:
    """Mean binary cross-entropy; nan where a score is nan.

    torch refuses such a score: by an exception on a CPU, on CUDA by an assertion on the device, after which the whole
    process can use it no more. So it never sees one, and nothing has to wait for the device to find out.
    """
    unknown = scores.isnan()
    loss = F.binary_cross_entropy(torch.where(unknown, 0.5, scores), torch.full_like(scores, target))
    return torch.where(unknown.any(), math.nan, loss)


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a @ b in b's type, to a float32 `out`."""
    if b.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a.to(b.dtype) @ b)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Row by row, (N,). On a CPU block by block, so that the products never leave the processor's cache."""
    if a.is_cuda or len(a) <= ROWS_AT_A_TIME:
        return torch.linalg.vecdot(a, b)
    found, products = a.new_empty(len(a)), a.new_empty(ROWS_AT_A_TIME, a.shape[1])
    for i in range(0, len(a), ROWS_AT_A_TIME):
        part = a[i : i + ROWS_AT_A_TIME]
        torch.sum(
            torch.mul(part, b[i : i + ROWS_AT_A_TIME], out=products[: len(part)]), 1, out=found[i : i + len(part)]
        )
    return found


class _Path:
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
        self.y: Tensor | None = linear(start, weight)  # (N, hidden), until `_PathsEnd` takes it
        if self.direct:
            self.increments = workspace.copy("increments", start)
        else:
            self._gram = linear(weight, weight).to(dtype)
            self.increments = workspace.take("increments", self.y).zero_()
            self.start, self.start_y = start, workspace.copy("start_y", self.y)
            self.start_square = _dots(start, start)
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
            _product(slope, self._gram, moved)
            norm = torch.mul(slope, moved, out=self._products(slope)).sum(1).clamp(min=0).sqrt()
        length = (STEP_LENGTH / (norm + EPS)).unsqueeze(1)
        self.increments[rows].addcmul_(direction, length)
        if self.direct:
            _product(direction, self._weight.T, moved)
        moved.mul_(length)

    def _products(self, like: Tensor) -> Tensor:
        """A buffer, (n, hidden)."""
        if self._buffer is None or len(self._buffer) < len(like):
            self._buffer = torch.empty_like(like)
        return self._buffer[: len(like)]

    def squares(self) -> Tensor:
        """‖h‖², (N,)."""
        if self.direct:
            return _dots(self.increments, self.increments)
        found = self.factor**2 * self.start_square + self.factor * _dots(self.increments, self.start_y)
        return (found + _dots(self.increments, self.y)).clamp(min=0)

    def dots(self, x: Tensor, x_y: Tensor) -> Tensor:
        """h·x row by row, x (N, C) and x_y = W·x."""
        if self.direct:
            return _dots(self.increments, x)
        return self.factor * _dots(self.start, x) + _dots(self.increments, x_y)

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
                along = self.factor * self.start_square + _dots(self.increments, self.start_y)  # e·h
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
                turn = bend * _dots(h, x)
                x.mul_(scale.unsqueeze(1)).addcmul_(h, turn.unsqueeze(1))
            return x
        q, s = self.workspace.copy("y", y_gradient), torch.zeros_like(self.factor)
        for scale, bend, increments, y, factor, along in reversed(self.projections):
            turn = bend * (_dots(q, y) + s * along)
            q.mul_(scale.unsqueeze(1)).addcmul_(increments, turn.unsqueeze(1))
            s = s * scale + factor * turn
        return (q.to(self.dtype) @ self._weight).float().addcmul_(self.start, s.unsqueeze(1))


class _PathsEnd(torch.autograd.Function):
    """y of g = q + h at the end of the path: that of q, W·h added; differentiable to it, W and, through h, t.

    `origin_y` has the rows of the features, or those of one image, to be repeated.
    """

    @staticmethod
    def forward(ctx: Any, origin_y: Tensor, true: Tensor | None, weight: Tensor, path: _Path) -> Tensor:
        ctx.path, ctx.rows = path, len(origin_y)
        # the output refers to `ctx`: were it still reachable from the path that `ctx` holds, the two would keep each
        # other alive until the cyclic garbage collector runs, which a device that is out of memory does not start
        y, path.y = path.y, None
        y.unflatten(0, (-1, len(origin_y))).add_(origin_y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        to_origin = gradient if ctx.rows == len(gradient) else gradient.unflatten(0, (-1, ctx.rows)).sum(0)
        to_true = ctx.path.gradient_to_start(gradient) if ctx.needs_input_grad[1] else None
        to_weight = ctx.path.gradient_to_weight(gradient) if ctx.needs_input_grad[2] else None
        return to_origin, to_true, to_weight, None


def _distances(path: _Path, svd: int, true: Tensor, true_y: Tensor, centre: Tensor, centre_y: Tensor) -> Tensor:
    """‖g − c‖, (N,)."""
    squares = path.squares()
    if svd:
        return squares.sqrt()
    shape = (len(true) // len(centre), -1)
    offset = torch.sub(true.unflatten(0, shape), centre).flatten(0, 1)
    offset_y = true_y if path.direct else torch.sub(true_y.detach().unflatten(0, shape), centre_y).flatten(0, 1)
    return (squares + 2 * path.dots(offset, offset_y) + _dots(offset, offset)).clamp(min=0).sqrt()


class _AnySlope:
    """Pushes g along ∂L_g/∂y, which autograd finds, for a D of any depth."""

    def __init__(self, discriminator: Discriminator, true_y: Tensor, origin_y: Tensor, path: _Path) -> None:
        self.discriminator, self.true_y, self.origin_y, self.path = discriminator, true_y, origin_y, path

    def push(self) -> None:
        """One update."""
        with torch.enable_grad():
            fake_y = (self.origin_y + self.path.y).requires_grad_(True)
            loss = _bce(_both(self.discriminator, self.true_y, fake_y)[1], 1.0)
            (slope,) = torch.autograd.grad(loss, fake_y)
        moved = torch.empty_like(slope)
        self.path.push(slice(None), slope, moved)
        self.path.y += moved

    def moved(self) -> None:
        """The path was projected."""

    def leave(self) -> None:
        """The path is to be looked at: it has its y."""


def _to_scores(
    y: Tensor, scale: Tensor, offset: Tensor, tail: Tensor, leak: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A block of y → ∂L_g/∂(score before the sigmoid) of each row, and two sums of `_ClosedSlope._to_normalised`."""
    z = y * scale + offset
    active = F.leaky_relu(z, leak)
    d = _score_slope(active @ tail, count)
    return d, (torch.where(z > 0, 1.0, leak) * d.unsqueeze(1)).sum(0), (active * d.unsqueeze(1)).sum(0)


def _to_y(
    y: Tensor, d: Tensor, scale: Tensor, offset: Tensor, peak: Tensor, per_y: Tensor, constant: Tensor, leak: float
) -> Tensor:
    """A block of y → its ∂L_g/∂y."""
    bend = torch.where(y * scale + offset > 0, 1.0, leak)
    return bend * d.unsqueeze(1) * peak - y * per_y - constant


class Fused(NamedTuple):
    """`_to_scores` and `_to_y`, compiled."""

    to_scores: Callable[..., tuple[Tensor, Tensor, Tensor]]
    to_y: Callable[..., Tensor]


@functools.cache
def compile_updates(device: torch.device) -> Fused:
    """Compile the element-wise part of an update (torch.compile), and try it; once a process.

    Raises:
        Exception: whatever a compiler that is missing or broken ends in.
    """
    # for any number of rows, or each size of a batch would be compiled anew
    fused = Fused(torch.compile(_to_scores, dynamic=True), torch.compile(_to_y, dynamic=True))
    y, row, column = torch.ones(8, 4, device=device), torch.ones(4, device=device), torch.ones(8, device=device)
    with torch.no_grad():
        fused.to_scores(y, row, row, row, 0.2, 8)
        fused.to_y(y, column, row, row, row, row, row, 0.2)
    return fused


def _score_slope(logits: Tensor, count: int) -> Tensor:
    """Of −log s, averaged over `count`, through the sigmoid, as torch's backward limits it."""
    scores = torch.sigmoid(logits)
    spread = scores * (1 - scores)
    return (scores - 1) / spread.clamp(min=1e-12) * spread / count


class _ClosedSlope:
    """∂L_g/∂y of a D of two layers in closed form, in two sweeps over the rows.

    Batch norm normalises both halves together, but the normal half does not move and does not enter L_g: of it
    only the sums of each column are needed. All is taken relative to its mean, so that sums of squares do not
    cancel. The rows are visited in blocks that stay in the processor's cache, with the same few buffers for all.
    """

    def __init__(
        self, discriminator: Discriminator, true_y: Tensor, origin_y: Tensor, path: _Path, fused: Fused | None = None
    ) -> None:
        self.fused = fused
        _, self.norm, activation = discriminator.body[0]
        self.leak, self.tail = activation.negative_slope, discriminator.tail[0].weight[0]
        self.path, self.count = path, 2 * len(true_y)
        self.shift = true_y.mean(0)
        self.origin_y = origin_y
        size = len(true_y) if true_y.is_cuda else ROWS_AT_A_TIME
        self.blocks = [slice(i, min(i + size, len(true_y))) for i in range(0, len(true_y), size)]
        self.buffers = [true_y.new_empty(min(size, len(true_y)), true_y.shape[1]) for _ in range(3)]
        self.true_squares = torch.zeros_like(self.shift)
        for rows in self.blocks:
            shifted = torch.sub(true_y[rows], self.shift, out=self._buffer(0, rows))
            self.true_squares += shifted.square_().sum(0)
        self.y = path.workspace.take("y", path.y)  # of g, less the shift
        self.slope = path.y.new_empty(len(path.y))
        self.moved()

    def _buffer(self, index: int, rows: slice) -> Tensor:
        return self.buffers[index][: rows.stop - rows.start]

    def moved(self) -> None:
        """The path was projected: take g's y and their sums anew."""
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
        # batch norm's backward: deviation·(dŷ − mean dŷ − ŷ·mean(dŷ·ŷ)), as factors of each column
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
        """The slope of each row times that of the activation at z, (n, hidden)."""
        slope = self.slope[rows].unsqueeze(1)
        return torch.ops.aten.leaky_relu_backward.grad_input(slope, z, self.leak, False, grad_input=out)

    def _to_normalised(self, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Forward to the scores; the column sums of ∂L_g/∂ŷ and of ŷ·∂L_g/∂ŷ, ŷ the normalised y."""
        slopes, products = torch.zeros_like(self.shift), torch.zeros_like(self.shift)
        for rows in self.blocks:
            if self.fused:
                given = self.y[rows], scale, offset, self.tail, self.leak, self.count // 2
                self.slope[rows], of_slopes, of_products = self.fused.to_scores(*given)
                slopes += of_slopes
                products += of_products
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

    def leave(self) -> None:
        """Give the path its y, of which only this one kept track."""
        for rows in self.blocks:
            torch.add(self.y[rows], self.shift, out=self.path.y[rows]).sub_(self.origin_y[rows])

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as a pass through the batch norm does."""
        unbiased = variance * (self.count / (self.count - 1))
        self.norm.running_mean.lerp_(mean, self.norm.momentum)
        self.norm.running_var.lerp_(unbiased, self.norm.momentum)
        self.norm.num_batches_tracked += 1
