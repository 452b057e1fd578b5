"""The layout of VisA: images by class, with the split in a CSV file."""

from __future__ import annotations

import codecs
import csv
import io
from pathlib import Path

from datasets.base import GOOD, TEST_SHARE, Layout, Sample, is_good
from utils import InputError

SPLIT = Path("split_csv") / "1cls.csv"
COLUMNS = ("object", "split", "label", "image", "mask")
REQUIRED = COLUMNS[:4]  # in each row
AS_WRITTEN = "split as written"  # key for messages, since `split` itself is in lower case
SEPARATORS = ",;\t"


class VisALayout(Layout):
    """`split_csv/1cls.csv` with columns object, split, label, image, mask; paths relative to the data path.

    Anomalous rows of the split `train` belong to the test set, because only good images are trained on.
    """

    def __init__(self, root: str | Path, seed: int = 0, test_share: float = TEST_SHARE) -> None:
        super().__init__(root, seed, test_share)
        self._table = self.root / SPLIT
        if not self._table.is_file():
            raise InputError(f"DATA_PATH {self.root}: VisA's {SPLIT} is not in it")
        self._rows = self._read_rows()

    def _read_rows(self) -> list[dict[str, str]]:
        """The rows that are not empty, without spaces around their cells.

        Raises:
            InputError: the table cannot be read, or a required cell of a row is empty.
        """
        text = _read_text(self._table)
        first = text.lstrip().split("\n", 1)[0]
        separator = max(SEPARATORS, key=first.count)
        try:
            lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
        except csv.Error as error:
            raise InputError(f"{self._table} is not a CSV file: {error}") from error
        lines = [[cell.strip() for cell in line] for line in lines]
        numbered = [(number, line) for number, line in enumerate(lines, 1) if any(line)]
        columns = [cell.casefold() for cell in numbered[0][1]] if numbered else []
        if not set(COLUMNS) <= set(columns):
            raise InputError(f"{self._table}: columns are {','.join(columns)}, must be {','.join(COLUMNS)}")
        rows = []
        for number, line in numbered[1:]:
            row = dict.fromkeys(COLUMNS, "") | dict(zip(columns, line, strict=False))
            if not any(row.values()):
                continue
            if missing := [column for column in REQUIRED if not row[column]]:
                raise InputError(f"{self._table}: row {number} has no {missing[0]}: {','.join(line)}")
            rows.append(row | {"split": row["split"].casefold(), AS_WRITTEN: row["split"]})
        return rows

    def classes(self) -> list[str]:
        """The objects of the table, in its order."""
        return list(dict.fromkeys(row["object"] for row in self._rows))

    def train(self, name: str) -> list[Sample]:
        """The normal images of the split `train`.

        Raises:
            InputError: there are none.
        """
        samples = self._samples([row for row in self._of(name, "train") if is_good(row["label"])])
        if not samples:
            unknown = dict.fromkeys(row[AS_WRITTEN] for row in self._unused(name))
            hint = f"; it has rows with split {', '.join(unknown)}, known are train and test" if unknown else ""
            raise InputError(f"class {name}: no normal row with split train in {self._table}{hint}")
        return samples

    def test(self, name: str) -> list[Sample]:
        """The images of the split `test`, and the anomalous ones of the split `train`."""
        return self._samples(self._of(name, "test") + self._moved(name))

    def notes(self, name: str) -> list[str]:
        """Rows whose split is not followed."""
        notes = super().notes(name)
        if moved := len(self._moved(name)):
            notes.append(
                f"{moved} rows with split train in {self._table} are anomalies: they are moved to the test set"
            )
        if unused := self._unused(name):
            notes.append(f"{len(unused)} rows in {self._table} are not used: their split is {unused[0][AS_WRITTEN]}")
        return notes

    def _unused(self, name: str) -> list[dict[str, str]]:
        """The rows of a class with an unknown split."""
        return [row for row in self._rows if row["object"] == name and row["split"] not in ("train", "test")]

    def _of(self, name: str, split: str) -> list[dict[str, str]]:
        return [row for row in self._rows if (row["object"], row["split"]) == (name, split)]

    def _moved(self, name: str) -> list[dict[str, str]]:
        return [row for row in self._of(name, "train") if not is_good(row["label"])]

    def _samples(self, rows: list[dict[str, str]]) -> list[Sample]:
        samples = []
        for row in rows:
            normal = is_good(row["label"])
            mask = self._path(row["mask"]) if row["mask"] and not normal else None
            samples.append(Sample(self._path(row["image"]), GOOD if normal else row["label"], mask))
        for sample in samples:
            for path in (sample.path, sample.mask):
                if path is not None and not path.is_file():
                    raise InputError(f"{self._table} names {path}, which is not there")
        return sorted(samples, key=lambda s: (s.kind != GOOD, s.path))

    def _path(self, cell: str) -> Path:
        """A file named in the table, which may have been written under Windows."""
        path = self.root / cell
        return path if "\\" not in cell or path.is_file() else self.root / cell.replace("\\", "/")


def _read_text(path: Path) -> str:
    """The text of a table as a spreadsheet program writes it: UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
        InputError: the encoding is neither.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data[:2]:
        encoding = "utf-16-be" if data.startswith(b"\0") else "utf-16-le"
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is neither in UTF-8 nor in UTF-16: {error}; save it as UTF-8") from error
