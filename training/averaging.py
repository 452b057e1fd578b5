"""The running average of the weights of a training, which scores better and steadier than its last step."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class AveragedWeights:
    """An exponential average of the weights and batch norm statistics of A and D.

    The first steps count less: after n steps the decay is at most (1 + n) / (10 + n), so that the random weights of the
    start are soon forgotten.

    Attributes:
        projection, discriminator: A (None for a model without one) and D with the averaged weights.

    Args:
        projection: A in training.
        discriminator: D in training.
        decay: in (0, 1).
    """

    def __init__(self, projection: nn.Module | None, discriminator: nn.Module, decay: float) -> None:
        self.projection, self.discriminator = copy.deepcopy((projection, discriminator))
        self.decay, self.steps = decay, 0
        self._of = projection, discriminator
        self.restart()

    def restart(self) -> None:
        """Begin anew from the weights in training, as after they were loaded."""
        self.steps = 0
        for average, trained in self._pairs():
            average.load_state_dict(trained.state_dict())
            average.eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for average, trained in self._pairs():
            for mean, value in zip(average.state_dict().values(), trained.state_dict().values(), strict=True):
                if mean.is_floating_point():
                    mean.lerp_(value, 1 - decay)
                else:
                    mean.copy_(value)

    def training_state(self) -> dict[str, Any]:
        """What a resumed training needs besides the averages: the weights in training, and the number of steps."""
        projection, discriminator = self._of
        parts = {"discriminator": discriminator.state_dict(), "averaged_steps": self.steps}
        return parts if projection is None else {**parts, "pre_projection": projection.state_dict()}

    def resume(self, state: dict[str, Any]) -> None:
        """Take the averages from the parts that were loaded as the weights in training, and those from `state`."""
        self.restart()
        self.steps = int(state["averaged_steps"])
        projection, discriminator = self._of
        discriminator.load_state_dict(state["discriminator"])
        if projection is not None:
            projection.load_state_dict(state["pre_projection"])

    def _pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        averages = self.projection, self.discriminator
        return [(average, trained) for average, trained in zip(averages, self._of, strict=True) if trained is not None]
