"""A memory of patches of the training set: D judges how a patch differs from the nearest one, channel by channel.

Goes beyond the paper (setting `memory`). Symbols: f is the feature of a patch, m the nearest patch in memory, u the
root mean square of f − m over good patches and channels, r = (f − m)/u. What A and D see in place of f is
(α·r, β·r²), of twice the length. The score combines D's with the distance ‖r‖, both in standard deviations of good
patches, so that it is not lost how far a patch is from anything good when D has not learnt enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ALPHA, BETA = 1.2, 1e-3  # α·√C, so that good features are about as far from their mean as a ResNet's; β
DISTANCE_WEIGHT = 3.0  # of the distance, where D's score has 1
HALF_WAY = 10.0  # standard deviations at which the score is half way from 0.5 to 1
BLOCK = 4096  # rows compared at once
STATISTICS = ("unit", "distance_mean", "distance_deviation", "logit_mean", "logit_deviation")


class PatchMemory(nn.Module):
    """Patches of good images, and the features relative to them.

    Attributes:
        patches: (M, C), of values that float16 can hold, as checkpoints keep them.
        owners: (M,), the number of the image of each patch.
        pictures: (n,), the image of each item of the training set; several tiles may belong to one.
        statistics: the values of `STATISTICS`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("patches", torch.empty(0, 0))
        self.register_buffer("half_squares", torch.empty(0))
        self.register_buffer("owners", torch.empty(0, dtype=torch.long))
        self.register_buffer("pictures", torch.empty(0, dtype=torch.long))
        self.register_buffer("statistics", torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]))

    @property
    def ready(self) -> bool:
        """Whether it holds patches."""
        return len(self.patches) > 0

    @torch.no_grad()
    def fill(self, patches: Tensor, owners: Tensor, pictures: Tensor) -> None:
        """Take in patches of at least two images, and measure how far good patches are from those of other images."""
        self.keep(patches.half().float(), owners, pictures)
        residuals = self.patches - self.patches[self.nearest(self.patches, self.owners)]
        unit = residuals.square().mean().sqrt().clamp_min(1e-12)
        distances = residuals.norm(dim=1) / unit
        spread = distances.std().clamp_min(1e-6) if len(distances) > 1 else torch.ones(())
        self.statistics[:3] = torch.stack([unit, distances.mean(), spread])

    def keep(self, patches: Tensor, owners: Tensor, pictures: Tensor) -> None:
        """Take in patches without measuring anything."""
        device = self.statistics.device
        self.patches, self.owners, self.pictures = patches.to(device), owners.to(device), pictures.to(device)
        self.half_squares = self.patches.square().sum(1) / 2

    def nearest(self, features: Tensor, own: Tensor | None = None) -> Tensor:
        """The index (N,) of the nearest patch of each feature (N, C); patches of the images `own` (N,) are left out."""
        if torch.jit.is_tracing():  # the number of blocks would become a constant of the graph
            return self._nearest(features, own)
        blocks = [None] * math.ceil(len(features) / BLOCK) if own is None else own.split(BLOCK)
        return torch.cat([self._nearest(*pair) for pair in zip(features.split(BLOCK), blocks, strict=True)])

    def _nearest(self, features: Tensor, own: Tensor | None) -> Tensor:
        gap = self.half_squares - features @ self.patches.T  # half the squared distance, up to a constant of the row
        if own is not None:
            gap.masked_fill_(self.owners == own.unsqueeze(1), math.inf)
        return gap.argmin(1)

    def forward(self, features: Tensor, own: Tensor | None = None) -> Tensor:
        """Features (N, C) → relative features (N, 2·C), without patches of the training items `own` (N,)."""
        pictures = None if own is None else self.pictures[own]
        residuals = (features - self.patches[self.nearest(features, pictures)]) / self.statistics[0]
        return torch.cat([residuals * (ALPHA / math.sqrt(features.shape[1])), residuals.square() * BETA], dim=1)

    @torch.no_grad()
    def calibrate(self, logits: Tensor) -> None:
        """Measure D's logits of good patches, of any shape."""
        self.statistics[3:] = torch.stack([logits.mean(), logits.std().clamp_min(1e-6)])

    def combine(self, logits: Tensor, relative: Tensor) -> Tensor:
        """Scores (N, 1) in [0, 1] from D's logits (N, 1) and the relative features (N, 2·C)."""
        _, distance_mean, distance_deviation, logit_mean, logit_deviation = self.statistics.unbind()
        squares = relative[:, relative.shape[1] // 2 :].sum(1, keepdim=True) / BETA
        distance = (squares.clamp_min(0).sqrt() - distance_mean) / distance_deviation
        z = (DISTANCE_WEIGHT * distance + (logits - logit_mean) / logit_deviation) / (DISTANCE_WEIGHT + 1)
        return 0.5 + 0.5 * z / (HALF_WAY + z.abs())

    def plain(self) -> dict[str, Tensor]:
        """The memory as a checkpoint keeps it."""
        kept = {"owners": self.owners, "pictures": self.pictures, "statistics": self.statistics.clone()}
        return {"patches": self.patches.half(), **kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take in what `plain` returned."""
        self.keep(state["patches"].float(), state["owners"], state["pictures"])
        self.statistics.copy_(state["statistics"])
