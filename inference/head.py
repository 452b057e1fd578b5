"""A and D as scoring needs them: what is linear made one, and applied to each layer's map where it is small."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_linear_bn_eval

from model import Discriminator, Projection


def fold_projection(projection: Projection | None, first: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """A and D's first layer as one, weight (hidden, C) and bias: A is affine. Gradients reach both through it."""
    weight, bias = first.weight, first.bias
    for layer in reversed(projection.layers if projection is not None else ()):
        shift = weight @ layer.bias
        bias = shift if bias is None else bias + shift
        weight = weight @ layer.weight
    return weight, bias


class ScoringHead(nn.Module):
    """D(A(f)) of evaluation: A, the linear layers of D and what its batch norms have learnt, as one product a layer.

    The weights are copies: a step of training makes a head of before it out of date.

    Args:
        projection: A; None where there is none.
        discriminator: D.
        dtype: of the products; scores are float32 all the same.
    """

    @torch.no_grad()
    def __init__(
        self, projection: Projection | None, discriminator: Discriminator, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        first = _linear(*fold_projection(projection, discriminator.first)).eval()
        body = deepcopy(discriminator.body).eval()
        layers = [
            fuse_linear_bn_eval(linear if i else first, norm).requires_grad_(False)
            for i, (linear, norm, _) in enumerate(body)
        ]
        self.slope = body[0][2].negative_slope if len(body) else 1.0
        self.first = layers[0] if layers else first  # without a body it is the tail, too
        self.others = nn.ModuleList([*layers[1:], deepcopy(discriminator.tail[0]).requires_grad_(False)][: len(body)])
        self.dtype = dtype
        self.to(dtype)

    def forward(self, features: Tensor) -> Tensor:
        """f(I), (N, C) → (N, 1) in [0, 1]."""
        return self._after_first(self.first(features.to(self.dtype)))

    def of_parts(self, parts: Sequence[Tensor]) -> Tensor:
        """The features before they are resized and put together, [(B, C_l', H_l, W_l), …] → (B, H', W') in [0, 1].

        A resize is linear and its weights sum to 1, so the product may come before it: with half of the channels
        on a quarter of the places it costs five eighths.
        """
        weights = self.first.weight.split([p.shape[1] for p in parts], dim=1)
        deep = [
            F.linear(self._rows(part), weight).permute(0, 3, 1, 2)
            for part, weight in zip(parts[1:], weights[1:], strict=True)
        ]
        if parts[0].is_cuda or torch.jit.is_tracing():
            return self._scores(parts[0], deep, weights[0])
        # on a CPU image by image: what is made stays in the processor's cache
        pieces = zip(parts[0].split(1), *(part.split(1) for part in deep), strict=True)
        return torch.cat([self._scores(first, others, weights[0]) for first, *others in pieces])

    def _scores(self, first: Tensor, deep: Sequence[Tensor], weight: Tensor) -> Tensor:
        """First layer's part, and what the others' parts became; (B, H', W')."""
        y = F.linear(self._rows(first), weight, self.first.bias)
        for part in deep:
            resized = F.interpolate(part, size=first.shape[2:], mode="bilinear", align_corners=False)
            y += resized.permute(0, 2, 3, 1)
        return self._after_first(y)[..., 0]

    def _rows(self, part: Tensor) -> Tensor:
        """(B, C, H, W) → (B, H, W, C); in bfloat16 it must lie so in memory, or copies eat the gain."""
        rows = part.permute(0, 2, 3, 1)
        return rows if self.dtype == torch.float32 else rows.to(self.dtype).contiguous()

    def _after_first(self, y: Tensor) -> Tensor:
        for layer in self.others:
            y = layer(F.leaky_relu(y, self.slope, inplace=True))
        return torch.sigmoid(y.float())


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made
