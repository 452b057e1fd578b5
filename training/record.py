"""The record of a training: the number of epochs done, their figures, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Figures = dict[str, Any]
STEP_FIGURES = ("loss", "p_true", "p_fake", "r_t", "r_g", "r_f")  # see `GLASS.train_step`


@dataclass
class Record:
    """The progress and results of a training; checkpoints store it as plain values.

    Attributes:
        epoch: number of epochs done.
        best: `epoch` (from 0) and metrics of the epoch to keep; None as long as there is none.
        last: likewise of the last evaluation.
        history: figures of each epoch.
        stale: number of evaluations since the best one.
    """

    epoch: int = 0
    best: Figures | None = None
    last: Figures | None = None
    history: list[Figures] = field(default_factory=list)
    stale: int = 0

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Record:
        """The record in a checkpoint, which may lack values if an earlier version wrote it."""
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})

    def plain(self) -> dict[str, Any]:
        """The record as a checkpoint stores it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # `add` makes a new history

    def is_over(self, meta_epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or no evaluation was better for `patience` evaluations (0: no limit)."""
        return self.epoch >= meta_epochs or bool(patience and self.stale >= patience)

    def add(self, figures: Mapping[str, float]) -> None:
        """Add the epoch that has just ended to the history, with its metrics if it was evaluated."""
        epoch = self.epoch - 1
        evaluated = self.last if self.last and self.last["epoch"] == epoch else {}
        self.history = [*self.history, {**figures, **evaluated, "epoch": epoch}]

    def compare_last(self) -> bool | None:
        """Compare the last evaluation with the best one, and update `stale`.

        Returns:
            Whether it is better; None if neither of its two AUROCs could be computed.
        """
        value = selection_value(self.last) if self.last else None
        if value is None:
            return None
        best = selection_value(self.best) if self.best else None
        better = best is None or value > best
        self.stale = 0 if better else self.stale + 1
        return better

    def in_short(self) -> str:
        """Image and pixel AUROC of the last and the best evaluation, for the progress bar."""
        parts = []
        for name, figures in (("last", self.last), ("best", self.best)):
            if figures and "image_auroc" in figures:
                image, pixel = 100 * figures["image_auroc"], 100 * figures["pixel_auroc"]
                parts.append(f"{name} {image:.1f}/{pixel:.1f}@{figures['epoch']}")
        return " ".join(parts)


def selection_value(figures: Mapping[str, Any]) -> float | None:
    """Image AUROC + pixel AUROC, the value that chooses the epoch; one may be missing, and None if both are."""
    values = [figures.get(key, math.nan) for key in ("image_auroc", "pixel_auroc")]
    values = [value for value in values if not math.isnan(value)]
    return sum(values) if values else None
