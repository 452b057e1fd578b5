"""The layout of MVTec AD, which MPDD, WFDD, MAD-man, MAD-sys and most users' sets share."""

from __future__ import annotations

import os
from pathlib import Path

from datasets.base import GOOD, Layout, Sample, is_good
from datasets.listing import describe_other_files, list_folders, list_images
from datasets.masks import pair_masks, split_masks
from utils import InputError

BESIDE = frozenset({"ground_truth", "fg_mask"})


class MVTecLayout(Layout):
    """`<class>/train/good`, `<class>/test/<kind>`, masks by name in one of three places.

    Masks are named like their image, with or without `_mask`, and lie at `<class>/ground_truth/<defect>/`,
    `ground_truth/<class>/<defect>/` or `ground_truth/<defect>/`, else beside their image, with `_mask` there. Where an
    image has several, they lie in a folder of its name. `good` may also be called `ok` or `normal`, in any letter case.
    """

    larger = frozenset({"toothbrush", "wood"})
    expected = "a class is a folder with train/good (or ok, normal) in it; NAME folder takes more forms"
    masks: tuple[str, ...] = ("ground_truth",)  # what folders of masks are called

    def classes(self) -> list[str]:
        """Folders with `train` or `test` in them."""
        return [f.name for f in self._folders() if (f / "train").is_dir() or (f / "test").is_dir()]

    def is_class_itself(self) -> bool:
        """Whether the data path has `train` or `test` itself and no class."""
        return any((self.root / part).is_dir() for part in ("train", "test")) and not self.classes()

    def empty(self) -> list[str]:
        """Names of folders without a file at any depth."""
        return [f.name for f in self._folders() if not any(files for _, _, files in os.walk(f, followlinks=True))]

    def not_classes(self) -> list[str]:
        """Names of folders that hold pictures, but neither `train` nor `test`."""
        classes = set(self.classes())
        return [f.name for f in self._folders() if f.name not in classes and list_images(f, recursive=True)]

    def unused_masks(self, name: str) -> list[Path]:
        """Mask files of a class that belong to none of its images."""
        samples = [sample for sample in self.test(name) if sample.is_anomaly]
        kinds = {sample.kind for sample in samples}
        found = {path for kind in kinds for path in self._masks(name, kind).values()}
        return sorted(found - {sample.mask for sample in samples})

    def notes(self, name: str) -> list[str]:
        """What is not used, and what is taken as a mask by its name alone."""
        folders = dict.fromkeys(sample.path.parent for sample in self._listed(name))
        beside = [mask for folder in folders for mask in split_masks(list_images(folder))[1].values()]
        notes = super().notes(name)
        if beside:
            notes.append(f"{len(beside)} files are masks of the images beside them by their names, as {beside[0]}")
        notes += [f"the images in {place} are not used" for place in self._unused(name)]
        for folder in self._used_folders(name):
            own = set(list_images(folder))
            deeper = [path for path in list_images(folder, recursive=True) if path not in own]
            if deeper:
                notes.append(f"{len(deeper)} images in folders inside {folder} are not used, the first is {deeper[0]}")
        return notes

    def _used_folders(self, name: str) -> list[Path]:
        """Folders whose own images are those of the training and the test."""
        train, test = self.root / name / "train", self.root / name / "test"
        return [good_folder(train)] * train.is_dir() + (list_folders(test) if test.is_dir() else [])

    def _unused(self, name: str) -> list[Path]:
        """Folders with images beside those of the training and the test."""
        base = self.root / name
        train, test = base / "train", base / "test"
        if not (train.is_dir() or test.is_dir()):
            return []
        others = [f for f in list_folders(base) if f.name.casefold() not in {"train", "test", *BESIDE, *self.masks}]
        places = [f for f in others if list_images(f, recursive=True)]
        places += [f for f in (base, train, test) if list_images(f)]
        if train.is_dir():
            places += [f for f in list_folders(train) if f != good_folder(train) and list_images(f, recursive=True)]
        return places

    def _folders(self) -> list[Path]:
        return [f for f in list_folders(self.root) if f.name not in BESIDE]

    def train(self, name: str) -> list[Sample]:
        """The images of `<class>/train/good`.

        Raises:
            InputError: there are none.
        """
        folder = good_folder(self.root / name / "train")
        samples = [Sample(path) for path in split_masks(list_images(folder))[0]]
        if not samples:
            raise InputError(f"class {name}: no good training image in {folder}{describe_other_files(folder)}")
        return samples

    def test(self, name: str) -> list[Sample]:
        """The images of `<class>/test/*`; [] where there is no such folder."""
        folder = self.root / name / "test"
        if not folder.is_dir():
            return []
        good_folder(folder)  # two of them would be one kind from two places
        return [sample for kind in list_folders(folder) for sample in self._kind(name, kind)]

    def _kind(self, name: str, folder: Path) -> list[Sample]:
        """The test images of one kind with their masks."""
        pictures, beside = split_masks(list_images(folder))
        if is_good(folder.name):
            return [Sample(path) for path in pictures]
        masks = beside | pair_masks([path.stem for path in pictures], self._masks(name, folder.name))
        return [Sample(path, folder.name, masks.get(path.stem)) for path in pictures]

    def _masks(self, name: str, kind: str) -> dict[str, Path]:
        """Masks of one kind of defect by stem: files, or folders of several for one image.

        Raises:
            InputError: they could belong to several classes.
        """
        places = [f"{name}/{masks}/{kind}" for masks in self._mask_folders(self.root / name)]
        places += [f"{masks}/{name}/{kind}" for masks in self._mask_folders(self.root)]
        for place in (*places, f"ground_truth/{kind}"):
            found = _masks_in(self.root / place)
            if not found:
                continue
            sharing = [] if place in places else [c for c in self.classes() if self._kind_folder(c, kind).is_dir()]
            if len(sharing) > 1:
                raise InputError(
                    f"{self.root / place} could hold masks of {' or '.join(sharing)}; "
                    f"put them into {self.root / 'ground_truth' / '<class>' / kind}"
                )
            return found
        return {}

    def _mask_folders(self, folder: Path) -> list[str]:
        """Names of the folders of masks in a folder, in any letter case."""
        named = {f.name: f.name.casefold() for f in list_folders(folder)} if folder.is_dir() else {}
        return sorted(
            (n for n, plain in named.items() if plain in self.masks), key=lambda n: self.masks.index(named[n])
        )

    def _kind_folder(self, name: str, kind: str) -> Path:
        """Where the test images of one kind would lie."""
        return self.root / name / "test" / kind


def good_folder(folder: Path) -> Path:
    """Where the good images in a folder lie: its folder good, ok or normal; `good` where there is none of them.

    Raises:
        InputError: two of them hold images.
    """
    found = [f for f in list_folders(folder) if is_good(f.name)] if folder.is_dir() else []
    filled = [f for f in found if list_images(f)]
    if len(filled) > 1:
        raise InputError(
            f"{folder} holds {' and '.join(f.name for f in filled)}, which both mean good images; put all of them into "
            f"{folder / GOOD}"
        )
    return (filled or found or [folder / GOOD])[0]


def _masks_in(folder: Path) -> dict[str, Path]:
    """The masks of a folder by stem: its images, and its folders of images."""
    if not folder.is_dir():
        return {}
    several = {f.name: f for f in list_folders(folder) if list_images(f)}
    return several | {path.stem: path for path in list_images(folder)}
