"""Finding image files in folders. Needs no torch."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from utils import InputError

SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".j2k", ".pgm", ".ppm", ".pnm",
    ".pbm",
})  # fmt: skip
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
# stems of files that are common beside images and are not worth reporting
UNREPORTED = frozenset({"readme", "license", "licence", "thumbs", "desktop"})


@dataclass
class Listing:
    """The visible files of a folder.

    Attributes:
        images: the image files, sorted by name.
        other_files: the files that are not images, sorted by name.
        closed: the folders that may not be entered, sorted by name.
    """

    images: list[Path] = field(default_factory=list)
    other_files: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)

    def describe(self, reported: Iterable[Path] = ()) -> str:
        """One line about the files that were not taken as images; "" if there are none.

        Args:
            reported: files that the caller reports elsewhere, which are left out here.
        """
        parts, reported = [], set(reported)
        counts = Counter(path.suffix.lower() for path in self.other_files if path not in reported)
        if counts:
            listed = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in counts.most_common())
            parts.append(f"files not taken: {listed}")
            if any(suffix in HEIF_SUFFIXES for suffix in counts):
                parts.append("HEIC is read where pillow-heif is installed (pip install pillow-heif)")
        if self.closed:
            more = f" and {len(self.closed) - 1} more" if len(self.closed) > 1 else ""
            parts.append(f"folders that may not be entered: {self.closed[0]}{more}")
        return "; ".join(parts)


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder, sorted by name, without hidden files and folders; [] if there is no such folder.

    A broken link counts as a file, so that reading it reports the error.
    """
    return scan_folder(folder, recursive).images


def scan_folder(folder: Path, recursive: bool = False) -> Listing:
    """All visible files of a folder; with `recursive` at any depth, following links, each folder once.

    Raises:
        InputError: the folder itself may not be entered.
    """
    listing = Listing()
    if not folder.is_dir():
        return listing
    ancestors = {_identity(parent) for parent in folder.resolve().parents}
    folders, links, seen, behind_link = [folder], [], {_identity(folder)}, False
    while folders or links:
        # links are followed last, so that a folder is listed under its own path rather than under that of a link
        behind_link = behind_link or not folders
        current = folders.pop() if folders else links.pop(0)
        if current != folder:
            identity = _identity(current)
            if behind_link and (identity in seen or identity in ancestors):
                continue
            seen.add(identity)
        try:
            entries = [entry for entry in os.scandir(current) if not entry.name.startswith(".")]
        except OSError as error:
            if current == folder:
                raise InputError(f"{folder} may not be entered: {error.strerror}") from error
            listing.closed.append(current)
            continue
        for entry in entries:
            path = current / entry.name
            if not _is_folder(entry):
                _add_file(listing, path, entry)
            elif recursive:
                (links if entry.is_symlink() else folders).append(path)
        links.sort()
    listing.images.sort()
    listing.other_files.sort()
    listing.closed.sort()
    return listing


def list_folders(folder: Path) -> list[Path]:
    """The visible subfolders that may be entered, sorted by name."""
    return [path for path in _subfolders(folder) if _may_enter(path)]


def closed_folders(folder: Path) -> list[Path]:
    """The visible subfolders that may not be entered, sorted by name."""
    return [path for path in _subfolders(folder) if not _may_enter(path)]


def describe_other_files(folder: Path) -> str:
    """What a folder without images contains instead, at any depth: the end of an error message, or ""."""
    described = scan_folder(folder, recursive=True).describe() if folder.is_dir() else ""
    return f" ({described})" if described else ""


def image_suffixes() -> frozenset[str]:
    """The suffixes of image files, in lower case."""
    return SUFFIXES | HEIF_SUFFIXES if has_heif() else SUFFIXES


@functools.cache
def has_heif() -> bool:
    """Whether pillow-heif, which reads HEIC images, is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _is_folder(path))


def _may_enter(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
            return os.access(folder, os.X_OK)
    except OSError:
        return False


def _is_folder(path: Path | os.DirEntry) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link into a folder that may not be entered
        return False


def _identity(path: Path) -> tuple[int, int]:
    """What tells a folder from others, whichever path leads to it."""
    try:
        status = os.stat(path)
    except OSError:
        return (-1, hash(path))
    return status.st_dev, status.st_ino


def _add_file(listing: Listing, path: Path, entry: os.DirEntry) -> None:
    """Add a file to the images or to the other files of a listing."""
    if path.suffix.lower() in image_suffixes():
        try:
            is_image = entry.is_file() or (entry.is_symlink() and not path.exists())
        except OSError:  # its status cannot be read; reading the file will report why
            is_image = True
        if is_image:
            listing.images.append(path)
    elif path.stem.lower() not in UNREPORTED:
        listing.other_files.append(path)
