"""From a file, an array or a PIL image to the 8-bit RGB image that a model judges. Needs no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from datasets.files import CLIPPED, DARK, DEFAULT, PAGES, ReadOptions, as_image, read_rgb
from utils import InputError, WorkError

SMALLEST = 8  # pixels; an image with a shorter side shows nothing that could be judged
NOTES = (CLIPPED, PAGES, DARK)  # keys of PIL's `info` in which reading leaves what the user should know

ImageSource = str | Path | NDArray[np.uint8] | NDArray[np.uint16] | Image.Image


def open_rgb(source: ImageSource, reading: ReadOptions = DEFAULT) -> Image.Image:
    """Open an image as 8-bit RGB.

    Args:
        source: a file; an array of (h, w, 3) RGB or (h, w) gray, uint8 or uint16; or a PIL image.
        reading: bit depth and size limit.

    Raises:
        InputError: it is none of these.
        WorkError: the file cannot be read, or the image is too small.
    """
    if isinstance(source, Image.Image):
        image = _from_pil(source, reading.bits)
    elif isinstance(source, np.ndarray):
        image = _from_array(source, reading.bits)
    elif isinstance(source, (str, os.PathLike)):
        image = read_rgb(Path(source), reading)
    else:
        raise InputError(
            f"{type(source).__name__} is not an image; possible: a path, a PIL image, or a NumPy array of (h, w, 3) "
            "RGB or (h, w) gray"
        )
    if min(image.size) < SMALLEST:
        raise WorkError(
            f"an image of {image.size[0]}x{image.size[1]} pixels is too small to be judged; each side needs at least "
            f"{SMALLEST}"
        )
    return image


def _from_array(values: NDArray[Any], bits: int) -> Image.Image:
    right_shape = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3))
    if values.dtype not in (np.uint8, np.uint16) or not right_shape or not values.size:
        raise InputError(
            f"an array of {values.dtype} and shape {values.shape} is not an image; possible: uint8 or uint16 of "
            "(h, w, 3) RGB or (h, w) gray"
        )
    gray = values.ndim == 2 or values.shape[2] == 1
    return _to_rgb(as_image(values.reshape(values.shape[:2]) if gray else values, bits))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB and keep the notes about the file."""
    notes = {key: value for key, value in image.info.items() if key in NOTES}
    converted = image.convert("RGB")
    converted.info |= notes
    return converted


def _from_pil(image: Image.Image, bits: int) -> Image.Image:
    """A PIL image as `datasets.files.read_rgb` reads its file; an upright RGB image is not copied."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise WorkError(f"the image cannot be read: {error}") from error
    if image.mode.startswith("I;16"):
        image = as_image(np.asarray(image, np.uint16), bits)
    elif image.mode in ("I", "F"):
        raise InputError(f"a PIL image of mode {image.mode} does not define which value is white; give 8 or 16 bits")
    upright = ImageOps.exif_transpose(image) if image.getexif() else image
    return upright if upright.mode == "RGB" else _to_rgb(upright)
