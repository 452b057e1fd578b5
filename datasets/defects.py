"""Known defects of the user's, to be drawn in place of textures."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datasets.files import DEFAULT, ReadOptions, read_rgb
from datasets.listing import describe_other_files, list_images, scan_folder
from datasets.masks import read_mask_of, split_masks
from datasets.settings import ImageSettings, normalise
from utils import LOGGER, InputError

if TYPE_CHECKING:
    from datasets.base import Sample

MASK_FOLDERS = frozenset({"ground_truth", "masks"})
ENDS = ("_mask", "")  # of a mask's name, behind its picture's
SCALES = (0.7, 1.3)
MAX_DRAWS = 50
# mean difference of 255: more than a JPEG's loss, less than two photographs of one part; less where the place is chosen
SAME_LEVELS, SAME_LEVELS_OF_PART = 2.0, 1.0
ALIKE_SMALL = 0.5  # correlation of reduced copies, below which full size is not looked at
LOOKED_AT, LEAST_LOOKED_AT = 256, 16  # pixels, sides of the reduced image and part
PLAIN = 2.0  # standard deviation below which a part looks like any other
WHOLE = 0.5  # of a training image's area: a smaller picture is a patch

Pair = tuple[Path, Path | None]  # a picture and its mask


def list_defects(folder: str | Path) -> list[Pair]:
    """The pictures of defects below a folder, at any depth, each with its mask where there is one.

    The mask of `DIR/scratch/3.png` is `DIR/scratch/3_mask.png` (or `_gt`, `_label`), or
    `DIR/ground_truth/scratch/3.png` or `DIR/masks/scratch/3.png`, there with or without `_mask`, or a folder `3` of
    several masks there.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--defects {folder}: no such folder; give a folder of pictures that show defects")
    listing = scan_folder(folder, recursive=True)
    files = listing.images
    if files and (left := listing.describe()):
        LOGGER.info("--defects %s: %s", folder, left)
    by_name = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
    beside = {}
    for place in dict.fromkeys(path.parent for path in files):
        of_stems = split_masks([path for path in files if path.parent == place])[1]
        beside |= {(place, stem): mask for stem, mask in of_stems.items()}
    named = set(beside.values())
    found, masks = [], []
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        in_masks = not MASK_FOLDERS.isdisjoint(path.relative_to(folder).parts[:-1])
        if in_masks:
            by_name.setdefault(path.parent.relative_to(folder).as_posix(), path.parent)  # several of one picture
        if in_masks or path in named or name.endswith("_mask"):
            masks.append(path)
        else:
            found.append((path, name))
    places = [f"{place}/" for place in sorted(MASK_FOLDERS)]
    found = [
        (path, beside.get((path.parent, path.stem)) or _named(by_name, [f"{p}{name}{e}" for p in places for e in ENDS]))
        for path, name in found
    ]
    if not found:
        raise InputError(f"--defects {folder}: no picture in it at any depth{describe_other_files(folder)}")
    used = {mask for _, mask in found}
    alone = [path for path in sorted(masks) if used.isdisjoint((path, path.parent))]
    if alone:
        LOGGER.warning("--defects: %d masks belong to no picture, as %s", len(alone), alone[0])
    return found


def _named(files: Mapping[str, Path], names: Sequence[str]) -> Path | None:
    return next((files[name] for name in names if name in files), None)


def of_class(pairs: Sequence[Pair], folder: str | Path, name: str, classes: Sequence[str]) -> list[Pair]:
    """The defects of one class: those in `folder/<name>/` where there are any, else those in no class's folder."""
    parts = [path.relative_to(folder).parts for path, _ in pairs]
    own = [pair for pair, at in zip(pairs, parts, strict=True) if len(at) > 1 and at[0] == name]
    return own or [pair for pair, at in zip(pairs, parts, strict=True) if len(at) == 1 or at[0] not in classes]


def refuse_test_images(defects: Sequence[Pair], test: Sequence[Sample], reading: ReadOptions = DEFAULT) -> None:
    """A defect that the test shows too would make its figures untrue.

    Found are copies, also saved anew with loss, and parts cut out of a test image without much loss; not what was
    turned or resized.

    Raises:
        InputError: names the first defect that is a test image or a part of one.
    """
    if not defects:
        return
    known = [(path, _Reduced(_gray(path, reading))) for path, _ in defects]
    bar = tqdm(
        test, desc="known defects against test images", unit="img", leave=False, dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )  # fmt: skip
    for sample in bar:
        image = _Reduced(_gray(sample.path, reading))
        for path, picture in known:
            alike = picture.full.shape == image.full.shape
            if alike and np.abs(picture.full - image.full).mean() < SAME_LEVELS:
                raise InputError(f"--defects: {path} is the test image {sample.path}; take it out of one of the two")
            if _is_part(picture, image):
                raise InputError(f"--defects: {path} is a part of the test image {sample.path}; take it out")


