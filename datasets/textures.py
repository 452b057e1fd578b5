"""Textures for synthetic local anomalies: image files of a folder, or built-in ones that need no download."""

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
HINT = f"give a folder of texture images, e.g. dtd/images, or the word {BUILTIN}, which needs no folder"


class Textures(Protocol):
    """Textures by index, from 0. `read` reads or draws the image each time, without keeping it."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Its path, or a description such as "builtin 17: cracks"."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in pixels, without decoding the image."""
        ...

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB."""
        ...

    def digest(self) -> str:
        """Identifies the set of textures."""
        ...


class FileTextures:
    """Textures in files.

    Args:
        paths: of the images, sorted; see `list_textures`.
        reading: how they are read; not necessarily with the bit depth of the class's images, which come from another
            camera.
    """

    def __init__(self, paths: Sequence[Path], reading: ReadOptions = DEFAULT) -> None:
        self.paths, self.reading = list(paths), reading

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path."""
        return str(self.paths[index])

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) upright, from the header.

        Raises:
            WorkError: the header cannot be read; the message names the file.
        """
        return image_size(self.paths[index], self.reading)

    def read(self, index: int) -> Image.Image:
        """The image, upright.

        Raises:
            WorkError: it cannot be read; the message names the file.
        """
        return read_rgb(self.paths[index], self.reading)

    def digest(self) -> str:
        """Of names and lengths of the files, so that the folder may be moved."""
        entries = sorted(f"{path.name} {path.stat().st_size}" for path in self.paths)
        return hashlib.sha256("\n".join(entries).encode("utf-8", "surrogateescape")).hexdigest()[:16]


class BuiltinTextures:
    """Procedural textures: patterns, and photographs in the public domain from scikit-image's wheel.

    A texture depends on seed and index alone. Neighbours are of different kinds, and all kinds are equally frequent.

    Args:
        seed: ≥ 0; another seed gives other textures.

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
        """The texture, drawn in about 20 ms on one core."""
        kind = self._kind(index)
        rng = np.random.default_rng([self.seed, index])
        return Image.fromarray(procedural.draw(rng, kind, self._photos))

    def digest(self) -> str:
        """The seed, which determines all textures."""
        return f"{BUILTIN} {self.seed}"

    def _kind(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"texture {index} of {len(self)}")
        return index % len(procedural.KINDS)


def open_textures(aug_path: str | Path, seed: int = 0, reading: ReadOptions = DEFAULT) -> Textures:
    """The textures that an AUG_PATH stands for.

    Args:
        aug_path: a folder, searched at any depth; or the word `builtin` (`./builtin` is a folder of that name).
        seed: of the built-in textures.
        reading: how image files are read.

    Raises:
        InputError: there is no such folder, or no image in it.
        WorkError: the built-in textures are requested, but scikit-image is not installed.
    """
    # compared as text, because a Path drops the "./" that tells the folder from the word
    if aug_path == BUILTIN:
        return BuiltinTextures(seed)
    return FileTextures(list_textures(aug_path), reading)


def list_textures(path: str | Path) -> list[Path]:
    """All image files below a folder, at any depth, sorted, without hidden files and folders.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"AUG_PATH {path}: no such folder; {HINT}")
    listing = scan_folder(path, recursive=True)
    if not listing.images:
        raise InputError(f"AUG_PATH {path}: no picture in it at any depth{describe_other_files(path)}; {HINT}")
    if not_taken := listing.describe():
        LOGGER.info("AUG_PATH %s: %s", path, not_taken)
    return listing.images
