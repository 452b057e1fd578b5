"""The trained parts (projection A and discriminator D), and the conversion between feature maps and patches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)


class Projection(nn.Module):
    """The projection A: `n_layers` linear layers without activations, so it is affine.

    Args:
        in_planes: C of the patch features.
        out_planes: C of the projected features; `in_planes` by default.
        n_layers: number of layers, ≥ 1.
    """

    def __init__(self, in_planes: int, out_planes: int | None = None, n_layers: int = 1) -> None:
        super().__init__()
        out_planes = out_planes or in_planes
        self.layers = nn.Sequential()
        for i in range(n_layers):
            self.layers.add_module(f"{i}fc", nn.Linear(in_planes if i == 0 else out_planes, out_planes))
        self.apply(_xavier)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_planes) → (N, out_planes)."""
        return self.layers(x)


class Discriminator(nn.Module):
    """The discriminator D: features of a patch → its anomaly score.

    Args:
        in_planes: C of the projected features.
        n_layers: number of layers, ≥ 1; all but the last are Linear + BatchNorm1d + LeakyReLU(0.2).
        hidden: width of these layers.
    """

    def __init__(self, in_planes: int, n_layers: int = 2, hidden: int = 1024) -> None:
        super().__init__()
        self.body = nn.Sequential()
        for i in range(n_layers - 1):
            block = nn.Sequential(
                nn.Linear(in_planes if i == 0 else hidden, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2)
            )
            self.body.add_module(f"block{i + 1}", block)
        self.tail = nn.Sequential(nn.Linear(hidden if n_layers > 1 else in_planes, 1, bias=False), nn.Sigmoid())
        self.apply(_xavier)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_planes) → (N, 1) in [0, 1]; 1 is anomalous."""
        return self.after_first(self.first(x))

    @property
    def first(self) -> nn.Linear:
        """The first linear layer; with `n_layers` 1 it is the only one and has no bias."""
        return self.body[0][0] if len(self.body) else self.tail[0]

    def after_first(self, y: Tensor) -> Tensor:
        """Everything after the first linear layer: its outputs (N, hidden) → scores (N, 1)."""
        if not len(self.body):
            return self.tail[1](y)
        normalised = self.body[0][1](y)
        y = F.leaky_relu(normalised, self.body[0][2].negative_slope, inplace=True)  # overwrites `normalised`
        return self.tail(self.body[1:](y))


class PatchMaker:
    """Cuts feature maps into overlapping patches (stride 1, zero padding) and arranges patch scores on their grid.

    Args:
        patchsize: p, side of the neighbourhood, odd.
    """

    def __init__(self, patchsize: int) -> None:
        self.patchsize = patchsize

    def patchify(self, features: Tensor) -> Tensor:
        """(B, C, H, W) → (B, H·W, C·p²): each location's neighbourhood in (channel, row, column) order."""
        patches = F.unfold(features, self.patchsize, padding=self.patchsize // 2)  # (B, C·p², H·W)
        return patches.transpose(1, 2)

    @staticmethod
    def unpatch_scores(scores: Tensor, batch: int, grid: tuple[int, int]) -> Tensor:
        """(B·H'·W', 1) or (B·H'·W',) → (B, H', W')."""
        return scores.reshape(batch, *grid)

    @staticmethod
    def score(patch_scores: Tensor) -> Tensor:
        """(B, H', W') → image scores (B,): the highest patch score of each image."""
        return patch_scores.flatten(1).amax(1)
