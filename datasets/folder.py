"""The layout of a user's own folders, with or without test images and masks."""

from __future__ import annotations

import hashlib
from pathlib import Path

from datasets.base import GOOD, Sample, is_good
from datasets.listing import describe_other_files, list_folders, list_images
from datasets.masks import split_masks
from datasets.mvtec import NOT_CLASSES, MVTecLayout, good_folder
from utils import InputError

MASKS = ("ground_truth", "masks", "mask", "gt")
NOT_KINDS = NOT_CLASSES | {"train", "test", *MASKS}
VALIDATION = frozenset({"val", "valid", "validation"})


class FolderLayout(MVTecLayout):
    """Any of three forms, which may differ from class to class.

    - `<class>/train/good`, with or without `test/<kind>`;
    - `<class>/good` and any number of other folders, each a kind of defect;
    - `<class>/` with good images in it.

    Masks lie where the MVTec layout has them; their folder may also be called `masks`. If there are defects but no good
    test images, a share of the good images is moved from the training set to the test set. Whether an image is moved
    depends on `seed` and its name alone, so that adding images changes nothing for the others.
    """

    larger = frozenset()
    expected = "a class is a folder with good images in it, or with good or train/good (or ok, normal) in it"
    mask_folders = MASKS

    def classes(self) -> list[str]:
        """The folders that have one of the three forms."""
        return [f.name for f in self._folders() if _form(f)]

    def is_class_itself(self) -> bool:
        """Whether the data path itself has the first or second form, or contains images and no class."""
        form = _form(self.root)
        if form == "good":
            # a class may have such a name too: then it has one of the forms with folders, and no images directly in it
            good_folders = [f for f in list_folders(self.root) if is_good(f.name)]
            return any(list_images(f) or _form(f) is None for f in good_folders)
        return form == "train" or (form == "plain" and not self.classes())

    def train(self, name: str) -> list[Sample]:
        """The good images except those that are held out for the test set.

        Raises:
            InputError: there are none, or it is unclear which images are good.
        """
        self._refuse_mixture(name)
        held = {sample.path for sample in self.held_out(name)}
        samples = [sample for sample in self._good(name) if sample.path not in held]
        if not samples:
            folder, forms = self.root / name, "train/good, good, or images in the class folder itself"
            others = describe_other_files(folder)
            raise InputError(f"class {name}: no good image in {folder}; possible: {forms}{others}")
        return samples

    def test(self, name: str) -> list[Sample]:
        """Defective images, and good ones as provided or held out; [] if there is no defective image."""
        return self._provided_test(name) + self.held_out(name)

    def held_out(self, name: str) -> list[Sample]:
        """Good images moved from the training set to the test set, which has defective images but no good ones."""
        kinds = {sample.is_anomaly for sample in self._provided_test(name)}
        good = self._good(name)
        if kinds != {True} or len(good) < 2:
            return []
        drawn = {sample.path: self._draw(sample.path) for sample in good}
        held = [sample for sample in good if drawn[sample.path] < self.test_share]
        if len(held) == len(good):
            held.remove(max(held, key=lambda sample: drawn[sample.path]))  # one has to be left to train on
        return held or [min(good, key=lambda sample: drawn[sample.path])]

    def _draw(self, path: Path) -> float:
        """A number in [0, 1) from the seed and the image's name."""
        name = path.relative_to(self.root).as_posix()
        # a file name may contain bytes that are not text
        digest = hashlib.sha256(f"{self.seed}/{name}".encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    def _good(self, name: str) -> list[Sample]:
        folder = self.root / name
        form = _form(folder)
        images_in = folder if form == "plain" else good_folder(folder / "train" if form == "train" else folder)
        return [Sample(path) for path in split_masks(list_images(images_in))[0]]

    def _unused(self, name: str) -> list[Path]:
        folder = self.root / name
        form = _form(folder)
        if form == "train":
            return super()._unused(name)
        if form == "good":
            others = [f for f in list_folders(folder) if f.name.casefold() in ("train", "test")]
            others += [f for f in list_folders(folder) if is_good(f.name) and f != good_folder(folder)]
            return [folder] * bool(list_images(folder)) + [f for f in others if list_images(f, recursive=True)]
        others = [f for f in list_folders(folder) if f.name.casefold() not in {*NOT_CLASSES, *MASKS}]
        return [f for f in others if list_images(f, recursive=True)]

    def _used_folders(self, name: str) -> list[Path]:
        folder = self.root / name
        if _form(folder) == "good":
            return [good_folder(folder), *self._kinds(name)]
        return super()._used_folders(name)

    def _kinds(self, name: str) -> list[Path]:
        """In the second form, the folders beside the good images, each a kind of defect."""
        folders = list_folders(self.root / name)
        return [f for f in folders if f.name.casefold() not in NOT_KINDS and not is_good(f.name)]

    def _provided_test(self, name: str) -> list[Sample]:
        folder = self.root / name
        if _form(folder) != "good":
            return super().test(name)
        good_folder(folder)
        kinds = self._kinds(name)
        unclear = [kind for kind in kinds if kind.name.casefold() in VALIDATION and list_images(kind)]
        if unclear:
            raise InputError(
                f"class {name}: the name of {unclear[0]} does not say whether its images are good or defective; put "
                f"the good ones into {good_folder(folder)}, defective ones into a folder named after their defect"
            )
        return [sample for kind in kinds for sample in self._kind(name, kind)]

    def _kind_folder(self, name: str, kind: str) -> Path:
        folder = self.root / name
        return folder / kind if _form(folder) == "good" else super()._kind_folder(name, kind)

    def _refuse_mixture(self, name: str) -> None:
        """Images directly in the class folder are good, but whether those in folders beside them are is unknown."""
        folder = self.root / name
        others = [f for f in list_folders(folder) if f.name not in NOT_CLASSES and list_images(f)]
        if _form(folder) == "plain" and others:
            raise InputError(
                f"class {name}: images lie in {folder} itself and in {others[0].name}/ there; put the good ones into "
                f"{folder / GOOD}, then every other folder is a kind of defect"
            )


def _form(folder: Path) -> str | None:
    """Which of the three forms a class folder has; None if it has none of them."""
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        return "train"
    if folder.is_dir() and any(is_good(f.name) for f in list_folders(folder)):
        return "good"
    return "plain" if list_images(folder) else None