def _gray(path: Path, reading: ReadOptions) -> NDArray[np.float32]:
    return np.asarray(read_rgb(path, reading).convert("L"), np.float32)


class _Reduced:
    """A gray picture (H, W) and its reduced copies, each of which is made once."""

    def __init__(self, full: NDArray[np.float32]) -> None:
        self.full, self.deviation = full, float(full.std())
        self._copies: dict[float, NDArray[np.float32]] = {1.0: full}

    def by(self, factor: float) -> NDArray[np.float32]:
        """The copy that is `factor` times smaller."""
        if factor not in self._copies:
            self._copies[factor] = cv2.resize(
                self.full, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA
            )
        return self._copies[factor]


def _is_part(part: _Reduced, image: _Reduced) -> bool:
    """Whether a smaller picture was cut out of a larger one: looked for in reduced copies, then at the place found."""
    (height, width), sides = part.full.shape, image.full.shape
    if (height, width) == sides or height > sides[0] or width > sides[1] or part.deviation < PLAIN:
        return False
    # a power of two where the part decides, so that parts of all sizes share a few copies of the image
    least = 2.0 ** math.floor(math.log2(max(1.0, min(height, width) / LEAST_LOOKED_AT)))
    factor = max(1.0, min(max(sides) / LOOKED_AT, least))
    _, best, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(image.by(factor), part.by(factor), cv2.TM_CCOEFF_NORMED))
    if best < ALIKE_SMALL:
        return False
    top, left, reach = round(y * factor), round(x * factor), int(2 * factor) + 1
    window = image.full[max(0, top - reach) : top + height + reach, max(0, left - reach) : left + width + reach]
    if window.shape[0] < height or window.shape[1] < width:
        return False
    _, _, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(window, part.full, cv2.TM_CCOEFF_NORMED))
    # correlation alone would also find the same edge in the photograph of another piece
    return float(np.abs(window[y : y + height, x : x + width] - part.full).mean()) < SAME_LEVELS_OF_PART


def digest(defects: Sequence[Pair], reading: ReadOptions = DEFAULT) -> str:
    """Of all pictures and masks, for a training to know that they are still the same; "" of none."""
    if not defects:
        return ""
    joined = "".join(_digest(path, reading) for pair in defects for path in pair if path is not None)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def _digest(path: Path, reading: ReadOptions) -> str:
    """Of the pixels, so that a copy in another format without loss counts as the same."""
    if path.is_dir():
        return "".join(_digest(one, reading) for one in list_images(path))
    pixels = np.asarray(read_rgb(path, reading))
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


