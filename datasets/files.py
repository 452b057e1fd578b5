"""Reading image files as 8-bit RGB, upright as their EXIF orientation asks for. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from datasets import tiff
from datasets.decoding import FULL_WHITE, UPRIGHT, decode
from datasets.headers import Header, exif_orientation, is_tiff, open_image, parse_header
from datasets.limits import FULL_BITS, MAX_PIXELS
from datasets.listing import has_heif
from utils import WorkError

DARK_BELOW = 1 << 14  # of 16 bits: an image below it may come from a camera with fewer bits
# keys in the `info` of an image, about its file: brighter than the depth allows, several pages, dark throughout
CLIPPED, PAGES, DARK = "glass_clipped", "glass_pages", "glass_dark"


@dataclass(frozen=True)
class ReadOptions:
    """How images are read.

    Attributes:
        bits: bit depth in use in images of more than 8 bits a channel that do not state it themselves, 8 to 16: white
            is 2^bits − 1.
        max_pixels: an image with more pixels is refused, since a forged header could otherwise fill the memory.
    """

    bits: int = FULL_BITS
    max_pixels: int = MAX_PIXELS


DEFAULT = ReadOptions()


def read_rgb(path: Path, reading: ReadOptions = DEFAULT) -> Image.Image:
    """An image as 8-bit RGB, upright; of several pages the first. Opacity is dropped.

    More than 8 bits become v · 255 / (2^bits − 1), rounded; for 16 bits that is v / 257. The image's `info` tells of
    values above that white (CLIPPED), of values that are all dark (DARK), and of several pages (PAGES).

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    with naming_errors(path):
        return decode_rgb(path.read_bytes(), reading)


def decode_rgb(data: bytes, reading: ReadOptions = DEFAULT) -> Image.Image:
    """The content of an image file as `read_rgb` returns it.

    Raises:
        UnidentifiedImageError, OSError, ValueError: it cannot be decoded; a decoder may raise others.
    """
    pixels, white, pages = decode(data, reading.max_pixels)
    info: dict[str, Any] = {} if pages == 1 else {PAGES: pages}
    if isinstance(pixels, np.ndarray):
        image = as_image(pixels, reading.bits) if white is None else Image.fromarray(_scale(pixels, white))
        info |= image.info
    else:
        image = pixels
    image.info.clear()  # or convert() would apply a transparent colour, and others turn the image once more
    image = image.convert("RGB")
    image.info |= info
    return image


def read_peak(path: Path, reading: ReadOptions = DEFAULT) -> int | None:
    """The largest value in an image of more than 8 bits a channel; None where the file itself states its white.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    with naming_errors(path):
        pixels, white, _ = decode(path.read_bytes(), reading.max_pixels)
        undecided = isinstance(pixels, np.ndarray) and pixels.dtype != np.uint8 and white is None
        return int(pixels.max()) if undecided else None


def read_orientation(path: Path, reading: ReadOptions = DEFAULT) -> int:
    """The EXIF orientation of an image, from 1 (upright as stored) to 8.

    Raises:
        WorkError: the header cannot be read; the message names the file.
    """
    with naming_errors(path), path.open("rb") as file:
        image = open_image(file, reading.max_pixels)
        if is_tiff(file):
            with tiff.open_page(file) as page:
                orientation = tiff.orientation(page)
        else:
            orientation = exif_orientation(image, file)
        return orientation if orientation in UPRIGHT else 1


def read_header(path: Path, reading: ReadOptions = DEFAULT) -> Header:
    """Size and kind of pixels of an image, and whether its file seems to be cut off.

    Raises:
        WorkError: the header cannot be read, or states too many pixels; the message names the file.
    """
    with naming_errors(path), path.open("rb") as file:
        return parse_header(file, reading.max_pixels)


def image_size(path: Path, reading: ReadOptions = DEFAULT) -> tuple[int, int]:
    """(width, height) of an image in pixels, upright, without decoding it.

    Raises:
        WorkError: the header cannot be read; the message names the file.
    """
    return read_header(path, reading).size


@contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a WorkError that names it."""
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        with path.open("rb") as file:
            raise WorkError(f"cannot read image {path}: {why_unidentified(file.read(12))}") from error
    except Exception as error:  # a decoder may raise anything on a damaged file
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise WorkError(f"cannot read image {path}: {reason}") from error


def why_unidentified(start: bytes) -> str:
    """Why a file is not recognised as an image, from its first 12 bytes."""
    if not start:
        return "the file is empty"
    if start[4:8] == b"ftyp":
        if has_heif():
            return "a kind of HEIC that pillow-heif does not support, or cut off within its header"
        return "HEIC is read where pillow-heif is installed (pip install pillow-heif)"
    return "not an image of a supported format, or cut off within its header"


def to_8_bits(values: NDArray[Any], bits: int = FULL_BITS) -> NDArray[np.uint8]:
    """More than 8 bits as v · 255 / (2^bits − 1), rounded, which is v / 257 for 16 bits; 8 bits unchanged."""
    return values if values.dtype == np.uint8 else _scale(values, (1 << bits) - 1)


def as_image(values: NDArray[Any], bits: int) -> Image.Image:
    """Pixels of any depth as an 8-bit image, whose `info` tells of values above the white of `bits`, or all dark."""
    image = Image.fromarray(to_8_bits(values, bits))
    if values.dtype != np.uint8 and values.max() >> bits:
        image.info[CLIPPED] = int(values.max())
    elif values.dtype != np.uint8 and bits == FULL_BITS and values.max() < DARK_BELOW:
        image.info[DARK] = int(values.max())
    return image


def _scale(values: NDArray[Any], white: int) -> NDArray[np.uint8]:
    if values.dtype.kind not in "ui" or values.min() < 0 or values.max() > FULL_WHITE:
        raise ValueError("neither 8 nor 16 bits a channel")
    if white == FULL_WHITE:
        return (values / 257 + 0.5).astype(np.uint8)  # convert() would cut everything above 255 to white
    return (np.minimum(values, white) * (255 / white) + 0.5).astype(np.uint8)
