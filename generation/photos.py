"""Photographs in the public domain that scikit-image's wheel contains, as surfaces for textures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from generation.patterns.fields import CANVAS, Rng
from utils import WorkError


class Photo(NamedTuple):
    """A photograph in scikit-image's wheel.

    file: its name in the data folder.
    box: (left, top, right, bottom) of the part that is used, as shares of width and height.
    """

    file: str
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)


# those in the wheel that scikit-image's own notes (skimage/data/_fetchers.py, 0.25.2) call CC0 or public domain
PHOTOS: tuple[tuple[str, Photo], ...] = (
    ("brick", Photo("brick.png")),  # CC0, CC0Textures "Bricks25"
    ("grass", Photo("grass.png")),  # CC0, linolafett
    ("gravel", Photo("gravel.png")),  # CC0, CC0Textures "Gravel04"
    ("fur", Photo("chelsea.png", (0.0, 0.45, 1.0, 1.0))),  # CC0, Stefan van der Walt
    ("lawn", Photo("camera.png", (0.0, 0.72, 1.0, 1.0))),  # CC0, Lav Varshney
    ("table", Photo("coffee.png", (0.0, 0.0, 0.45, 1.0))),  # CC0, Rachel Michetti
    ("tissue", Photo("retina.jpg", (0.18, 0.18, 0.82, 0.82))),  # CC0, Häggström in WikiJournal of Medicine
    ("stars", Photo("hubble_deep_field.jpg")),  # public domain, NASA
    ("print", Photo("text.png")),  # public domain, Wikipedia "Corner.png"
)


def photo_folder() -> Path:
    """The data folder of scikit-image, which is located but not imported, so that nothing accesses the network.

    Raises:
        WorkError: scikit-image or one of its photographs is not installed.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise WorkError("AUG_PATH builtin: scikit-image is not installed; pip install -r requirements.txt")
    folder = Path(found.submodule_search_locations[0]) / "data"
    missing = [photo.file for _, photo in PHOTOS if not (folder / photo.file).is_file()]
    if missing:
        raise WorkError(f"AUG_PATH builtin: {folder} lacks {', '.join(missing)}; pip install -r requirements.txt")
    return folder


def crop_photo(rng: Rng, photo: Photo, folder: Path) -> NDArray[np.uint8]:
    """A random crop of a photograph, resized and mirrored to (CANVAS, CANVAS) or (CANVAS, CANVAS, 3).

    Args:
        rng: of all random draws.
        photo: which one.
        folder: `photo_folder()`.
    """
    with Image.open(folder / photo.file) as image:
        image.draft(None, (600, 600))  # a large JPEG is decoded small
        width, height = image.size
        left, top, right, bottom = (round(s * n) for s, n in zip(photo.box, (width, height) * 2, strict=True))
        side = round(min(right - left, bottom - top) * rng.uniform(0.5, 1))
        x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(top, bottom - side + 1))
        crop = np.asarray(image.crop((x, y, x + side, y + side)))
    target = round(CANVAS * rng.choice([1.0, rng.uniform(0.3, 1)]))
    crop = cv2.resize(crop, (target, target), interpolation=cv2.INTER_AREA if target < side else cv2.INTER_CUBIC)
    crop = np.rot90(crop, rng.integers(4))[:: rng.choice([-1, 1])]
    rest = CANVAS - target
    return cv2.copyMakeBorder(np.ascontiguousarray(crop), 0, rest, 0, rest, cv2.BORDER_REFLECT)
