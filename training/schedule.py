"""Learning rates that change in the course of a training; they depend on the number of the step alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch.optim import Optimizer

from inference.settings import CONSTANT, ONE_CYCLE, Settings

WARM_UP = 0.3  # share of the steps
FIRST, LAST = 1 / 25, 1e-4  # factors at the first and the last step


def rate_factor(schedule: str, step: int, steps: int) -> float:
    """The factor of the learning rate in one step.

    Args:
        schedule: `constant`, or `one_cycle`: half a cosine from 1/25 to 1 over the first 30 % of the steps, then half a
            cosine down to 1/10,000 (Smith and Topin, "Super-convergence", 2019).
        step: from 0.
        steps: of the whole training, ≥ 1.
    """
    if schedule != ONE_CYCLE:
        return 1.0
    peak, last = WARM_UP * steps, max(steps - 1, 1)
    if step < peak:
        return _between(FIRST, 1.0, step / peak)
    return _between(1.0, LAST, min(1.0, (step - peak) / max(last - peak, 1)))


def set_rates(
    optimisers: Mapping[str, Optimizer], settings: Settings, epoch: int, number: int, loader: Iterable[Any]
) -> None:
    """Set the learning rate of a step of an epoch, both from 0, as `schedule` says; all epochs have as many steps."""
    if settings.schedule == CONSTANT:
        return
    steps = steps_per_epoch(settings, loader)
    factor = rate_factor(settings.schedule, epoch * steps + number, settings.meta_epochs * steps)
    for optimiser in optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = factor * optimiser.defaults["lr"]


def steps_per_epoch(settings: Settings, loader: Iterable[Any]) -> int:
    """The number of batches of an epoch, which `limit` ends."""
    batch = getattr(loader, "batch_size", None)
    return min(len(loader), settings.limit // batch + 1) if batch else len(loader)


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
