"""The layout of VisA: images by class, the split in a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

from datasets.base import GOOD, TEST_SHARE, Layout, Sample
from errors import InputError

SPLIT = Path("split_csv") / "1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")


class VisALayout(Layout):
    """`split_csv/1cls.csv` with columns object, split, label, image, mask; paths relative to the data path."""

    def __init__(self, root: str | Path, seed: int = 0, test_share: float = TEST_SHARE) -> None:
        super().__init__(root, seed, test_share)
        table = self.root / SPLIT
        if not table.is_file():
            raise InputError(f"DATA_PATH {self.root}: VisA's {SPLIT} is not in it")
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, restval="")
                columns, self._rows = reader.fieldnames or [], list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{table} is not a CSV file in UTF-8: {error}") from error
        if not set(COLUMNS) <= set(columns):
            raise InputError(f"{table}: columns are {','.join(columns)}, must be {','.join(COLUMNS)}")

    def classes(self) -> list[str]:
        """The objects of the table, in its order."""
        return list(dict.fromkeys(row["object"] for row in self._rows))

    def train(self, name: str) -> list[Sample]:
        """The normal images of the split `train`.

        Raises:
            InputError: there are none.
        """
        samples = self._samples(name, "train")
        if not samples:
            raise InputError(f"class {name}: no row with split train in {self.root / SPLIT}")
        return samples

    def test(self, name: str) -> list[Sample]:
        """The images of the split `test`."""
        return self._samples(name, "test")

    def _samples(self, name: str, split: str) -> list[Sample]:
        samples = []
        for row in self._rows:
            if (row["object"], row["split"]) == (name, split):
                normal = row["label"] == "normal"
                mask = self.root / row["mask"] if row["mask"] and not normal else None
                samples.append(Sample(self.root / row["image"], GOOD if normal else row["label"], mask))
        for sample in samples:
            # a row cut short has no image: its path is then the folder itself
            for path in (sample.path, sample.mask):
                if path is not None and not path.is_file():
                    raise InputError(f"{self.root / SPLIT} names {path}, which is not there")
        return sorted(samples, key=lambda s: (s.kind != GOOD, s.path))
