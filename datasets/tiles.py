"""Large images cut into tiles, which a model is trained and tested on."""

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

LONGEST = 1024  # pixels, side of the anomaly map that pixel metrics are computed on; more would only take memory
Sizes = Mapping[Path, tuple[int, int]]


def tiles_of(samples: Sequence[Sample], tiling: Tiling, sizes: Sizes) -> list[Sample]:
    """Each tile of each image, in order, as a sample of its own.

    Args:
        samples: the whole images.
        tiling: how they are cut.
        sizes: (width, height) of each image.
    """
    return [replace(s, box=box) for s in samples for box in tiling.boxes(*sizes[s.path])]


def refuse_small(samples: Sequence[Sample], tiling: Tiling, sizes: Sizes) -> None:
    """Refuse training images smaller than a tile, which would only be mirrored to its size.

    Raises:
        InputError: an image is smaller than a tile; the message names the first.
    """
    for sample in samples:
        width, height = sizes[sample.path]
        if height < tiling.tile[0] or width < tiling.tile[1]:
            raise InputError(
                f"--tile: {sample.path} has {width}x{height} pixels, less than a tile of {tiling.tile[1]}x"
                f"{tiling.tile[0]}; give a smaller one, or leave --tile out"
            )


def judged_settings(settings: ImageSettings, tiling: Tiling, samples: Sequence[Sample], sizes: Sizes) -> ImageSettings:
    """The preprocessing of whole test images for metrics and display: at the scale of the tiles, up to `LONGEST`."""
    width, height = np.median([sizes[s.path] for s in samples], axis=0)
    scale = min(settings.size[0] / tiling.tile[0], LONGEST / max(width, height))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return replace(settings, imagesize=size, resize=size, keep_all=True)


class TiledTestDataset(TestDataset):
    """The tiles of test images, in order; an item has `image`, `index`, and in `picture` the index of the whole image.

    Args:
        samples: the whole images.
        settings: preprocessing of a tile.
        tiling: how the images are cut.
        sizes: (width, height) of each image.
        cache: keeps what was read.

    Attributes:
        whole: the whole images with their ground truth, at the size of their anomaly maps.
        tiling: how they are cut.
        sizes: (width, height) of each image, in order.
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
        self._picture = [i for i, (w, h) in enumerate(self.sizes) for _ in tiling.boxes(w, h)]

    def load(self, index: int) -> None:
        """Read a tile, and keep it if there is room."""
        self._pixels(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._image(index), "index": index, "picture": self._picture[index]}

    def box(self, index: int) -> tuple[int, int, int, int]:
        """(top, left, h, w) of a tile in its image."""
        return self.samples[index].box

    def picture_of(self, index: int) -> int:
        """The index of the whole image that a tile belongs to."""
        return self._picture[index]


def describe(tiling: Tiling, pictures: int, tiles: int) -> str:
    """How images are cut, as a line for the log."""
    height, width = tiling.tile
    return f"{pictures} pictures in {tiles} tiles of {show_size((height, width))} pixels, overlap {tiling.overlap:.0%}"
