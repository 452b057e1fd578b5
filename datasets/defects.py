"""Known defects, given by the user, that are drawn in place of textures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datasets.base import Sample
from datasets.files import DEFAULT, ReadOptions, read_rgb
from datasets.listing import describe_other_files, list_images, scan_folder
from datasets.masks import read_mask_of, split_masks
from datasets.settings import ImageSettings, normalise
from utils import LOGGER, InputError, progress_bar

MASK_FOLDERS = frozenset({"ground_truth", "masks"})
ENDINGS = ("_mask", "")  # that the name of a mask adds to that of its image
SCALES = (0.7, 1.3)
MAX_DRAWS = 50
# mean difference of 255: more than the loss of a JPEG, less than between two photographs of one part; less where the
# position is searched for
SAME_LEVELS, SAME_LEVELS_OF_PART = 2.0, 1.0
ALIKE_SMALL = 0.5  # correlation of reduced copies, below which the full size is not compared
REDUCED_SIDE, LEAST_REDUCED_SIDE = 256, 16  # pixels, of the reduced image and part
PLAIN = 2.0  # standard deviation below which a part looks like any other
WHOLE = 0.5  # of the area of a training image: a smaller image is a patch

Pair = tuple[Path, Path | None]  # an image and its mask


def list_defects(folder: str | Path) -> list[Pair]:
    """The images of defects below a folder, at any depth, each with its mask if there is one.

    The mask of `DIR/scratch/3.png` is `DIR/scratch/3_mask.png` (or `_gt`, `_label`), or
    `DIR/ground_truth/scratch/3.png` or `DIR/masks/scratch/3.png`, there with or without `_mask`, or there a folder `3`
    of several masks.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--defects {folder}: no such folder; give a folder of images that show defects")
    listing = scan_folder(folder, recursive=True)
    files = listing.images
    if files and (left := listing.describe()):
        LOGGER.info("--defects %s: %s", folder, left)
    by_name = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
    beside = _masks_beside(files)
    images, masks = [], []
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        in_mask_folder = not MASK_FOLDERS.isdisjoint(path.relative_to(folder).parts[:-1])
        if in_mask_folder:
            by_name.setdefault(path.parent.relative_to(folder).as_posix(), path.parent)  # several masks of one image
        is_mask = in_mask_folder or path in beside.values() or name.endswith("_mask")
        (masks if is_mask else images).append((path, name))
    pairs = [
        (
            path,
            beside.get((path.parent, path.stem))
            or _first_existing(by_name, [f"{place}/{name}{end}" for place in sorted(MASK_FOLDERS) for end in ENDINGS]),
        )
        for path, name in images
    ]
    if not pairs:
        raise InputError(f"--defects {folder}: no picture in it at any depth{describe_other_files(folder)}")
    used = {mask for _, mask in pairs}
    unused = sorted(path for path, _ in masks if used.isdisjoint((path, path.parent)))
    if unused:
        LOGGER.warning("--defects: %d masks belong to no image, such as %s", len(unused), unused[0])
    return pairs


def _masks_beside(files: Sequence[Path]) -> dict[tuple[Path, str], Path]:
    """The masks in the same folder as their image, by the folder and the stem of the image."""
    beside = {}
    for folder in dict.fromkeys(path.parent for path in files):
        masks = split_masks([path for path in files if path.parent == folder])[1]
        beside |= {(folder, stem): mask for stem, mask in masks.items()}
    return beside


def _first_existing(files: Mapping[str, Path], names: Sequence[str]) -> Path | None:
    return next((files[name] for name in names if name in files), None)


def of_class(pairs: Sequence[Pair], folder: str | Path, name: str, classes: Sequence[str]) -> list[Pair]:
    """The defects of a class: those in `folder/<name>/` if there are any, otherwise those in the folder of no class."""
    parts = [path.relative_to(folder).parts for path, _ in pairs]
    of_this_class = [pair for pair, at in zip(pairs, parts, strict=True) if len(at) > 1 and at[0] == name]
    return of_this_class or [
        pair for pair, at in zip(pairs, parts, strict=True) if len(at) == 1 or at[0] not in classes
    ]


def refuse_test_images(defects: Sequence[Pair], test: Sequence[Sample], reading: ReadOptions = DEFAULT) -> None:
    """Refuse known defects that the test set shows too, since they would invalidate the metrics.

    This finds copies, even if they were saved again with loss, and parts cut out of a test image without much loss,
    but nothing that was rotated or resized.

    Raises:
        InputError: a defect is a test image or a part of one; the message names the first.
    """
    if not defects:
        return
    known = [(path, _Reduced(_gray(path, reading))) for path, _ in defects]
    with progress_bar(len(test), "img", "known defects against test images", leave=False) as bar:
        for sample in test:
            image = _Reduced(_gray(sample.path, reading))
            for path, defect in known:
                _refuse_same(path, defect, sample.path, image)
            bar.update(1)


