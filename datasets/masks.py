"""The masks of images: which file is a mask, its pixels, how it lies on its image, and what is suspicious about it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.decoding import UPRIGHT, decode, decode_opacity
from datasets.files import DEFAULT, ReadOptions, image_size, naming_errors, read_orientation, read_rgb
from datasets.headers import SIDEWAYS
from datasets.listing import list_images, scan_folder
from utils import InputError, WorkError

# how tools name the mask of an image in the same folder: 3_mask.png, 3_GT.png, Part3_label.bmp
MASK_OF_IMAGE = re.compile(r"(.+)[_.-](?:mask|gt|label)s?", re.IGNORECASE)
# labels in other forms than images; a text file counts only if it is named like an image
ANNOTATIONS = frozenset({".json", ".xml", ".npy", ".npz", ".mat"})
NAMED_ANNOTATIONS = frozenset({".txt", ".csv"})
NOT_OF_IMAGES = frozenset({"defects_config.json"})  # of MVTec LOCO AD

MOST = 0.5  # of an image; a defect hardly ever covers more
KINDS = 15  # the values of a mask up to this one may number kinds of defects
# a mask is a copy of its image, possibly saved with loss: mean difference of 255, correlation; and the least standard
# deviation of an image that shows anything
SAME_LEVELS, ALIKE, PLAIN = 6.0, 0.95, 2.0

# what may be suspicious about a mask
EMPTY, LOST, COVERS, COPY, LEVELS, TURNED, UNSURE = "empty", "lost", "covers", "copy", "levels", "turned", "unsure"
_LEFT_OUT = "such an image counts as defective in the image metrics and is left out of the pixel metrics"
_DESCRIPTIONS = {
    EMPTY: f"marks no pixel, though its image counts as defective; {_LEFT_OUT}",
    LOST: f"keeps no pixel after resizing and crop; {_LEFT_OUT}",
    COVERS: "marks more than half of its image: all above 0 counts as defect; "
    "is it inverted, or the value of its background not 0?",
    COPY: "is a copy of its image: all above 0 counts as defect",
    LEVELS: "has more than two values, so that its meaning is unclear: all above 0 counts as defect, including what "
    "lossy compression or soft edges add",
    TURNED: "lies on the stored pixels of an image that its EXIF data turn; it is turned with its image",
    UNSURE: "belongs to an image that its EXIF data turn, and its size does not tell whether it was drawn on the "
    "image as it is shown; it is taken as if it was",
}


def describe_masks(remarks: Mapping[str, Sequence[Path]]) -> list[str]:
    """A line for each kind of remark: what is suspicious, how many masks it concerns, and the first of them."""
    return [
        f"{_DESCRIPTIONS[kind]} ({len(remarks[kind])} masks, the first is {remarks[kind][0]})"
        for kind in _DESCRIPTIONS
        if remarks.get(kind)
    ]


# ------------------------------------------------------------------------------------------ finding


def split_masks(paths: Sequence[Path]) -> tuple[list[Path], dict[str, Path]]:
    """The files of a folder that are images, and the masks beside them, by the stem of their image.

    A mask is named like its image with `_mask`, `_gt` or `_label` appended, in any letter case.
    """
    stems = {path.stem for path in paths}
    image_stems = {
        path: match[1] for path in paths if (match := MASK_OF_IMAGE.fullmatch(path.stem)) and match[1] in stems
    }
    return [path for path in paths if path not in image_stems], {stem: path for path, stem in image_stems.items()}


def pair_masks(stems: Iterable[str], masks: Mapping[str, Path]) -> dict[str, Path]:
    """The mask of each image that has one, by the stem of the image.

    Args:
        stems: of the images.
        masks: the masks of a folder, by their own stem.
    """
    by_image = {match[1]: path for stem, path in masks.items() if (match := MASK_OF_IMAGE.fullmatch(stem))}
    pairs = {stem: masks.get(f"{stem}_mask") or masks.get(stem) or by_image.get(stem) for stem in stems}
    return {stem: path for stem, path in pairs.items() if path is not None}


def find_annotations(folders: Iterable[Path], images: Iterable[Path]) -> list[Path]:
    """Files with labels that are not masks, at any depth below the folders."""
    stems, annotations = {path.stem for path in images}, set()
    for folder in folders:
        other_files: list[Path] = []
        with contextlib.suppress(InputError):  # a folder that may not be entered is reported elsewhere
            other_files = scan_folder(folder, recursive=True).other_files
        for path in other_files:
            suffix = path.suffix.lower()
            named_like_image = suffix in NAMED_ANNOTATIONS and path.stem in stems
            if named_like_image or (suffix in ANNOTATIONS and path.name not in NOT_OF_IMAGES):
                annotations.add(path)
    return sorted(annotations)


# ------------------------------------------------------------------------------------------- pixels


def read_mask(path: Path, reading: ReadOptions = DEFAULT) -> NDArray[np.uint8]:
    """A mask as (H, W) in {0, 1}, upright: 1 where any channel is above 0, in a palette image where its colour is.

    A palette image that has no black counts by its indices, of which 0 is normal. Where the opacity differs from
    pixel to pixel, fully transparent pixels are normal. Of a folder it is the union of the masks in it.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    return read_mask_values(path, reading)[0]