class Defects:
    """Known defects at the model's image size.

    A picture of at least half a training image's area is prepared as one. A smaller one is a patch: it keeps its size
    in relation to the training images; without a mask, the ellipse that it holds is the defect.

    Args:
        pairs: picture and mask of each, of one size, see `list_defects`.
        settings: preprocessing of the class.
        share: of the training samples that get a known defect, in [0, 1].
        image_size: (width, height) of the training images, or of their tiles; None takes every picture for a whole
            image.
        tiled: whether training images are tiles; of a picture larger than one, the tile around its mask is taken.

    Raises:
        InputError: no mask leaves a pixel.
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
        self._pictures: list[NDArray[np.uint8]] = []
        self._masks: list[NDArray[np.uint8] | None] = []
        for path, mask_path in pairs:
            reading = settings.reading
            image = read_rgb(path, reading)
            mask = None if mask_path is None else read_mask_of(mask_path, path, reading=reading)
            if tiled:
                image, mask = _around_mask(image, mask, image_size)
            if image_size and image.width * image.height < WHOLE * image_size[0] * image_size[1]:
                picture, mask = _patch(image, mask, settings, image_size)
            else:
                picture = np.asarray(settings.cropped(image))
                mask = None if mask is None else settings.transform_mask(mask).astype(np.uint8)
            if mask is not None and not mask.any():
                self.lost.append(path)  # the crop or the resizing left nothing of it
                continue
            self._pictures.append(picture)
            self._masks.append(mask)
        if not self._pictures:
            raise InputError("--defects: no mask in it leaves a pixel at this --imagesize")

    def describe(self) -> str:
        """A line for the log."""
        bare = sum(mask is None for mask in self._masks)
        line = f"{len(self)} known defects, drawn for {self.share:.0%} of the training samples"
        if self.lost:
            line += f"; {len(self.lost)} of which the crop leaves nothing are left out, as {self.lost[0]}"
        if bare:
            line += (
                f"; {bare} whole pictures without a mask serve as textures: give them masks, or patches cut out around "
                "the defect"
            )
        return line

    def __len__(self) -> int:
        return len(self._pictures)

    def draw(
        self, rng: np.random.Generator, foreground: NDArray[np.bool_] | None = None
    ) -> tuple[Tensor | None, NDArray[np.bool_] | None]:
        """A defect to blend in: normalised (3, H, W) and its mask (H, W), None where it has none.

        Both are None where the defect drawn found no place on the foreground.

        A masked defect is turned by any angle, flipped in half of the cases, scaled by 0.7 to 1.3 and put at a random
        place of the foreground; a whole picture without a mask is to be cut out as a texture is.
        """
        index = int(rng.integers(len(self)))
        picture, mask = self._pictures[index], self._masks[index]
        if mask is None:
            return normalise(picture[:, :: -1 if rng.random() < 0.5 else 1]), None
        for _ in range(MAX_DRAWS):
            moved, moved_mask = _move(rng, picture, mask, foreground)
            if moved_mask.any():
                return normalise(moved), moved_mask
        return None, None


def _around_mask(
    image: Image.Image, mask: NDArray[np.uint8] | None, tile: tuple[int, int]
) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """A tile (width, height) of a picture, with its mask in the middle as far as that goes; all of a smaller one."""
    middle = (image.width / 2, image.height / 2)
    if mask is not None and mask.any():
        rows, columns = np.nonzero(mask)
        middle = (columns.mean(), rows.mean())
    box = []
    for at, side, length in zip(middle, tile, image.size, strict=True):
        start = min(max(0, round(at - side / 2)), max(0, length - side))
        box.append((start, min(length, start + side)))
    (left, right), (top, bottom) = box
    return image.crop((left, top, right, bottom)), None if mask is None else mask[top:bottom, left:right]


def _patch(
    image: Image.Image, mask: NDArray[np.uint8] | None, settings: ImageSettings, image_size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A patch in the middle of a picture of the model's size, (H, W, 3), and its mask (H, W)."""
    resized = settings.resized_size(*image_size)
    width = max(1, round(image.width * resized[1] / image_size[0]))
    height = max(1, round(image.height * resized[0] / image_size[1]))
    if mask is None:
        mask = np.zeros((image.height, image.width), np.uint8)
        middle, axes = (image.width // 2, image.height // 2), (max(1, image.width // 2), max(1, image.height // 2))
        cv2.ellipse(mask, middle, axes, 0, 0, 360, 1, cv2.FILLED)
    picture = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    mask = (cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= 0.5).astype(np.uint8)
    # what is larger than the model's size is cut around the middle of the mask
    for axis, side in enumerate(settings.size):
        marked = np.flatnonzero(mask.any(1 - axis))
        middle = int(marked.mean()) if len(marked) else picture.shape[axis] // 2
        start = min(max(0, middle - side // 2), max(0, picture.shape[axis] - side))
        picture, mask = (x.take(range(start, min(start + side, x.shape[axis])), axis) for x in (picture, mask))
    top, left = ((side - own) // 2 for side, own in zip(settings.size, mask.shape, strict=True))
    bottom, right = settings.size[0] - mask.shape[0] - top, settings.size[1] - mask.shape[1] - left
    return (
        cv2.copyMakeBorder(picture, top, bottom, left, right, cv2.BORDER_REPLICATE),
        cv2.copyMakeBorder(mask, top, bottom, left, right, cv2.BORDER_CONSTANT, value=0),
    )


def _move(
    rng: np.random.Generator, picture: NDArray[np.uint8], mask: NDArray[np.uint8], foreground: NDArray[np.bool_] | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Picture and mask with the mask's middle somewhere else."""
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
    moved = cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    moved_mask = cv2.warpAffine(mask, matrix, (width, height), flags=cv2.INTER_NEAREST) > 0
    return moved, moved_mask if foreground is None else moved_mask & foreground
