"""What a result looks like: map, heatmap, outline and overlay as image files; results kept for a while."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.judge import Judge, Result
from inference.thresholds import normalise
from reporting.drawing import CONTOUR, encode_png, heatmap
from utils import InputError

KEPT_BYTES = 64_000_000
NAMED = Path("picture")  # in the message of an image that cannot be encoded
QUALITY = 88  # of JPEG
KINDS = ("map", "heatmap", "outline", "overlay")


def map_png(result: Result) -> bytes:
    """The anomaly map as 16-bit gray PNG, value / 65535."""
    return encode_png(NAMED, (result.map.clip(0, 1) * 65535 + 0.5).astype(np.uint16))


def map_tiff(result: Result) -> bytes:
    """The anomaly map as float32 TIFF."""
    encoded = io.BytesIO()
    Image.fromarray(result.map).save(encoded, "TIFF", compression="tiff_adobe_deflate")
    return encoded.getvalue()


def heatmap_png(model: Judge, result: Result) -> bytes:
    """The coloured map, with the pixel threshold in the middle of the scale."""
    shown = result.map if model.thresholds is None else normalise(result.map, model.thresholds.pixel)
    return encode_png(NAMED, heatmap(shown))


def outline_png(result: Result) -> bytes:
    """The outline of what is above the pixel threshold, on transparent ground."""
    height, width = result.map.shape
    drawn = np.zeros((height, width, 4), np.uint8)
    if result.mask is not None:
        contours = cv2.findContours(result.mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
        cv2.drawContours(drawn, contours, -1, (*CONTOUR, 255), max(1, round(min(height, width) / 250)))
    return encode_png(NAMED, drawn)


def overlay_png(model: Judge, image: Image.Image, result: Result) -> bytes:
    """The picture under its heatmap, with the outline, as `predict --save` draws it."""
    return encode_png(NAMED, model.overlay(image, result))


def view_jpeg(image: Image.Image, side: int) -> bytes:
    """The picture as JPEG, its longer side at most `side` pixels."""
    shown = image.copy()
    shown.thumbnail((side, side), Image.Resampling.BOX)
    encoded = io.BytesIO()
    shown.save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def read_mask(content: bytes, size: tuple[int, int]) -> bytes:
    """A mask that somebody drew, as PNG of 0 and 255.

    Args:
        content: PNG; above 127 is the defect.
        size: (width, height) of the picture, which the mask must have.

    Raises:
        InputError: it is no PNG, or of another size.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != size:
                raise InputError(
                    f"the mask has {image.size[0]}x{image.size[1]} pixels, its picture {size[0]}x{size[1]}"
                )
            values: NDArray[np.uint8] = np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("the mask is no PNG that can be read") from error
    return encode_png(NAMED, np.where(values > 127, 255, 0).astype(np.uint8))


class Kept:
    """The results of the latest pictures, since whoever sends or opens a picture mostly wants to see its map.

    Args:
        most: bytes of their maps.
    """

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most, self._size, self._lock = most, 0, threading.Lock()
        self._results: OrderedDict[tuple[int, int], Result] = OrderedDict()

    def put(self, picture: int, version: int, result: Result) -> None:
        """Keep a result."""
        with self._lock:
            self._drop((picture, version))
            self._results[picture, version] = result
            self._size += _bytes(result)
            while self._size > self._most and self._results:
                self._drop(next(iter(self._results)))

    def get(self, picture: int, version: int) -> Result | None:
        """A result, if it is still there."""
        with self._lock:
            if (picture, version) in self._results:
                self._results.move_to_end((picture, version))
            return self._results.get((picture, version))

    def _drop(self, key: tuple[int, int]) -> None:
        if key in self._results:
            self._size -= _bytes(self._results.pop(key))


def _bytes(result: Result) -> int:
    return result.map.nbytes + (0 if result.mask is None else result.mask.nbytes)
