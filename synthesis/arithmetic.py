"""Operations on rows of features that the training step and GAS share: products, quantiles, reused memory."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-10
ROWS_AT_A_TIME = 256  # rows of features processed together on a CPU: a block of this size stays in its cache


def ring_factor(norm: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """The factor that scales an offset of length `norm` to a length in [low, high]; the shape of `norm`."""
    return norm.clamp(low, high) / (norm + EPS)


def quantile(x: Tensor, q: float, among: Tensor | None = None) -> Tensor:
    """Quantile by linear interpolation, without waiting for the device.

    Args:
        x: any shape.
        q: in [0, 1].
        among: the values that count, bool of x's shape; all by default.

    Returns:
        A 0-d tensor; nan if there are no values.
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
    ordered = x.sort().values  # torch.quantile refuses more than 16 million values
    position = q * (count - 1).to(torch.float64)
    low = position.floor().long().clamp(min=0)
    high = torch.minimum(low + 1, (count - 1).clamp(min=0))
    # indexing with [low] would copy the index from the device and wait for it
    at_low, at_high = ordered.gather(0, torch.stack([low, high])).unbind()
    result = torch.lerp(at_low, at_high, (position - low).to(x.dtype))
    return torch.where(count > 0, result, math.nan)


def centre_distances(projected: Tensor, centre: Tensor) -> Tensor:
    """‖x − c‖ of projected features, (B·P, C) → (B·P,). Image by image, which needs no large buffer."""
    return torch.cat([(patches - centre).norm(dim=1) for patches in projected.split(len(centre))])


class _Linear(torch.autograd.Function):
    """x·weightᵀ + bias in float32, with the products of the backward pass in another number format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        return F.linear(x.float(), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = (saved.to(ctx.dtype) for saved in ctx.saved_tensors)
        bias_gradient = gradient.sum(0) if ctx.needs_input_grad[2] else None  # (out,)
        gradient = gradient.to(ctx.dtype)
        x_gradient = (gradient @ weight).float() if ctx.needs_input_grad[0] else None  # (N, in)
        weight_gradient = (gradient.T @ x).float() if ctx.needs_input_grad[1] else None  # (out, in)
        return x_gradient, weight_gradient, bias_gradient, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """x·weightᵀ + bias, (N, in) → (N, out).

    The forward product is always computed in float32: rounded to bfloat16, some values would cross the kink of
    LeakyReLU, and the gradients would be off by several percent. The products of the backward pass tolerate bfloat16.

    Args:
        x: (N, in).
        weight: (out, in).
        bias: (out,).
        dtype: of the products of the backward pass.
    """
    return _Linear.apply(x, weight, bias, dtype)


class Workspace:
    """Large tensors that every step uses again: allocating memory takes longer than writing to it."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor) -> Tensor:
        """The tensor `name`, with the shape, type and device of `like` and undefined content."""
        tensor = self._tensors.get(name)
        if tensor is None or (tensor.shape, tensor.dtype, tensor.device) != (like.shape, like.dtype, like.device):
            tensor = self._tensors[name] = torch.empty_like(like, memory_format=torch.contiguous_format)
        return tensor

    def copy(self, name: str, source: Tensor) -> Tensor:
        """The tensor `name`, filled with a copy of `source`."""
        return self.take(name, source).copy_(source)


def mean_bce(scores: Tensor, target: float) -> Tensor:
    """Mean binary cross-entropy with one target for all scores; nan if a score is nan.

    torch refuses nan: on a CPU with an exception, on CUDA with an assertion on the device, after which the process
    cannot use the device any more. Here nan is replaced before torch sees it, without waiting for the device.

    Args:
        scores: (N,) in [0, 1].
        target: 0 or 1.
    """
    unknown = scores.isnan()
    loss = F.binary_cross_entropy(torch.where(unknown, 0.5, scores), torch.full_like(scores, target))
    return torch.where(unknown.any(), math.nan, loss)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a @ b, computed in the number format of b and written to the float32 tensor `out`."""
    if b.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a.to(b.dtype) @ b)


def row_dots(a: Tensor, b: Tensor) -> Tensor:
    """Dot products of the rows of two (N, C) tensors, (N,).

    On a CPU they are computed in blocks, so that the elementwise products stay in the processor's cache.
    """
    if a.is_cuda or len(a) <= ROWS_AT_A_TIME:
        return torch.linalg.vecdot(a, b)
    dots, products = a.new_empty(len(a)), a.new_empty(ROWS_AT_A_TIME, a.shape[1])
    for i in range(0, len(a), ROWS_AT_A_TIME):
        block = a[i : i + ROWS_AT_A_TIME]
        torch.mul(block, b[i : i + ROWS_AT_A_TIME], out=products[: len(block)])
        torch.sum(products[: len(block)], 1, out=dots[i : i + len(block)])
    return dots
