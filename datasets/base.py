"""What all layouts of data sets share: samples, and the base class `Layout`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.files import DEFAULT, ReadOptions, read_rgb
from datasets.geometry import cut_mirrored
from datasets.listing import closed_folders, describe_other_files, list_images
from datasets.masks import find_annotations
from utils import LOGGER, InputError

GOOD = "good"
GOOD_NAMES = frozenset({GOOD, "ok", "normal"})  # in any letter case
TEST_SHARE = 0.2


def is_good(name: str) -> bool:
    """Whether a folder or label of this name means images without a defect."""
    return name.strip().casefold() in GOOD_NAMES


@dataclass(frozen=True)
class Sample:
    """One image of a data set, or a tile of it.

    Attributes:
        path: the image file.
        kind: `good`, or the name of the kind of defect.
        mask: the mask file of a defective image, or a folder of several masks whose union counts; None if there is
            none.
        box: (top, left, h, w) of the tile; None for the whole image.
    """

    path: Path
    kind: str = GOOD
    mask: Path | None = None
    box: tuple[int, int, int, int] | None = None

    @property
    def is_anomaly(self) -> bool:
        """Whether the image shows a defect."""
        return self.kind != GOOD

    @property
    def key(self) -> Path | tuple[Path, tuple[int, int, int, int]]:
        """Identifies the sample in a cache."""
        return self.path if self.box is None else (self.path, self.box)

    def read(self, reading: ReadOptions = DEFAULT) -> Image.Image:
        """Its pixels, RGB.

        Raises:
            WorkError: they cannot be read.
        """
        if self.box is None:
            return read_rgb(self.path, reading)
        return Image.fromarray(cut_mirrored(_whole_image(self.path, reading), self.box))


@functools.lru_cache(maxsize=2)  # an image and its foreground mask
def _whole_image(path: Path, reading: ReadOptions) -> NDArray[np.uint8]:
    """Kept because tiles are mostly read one after another, and each would decode the whole image again."""
    return np.asarray(read_rgb(path, reading))


class Layout:
    """Knows where a data set keeps its images; one instance for each data path.

    Args:
        root: data path, an existing folder.
        seed: of the choice of good test images, where a layout has to make one.
        test_share: the share of the good images that this choice takes.
    """

    # names of the classes that are resized larger before the crop
    larger: frozenset[str] = frozenset()
    expected = ""  # what a class is, for error messages

    def __init__(self, root: str | Path, seed: int = 0, test_share: float = TEST_SHARE) -> None:
        self.root, self.seed, self.test_share = Path(root), seed, test_share
        if not self.root.is_dir():
            problem = "is a file, not a folder" if self.root.exists() else "no such folder"
            raise InputError(f"DATA_PATH {self.root}: {problem}; give the folder that holds one folder for each class")

    # ------------------------------------------------------------------ what each layout implements

    def classes(self) -> list[str]:
        """Names of the classes."""
        raise TypeError("a layout names its classes")

    def train(self, name: str) -> list[Sample]:
        """The good training images of a class, in a fixed order."""
        raise TypeError("a layout lists its training images")

    def test(self, name: str) -> list[Sample]:
        """The test images of a class, in a fixed order."""
        raise TypeError("a layout lists its test images")

    def held_out(self, name: str) -> list[Sample]:
        """Good images that the layout itself moves from the training set to the test set; [] if it moves none."""
        return []

    def is_class_itself(self) -> bool:
        """Whether the data path is itself the folder of a class, instead of containing such folders."""
        return False

    def empty(self) -> list[str]:
        """Names of folders that could be classes, but contain no file at any depth."""
        return []

    def not_classes(self) -> list[str]:
        """Names of folders that contain images, but are not classes of this layout."""
        return []

    def unused_masks(self, name: str) -> list[Path]:
        """Mask files of a class that belong to none of its images."""
        return []

    # --------------------------------------------------------------------------- what all have in common

    def choose(self, wished: Sequence[str]) -> list[str]:
        """The requested classes, by default all.

        Raises:
            InputError: one of them does not exist, or there is no class at all.
        """
        known = self.classes()
        self._refuse_unusable(known, wished)
        for name in wished:
            if name not in known:
                raise InputError(f"unknown class {name!r}; {self.root} has {', '.join(known)}")
        closed = closed_folders(self.root)
        if closed:
            LOGGER.warning("%s may not be entered and is left out", ", ".join(map(str, closed)))
        others = [] if wished else self.not_classes()
        if others:
            LOGGER.warning("%s holds images, but is not a class: %s", self.root / others[0], self.expected)
        return list(dict.fromkeys(wished)) or known

    def _refuse_unusable(self, known: Sequence[str], wished: Sequence[str]) -> None:
        """Refuse a data path that is a class itself, or has no class or (with all classes requested) an empty one."""
        if self.is_class_itself():
            whole = self.root.absolute()
            raise InputError(
                f"DATA_PATH {self.root} is the folder of one class: give {whole.parent}, with -d {whole.name}"
            )
        if not known:
            raise InputError(
                f"DATA_PATH {self.root}: no class folder found in it; {self.expected}{describe_other_files(self.root)}"
            )
        empty = [] if wished else self.empty()
        if empty:
            raise InputError(
                f"class {empty[0]}: {self.root / empty[0]} holds no file at any depth; put images there, remove the "
                "folder, or select classes with -d"
            )

    def notes(self, name: str) -> list[str]:
        """What should be reported about files of a class that are not used, or not in the expected way."""
        annotations = self.annotations(name)
        if not annotations:
            return []
        suffixes = ", ".join(sorted({path.suffix.lower() for path in annotations}))
        return [
            f"{len(annotations)} annotation files ({suffixes}) are not read, the first is {annotations[0]}: a mask has "
            "to be an image that is 0 where it is normal"
        ]

    def annotations(self, name: str) -> list[Path]:
        """Files of a class with labels that are not masks, which `notes` reports."""
        images = [sample.path for sample in self._listed(name)]
        folders = [self.root / name, self.root / "ground_truth" / name]
        return find_annotations([folder for folder in folders if folder.is_dir()], images)

    def _listed(self, name: str) -> list[Sample]:
        """All images of a class that can be listed, since it may have only a training set or only a test set."""
        samples = []
        for part in (self.train, self.test):
            with contextlib.suppress(InputError):
                samples += part(name)
        return samples

    def foreground(self, name: str, samples: Sequence[Sample]) -> list[Path] | None:
        """The foreground mask of each training image, `fg_mask/<class>/<image file name>`; None if there are none.

        Raises:
            InputError: only some images have one.
        """
        folder = self.root / "fg_mask" / name
        by_stem = {path.stem: path for path in list_images(folder)}
        if not by_stem:
            return None
        masks = []
        for sample in samples:
            exact = folder / sample.path.name
            mask = exact if exact.is_file() else by_stem.get(sample.path.stem)
            if mask is None:
                raise InputError(
                    f"class {name}: {folder} holds foreground masks, but not {exact.name}; add a mask for each "
                    f"training image, remove {folder} to have them made, or give --fg 0"
                )
            masks.append(mask)
        return masks
