"""Operations on rows of features that LAS and GAS share: products, quantiles, reused memory."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-10
ROWS_AT_A_TIME = 256  # rows of features processed together on a CPU: such a block stays in its cache


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


def mean_bce(scores: Tensor, target: float) -> Tensor:
    """Mean binary cross-entropy; nan where a score is nan.

    torch refuses such a score: by an exception on a CPU, on CUDA by an assertion on the device, after which the whole
    process can use it no more. So it never sees one, and nothing has to wait for the device to find out.
    """
    unknown = scores.isnan()
    loss = F.binary_cross_entropy(torch.where(unknown, 0.5, scores), torch.full_like(scores, target))
    return torch.where(unknown.any(), math.nan, loss)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a @ b in b's type, to a float32 `out`."""
    if b.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a.to(b.dtype) @ b)


def row_dots(a: Tensor, b: Tensor) -> Tensor:
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
