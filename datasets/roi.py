"""The region of interest: which pixels of a picture are inspected. Needs no torch."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.limits import MAX_PIXELS
from utils import InputError, WorkError, reason_of

MOST_JSON = 1 << 24  # bytes of a file of polygons
FORM = '{"size": [width, height], "polygons": [[[x, y], [x, y], [x, y], …], …]}'


class RegionOfInterest:
    """Which pixels of a picture are inspected, in the picture's geometry.

    Args:
        mask: (h, w) bool, True where it is inspected.
    """

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.mask = mask

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture that it was drawn on."""
        return self.mask.shape[1], self.mask.shape[0]

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the mask."""
        return hashlib.sha256(repr(self.size).encode() + np.packbits(self.mask).tobytes()).hexdigest()[:16]

    def refuse_other(self, size: tuple[int, int]) -> None:
        """Refuse a picture of this (width, height) if it has other proportions.

        Raises:
            WorkError: it has.
        """
        if not fits(self.size, size):
            other = f"the image has {size[0]}x{size[1]}; give images of the same proportions"
            raise WorkError(f"{drawn_on(self.size)}, but {other}")

    def on(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The region on a picture of this (width, height), (h, w) bool.

        Raises:
            WorkError: the picture has other proportions.
        """
        self.refuse_other(size)
        if size == self.size:
            return self.mask
        return cv2.resize(self.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0

    def plain(self) -> dict[str, Any]:
        """The settings of a checkpoint that identify the region."""
        return {"size": list(self.size), "digest": self.digest}

    def packed(self) -> dict[str, Any]:
        """Values for JSON that hold the whole region."""
        bits = zlib.compress(np.packbits(self.mask).tobytes(), 9)
        return {"size": list(self.size), "mask": base64.b64encode(bits).decode("ascii")}

    @classmethod
    def of_packed(cls, values: Mapping[str, Any]) -> RegionOfInterest:
        """From what `packed` gave.

        Raises:
            ValueError: the values are something else.
        """
        size = values["size"]
        reader = zlib.decompressobj()
        bits = reader.decompress(base64.b64decode(values["mask"], validate=True), MAX_PIXELS // 8 + 1)
        return cls.of_bits(np.frombuffer(bits, np.uint8), size)

    @classmethod
    def of_bits(cls, bits: NDArray[np.uint8], size: Sequence[int]) -> RegionOfInterest:
        """From the packed bits of the mask and its (width, height).

        Raises:
            ValueError: they do not fit each other, or nothing is inspected.
        """
        width, height = size
        whole = all(type(side) is int and side > 0 for side in (width, height)) and width * height <= MAX_PIXELS
        if not whole or len(bits) != math.ceil(width * height / 8):
            raise ValueError(f"{len(bits)} bytes are no mask of {width}x{height} pixels")
        mask = np.unpackbits(bits, count=width * height).reshape(height, width) > 0
        if not mask.any():
            raise ValueError("nothing is inspected")
        return cls(mask)


def fits(drawn: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether two (width, height) have the same proportions, up to a pixel of the coarser of both."""
    scale = size[0] / drawn[0]
    return abs(size[1] - drawn[1] * scale) <= max(1.0, scale)


def drawn_on(size: tuple[int, int]) -> str:
    """The beginning of a message about a picture of other proportions."""
    return f"the region of interest was drawn on {size[0]}x{size[1]} pixels"


def refuse_other_proportions(drawn: tuple[int, int], sizes: Mapping[Path, tuple[int, int]]) -> None:
    """Refuse pictures of a data set with other proportions than the region of interest.

    Args:
        drawn: (width, height) of the region.
        sizes: (width, height) of each picture.

    Raises:
        InputError: a picture has other proportions; the message names the first.
    """
    for path, size in sizes.items():
        if not fits(drawn, size):
            other = f"{path} has {size[0]}x{size[1]}; draw it on a picture of the data set"
            raise InputError(f"--roi: {drawn_on(drawn)}, but {other}")


# ------------------------------------------------------------------------------------------ reading


def read_roi(path: Path, max_pixels: int = MAX_PIXELS) -> RegionOfInterest:
    """Read a region of interest: a PNG of 255 (inspected) and 0, or polygons in JSON.

    Args:
        path: of the file; `.json` holds polygons.
        max_pixels: a larger picture is refused.

    Raises:
        InputError: it is neither, or nothing is inspected.
    """
    if not path.is_file():
        raise InputError(
            f"--roi {path}: " + ("it is a folder, not a file" if path.exists() else "there is no such file")
        )
    try:
        mask = _read_polygons(path, max_pixels) if path.suffix.lower() == ".json" else _read_png(path, max_pixels)
    except OSError as error:
        raise InputError(f"--roi {path} cannot be read: {reason_of(error)}") from error
    if not mask.any():
        raise InputError(f"--roi {path} is empty: no pixel is inspected; make what is to be inspected white")
    return RegionOfInterest(mask)


def _read_png(path: Path, max_pixels: int) -> NDArray[np.bool_]:
    expected = "give a PNG of 255 (inspected) and 0 (ignored), or polygons in a file *.json"
    with path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            raise InputError(f"--roi {path} is not a PNG; {expected}")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            _refuse_size(path, image.size, max_pixels)
            if image.has_transparency_data:
                raise InputError(f"--roi {path} has transparent pixels, which say nothing; {expected}")
            values = np.asarray(image.convert("L")) if not image.mode.startswith("I") else np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"--roi {path} is a damaged PNG: {reason_of(error)}; {expected}") from error
    others = np.setdiff1d(values, (0, 255))
    if len(others):
        raise InputError(f"--roi {path} has a pixel of {others[0]}; {expected}")
    return values == 255


def _read_polygons(path: Path, max_pixels: int) -> NDArray[np.bool_]:
    if path.stat().st_size > MOST_JSON:
        raise InputError(f"--roi {path} has more than {MOST_JSON} bytes, too many for polygons")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"--roi {path} is not JSON: {' '.join(str(error).split())}; the form is {FORM}") from error
    size = values.get("size") if isinstance(values, dict) else None
    polygons = values.get("polygons") if isinstance(values, dict) else None
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise InputError(f"--roi {path}: size must be the picture's [width, height] in pixels; the form is {FORM}")
    if not isinstance(polygons, list) or not polygons:
        raise InputError(f"--roi {path}: there are no polygons; the form is {FORM}")
    _refuse_size(path, tuple(size), max_pixels)
    mask = np.zeros(size[::-1], np.uint8)
    for number, polygon in enumerate(polygons, 1):
        points = _points_of(path, number, polygon, size)
        cv2.fillPoly(mask, [points], 1)  # one by one: where two overlap, both are inspected
    return mask > 0


def _points_of(path: Path, number: int, polygon: Any, size: Sequence[int]) -> NDArray[np.int32]:
    """The corners (n, 2) of a polygon, on whole pixels."""
    what = f"--roi {path}: polygon {number}"
    if not isinstance(polygon, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(type(value) in (int, float) for value in point)
        for point in polygon
    ):
        raise InputError(f"{what} is not a list of points [x, y]; the form is {FORM}")
    for x, y in polygon:
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):  # neither is nan
            raise InputError(f"{what}: the point [{x}, {y}] lies outside the picture of {size[0]}x{size[1]} pixels")
    points = np.array(polygon, np.float64).reshape(-1, 2).round().astype(np.int32)
    if len(points) < 3 or cv2.contourArea(points) == 0:
        raise InputError(f"{what} has no area; give at least three points that are not on a line")
    return points


def _refuse_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise InputError(f"--roi {path} has {size[0]}x{size[1]} pixels, more than --max_pixels {max_pixels}")
