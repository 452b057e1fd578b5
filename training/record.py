"""The record of a training: the number of epochs done, their figures, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils import InputError, WorkError

Figures = dict[str, Any]
STEP_FIGURES = ("loss", "p_true", "p_fake", "r_t", "r_g", "r_f")  # see `GLASS.train_step`


READ_EVERY = 8  # steps on CUDA: reading a value waits for all work that the device has been given before


class StepFigures:
    """Collects the figures of the steps of an epoch, and shows them after its progress bar.

    Args:
        epoch: counted from 0, for messages.
        on_cuda: whether the figures are on a GPU, where they are read for several steps at once.
        progress: a bar that counts samples.
        shown: text for the bar, after the step's figures.
    """

    def __init__(self, epoch: int, on_cuda: bool, progress: tqdm | None = None, shown: str = "") -> None:
        self.epoch, self.progress, self.shown = epoch, progress, shown
        self._every = READ_EVERY if on_cuda else 1
        self._read: list[list[float]] = []
        self._unread: list[Tensor] = []

    def add(self, figures: Mapping[str, Tensor], samples: int) -> None:
        """Add a step with this number of samples.

        Raises:
            WorkError: a loss is not finite.
        """
        self._unread.append(torch.stack([figures[name].float() for name in STEP_FIGURES]))
        if len(self._unread) == self._every:
            self._read_all()
        if self.progress is not None:
            self._show()
            self.progress.update(samples)

    def means(self) -> dict[str, float]:
        """The mean over the steps of each of `STEP_FIGURES`.

        Raises:
            InputError: there was no step.
            WorkError: a loss is not finite.
        """
        self._read_all()
        if not self._read:
            raise InputError("the training set has no image")
        return dict(zip(STEP_FIGURES, np.mean(self._read, axis=0).tolist(), strict=True))

    def _read_all(self) -> None:
        """Read the figures of some steps, waiting for the device only once."""
        values = torch.stack(self._unread).tolist() if self._unread else []
        for loss, *_ in values:
            if not math.isfinite(loss):
                raise WorkError(f"the loss became {loss} in epoch {self.epoch}; try a smaller --lr or --noise")
        self._read += values
        self._unread = []

    def _show(self) -> None:
        """Show the figures of the last step that was read after the bar."""
        if self._read:
            values = dict(zip(STEP_FIGURES, self._read[-1], strict=True))
            line = "loss {loss:.3f} p {p_true:.2f}/{p_fake:.2f} r {r_t:.2f}/{r_g:.2f}/{r_f:.2f} "
            self.progress.set_postfix_str(line.format(**values) + self.shown, refresh=False)


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