def read_mask_values(path: Path, reading: ReadOptions = DEFAULT) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """As `read_mask`, and the pixel values (H, W) that it comes from: of colours the highest channel.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    if path.is_dir():
        return _union_of_masks(path, reading)
    with naming_errors(path):
        data = path.read_bytes()
        pixels = decode(data, reading.max_pixels).pixels
        opacity = None
        if isinstance(pixels, np.ndarray) or pixels.has_transparency_data:
            opacity = decode_opacity(data, reading.max_pixels)
        values = pixels if isinstance(pixels, np.ndarray) else _values_of(pixels)
    if values.ndim == 3:
        values = values[..., : 1 if values.shape[2] == 2 else 3]
        marked, values = values.any(2), values.max(2)
    else:
        marked = values > 0
    if opacity is not None and opacity.shape == marked.shape:
        marked, values = _apply_opacity(marked, values, opacity)
    return marked.astype(np.uint8), values


def _values_of(image: Image.Image) -> NDArray[Any]:
    """The pixel values of a mask with 8 bits a channel, (H, W) or (H, W, C)."""
    if image.mode == "CMYK":
        return np.asarray(image.convert("RGB"))  # its values are ink, of which there is none where the mask is white
    if image.mode not in ("P", "PA"):
        return np.asarray(image)
    image.info.clear()  # a transparent colour counts as any other
    colours, indices = np.asarray(image.convert("RGB")), np.asarray(image)
    return colours if (colours == 0).all(2).any() else indices.reshape(*colours.shape[:2], -1)[..., 0]


def _union_of_masks(folder: Path, reading: ReadOptions) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    masks = [read_mask_values(path, reading) for path in list_images(folder)]
    if not masks:
        raise WorkError(f"cannot read image {folder}: the folder has no mask in it")
    if len({marked.shape for marked, _ in masks}) > 1:
        raise WorkError(f"cannot read image {folder}: the masks in it have different sizes")
    return np.max([marked for marked, _ in masks], axis=0), np.max([values for _, values in masks], axis=0)


def _apply_opacity(
    marked: NDArray[np.bool_], values: NDArray[Any], opacity: NDArray[np.uint8]
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """What is marked where the opacity differs from pixel to pixel, and the values that mark it."""
    visible = opacity > 0
    if not visible.any() and (values != values.flat[0]).any():
        return marked, values  # an opacity that nobody set
    if (marked & visible).any():
        return marked & visible, np.where(visible, values, 0)
    return visible, opacity  # drawn in black, or nothing drawn


# ------------------------------------------------------------------------------ position on the image


def read_mask_of(path: Path, image: Path, scaled: bool = False, reading: ReadOptions = DEFAULT) -> NDArray[np.uint8]:
    """A mask as `read_mask`, turned with its image where its size proves that it was drawn on the stored pixels.

    Args:
        path: of the mask.
        image: that it belongs to.
        scaled: whether the mask may be larger or smaller than its image.
        reading: how files are read.

    Raises:
        WorkError: the mask cannot be read; the message names it.
    """
    return _turn_with_image(read_mask(path, reading), path, image, scaled, reading)[0]


def lies_on_stored_pixels(path: Path, shape: tuple[int, int], image: Path, reading: ReadOptions = DEFAULT) -> bool:
    """Whether a mask of `shape` (H, W) has to be turned with its image."""
    return _position(path, shape, image, False, reading)[0] == TURNED


def _turn_with_image(
    marked: NDArray[np.uint8], path: Path, image: Path, scaled: bool, reading: ReadOptions
) -> tuple[NDArray[np.uint8], str | None]:
    """The mask upright, and a remark on its position."""
    remark, orientation = _position(path, marked.shape, image, scaled, reading)
    if remark == TURNED:
        marked = np.asarray(Image.fromarray(marked).transpose(UPRIGHT[orientation]))
    return marked, remark


def _position(
    path: Path, shape: tuple[int, int], image: Path, scaled: bool, reading: ReadOptions
) -> tuple[str | None, int]:
    """`TURNED`, `UNSURE` or None for a mask of `shape` (H, W), and the orientation of its image."""
    mask_files = list_images(path) if path.is_dir() else [path]
    try:
        orientation = read_orientation(image, reading)
        if orientation == 1 or any(read_orientation(file, reading) != 1 for file in mask_files):
            return None, orientation
        width, height = image_size(image, reading)
    except WorkError:  # a file that cannot be read is reported elsewhere
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


# -------------------------------------------------------------------------------------- examination


def examine(path: Path, image: Path, reading: ReadOptions = DEFAULT) -> tuple[NDArray[np.uint8], list[str]]:
    """The mask of a defective image as `read_mask_of`, and what is suspicious about it.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    marked, values = read_mask_values(path, reading)
    levels = _levels(values)
    marked, remark = _turn_with_image(marked, path, image, False, reading)
    remarks = [remark] if remark else []
    covers = float(marked.mean()) > MOST
    unclear = len(levels) > 2 and not (levels[0] == 0 and levels[-1] <= KINDS)
    if not marked.any():
        remarks.append(EMPTY)
    elif (covers or unclear) and _is_copy(path, image, reading):
        remarks.append(COPY)
    else:
        remarks += [COVERS] * covers + [LEVELS] * unclear
    return marked, remarks


def _levels(values: NDArray) -> NDArray:
    """The distinct values, ascending; integers are counted, which is faster than sorting."""
    if values.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(np.bincount(values.ravel()))
    return np.unique(values)


def _is_copy(path: Path, image: Path, reading: ReadOptions) -> bool:
    """Whether a mask shows the same as its image, even if it was saved with loss or without colours."""
    if path.is_dir():
        return False
    mask, shown = (np.asarray(read_rgb(file, reading).convert("L"), np.float32) for file in (path, image))
    if mask.shape != shown.shape or min(mask.std(), shown.std()) < PLAIN or np.abs(mask - shown).mean() > SAME_LEVELS:
        return False
    return float(np.corrcoef(mask.ravel(), shown.ravel())[0, 1]) > ALIKE
