"""A memory of patches of the training set: D judges how a patch differs from the nearest one, channel by channel.

Goes beyond the paper (setting `memory`). Half of the patches are typical: drawn at random. The other half are rare:
each is the farthest from all patches before it. Symbols: f is the feature of a patch, m the nearest typical patch, u
the root mean square of f − m over good patches and channels, r = (f − m)/u, d the distance from f to the nearest patch
of both kinds, as a z-score of good patches. What A and D see in place of f is (α·r, β·r², γ·d). The score combines D's
with d, so that it is not lost how far a patch is from anything good when D has not learnt enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ALPHA, BETA, GAMMA = 1.2, 1e-3, 0.1  # α·√C, so that good features are about as far from their mean as a ResNet's; β, γ
DISTANCE_WEIGHT = 1.5  # of the distance, where D's score has 1
MOST = 3e4  # standard deviations that d is limited to, so that it fits into float16
HALF_WAY = 10.0  # standard deviations at which the score is half way from 0.5 to 1
BLOCK = 4096  # rows compared at once
PROJECTED = 32  # dimensions in which rare patches are chosen
STATISTICS = ("unit", "distance_mean", "distance_deviation", "logit_mean", "logit_deviation")


class PatchMemory(nn.Module):
    """Patches of good images, and the features relative to them.

    Attributes:
        patches: (M, C), first the typical ones, then the rare ones; of values that float16 can hold, as checkpoints
            keep them.
        owners: (M,), the number of the image of each patch.
        pictures: (n,), the image of each item of the training set; several tiles may belong to one.
        statistics: the values of `STATISTICS`.
        typical: how many patches are typical.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("patches", torch.empty(0, 0))
        self.register_buffer("half_squares", torch.empty(0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.long))
        self.register_buffer("pictures", torch.empty(0, dtype=torch.long))
        self.register_buffer("statistics", torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]))
        self.typical = 0

    @property
    def ready(self) -> bool:
        """Whether it holds patches."""
        return len(self.patches) > 0

    @torch.no_grad()
    def fill(self, patches: Tensor, owners: Tensor, pictures: Tensor, typical: int) -> None:
        """Take in patches of at least two images, and measure how far typical ones are from those of other images."""
        self.keep(patches.half().float(), owners, pictures, typical)
        features, own = self.patches[:typical], self.owners[:typical]
        nearest, distances = self._search(features, own)
        unit = (features - self.patches[nearest]).square().mean().sqrt().clamp_min(1e-12)
        spread = distances.std().clamp_min(1e-6) if len(distances) > 1 else torch.ones(())
        self.statistics[:3] = torch.stack([unit, distances.mean(), spread])

    def keep(self, patches: Tensor, owners: Tensor, pictures: Tensor, typical: int) -> None:
        """Take in patches without measuring anything."""
        device = self.statistics.device
        self.patches, self.owners, self.pictures = patches.to(device), owners.to(device), pictures.to(device)
        self.half_squares, self.typical = self.patches.square().sum(1) / 2, typical

    def nearest(self, features: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The nearest patches of features.

        Args:
            features: (N, C).
            own: (N,), the image of each feature, whose patches are left out.

        Returns:
            The index of the nearest typical patch, and the distance to the nearest of all, both (N,).
        """
        if torch.jit.is_tracing():  # the number of blocks would become a constant of the graph
            return self._search(features, own)
        blocks = [None] * math.ceil(len(features) / BLOCK) if own is None else own.split(BLOCK)
        found = [self._search(*pair) for pair in zip(features.split(BLOCK), blocks, strict=True)]
        indices, distances = zip(*found, strict=True)
        return torch.cat(indices), torch.cat(distances)

    def _search(self, features: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        gap = self.half_squares - features @ self.patches.T  # half the squared distance, up to a constant of the row
        if own is not None:
            gap.masked_fill_(self.owners == own.unsqueeze(1), math.inf)
        least, indices = gap[:, : self.typical].min(1)
        if self.typical < len(self.patches):
            least = torch.minimum(least, gap[:, self.typical :].amin(1))
        return indices, (2 * least + features.square().sum(1)).clamp_min(0).sqrt()

    def differences(self, features: Tensor, own: Tensor | None = None) -> Tensor:
        """Features (N, C) → (r, d), (N, C + 1), without patches of the training items `own` (N,)."""
        unit, mean, deviation = self.statistics[:3].unbind()
        indices, distances = self.nearest(features, None if own is None else self.pictures[own])
        d = ((distances - mean) / deviation).clamp(-MOST, MOST)
        return torch.cat([(features - self.patches[indices]) / unit, d.unsqueeze(1)], dim=1)

    @staticmethod
    def relative(differences: Tensor) -> Tensor:
        """(r, d) (N, C + 1) → what A and D see, (N, 2·C + 1)."""
        r, d = differences[:, :-1], differences[:, -1:]
        return torch.cat([r * (ALPHA / math.sqrt(r.shape[1])), r.square() * BETA, d * GAMMA], dim=1)

    def forward(self, features: Tensor, own: Tensor | None = None) -> Tensor:
        """Features (N, C) → relative features (N, 2·C + 1), without patches of the training items `own` (N,)."""
        return self.relative(self.differences(features, own))

    @torch.no_grad()
    def calibrate(self, logits: Tensor) -> None:
        """Measure D's logits of good patches, of any shape."""
        self.statistics[3:] = torch.stack([logits.mean(), logits.std().clamp_min(1e-6)])

    def combine(self, logits: Tensor, relative: Tensor) -> Tensor:
        """Scores (N, 1) in [0, 1] from D's logits (N, 1) and the relative features (N, 2·C + 1)."""
        mean, deviation = self.statistics[3:].unbind()
        z = (DISTANCE_WEIGHT * relative[:, -1:] / GAMMA + (logits - mean) / deviation) / (DISTANCE_WEIGHT + 1)
        return 0.5 + 0.5 * z / (HALF_WAY + z.abs())

    def plain(self) -> dict[str, Tensor]:
        """The memory as a checkpoint keeps it."""
        kept = {"owners": self.owners, "pictures": self.pictures, "statistics": self.statistics.clone()}
        return {"patches": self.patches.half(), "typical": torch.tensor(self.typical), **kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take in what `plain` returned."""
        self.keep(state["patches"].float(), state["owners"], state["pictures"], int(state["typical"]))
        self.statistics.copy_(state["statistics"])


def farthest(patches: Tensor, kept: Tensor, count: int, seed: int) -> Tensor:
    """Choose patches one after another, each the farthest from those that are kept and chosen before it.

    Distances are those of a random projection to `PROJECTED` dimensions, which takes a fifth of the time.

    Args:
        patches: (N, C).
        kept: indices of patches that are kept already, at least one.
        count: how many to choose; fewer if all others equal a kept one.
        seed: of the projection.

    Returns:
        The indices, (count,).
    """
    generator = torch.Generator().manual_seed(seed)
    projection = torch.randn(patches.shape[1], PROJECTED, generator=generator).to(patches.device)
    points = patches @ projection
    squares, nearest = points.square().sum(1), torch.full((len(points),), math.inf, device=points.device)
    for block in kept.split(BLOCK // 8):
        nearest = torch.minimum(nearest, torch.cdist(points, points[block]).square().amin(1))
    nearest[kept], chosen = 0.0, []
    for _ in range(count):
        index = int(nearest.argmax())
        if nearest[index] <= 0:
            break
        chosen.append(index)
        nearest = torch.minimum(nearest, squares - 2 * (points @ points[index]) + squares[index])
        nearest[index] = 0.0
    return torch.tensor(chosen, dtype=torch.long)
