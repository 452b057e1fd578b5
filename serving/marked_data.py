"""The data of a retraining: the recipe's own images with those that were marked, as one folder of links."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DATASETS, Layout, Sample
from datasets.base import GOOD
from datasets.defects import Pair, list_defects, of_class, refuse_test_images
from datasets.files import ReadOptions
from serving.pictures import Filter, Picture
from serving.recipes import digest_of
from serving.store import Store
from utils import LOGGER, InputError, WorkError, printable

PLAN = "plan.json"
TRAIN, TEST = "train", "test"
APART = "marked"  # the folder of marked pictures that are only tested
MARKED = "marked"  # the kind of defect of marked pictures
LAYOUT_WITH_FOLDERS = "folder"  # for recipes of layouts that are not folders of kinds


@dataclass(frozen=True)
class Places:
    """Where the images come from that the recipe was first trained with.

    Attributes:
        config: the settings of that training.
        data: its DATA_PATH.
        textures: its AUG_PATH, a folder or `builtin`.
        defects: its --defects, or None.
    """

    config: dict[str, Any]
    data: Path
    textures: str
    defects: Path | None

    @property
    def dataset(self) -> str:
        """The name of the data set."""
        return str(self.config.get("class_name", "")).partition("_")[0]

    @property
    def class_name(self) -> str:
        """The name of the class in the data set."""
        return str(self.config.get("class_name", "")).partition("_")[2]

    @property
    def reading(self) -> ReadOptions:
        """How its images are read."""
        return ReadOptions(int(self.config.get("bits", 16)))

    def layout(self) -> Layout:
        """The recipe's own data.

        Raises:
            InputError: there is no such data set.
        """
        if self.dataset not in DATASETS or not self.class_name:
            raise InputError(f"the checkpoint is of {self.config.get('class_name')!r}, which is no class of a data set")
        split = int(self.config.get("split_seed", 0)), float(self.config.get("test_share", 0.2))
        return DATASETS[self.dataset](self.data, *split)


@dataclass(frozen=True)
class Marked:
    """A marked picture with its part, `train` or `test`."""

    picture: Picture
    path: Path
    mask: Path | None
    part: str


def draw(sha256: str) -> float:
    """A number in [0, 1) that depends on the content of a picture alone."""
    return int(sha256[:16], 16) / 2**64


def marked_pictures(store: Store, recipe: str, share: float, before: dict[str, str]) -> list[Marked]:
    """The marked pictures of a recipe, each content once, with their parts.

    Args:
        store: with the marks.
        recipe: by name.
        share: of the pictures that is kept for the test, in (0, 1).
        before: parts of earlier retrainings by SHA-256; a picture never changes from one part to the other.

    Raises:
        InputError: nothing is marked.
        WorkError: a file is missing.
    """
    pictures: dict[str, Picture] = {}
    for picture in store.pictures.iterate(Filter(recipe=recipe, mark="any")):
        known = pictures.get(picture.sha256)
        if known is None or (picture.marked or 0) > (known.marked or 0):  # what was said last counts
            pictures[picture.sha256] = picture
    if not pictures:
        raise InputError(
            f"recipe {recipe}: no picture is marked; mark some on the page of serve, or with POST /api/v1/marks"
        )
    return [_marked(store, pictures[key], share, before) for key in sorted(pictures)]


def _marked(store: Store, picture: Picture, share: float, before: dict[str, str]) -> Marked:
    path = store.pictures.path(picture).absolute()
    mask = None if picture.mask is None else (store.folder / picture.mask).absolute()
    for file in (path, mask):
        if file is not None and not file.is_file():
            raise WorkError(
                f"picture {picture.id} ({printable(picture.name)}) is marked, but {file} is missing; put it back, or "
                "take the mark away"
            )
    kept = draw(picture.sha256) < share or (picture.mark != GOOD and mask is None)
    return Marked(picture, path, mask, before.get(picture.sha256, TEST if kept else TRAIN))


def parts_before(folder: Path) -> dict[str, str]:
    """The parts of the pictures of all earlier retrainings in a folder, by SHA-256.

    Raises:
        WorkError: a plan cannot be read.
    """
    parts: dict[str, str] = {}
    for path in sorted(folder.glob(f"*/{PLAN}")):
        parts = read_plan(path.parent)["parts"] | parts  # the first decision counts
    return parts


def read_plan(folder: Path) -> dict[str, Any]:
    """What a retraining was started with.

    Raises:
        WorkError: it cannot be read.
    """
    try:
        return json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkError(f"{folder / PLAN} cannot be read: {error}") from error


class Assembly:
    """A folder of links in the layout of a data set: the recipe's own images and the marked ones.

    Args:
        folder: that is filled: `data/<class>/…`, `marked/<class>/…` with what is only tested, `defects/…`.
        places: of the recipe's own images.
        marked: the marked pictures.
    """

    def __init__(self, folder: Path, places: Places, marked: Sequence[Marked]) -> None:
        self._folder, self._places = folder, places
        self._base = folder / "data" / places.class_name
        layout = places.layout()
        self._layout, name = layout, layout.choose([places.class_name])[0]
        self.train, self.test = layout.train(name), layout.test(name)
        own = {digest_of(s.path): part for s, part in [(s, TEST) for s in self.test] + [(s, TRAIN) for s in self.train]}
        self._marked = [m for m in marked if m.picture.sha256 not in own]
        if left := len(marked) - len(self._marked):
            LOGGER.info("%d marked pictures are already among the recipe's own images and stay where they are", left)
        self._count = 0

    def build(self) -> None:
        """Make all links.

        Raises:
            InputError: the test set would lack good or defective pictures.
            WorkError, OSError: a link cannot be made.
        """
        self._check_kinds()
        for sample in self.train:
            self._link(sample.path, self._base / "train" / GOOD)
        for sample in self.test:
            self._link_test(sample.path, sample.kind, sample.mask, "data")
        for marked in self._marked:
            is_good = marked.picture.mark == GOOD
            if marked.part == TEST:
                # apart from the recipe's own, so that the choice of the epoch does not see them
                self._link_test(marked.path, GOOD if is_good else MARKED, None if is_good else marked.mask, APART)
            elif is_good:
                self._link(marked.path, self._base / "train" / GOOD)
        self._link_defects()

    def _check_kinds(self) -> None:
        kinds = {sample.is_anomaly for sample in self.test}
        kinds |= {m.picture.mark != GOOD for m in self._marked if m.part == TEST}
        for kind, text in ((True, "defective"), (False, GOOD)):
            if kind not in kinds:
                raise InputError(
                    f"the test set would hold no {text} picture, so old and new could not be compared: mark (more) "
                    f"{text} pictures, or raise --test_share"
                )

    def _link_defects(self) -> None:
        """Known defects: marked ones with a mask, and those of the recipe; none that the test set shows as well."""
        places = self._places
        pairs: list[Pair] = [
            (m.path, m.mask) for m in self._marked if m.part == TRAIN and m.picture.mark != GOOD and m.mask is not None
        ]
        if places.defects is not None:
            pairs += of_class(list_defects(places.defects), places.defects, places.class_name, self._layout.classes())
        tested = [*self.test, *(Sample(m.path) for m in self._marked if m.part == TEST)]
        for path, mask in pairs:
            try:
                refuse_test_images([(path, mask)], tested, places.reading)
            except InputError as error:
                LOGGER.warning("left out of the known defects: %s", str(error).removeprefix("--defects: "))
                continue
            self._link_pair(path, mask)

    def _link_pair(self, path: Path, mask: Path | None) -> None:
        link = self._link(path, self._folder / "defects" / MARKED)
        self._link_mask(mask, link, self._folder / "defects" / "ground_truth" / MARKED)

    def _link_test(self, path: Path, kind: str, mask: Path | None, part: str) -> None:
        kind, base = printable(kind, "/"), self._folder / part / self._places.class_name
        link = self._link(path, base / "test" / kind)
        self._link_mask(mask, link, base / "ground_truth" / kind)

    def _link_mask(self, mask: Path | None, image: Path, folder: Path) -> None:
        if mask is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        name = image.stem if mask.is_dir() else f"{image.stem}_mask{mask.suffix}"
        os.symlink(mask.resolve(), folder / name)

    def _link(self, path: Path, folder: Path) -> Path:
        """A link whose name is unique, so that no two pictures collide."""
        folder.mkdir(parents=True, exist_ok=True)
        self._count += 1
        link = folder / f"{self._count:06d}{path.suffix.lower()}"
        os.symlink(path.resolve(), link)
        return link
