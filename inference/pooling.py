"""Pooling of patch features without unfolding the neighbourhoods."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Pooling(nn.Module, ABC):
    """From the maps of the layers to patch features, layer by layer; only then the layers are resized to one grid."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """[(B, C_l, H_l, W_l), …] → (B·H'·W', C), where (H', W') is the grid of the first layer."""
        grid = maps[0].shape[2:]
        pooled = [
            y if y.shape[2:] == grid else F.interpolate(y, size=grid, mode="bilinear", align_corners=False)
            for y in self.parts(maps)
        ]
        return torch.cat(pooled, dim=1).permute(0, 2, 3, 1).flatten(0, 2)

    @abstractmethod
    def parts(self, maps: list[Tensor]) -> list[Tensor]:
        """[(B, C_l, H_l, W_l), …] → [(B, C_l', H_l, W_l), …], the features of each layer on its own grid; ΣC_l' = C."""


class ChannelPooling(Pooling):
    """Patch features that keep the channels apart: each is averaged over the neighbourhood, and C = ΣC_l.

    The published pooling averages over runs of neighbouring channels as well, which have nothing to do with each other:
    of a network with few channels, little would be left.

    Args:
        patchsize: p, odd.
    """

    def __init__(self, patchsize: int) -> None:
        super().__init__()
        self.patchsize = patchsize

    def parts(self, maps: list[Tensor]) -> list[Tensor]:
        """[(B, C_l, H_l, W_l), …] → the same shapes; beyond the edge, a neighbourhood contains zeros."""
        p = self.patchsize
        return [F.avg_pool2d(x, p, stride=1, padding=p // 2) for x in maps]


class FusedPooling(Pooling):
    """Patch features without unfolding, if every pooling window consists of whole rows of the neighbourhood.

    Columns are averaged first, then runs of rows; only the remaining C/layers channels are resized to the first grid.
    No tensor is larger than the maps themselves.

    Args:
        channels: C_l of each layer.
        patchsize: p, odd.
        pretrain_dim: `pretrain_embed_dimension`.
        target_dim: `target_embed_dimension`, C.

    Raises:
        ValueError: the windows do not consist of whole rows.
    """

    def __init__(self, channels: Sequence[int], patchsize: int, pretrain_dim: int, target_dim: int) -> None:
        super().__init__()
        if not self.applies(channels, patchsize, pretrain_dim, target_dim):
            raise ValueError("the pooling windows do not consist of whole rows of the neighbourhood")
        merged = len(channels) * pretrain_dim // target_dim
        self.patchsize = patchsize
        self.rows = [merged * c * patchsize // pretrain_dim for c in channels]  # rows per window of each layer

    @staticmethod
    def applies(channels: Sequence[int], patchsize: int, pretrain_dim: int, target_dim: int) -> bool:
        """Whether all windows consist of whole rows, and none spans two layers."""
        whole_rows = all(c * patchsize**2 % (pretrain_dim * patchsize) == 0 for c in channels)
        total = len(channels) * pretrain_dim
        return whole_rows and total % target_dim == 0 and pretrain_dim % (total // target_dim) == 0

    def parts(self, maps: list[Tensor]) -> list[Tensor]:
        """[(B, C_l, H_l, W_l), …] → [(B, C/layers, H_l, W_l), …]: the features of each layer, on its own grid."""
        return [self._pool(x, rows) for x, rows in zip(maps, self.rows, strict=True)]

    def _pool(self, x: Tensor, rows: int) -> Tensor:
        """(B, C_l, H, W) → (B, C_l·p // rows, H, W): averages of `rows` rows of the neighbourhood each."""
        p = self.patchsize
        if rows % p == 0:  # windows are whole channels: average the channels, then the neighbourhood
            y = x.unflatten(1, (-1, rows // p)).mean(2)
            return F.avg_pool2d(y, p, stride=1, padding=p // 2)
        batch, channels, height, width = x.shape
        y = F.avg_pool2d(x, (1, p), stride=1, padding=(0, p // 2))
        y = F.pad(y, (0, 0, p // 2, p // 2))  # (B, C_l, H + p − 1, W)
        # the pattern of windows over (channel, row) repeats after this many rows
        period = math.lcm(rows, p)
        y = y.view(batch, channels * p // period, period // p, height + p - 1, width)
        out = x.new_empty(batch, channels * p // period, period // rows, height, width)
        for window in range(period // rows):
            summands = [divmod(row, p) for row in range(window * rows, (window + 1) * rows)]
            total = sum(y[:, :, channel, shift : shift + height] for channel, shift in summands)
            out[:, :, window] = total / rows
        return out.flatten(1, 2)
