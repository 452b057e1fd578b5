"""A and D: built from the settings, and folded for scoring, so that consecutive linear layers become one product."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_linear_bn_eval

from inference.settings import Settings
from model import Discriminator, Projection
from utils import seeded


def build_heads(settings: Settings, device: torch.device | str) -> tuple[Projection | None, Discriminator]:
    """A and D with fresh weights drawn from the settings' seed; A is None with `pre_proj` 0."""
    width = settings.feature_width
    with seeded(settings.seed):
        projection = Projection(width, width, settings.pre_proj) if settings.pre_proj else None
        discriminator = Discriminator(width, settings.dsc_layers, settings.dsc_hidden)
    return projection.to(device) if projection else None, discriminator.to(device)


def fold_projection(projection: Projection | None, first: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """A and D's first layer as one linear layer, which is possible since A is affine. Gradients reach both.

    Returns:
        The weight (hidden, C) and the bias (hidden,), None without biases.
    """
    weight, bias = first.weight, first.bias
    for layer in reversed(projection.layers if projection is not None else ()):
        shift = weight @ layer.bias
        bias = shift if bias is None else bias + shift
        weight = weight @ layer.weight
    return weight, bias


class ScoringHead(nn.Module):
    """D(A(f)) in evaluation mode, with A, the linear layers of D and its batch norms folded to one product per layer.

    The weights are copies: after a training step the head is out of date.

    Args:
        projection: A; None for a model without one.
        discriminator: D.
        dtype: of the products; scores are float32 in any case.
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
        self.first = layers[0] if layers else first  # without a body this is the tail as well
        self.others = nn.ModuleList([*layers[1:], deepcopy(discriminator.tail[0]).requires_grad_(False)][: len(body)])
        self.dtype = dtype
        self.to(dtype)

    def forward(self, features: Tensor) -> Tensor:
        """f(I) (N, C) → scores (N, 1) in [0, 1]."""
        return torch.sigmoid(self.logits(features))

    def logits(self, features: Tensor) -> Tensor:
        """f(I) (N, C) → logits of the scores (N, 1), float32."""
        return self._after_first(self.first(features.to(self.dtype)))

    def of_parts(self, parts: Sequence[Tensor]) -> Tensor:
        """Scores from features that are not yet resized and concatenated.

        A resize is linear and its weights sum to 1, so the product may come first: with half of the channels on a
        quarter of the locations, that takes five eighths of the work.

        Args:
            parts: of each layer, [(B, C_l', H_l, W_l), …], where the sum of C_l' is C.

        Returns:
            (B, H', W') in [0, 1], on the grid of the first layer.
        """
        weights = self.first.weight.split([p.shape[1] for p in parts], dim=1)
        deep = [
            F.linear(self._rows(part), weight).permute(0, 3, 1, 2)  # (B, hidden, H_l, W_l)
            for part, weight in zip(parts[1:], weights[1:], strict=True)
        ]
        if parts[0].is_cuda or torch.jit.is_tracing():
            return self._scores(parts[0], deep, weights[0])
        # on a CPU image by image, so that intermediate results stay in the processor's cache
        images = zip(parts[0].split(1), *(part.split(1) for part in deep), strict=True)
        return torch.cat([self._scores(first, others, weights[0]) for first, *others in images])

    def _scores(self, first: Tensor, deep: Sequence[Tensor], weight: Tensor) -> Tensor:
        """Scores (B, H', W') from the features of the first layer and the products of the deeper layers."""
        y = F.linear(self._rows(first), weight, self.first.bias)  # (B, H', W', hidden)
        for part in deep:
            resized = F.interpolate(part, size=first.shape[2:], mode="bilinear", align_corners=False)
            y += resized.permute(0, 2, 3, 1)
        return torch.sigmoid(self._after_first(y))[..., 0]

    def _rows(self, part: Tensor) -> Tensor:
        """(B, C, H, W) → (B, H, W, C); contiguous in bfloat16, or the product would make a slow copy itself."""
        rows = part.permute(0, 2, 3, 1)
        return rows if self.dtype == torch.float32 else rows.to(self.dtype).contiguous()

    def _after_first(self, y: Tensor) -> Tensor:
        for layer in self.others:
            y = layer(F.leaky_relu(y, self.slope, inplace=True))
        return y.float()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
