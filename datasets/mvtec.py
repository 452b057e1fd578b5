"""The layout of MVTec AD, which MPDD, WFDD, MAD-man, MAD-sys and most users' sets share."""

from __future__ import annotations

from pathlib import Path

from datasets.base import GOOD, Layout, Sample
from datasets.files import list_folders, list_images
from errors import InputError

BESIDE = frozenset({"ground_truth", "fg_mask"})


class MVTecLayout(Layout):
    """`<class>/train/good`, `<class>/test/<kind>`, masks by name in one of three places.

    Masks are named like their image, with or without `_mask`, and lie at `<class>/ground_truth/<defect>/`,
    `ground_truth/<class>/<defect>/` or `ground_truth/<defect>/`.
    """

    larger = frozenset({"toothbrush", "wood"})

    def classes(self) -> list[str]:
        """Folders with `train` or `test` in them."""
        folders = [f for f in list_folders(self.root) if f.name not in BESIDE]
        return [f.name for f in folders if (f / "train").is_dir() or (f / "test").is_dir()]

    def train(self, name: str) -> list[Sample]:
        """The images of `<class>/train/good`.

        Raises:
            InputError: there are none.
        """
        folder = self.root / name / "train" / GOOD
        samples = [Sample(path) for path in list_images(folder)]
        if not samples:
            raise InputError(f"class {name}: no good training image in {folder}")
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
        """Mask files of one kind of defect by stem."""
        for place in (f"{name}/ground_truth/{kind}", f"ground_truth/{name}/{kind}", f"ground_truth/{kind}"):
            found = list_images(self.root / place)
            if found:
                return {path.stem: path for path in found}
        return {}
