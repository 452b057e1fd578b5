"""Texture pictures for local anomalies."""

from __future__ import annotations

from pathlib import Path

from datasets.files import list_images
from errors import InputError


def list_textures(path: str | Path) -> list[Path]:
    """All pictures below a folder, at any depth, sorted.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"AUG_PATH {path}: no such folder; give a folder of texture pictures, e.g. dtd/images")
    found = list_images(path, recursive=True)
    if not found:
        raise InputError(f"AUG_PATH {path}: no picture in it at any depth; give a folder of texture pictures")
    return found
