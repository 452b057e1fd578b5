"""The masks of pictures: which file is one, how it lies on its picture, and what is strange about it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.files import (
    DEFAULT,
    SIDEWAYS,
    UPRIGHT,
    ReadOptions,
    image_size,
    list_images,
    look_through,
    read_mask,
    read_mask_values,
    read_orientation,
    read_rgb,
)
from utils import InputError, WorkError

# as tools call the mask of a picture that lies in the same folder: 3_mask.png, 3_GT.png, Part3_label.bmp
OF_PICTURE = re.compile(r"(.+)[_.-](?:mask|gt|label)s?", re.IGNORECASE)
# labels that are no pictures; a text file is one only where it is named like a picture
ANNOTATIONS = frozenset({".json", ".xml", ".npy", ".npz", ".mat"})
NAMED_ANNOTATIONS = frozenset({".txt", ".csv"})
NOT_OF_PICTURES = frozenset({"defects_config.json"})  # of MVTec LOCO AD

MOST = 0.5  # of a picture, more than which a defect hardly ever takes
KINDS = 15  # up to this value a mask may number kinds of defects
# of a copy, also with loss: mean difference of 255, correlation; deviation of a picture that shows something
SAME_LEVELS, ALIKE, PLAIN = 6.0, 0.95, 2.0

# what may be strange about a mask
EMPTY, LOST, COVERS, COPY, LEVELS, TURNED, UNSURE = "empty", "lost", "covers", "copy", "levels", "turned", "unsure"
_LEFT_OUT = "such an image is defective in the image metrics and left out of the pixel metrics"
_SAID = {
    EMPTY: f"marks no pixel, though its image counts as defective; {_LEFT_OUT}",
    LOST: f"keeps no pixel after resizing and crop; {_LEFT_OUT}",
    COVERS: "marks more than half of its picture: all above 0 counts as defect; "
    "is it inverted, or the value of its background not 0?",
    COPY: "is a copy of its picture: all above 0 counts as defect",
    LEVELS: "has more values than two, its meaning is not clear: all above 0 counts as defect, also what loss or soft "
    "edges add",
    TURNED: "lies on the stored pixels of a picture that its EXIF data turns; it is turned with its picture",
    UNSURE: "belongs to a picture that its EXIF data turns, and its size does not tell whether it was drawn on the "
    "picture as it is shown; it is taken so",
}


def describe_masks(remarks: Mapping[str, Sequence[Path]]) -> list[str]:
    """A line for each kind of remark: how many masks it is made of, and the first of them."""
    return [
        f"{_SAID[kind]} ({len(remarks[kind])} masks, the first is {remarks[kind][0]})"
        for kind in _SAID
        if remarks.get(kind)
    ]


# ------------------------------------------------------------------------------------------ finding


def split_masks(paths: Sequence[Path]) -> tuple[list[Path], dict[str, Path]]:
    """The files of a folder that are pictures, and the masks of those among them, by the picture's stem.

    A mask is named like its picture with `_mask`, `_gt` or `_label` behind it, in any letter case.
    """
    stems = {path.stem for path in paths}
    found = {path: match[1] for path in paths if (match := OF_PICTURE.fullmatch(path.stem)) and match[1] in stems}
    return [path for path in paths if path not in found], {stem: path for path, stem in found.items()}


def pair_masks(stems: Iterable[str], masks: Mapping[str, Path]) -> dict[str, Path]:
    """The mask of each picture that has one, by the picture's stem.

    Args:
        stems: of the pictures.
        masks: those of a folder of masks, by their own stem.
    """
    others = {match[1]: path for stem, path in masks.items() if (match := OF_PICTURE.fullmatch(stem))}
    found = {stem: masks.get(f"{stem}_mask") or masks.get(stem) or others.get(stem) for stem in stems}
    return {stem: path for stem, path in found.items() if path is not None}


def find_annotations(folders: Iterable[Path], pictures: Iterable[Path]) -> list[Path]:
    """Files with labels that are no masks, at any depth of folders."""
    stems, found = {path.stem for path in pictures}, set()
    for folder in folders:
        others: list[Path] = []
        with contextlib.suppress(InputError):  # a folder that may not be entered is named elsewhere
            others = look_through(folder, recursive=True).other_files
        for path in others:
            suffix = path.suffix.lower()
            named = suffix in NAMED_ANNOTATIONS and path.stem in stems
            if named or (suffix in ANNOTATIONS and path.name not in NOT_OF_PICTURES):
                found.add(path)
    return sorted(found)


# ------------------------------------------------------------------------------------------ reading


def read_mask_of(path: Path, picture: Path, scaled: bool = False, reading: ReadOptions = DEFAULT) -> NDArray[np.uint8]:
    """A mask as `read_mask` gives it, turned with its picture where its size proves that it was drawn before.

    Args:
        path: of the mask.
        picture: what it belongs to.
        scaled: whether the mask may be larger or smaller than its picture.
        reading: how files are read.

    Raises:
        WorkError: the mask cannot be read; the message names it.
    """
    return _turn_with_picture(read_mask(path, reading), path, picture, scaled, reading)[0]


def lies_on_stored_pixels(path: Path, shape: tuple[int, int], picture: Path, reading: ReadOptions = DEFAULT) -> bool:
    """Whether a mask of `shape` (H, W) is to be turned with its picture."""
    return _how_it_lies(path, shape, picture, False, reading)[0] == TURNED


def _turn_with_picture(
    marked: NDArray[np.uint8], path: Path, picture: Path, scaled: bool, reading: ReadOptions
) -> tuple[NDArray[np.uint8], str | None]:
    """The mask upright, and what is to be said of it."""
    remark, orientation = _how_it_lies(path, marked.shape, picture, scaled, reading)
    if remark == TURNED:
        marked = np.asarray(Image.fromarray(marked).transpose(UPRIGHT[orientation]))
    return marked, remark


def _how_it_lies(
    path: Path, shape: tuple[int, int], picture: Path, scaled: bool, reading: ReadOptions
) -> tuple[str | None, int]:
    """`TURNED`, `UNSURE` or None for a mask of `shape` (H, W), and the orientation of its picture."""
    try:
        orientation = read_orientation(picture, reading)
        if orientation == 1 or any(read_orientation(one, reading) != 1 for one in _files(path)):
            return None, orientation
        width, height = image_size(picture, reading)
    except WorkError:  # what cannot be read is said elsewhere
        return None, 1
    as_shown = _fits(shape, (height, width), scaled)
    as_stored = _fits(shape, (width, height) if orientation in SIDEWAYS else (height, width), scaled)
    if as_shown and as_stored:
        return UNSURE, orientation
    return (TURNED if as_stored else None), orientation


def _fits(shape: tuple[int, int], wanted: tuple[int, int], scaled: bool) -> bool:
    if not scaled:
        return tuple(shape) == wanted
    factor = shape[1] / wanted[1]
    return abs(shape[0] - wanted[0] * factor) <= max(1, factor)


def _files(path: Path) -> list[Path]:
    """The files of a mask, which may be a folder of several."""
    return list_images(path) if path.is_dir() else [path]


# ----------------------------------------------------------------------------------- what is strange


def examine(path: Path, picture: Path, reading: ReadOptions = DEFAULT) -> tuple[NDArray[np.uint8], list[str]]:
    """The mask of a defective picture as `read_mask_of`, and what is strange about it.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    marked, values = read_mask_values(path, reading)
    levels = _levels(values)
    marked, remark = _turn_with_picture(marked, path, picture, False, reading)
    remarks = [remark] if remark else []
    covers = float(marked.mean()) > MOST
    unclear = len(levels) > 2 and not (levels[0] == 0 and levels[-1] <= KINDS)
    if not marked.any():
        remarks.append(EMPTY)
    elif (covers or unclear) and _is_copy(path, picture, reading):
        remarks.append(COPY)
    else:
        remarks += [COVERS] * covers + [LEVELS] * unclear
    return marked, remarks


def _levels(values: NDArray) -> NDArray:
    """The distinct values, ascending; of whole numbers by counting, which is faster than sorting."""
    if values.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(np.bincount(values.ravel()))
    return np.unique(values)


def _is_copy(path: Path, picture: Path, reading: ReadOptions) -> bool:
    """Whether a mask shows what its picture shows, saved with loss or without colours too."""
    if path.is_dir():
        return False
    mask, image = (np.asarray(read_rgb(one, reading).convert("L"), np.float32) for one in (path, picture))
    if mask.shape != image.shape or min(mask.std(), image.std()) < PLAIN or np.abs(mask - image).mean() > SAME_LEVELS:
        return False
    return float(np.corrcoef(mask.ravel(), image.ravel())[0, 1]) > ALIKE
