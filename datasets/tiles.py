"""Large pictures as tiles: what a model is trained on, and tested on, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Sample
from datasets.cache import ImageCache
from datasets.evaluation_set import TestDataset
from datasets.geometry import Tiling, show_size
from datasets.settings import ImageSettings
from utils import InputError

LONGEST = 1024  # side of the map on which a test is judged; beyond that it would take memory and tell no more
Sizes = Mapping[Path, tuple[int, int]]


def tiles_of(samples: Sequence[Sample], tiling: Tiling, sizes: Sizes) -> list[Sample]:
    """Each tile of each picture, in order, as a sample of its own.

    Args:
        sizes: (width, height) of each picture.
    """
    return [replace(s, box=box) for s in samples for box in tiling.boxes(*sizes[s.path])]


def refuse_small(samples: Sequence[Sample], tiling: Tiling, sizes: Sizes) -> None:
    """A training picture smaller than a tile would be mirrored to its size: nothing to learn from.

    Raises:
        InputError: names the first one.
    """
    for sample in samples:
        width, height = sizes[sample.path]
        if height < tiling.tile[0] or width < tiling.tile[1]:
            raise InputError(
                f"--tile: {sample.path} has {width}x{height} pixels, less than a tile of {tiling.tile[1]}x"
                f"{tiling.tile[0]}; give a smaller one, or leave --tile out"
            )


def judged_settings(settings: ImageSettings, tiling: Tiling, samples: Sequence[Sample], sizes: Sizes) -> ImageSettings:
    """How whole test pictures are prepared to be shown and judged: at the scale of the tiles, as far as that fits."""
    width, height = np.median([sizes[s.path] for s in samples], axis=0)
    scale = min(settings.size[0] / tiling.tile[0], LONGEST / max(width, height))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return replace(settings, imagesize=size, resize=size, keep_all=True)


class TiledTestDataset(TestDataset):
    """The tiles of test pictures in order; an item has `image`, `index`, and the `picture` that it is part of.

    Attributes:
        whole: the pictures themselves with their ground truth, as large as their maps are judged.
        tiling: how they are cut.

    Args:
        sizes: (width, height) of each picture.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: ImageSettings,
        tiling: Tiling,
        sizes: Sizes,
        cache: ImageCache | None = None,
    ) -> None:
        super().__init__(tiles_of(samples, tiling, sizes), settings, cache)
        self.tiling, self.sizes = tiling, [sizes[s.path] for s in samples]
        self.whole = TestDataset(samples, judged_settings(settings, tiling, samples, sizes), cache)
        self._of = [i for i, (w, h) in enumerate(self.sizes) for _ in tiling.boxes(w, h)]

    def load(self, index: int) -> None:
        """Read a tile and keep it, where there is room."""
        self._pixels(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._image(index), "index": index, "picture": self._of[index]}

    def box(self, index: int) -> tuple[int, int, int, int]:
        """(top, left, h, w) of a tile in its picture."""
        return self.samples[index].box

    def picture_of(self, index: int) -> int:
        """Which picture a tile is of."""
        return self._of[index]


def describe(tiling: Tiling, pictures: int, tiles: int) -> str:
    """A line for the log."""
    height, width = tiling.tile
    return f"{pictures} pictures in {tiles} tiles of {show_size((height, width))} pixels, overlap {tiling.overlap:.0%}"
