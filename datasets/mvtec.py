"""The layout of MVTec AD, which is also that of MPDD, WFDD, MAD-man, MAD-sys and most data sets of users."""

from __future__ import annotations

import os
from pathlib import Path

from datasets.base import GOOD, Layout, Sample, is_good
from datasets.listing import describe_other_files, list_folders, list_images
from datasets.masks import pair_masks, split_masks
from utils import InputError

NOT_CLASSES = frozenset({"ground_truth", "fg_mask"})  # folders beside those of the classes


class MVTecLayout(Layout):
    """`<class>/train/good`, `<class>/test/<kind>`, masks by name in one of three places.

    Masks are named like their image, with or without `_mask`, and lie in `<class>/ground_truth/<defect>/`,
    `ground_truth/<class>/<defect>/` or `ground_truth/<defect>/`, or beside their image, then with `_mask`. Several
    masks of one image lie in a folder named like the image. `good` may also be called `ok` or `normal`, in any letter
    case.
    """

    larger = frozenset({"toothbrush", "wood"})
    expected = "a class is a folder with train/good (or ok, normal) in it; NAME folder accepts more forms"
    mask_folders: tuple[str, ...] = ("ground_truth",)  # names of folders of masks

    def classes(self) -> list[str]:
        """The folders that contain `train` or `test`."""
        return [f.name for f in self._folders() if (f / "train").is_dir() or (f / "test").is_dir()]

    def is_class_itself(self) -> bool:
        """Whether the data path itself contains `train` or `test`, and no class."""
        return any((self.root / part).is_dir() for part in ("train", "test")) and not self.classes()

    def empty(self) -> list[str]:
        """Names of folders that contain no file at any depth."""
        return [f.name for f in self._folders() if not any(files for _, _, files in os.walk(f, followlinks=True))]

    def not_classes(self) -> list[str]:
        """Names of folders that contain images, but neither `train` nor `test`."""
        classes = set(self.classes())
        return [f.name for f in self._folders() if f.name not in classes and list_images(f, recursive=True)]

    def unused_masks(self, name: str) -> list[Path]:
        """Mask files of a class that belong to none of its images."""
        samples = [sample for sample in self.test(name) if sample.is_anomaly]
        kinds = {sample.kind for sample in samples}
        masks = {path for kind in kinds for path in self._masks(name, kind).values()}
        return sorted(masks - {sample.mask for sample in samples})

    def notes(self, name: str) -> list[str]:
        """What is not used, and what is taken for a mask because of its name alone."""
        folders = dict.fromkeys(sample.path.parent for sample in self._listed(name))
        beside = [mask for folder in folders for mask in split_masks(list_images(folder))[1].values()]
        notes = super().notes(name)
        if beside:
            notes.append(f"{len(beside)} files are masks of the images beside them by their names, such as {beside[0]}")
        notes += [f"the images in {folder} are not used" for folder in self._unused(name)]
        for folder in self._used_folders(name):
            used = set(list_images(folder))
            deeper = [path for path in list_images(folder, recursive=True) if path not in used]
            if deeper:
                notes.append(f"{len(deeper)} images in folders inside {folder} are not used, the first is {deeper[0]}")
        return notes

    def _used_folders(self, name: str) -> list[Path]:
        """The folders that directly contain the images of the training and the test set."""
        train, test = self.root / name / "train", self.root / name / "test"
        return [good_folder(train)] * train.is_dir() + (list_folders(test) if test.is_dir() else [])

    def _unused(self, name: str) -> list[Path]:
        """Other folders of the class that contain images."""
        base = self.root / name
        train, test = base / "train", base / "test"
        if not (train.is_dir() or test.is_dir()):
            return []
        others = [
            f
            for f in list_folders(base)
            if f.name.casefold() not in {"train", "test", *NOT_CLASSES, *self.mask_folders}
        ]
        unused = [f for f in others if list_images(f, recursive=True)]
        unused += [f for f in (base, train, test) if list_images(f)]
        if train.is_dir():
            unused += [f for f in list_folders(train) if f != good_folder(train) and list_images(f, recursive=True)]
        return unused

    def _folders(self) -> list[Path]:
        return [f for f in list_folders(self.root) if f.name not in NOT_CLASSES]

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
        """The images of `<class>/test/*`; [] if there is no such folder."""
        folder = self.root / name / "test"
        if not folder.is_dir():
            return []
        good_folder(folder)  # raises where two folders mean good images
        return [sample for kind in list_folders(folder) for sample in self._kind(name, kind)]

    def _kind(self, name: str, folder: Path) -> list[Sample]:
        """The test images of one kind with their masks."""
        images, beside = split_masks(list_images(folder))
        if is_good(folder.name):
            return [Sample(path) for path in images]
        masks = beside | pair_masks([path.stem for path in images], self._masks(name, folder.name))
        return [Sample(path, folder.name, masks.get(path.stem)) for path in images]

    def _masks(self, name: str, kind: str) -> dict[str, Path]:
        """The masks of a kind of defect, by stem: files, or folders with several masks of one image.

        Raises:
            InputError: the masks could belong to several classes.
        """
        for folders in (self._mask_folders(self.root / name), self._mask_folders(self.root, name)):
            for folder in folders:
                if masks := _masks_in(folder / kind):
                    return masks
        shared = self.root / "ground_truth" / kind
        masks = _masks_in(shared)
        sharing = [other for other in self.classes() if self._kind_folder(other, kind).is_dir()] if masks else []
        if len(sharing) > 1:
            raise InputError(
                f"{shared} could hold masks of {' or '.join(sharing)}; "
                f"put them into {self.root / 'ground_truth' / '<class>' / kind}"
            )
        return masks

    def _mask_folders(self, parent: Path, below: str = "") -> list[Path]:
        """The folders of masks in `parent`, whose names count in any letter case; `below` is appended to each."""
        folders = list_folders(parent) if parent.is_dir() else []
        order = {folder: self.mask_folders.index(name) for folder in folders
                 if (name := folder.name.casefold()) in self.mask_folders}  # fmt: skip
        return [folder / below for folder in sorted(order, key=order.get)]

    def _kind_folder(self, name: str, kind: str) -> Path:
        """The folder of the test images of one kind."""
        return self.root / name / "test" / kind


def good_folder(folder: Path) -> Path:
    """The subfolder of the good images: good, ok or normal; `good` if there is none of them.

    Raises:
        InputError: two of them contain images.
    """
    existing = [f for f in list_folders(folder) if is_good(f.name)] if folder.is_dir() else []
    filled = [f for f in existing if list_images(f)]
    if len(filled) > 1:
        raise InputError(
            f"{folder} holds {' and '.join(f.name for f in filled)}, which both mean good images; put all of them into "
            f"{folder / GOOD}"
        )
    return (filled or existing or [folder / GOOD])[0]


def _masks_in(folder: Path) -> dict[str, Path]:
    """The masks of a folder by stem: its images, and its folders of images."""
    if not folder.is_dir():
        return {}
    several = {f.name: f for f in list_folders(folder) if list_images(f)}
    return several | {path.stem: path for path in list_images(folder)}
