"""Which part of an image the model sees, at what size, and where its anomaly map belongs. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from statistics import fmean
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.limits import DEFAULT_OVERLAP, MOST_OVERLAP
from utils import InputError

if TYPE_CHECKING:
    from typing import Self

DEFAULT_RESIZE = 288
MUCH_LEFT_OUT = 0.1  # share of an image that the crop leaves out, from which on it is reported

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """An image is resized, then its centre is cropped to `imagesize`.

    Attributes:
        resize: a number is the length of the shorter side, (H, W) both sides; None is 288, or the same as `imagesize`
            if that is a pair or larger.
        imagesize: the side of a square, or (H, W).
        keep_all: no crop, the whole image is resized to `imagesize`.

    Raises:
        InputError: the crop is larger than the resized image, or `keep_all` contradicts `resize`.
    """

    resize: Size | None = None
    imagesize: Size = 288
    keep_all: bool = False

    def __post_init__(self) -> None:
        if self.keep_all and self.resize not in (None, self.imagesize):
            raise InputError(
                f"--keep_all resizes the whole image to --imagesize {show_size(self.imagesize)}, "
                f"--resize {show_size(self.resize)} contradicts it: leave one of the two out"
            )
        if self.resize is None:
            fits = not self.keep_all and isinstance(self.imagesize, int) and self.imagesize <= DEFAULT_RESIZE
            object.__setattr__(self, "resize", DEFAULT_RESIZE if fits else self.imagesize)
        if any(crop > side for crop, side in zip(self.size, pair(self.resize), strict=True)):
            raise InputError(
                f"--imagesize {show_size(self.imagesize)} is larger than --resize {show_size(self.resize)}: "
                "nothing to crop from; leave --resize out, or make it as large"
            )

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """From the configuration in a checkpoint or an exported graph; other keys are ignored."""
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what the model sees."""
        return pair(self.imagesize)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """(H, W) that an image of this size has before the crop, computed as torchvision's Resize does."""
        if not isinstance(self.resize, int):
            return self.resize
        if self.keep_all:
            return self.size
        short, long = min(width, height), max(width, height)
        other = int(self.resize * long / short)
        return (other, self.resize) if width <= height else (self.resize, other)

    def left_out(self, width: int, height: int) -> float:
        """The share, in [0, 1), of an image of this size that the crop removes."""
        rows, columns = self.resized_size(width, height)
        return 1 - min(1, self.size[0] / rows) * min(1, self.size[1] / columns)

    def place(self, anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """An anomaly map (H, W) of what the model saw, on an image of `size` (width, height); 0 outside the crop."""
        height, width = self.resized_size(*size)
        canvas = np.zeros((height, width), np.float32)
        rows, columns = anomaly_map.shape
        # as in torchvision's centre crop, where an image smaller than the crop is padded
        top, left = round((height - rows) / 2), round((width - columns) / 2)
        y, x = max(top, 0), max(left, 0)
        inside = anomaly_map[y - top : y - top + height, x - left : x - left + width]
        canvas[y : y + inside.shape[0], x : x + inside.shape[1]] = inside[: height - y, : width - x]
        return cv2.resize(canvas, size, interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True)
class Tiling:
    """Cuts a large image into overlapping tiles, each of which the model sees whole.

    Attributes:
        tile: (h, w) in pixels of the image.
        box: (h, w) that is cut out for a tile: larger than it if the model crops its input.
        overlap: least share of a tile that is also covered by its neighbour, in [0, 0.75].
    """

    tile: tuple[int, int]
    box: tuple[int, int]
    overlap: float = DEFAULT_OVERLAP

    @classmethod
    def of(cls, geometry: Geometry, tile: int, overlap: float = DEFAULT_OVERLAP) -> Tiling:
        """Tiles whose shorter side is `tile` pixels, in the shape that a model of this geometry sees.

        Raises:
            InputError: the tiles are too small, or the overlap is not in [0, 0.75].
        """
        if tile < 16:
            raise InputError(f"--tile {tile}: a tile needs at least 16 pixels")
        if not 0 <= overlap <= MOST_OVERLAP:
            raise InputError(f"--overlap {overlap:g}: must be a share from 0 to {MOST_OVERLAP:g}")
        scale = tile / min(geometry.size)  # pixels of the image for one of the model
        height, width = (round(scale * side) for side in geometry.size)
        box = tuple(round(scale * side) for side in pair(geometry.resize))
        return cls((height, width), box, overlap)

    def boxes(self, width: int, height: int) -> list[tuple[int, int, int, int]]:
        """(top, left, h, w) of each tile of an image, row by row; a tile extends beyond an image that is smaller."""
        (h, w) = self.tile
        return [(y, x, h, w) for y in self._starts(height, h) for x in self._starts(width, w)]

    def _starts(self, length: int, tile: int) -> list[int]:
        if length <= tile:
            return [(length - tile) // 2]
        overlap = min(math.ceil(self.overlap * tile), tile - 1)
        count = math.ceil((length - overlap) / (tile - overlap))
        return [round(i * (length - tile) / (count - 1)) for i in range(count)]

    def cut(self, pixels: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """The pixels (h, w, 3) that the model is given for a tile; the image is mirrored at its border."""
        top, left, h, w = box
        margin = (self.box[0] - h) // 2, (self.box[1] - w) // 2
        return cut_mirrored(pixels, (top - margin[0], left - margin[1], *self.box))


def cut_mirrored(pixels: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Cut (top, left, h, w) out of an image, which is mirrored where the box extends beyond it."""
    top, left, h, w = box
    height, width = pixels.shape[:2]
    before, after = (max(0, -top), max(0, -left)), (max(0, top + h - height), max(0, left + w - width))
    inside = pixels[max(0, top) : min(height, top + h), max(0, left) : min(width, left + w)]
    if not (any(before) or any(after)):
        return inside
    rows, columns = (
        _mirrored(np.arange(start, start + count), length)
        for start, count, length in ((top, h, height), (left, w, width))
    )
    return pixels[rows[:, None], columns]


def _mirrored(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices beyond both ends reflected inside, without repeating the border pixel: 2 1 | 0 1 2 | 1 0."""
    if length == 1:
        return np.zeros_like(index)
    index = np.abs(index) % (2 * (length - 1))
    return np.where(index < length, index, 2 * (length - 1) - index)


class Blend:
    """Merges the anomaly maps of tiles: where tiles overlap, each has less weight the nearer its own border is.

    The weight is the product of one weight along each axis, and so is its sum over all tiles. Therefore only the
    weighted sum of the maps has to be stored.

    Args:
        tiling: that the tiles come from.
        width, height: of the image.
    """

    def __init__(self, tiling: Tiling, width: int, height: int) -> None:
        self._tiling, self.shape = tiling, (height, width)
        self._sum = np.zeros((height, width), np.float32)
        self._ramps = tuple(_ramp(side, max(1.0, tiling.overlap * side)) for side in tiling.tile)

    def add(self, box: tuple[int, int, int, int], anomaly_map: NDArray[np.float32]) -> None:
        """Add the anomaly map of a tile, which is resized to the tile."""
        top, left, h, w = box
        resized = cv2.resize(anomaly_map, (w, h), interpolation=cv2.INTER_LINEAR)
        resized = resized * self._ramps[0][:, None] * self._ramps[1]
        rows, columns = (
            slice(max(0, start), min(length, start + side))
            for start, side, length in ((top, h, self.shape[0]), (left, w, self.shape[1]))
        )
        inside = resized[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        self._sum[rows, columns] += inside

    def finish(self) -> NDArray[np.float32]:
        """The anomaly map of the whole image, (h, w)."""
        for axis, (length, side, ramp) in enumerate(zip(self.shape, self._tiling.tile, self._ramps, strict=True)):
            weight = np.zeros(length, np.float32)
            for start in self._tiling._starts(length, side):
                first, last = max(0, start), min(length, start + side)
                weight[first:last] += ramp[first - start : last - start]
            self._sum /= weight[:, None] if axis == 0 else weight
        return self._sum


def _ramp(side: int, length: float) -> NDArray[np.float32]:
    """Weights along a side: from 0 at both ends up to 1 within `length`."""
    centres = np.arange(side) + 0.5
    return np.minimum(1, np.minimum(centres, side - centres) / length).astype(np.float32)


def batches(items: list[Any], count: int) -> Iterator[list[Any]]:
    """Items in order, `count` at a time."""
    for start in range(0, len(items), count):
        yield items[start : start + count]


def describe_left_out(geometry: Geometry, sizes: Collection[tuple[int, int]]) -> str:
    """How much the crop leaves out of images of these (width, height), and what helps; "" if it is little."""
    share = fmean(geometry.left_out(*size) for size in sizes) if sizes else 0
    if share < MUCH_LEFT_OUT:
        return ""
    return (
        f"the crop of the centre leaves out {100 * share:.0f} % of a picture on average, where no defect is seen; "
        "--keep_all shows the model the whole picture (--imagesize HxW in its proportions), --tile cuts it into tiles"
    )


def show_size(size: Size) -> str:
    """The size as the options write it: 288 or 256x512."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def pair(size: Size) -> tuple[int, int]:
    """(H, W) of a size, of which a number means a square."""
    return (size, size) if isinstance(size, int) else size
