"""Known defects of the user's, to be drawn in place of textures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from datasets.files import list_images, read_mask, read_rgb
from errors import InputError

if TYPE_CHECKING:
    from datasets.base import ImageSettings, Sample

MASK_FOLDERS = frozenset({"ground_truth", "masks"})
SCALES = (0.7, 1.3)
MAX_DRAWS = 50


def list_defects(folder: str | Path) -> list[tuple[Path, Path | None]]:
    """The pictures of defects below a folder, at any depth, each with its mask where there is one.

    The mask of `DIR/scratch/3.png` is `DIR/scratch/3_mask.png`, or `DIR/ground_truth/scratch/3.png` or
    `DIR/masks/scratch/3.png`, there with or without `_mask`.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--defects {folder}: no such folder; give a folder of pictures that show defects")
    files = list_images(folder, recursive=True)
    by_name = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
    found = []
    for path in files:
        name = path.relative_to(folder).with_suffix("").as_posix()
        is_mask = name.endswith("_mask") or not MASK_FOLDERS.isdisjoint(path.relative_to(folder).parts[:-1])
        if not is_mask:
            places = [f"{place}{name}" for place in ("", *(f"{m}/" for m in sorted(MASK_FOLDERS)))]
            names = [f"{places[0]}_mask", *(f"{place}{end}" for place in places[1:] for end in ("_mask", ""))]
            found.append((path, next((by_name[n] for n in names if n in by_name), None)))
    if not found:
        raise InputError(f"--defects {folder}: no picture in it at any depth")
    return found


def refuse_test_images(defects: Sequence[tuple[Path, Path | None]], test: Sequence[Sample]) -> None:
    """A defect that the test shows too would make its figures untrue.

    Raises:
        InputError: names the first defect that has the same pixels as a test image.
    """
    tested = {_digest(sample.path): sample.path for sample in test}
    for path, _ in defects:
        same = tested.get(_digest(path))
        if same is not None:
            raise InputError(f"--defects: {path} is the test image {same}; take it out of one of the two")


def digest(defects: Sequence[tuple[Path, Path | None]]) -> str:
    """Of all pictures and masks, for a training to know that they are still the same."""
    joined = "".join(_digest(path) for pair in defects for path in pair if path is not None)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    """Of the pixels, so that a copy in another format without loss counts as the same."""
    pixels = np.asarray(read_rgb(path))
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


class Defects:
    """Known defects at the model's image size.

    Args:
        pairs: picture and mask of each, see `list_defects`.
        settings: preprocessing of the class.
        share: of the training samples that get a known defect, in [0, 1].
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path | None]], settings: ImageSettings, share: float = 0.5) -> None:
        self.share, self.settings = share, settings
        self._pictures: list[NDArray[np.uint8]] = []
        self._masks: list[NDArray[np.uint8] | None] = []
        for path, mask_path in pairs:
            picture = np.asarray(settings.cropped(read_rgb(path)))
            mask = None if mask_path is None else settings.transform_mask(read_mask(mask_path)).astype(np.uint8)
            if mask is not None and not mask.any():
                continue  # the crop or the resizing left nothing of it
            self._pictures.append(picture)
            self._masks.append(mask)
        if not self._pictures:
            raise InputError("--defects: no mask in it leaves a pixel at this --imagesize")

    def __len__(self) -> int:
        return len(self._pictures)

    def draw(
        self, rng: np.random.Generator, foreground: NDArray[np.bool_] | None = None
    ) -> tuple[Tensor, NDArray[np.bool_] | None]:
        """A defect to blend in: normalised (3, H, W) and its mask (H, W), None where it has none.

        A masked defect is turned by any angle, flipped in half of the cases, scaled by 0.7 to 1.3 and put at a random
        place of the foreground; one without a mask lends its whole picture, to be cut out as a texture is.
        """
        from datasets.base import normalise  # it imports this module

        index = int(rng.integers(len(self)))
        picture, mask = self._pictures[index], self._masks[index]
        if mask is None:
            return normalise(picture[:, :: -1 if rng.random() < 0.5 else 1]), None
        for _ in range(MAX_DRAWS):
            moved, moved_mask = _move(rng, picture, mask, foreground)
            if moved_mask.any():
                return normalise(moved), moved_mask
        return normalise(picture), None


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
