"""The layout of MVTec AD, which MPDD, WFDD, MAD-man, MAD-sys and most users' sets share."""

from __future__ import annotations

import os
from pathlib import Path

from datasets.base import GOOD, Layout, Sample
from datasets.files import list_folders, list_images, what_else
from errors import InputError

BESIDE = frozenset({"ground_truth", "fg_mask"})


class MVTecLayout(Layout):
    """`<class>/train/good`, `<class>/test/<kind>`, masks by name in one of three places.

    Masks are named like their image, with or without `_mask`, and lie at `<class>/ground_truth/<defect>/`,
    `ground_truth/<class>/<defect>/` or `ground_truth/<defect>/`.
    """

    larger = frozenset({"toothbrush", "wood"})
    expected = "a class is a folder with train/good in it (small letters); NAME folder takes more forms"
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

    def _folders(self) -> list[Path]:
        return [f for f in list_folders(self.root) if f.name not in BESIDE]

    def train(self, name: str) -> list[Sample]:
        """The images of `<class>/train/good`.

        Raises:
            InputError: there are none.
        """
        folder = self.root / name / "train" / GOOD
        samples = [Sample(path) for path in list_images(folder)]
        if not samples:
            raise InputError(f"class {name}: no good training image in {folder}{what_else(folder)}")
        return samples

    def test(self, name: str) -> list[Sample]:
        """The images of `<class>/test/*`; [] where there is no such folder."""
        folder = self.root / name / "test"
        if not folder.is_dir():
            return []
        return [sample for kind in list_folders(folder) for sample in self._kind(name, kind)]

    def _kind(self, name: str, folder: Path) -> list[Sample]:
        """The test images of one kind with their masks."""
        masks = {} if folder.name == GOOD else self._masks(name, folder.name)
        return [
            Sample(path, folder.name, masks.get(f"{path.stem}_mask") or masks.get(path.stem))
            for path in list_images(folder)
        ]

    def _masks(self, name: str, kind: str) -> dict[str, Path]:
        """Mask files of one kind of defect by stem.

        Raises:
            InputError: they could belong to several classes.
        """
        places = [f"{name}/{masks}/{kind}" for masks in self.masks]
        places += [f"{masks}/{name}/{kind}" for masks in self.masks]
        for place in (*places, f"ground_truth/{kind}"):
            found = list_images(self.root / place)
            if not found:
                continue
            sharing = [] if place in places else [c for c in self.classes() if self._kind_folder(c, kind).is_dir()]
            if len(sharing) > 1:
                raise InputError(
                    f"{self.root / place} could hold masks of {' or '.join(sharing)}; "
                    f"put them into {self.root / 'ground_truth' / '<class>' / kind}"
                )
            return {path.stem: path for path in found}
        return {}

    def _kind_folder(self, name: str, kind: str) -> Path:
        """Where the test images of one kind would lie."""
        return self.root / name / "test" / kind
