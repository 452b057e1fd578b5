"""How the output of a layer becomes a feature map: channels first, channels last, or tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torchvision
from torch import Tensor, nn

from utils import InputError

MAX_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Layout:
    """How a layer's output becomes a (B, C, H, W) map.

    Attributes:
        kind: `nchw`, `nhwc` or `tokens`.
        prefix: number of class and register tokens before the patches.
        grid: (H, W) of the patches of `tokens`.
    """

    kind: str
    prefix: int = 0
    grid: tuple[int, int] = (0, 0)

    def to_map(self, x: Tensor) -> Tensor:
        """The layer's output as a map, (B, C, H, W)."""
        if self.kind == "nhwc":
            return x.permute(0, 3, 1, 2)
        if self.kind == "tokens":
            return x[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)  # (B, L, C) → (B, C, H, W)
        return x


def find_layout(output: Tensor, input_shape: Sequence[int], backbone: nn.Module, layer: str) -> Layout:
    """The layout of a layer's output: (B, C, H, W), (B, H, W, C) or (B, L, C), detected by the shape of the image.

    Args:
        output: of the layer for one image.
        input_shape: (3, H, W) of the image.
        backbone: the network, which may say how many prefix tokens it has.
        layer: name of the layer, for messages.

    Raises:
        InputError: the output is not a grid of patches.
    """
    height, width = input_shape[1:]
    if output.ndim == 4 and len(output) == 1:
        _, a, b, c = output.shape
        nchw = abs(math.log(b * width / (c * height)))
        nhwc = abs(math.log(a * width / (b * height)))
        # with as many channels as rows and columns, the shape is ambiguous
        swin = isinstance(backbone, torchvision.models.SwinTransformer)
        prefer_nhwc = swin or getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        return Layout("nhwc" if nhwc < nchw or (nhwc == nchw and prefer_nhwc) else "nchw")
    if output.ndim == 3 and len(output) == 1:
        declared = getattr(backbone, "num_prefix_tokens", None)
        for prefix in (declared, *range(MAX_PREFIX_TOKENS + 1)):
            grid = _token_grid(output.shape[1] - prefix, height, width) if prefix is not None else None
            if grid:
                return Layout("tokens", prefix, grid)
    raise InputError(
        f"layer {layer!r} has an output of shape {tuple(output.shape)}, which is not a grid of patches; choose another"
    )


def _token_grid(count: int, height: int, width: int) -> tuple[int, int] | None:
    """The grid (h, w) with h·w = `count` of square patches that cover the image; None if there is none."""
    for stride in range(1, max(height, width) + 1):
        for grid in ((height // stride, width // stride), (-(-height // stride), -(-width // stride))):
            if grid[0] * grid[1] == count:
                return grid
    return None
