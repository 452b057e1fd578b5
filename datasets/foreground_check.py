"""Whether foreground masks fit their images and leave room for synthetic anomalies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

import perlin
from datasets.base import Sample
from datasets.check import Problem, in_threads, reason_without_path, show_hxw
from datasets.files import DEFAULT, ReadOptions
from datasets.masks import read_mask_of
from datasets.settings import ImageSettings
from datasets.training_set import LEAST_FOREGROUND, prepare_foreground
from utils import WorkError

# trial anomalies on a small foreground, and the share of them that must touch it: a training draws at most 1000 times
TRIALS, LEAST_TRIALS = 300, 0.02


def check_foreground(
    masks: Sequence[Path],
    samples: Sequence[Sample],
    sizes: Mapping[Path, tuple[int, int]],
    name: str,
    settings: ImageSettings | None = None,
    tiled: bool = False,
    reading: ReadOptions = DEFAULT,
) -> list[Problem]:
    """What is wrong with the foreground masks of training images: unreadable, of another shape, or empty.

    Args:
        masks: one for each sample.
        samples: of the training set.
        sizes: (width, height) of the samples' images.
        name: of the class, for the progress bar.
        settings: preprocessing of the training, after which a mask must leave room for an anomaly.
        tiled: whether the training images are cut into tiles, in their own pixels.
        reading: how masks are read.
    """
    room = None if settings is None or tiled else _Room(settings)

    def check(pair: tuple[Path, Sample]) -> Problem | None:
        path, sample = pair
        try:
            mask = read_mask_of(path, sample.path, scaled=True, reading=reading)
        except WorkError as error:
            return Problem(path, f"cannot be read: {reason_without_path(error, path)}", "unreadable")
        if wrong_size := _wrong_size(mask.shape, sample, sizes, tiled):
            return Problem(path, wrong_size, "mask_size")
        if not mask.any():
            return Problem(path, "the foreground mask is empty", "empty")
        too_little = None if room is None else room.problem_of(prepare_foreground(path, sample, settings))
        return None if too_little is None else Problem(path, too_little, "empty")

    problems = in_threads(check, list(zip(masks, samples, strict=True)), f"{name}: foreground")
    return [problem for problem in problems if problem is not None]


def _wrong_size(
    shape: tuple[int, int], sample: Sample, sizes: Mapping[Path, tuple[int, int]], tiled: bool
) -> str | None:
    """What is wrong with the size of a mask of `shape` (H, W); None if nothing is."""
    width, height = sizes.get(sample.path, shape[::-1])
    factor = shape[1] / width
    compared = (
        f"the foreground mask has {show_hxw(shape[::-1])} pixels (HxW), its image {sample.path} has "
        f"{show_hxw((width, height))}"
    )
    if abs(shape[0] - height * factor) > max(1, factor):
        return f"{compared}: another shape"
    return f"{compared}; with --tile it must be as large" if tiled and shape != (height, width) else None


def leave_out_small(
    masks: Sequence[Path], samples: Sequence[Sample], sizes: Mapping[Path, tuple[int, int]], settings: ImageSettings
) -> list[Path | None]:
    """The generated foreground masks, with None in place of one that the crop leaves no room for an anomaly in.

    Args:
        masks: one for each sample.
        samples: of the training set.
        sizes: (width, height) of the samples' images.
        settings: preprocessing of the training.
    """
    room = _Room(settings)

    def keep(pair: tuple[Path, Sample]) -> Path | None:
        path, sample = pair
        if not settings.left_out(*sizes[sample.path]):
            return path
        return path if room.problem_of(prepare_foreground(path, sample, settings)) is None else None

    return in_threads(keep, list(zip(masks, samples, strict=True)))


class _Room:
    """Whether synthetic anomalies find a place on a foreground mask that was resized and cropped."""

    def __init__(self, settings: ImageSettings) -> None:
        self._size, self._lock, self._trials = settings.size, Lock(), None

    def problem_of(self, foreground: NDArray[np.bool_]) -> str | None:
        """Why anomalies find no place on a mask (H, W); None if they do."""
        remedy = "no synthetic anomaly fits in it; widen it, or give --keep_all, or --fg 0 for anomalies everywhere"
        if not foreground.any():
            return f"resizing and crop leave nothing of the foreground mask: {remedy}"
        share = float(foreground.mean())
        if share >= LEAST_FOREGROUND or self._count_hits(foreground) >= LEAST_TRIALS * TRIALS:
            return None
        return f"resizing and crop leave {share:.3%} of an image of the foreground mask: {remedy}"

    def _count_hits(self, foreground: NDArray[np.bool_]) -> int:
        """How many of `TRIALS` anomalies touch the mask."""
        with self._lock:  # the trials are the same for all masks of a class
            if self._trials is None:
                rng = np.random.default_rng(0)
                self._trials = [np.packbits(perlin.perlin_mask(rng, self._size)) for _ in range(TRIALS)]
        packed = np.packbits(foreground)
        return sum(bool((trial & packed).any()) for trial in self._trials)
