"""Finding and reading image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from errors import WorkError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder, sorted by name; hidden ones are left out. [] where there is no folder."""
    if not folder.is_dir():
        return []
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())


def list_folders(folder: Path) -> list[Path]:
    """The visible folders inside a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def read_rgb(path: Path) -> Image.Image:
    """An image as 8-bit RGB.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    image = _read(path)
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits: convert() would cut everything above 255 to white
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise WorkError(f"cannot read image {path}: neither 8 nor 16 bits a channel")
        image = Image.fromarray((values / 257 + 0.5).astype(np.uint8))
    return image.convert("RGB")


def read_mask(path: Path) -> NDArray[np.uint8]:
    """A mask as (H, W) in {0, 1}: 1 where any channel is above 0.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    values = np.asarray(_read(path))  # a palette image gives its indices, of which 0 is normal
    if values.ndim == 3:
        values = values[..., : 1 if values.shape[2] == 2 else 3].any(2)  # not the opacity, which is never 0
    return (values > 0).astype(np.uint8)


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise WorkError(f"cannot read image {path}: {error}") from error