def _refuse_same(path: Path, defect: _Reduced, image_path: Path, image: _Reduced) -> None:
    same_shape = defect.full.shape == image.full.shape
    if same_shape and np.abs(defect.full - image.full).mean() < SAME_LEVELS:
        raise InputError(f"--defects: {path} is the test image {image_path}; remove it from one of the two")
    if _is_part(defect, image):
        raise InputError(f"--defects: {path} is a part of the test image {image_path}; remove it")


def _gray(path: Path, reading: ReadOptions) -> NDArray[np.float32]:
    return np.asarray(read_rgb(path, reading).convert("L"), np.float32)


class _Reduced:
    """A gray image (H, W) and its reduced copies, each of which is made once."""

    def __init__(self, full: NDArray[np.float32]) -> None:
        self.full, self.deviation = full, float(full.std())
        self._copies: dict[float, NDArray[np.float32]] = {1.0: full}

    def by(self, factor: float) -> NDArray[np.float32]:
        """The copy whose sides are `factor` times shorter."""
        if factor not in self._copies:
            self._copies[factor] = cv2.resize(
                self.full, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA
            )
        return self._copies[factor]


def _is_part(part: _Reduced, image: _Reduced) -> bool:
    """Whether a smaller image was cut out of a larger one: searched for in reduced copies, then compared in full."""
    (height, width), sides = part.full.shape, image.full.shape
    if (height, width) == sides or height > sides[0] or width > sides[1] or part.deviation < PLAIN:
        return False
    # a power of two if the part decides, so that parts of all sizes share a few copies of the image
    largest = 2.0 ** math.floor(math.log2(max(1.0, min(height, width) / LEAST_REDUCED_SIDE)))
    factor = max(1.0, min(max(sides) / REDUCED_SIDE, largest))
    _, best, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(image.by(factor), part.by(factor), cv2.TM_CCOEFF_NORMED))
    if best < ALIKE_SMALL:
        return False
    top, left, reach = round(y * factor), round(x * factor), int(2 * factor) + 1
    window = image.full[max(0, top - reach) : top + height + reach, max(0, left - reach) : left + width + reach]
    if window.shape[0] < height or window.shape[1] < width:
        return False
    _, _, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(window, part.full, cv2.TM_CCOEFF_NORMED))
    # correlation alone would also find the same edge in a photograph of another part
    return float(np.abs(window[y : y + height, x : x + width] - part.full).mean()) < SAME_LEVELS_OF_PART


def digest(defects: Sequence[Pair], reading: ReadOptions = DEFAULT) -> str:
    """Identifies the content of all images and masks, so that a training notices changes; "" if there are none."""
    if not defects:
        return ""
    joined = "".join(_digest(path, reading) for pair in defects for path in pair if path is not None)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def _digest(path: Path, reading: ReadOptions) -> str:
    """Of the pixels, so that a lossless copy in another format counts as the same."""
    if path.is_dir():
        return "".join(_digest(file, reading) for file in list_images(path))
    pixels = np.asarray(read_rgb(path, reading))
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


