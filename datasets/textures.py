"""Texture pictures for local anomalies: files of a folder, or built-in ones that need no download."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from datasets.files import DEFAULT, ReadOptions, image_size, read_rgb
from datasets.listing import describe_other_files, scan_folder
from generation import procedural
from generation.patterns.fields import SIDE
from generation.photos import photo_folder
from utils import LOGGER, InputError

BUILTIN = "builtin"
BUILTIN_COUNT = 530
HINT = f"give a folder of texture pictures, e.g. dtd/images, or the word {BUILTIN}, which needs no folder"


class Textures(Protocol):
    """Pictures by index from 0. `read` does its work anew each time: who needs a picture twice keeps it."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """A path, or a description such as "builtin 17: cracks"."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in pixels, without decoding the picture."""
        ...

    def read(self, index: int) -> Image.Image:
        """The picture as 8-bit RGB."""
        ...

    def digest(self) -> str:
        """What tells one set of textures from another."""
        ...


class FileTextures:
    """Textures in files.

    Args:
        paths: of the pictures, sorted; see `list_textures`.
        reading: how they are read. Their depth is their own: they hardly come from the camera of the class's images.
    """

    def __init__(self, paths: Sequence[Path], reading: ReadOptions = DEFAULT) -> None:
        self.paths, self.reading = list(paths), reading

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path."""
        return str(self.paths[index])

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) as shown, from the header: a picture that its EXIF tag turns by 90° has its sides swapped.

        Raises:
            WorkError: the header cannot be read; the message names the file.
        """
        return image_size(self.paths[index], self.reading)

    def read(self, index: int) -> Image.Image:
        """The picture, the right way up.

        Raises:
            WorkError: it cannot be read; the message names the file.
        """
        return read_rgb(self.paths[index], self.reading)

    def digest(self) -> str:
        """Of names and lengths of the files, so that a folder may move."""
        told = sorted(f"{path.name} {path.stat().st_size}" for path in self.paths)
        return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()[:16]


class BuiltinTextures:
    """Textures made from nothing but a seed: patterns, and the public-domain pictures of scikit-image's wheel.

    A picture depends on seed and index alone. Neighbours are of different kinds; all kinds come equally often.

    Args:
        seed: ≥ 0; another one gives other pictures.

    Raises:
        WorkError: scikit-image is not installed.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._photos = photo_folder()

    def __len__(self) -> int:
        return BUILTIN_COUNT

    def name(self, index: int) -> str:
        """Number and kind, e.g. "builtin 17: zigzag"."""
        return f"{BUILTIN} {index}: {procedural.KINDS[self._kind(index)]}"

    def size(self, index: int) -> tuple[int, int]:
        """(width, height), the same for all."""
        self._kind(index)
        return SIDE, SIDE

    def read(self, index: int) -> Image.Image:
        """The picture, generated in about 20 ms on one core."""
        kind = self._kind(index)
        rng = np.random.default_rng([self.seed, index])
        return Image.fromarray(procedural.draw(rng, kind, self._photos))

    def digest(self) -> str:
        """The seed is all that they come from."""
        return f"{BUILTIN} {self.seed}"

    def _kind(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"texture {index} of {len(self)}")
        return index % len(procedural.KINDS)


def open_textures(aug_path: str | Path, seed: int = 0, reading: ReadOptions = DEFAULT) -> Textures:
    """The textures that an AUG_PATH means.

    Args:
        aug_path: a folder, searched at any depth; or the word `builtin` (`./builtin` is a folder of that name).
        seed: of the built-in ones.
        reading: how files are read.

    Raises:
        InputError: no such folder, or no picture in it.
        WorkError: built-in ones, but scikit-image is not installed.
    """
    # a Path has lost the "./" that tells the folder from the word; only the text still has it
    if aug_path == BUILTIN:
        return BuiltinTextures(seed)
    return FileTextures(list_textures(aug_path), reading)


def list_textures(path: str | Path) -> list[Path]:
    """All pictures below a folder, at any depth, sorted; hidden files and whatever lies in hidden folders left out.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"AUG_PATH {path}: no such folder; {HINT}")
    listing = scan_folder(path, recursive=True)
    if not listing.images:
        raise InputError(f"AUG_PATH {path}: no picture in it at any depth{describe_other_files(path)}; {HINT}")
    if left := listing.describe():
        LOGGER.info("AUG_PATH %s: %s", path, left)
    return listing.images