class Defects:
    """Known defects at the model's image size.

    An image that has at least half the area of a training image is prepared like one. A smaller one is a patch: it
    keeps its size in relation to the training images; without a mask, its inscribed ellipse is the defect.

    Args:
        pairs: image and mask of each defect, both of the same size, see `list_defects`.
        settings: preprocessing of the class.
        share: of the training samples that get a known defect, in [0, 1].
        image_size: (width, height) of the training images, or of their tiles; None takes every image for a whole one.
        tiled: whether the training images are tiles; of a larger image, the tile around its mask is used.

    Attributes:
        lost: the images whose mask has no pixel left after preprocessing, which are left out.

    Raises:
        InputError: no mask has a pixel left.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        settings: ImageSettings,
        share: float = 0.5,
        image_size: tuple[int, int] | None = None,
        tiled: bool = False,
    ) -> None:
        self.share, self.settings = share, settings
        self.lost: list[Path] = []
        self._images: list[NDArray[np.uint8]] = []
        self._masks: list[NDArray[np.uint8] | None] = []
        for path, mask_path in pairs:
            reading = settings.reading
            image = read_rgb(path, reading)
            mask = None if mask_path is None else read_mask_of(mask_path, path, reading=reading)
            if tiled:
                image, mask = _around_mask(image, mask, image_size)
            if image_size and image.width * image.height < WHOLE * image_size[0] * image_size[1]:
                pixels, mask = _patch(image, mask, settings, image_size)
            else:
                pixels = np.asarray(settings.cropped(image))
                mask = None if mask is None else settings.transform_mask(mask).astype(np.uint8)
            if mask is not None and not mask.any():
                self.lost.append(path)
                continue
            self._images.append(pixels)
            self._masks.append(mask)
        if not self._images:
            raise InputError("--defects: no mask in it leaves a pixel at this --imagesize")

    def describe(self) -> str:
        """A line for the log."""
        unmasked = sum(mask is None for mask in self._masks)
        line = f"{len(self)} known defects, drawn for {self.share:.0%} of the training samples"
        if self.lost:
            line += f"; {len(self.lost)} of which the crop leaves nothing are left out, such as {self.lost[0]}"
        if unmasked:
            line += (
                f"; {unmasked} whole images without a mask serve as textures: give them masks, or patches cut out "
                "around the defect"
            )
        return line

    def __len__(self) -> int:
        return len(self._images)

    def draw(
        self, rng: np.random.Generator, foreground: NDArray[np.bool_] | None = None
    ) -> tuple[Tensor | None, NDArray[np.bool_] | None]:
        """Draw a defect to blend in.

        A masked defect is rotated by any angle, flipped in half of the cases, scaled by 0.7 to 1.3, and placed at
        random on the foreground. A whole image without a mask is returned without one, to be used like a texture.

        Returns:
            The defect, normalised, (3, H, W), and its mask (H, W) or None. Both are None if no place was found on the
            foreground.
        """
        index = int(rng.integers(len(self)))
        image, mask = self._images[index], self._masks[index]
        if mask is None:
            return normalise(image[:, :: -1 if rng.random() < 0.5 else 1]), None
        for _ in range(MAX_DRAWS):
            moved, moved_mask = _move(rng, image, mask, foreground)
            if moved_mask.any():
                return normalise(moved), moved_mask
        return None, None


def _around_mask(
    image: Image.Image, mask: NDArray[np.uint8] | None, tile: tuple[int, int]
) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """The tile (width, height) of an image with the mask as central as possible; all of a smaller image."""
    middle = (image.width / 2, image.height / 2)
    if mask is not None and mask.any():
        rows, columns = np.nonzero(mask)
        middle = (columns.mean(), rows.mean())
    box = []
    for centre, side, length in zip(middle, tile, image.size, strict=True):
        start = min(max(0, round(centre - side / 2)), max(0, length - side))
        box.append((start, min(length, start + side)))
    (left, right), (top, bottom) = box
    return image.crop((left, top, right, bottom)), None if mask is None else mask[top:bottom, left:right]


def _patch(
    image: Image.Image, mask: NDArray[np.uint8] | None, settings: ImageSettings, image_size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A patch in the middle of an image of the model's size, (H, W, 3), and its mask (H, W)."""
    resized = settings.resized_size(*image_size)
    width = max(1, round(image.width * resized[1] / image_size[0]))
    height = max(1, round(image.height * resized[0] / image_size[1]))
    if mask is None:
        mask = np.zeros((image.height, image.width), np.uint8)
        middle, axes = (image.width // 2, image.height // 2), (max(1, image.width // 2), max(1, image.height // 2))
        cv2.ellipse(mask, middle, axes, 0, 0, 360, 1, cv2.FILLED)
    patch = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    mask = (cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= 0.5).astype(np.uint8)
    # a patch larger than the model's size is cut around the middle of its mask
    for axis, side in enumerate(settings.size):
        marked = np.flatnonzero(mask.any(1 - axis))
        middle = int(marked.mean()) if len(marked) else patch.shape[axis] // 2
        start = min(max(0, middle - side // 2), max(0, patch.shape[axis] - side))
        patch, mask = (x.take(range(start, min(start + side, x.shape[axis])), axis) for x in (patch, mask))
    top, left = ((side - length) // 2 for side, length in zip(settings.size, mask.shape, strict=True))
    bottom, right = settings.size[0] - mask.shape[0] - top, settings.size[1] - mask.shape[1] - left
    return (
        cv2.copyMakeBorder(patch, top, bottom, left, right, cv2.BORDER_REPLICATE),
        cv2.copyMakeBorder(mask, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0),
    )


def _move(
    rng: np.random.Generator, image: NDArray[np.uint8], mask: NDArray[np.uint8], foreground: NDArray[np.bool_] | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Image and mask, transformed at random so that the middle of the mask lies on a random place."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    middle = ((columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2)
    place = int(rng.integers(height * width))
    if foreground is not None and foreground.any():
        allowed = np.flatnonzero(foreground)
        place = int(allowed[rng.integers(len(allowed))])
    matrix = cv2.getRotationMatrix2D(middle, rng.uniform(-180, 180), rng.uniform(*SCALES))
    if rng.random() < 0.5:
        matrix = matrix @ np.array([[-1, 0, 2 * middle[0]], [0, 1, 0], [0, 0, 1]])
    matrix[:, 2] += (place % width - middle[0], place // width - middle[1])
    moved = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    moved_mask = cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST) > 0
    return moved, moved_mask if foreground is None else moved_mask & foreground
