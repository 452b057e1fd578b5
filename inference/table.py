"""predictions.csv: the table of a prediction run, which an interrupted run can continue."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from reporting.cells import as_cell, csv_text, path_as_cell, path_from_cell
from utils import InputError, WorkError, reason_of, write_bytes, write_text

FILE = "predictions.csv"
EARLIER_COLUMNS = ("path", "score", "normalised_score", "decision", "seconds", "error", "saved_as")
COLUMNS = (*EARLIER_COLUMNS, "region_count", "regions")
SETTINGS = "predictions.json"  # which model wrote the table


class PredictionsTable:
    """predictions.csv, written row by row: it holds whole rows whenever the run stops.

    Args:
        folder: of the table; None keeps no table.
        resume: whether an existing table may be continued.
        identity: of the model, see `Judge.identity`; a table can only be continued by the model that began it.
        saves_images: whether the run saves images; a row without saved images then counts as not done.

    Attributes:
        done: absolute paths that are judged already.
        names: of the saved images so far.

    Raises:
        InputError: the table exists and `resume` is off, or another model began it.
        WorkError: the table cannot be written, or the existing file is something else.
    """

    def __init__(self, folder: Path | None, resume: bool, identity: dict[str, Any], saves_images: bool) -> None:
        self.done: set[str] = set()
        self.names: set[str] = set()
        self._file: BinaryIO | None = None
        if folder is None:
            return
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                if not resume:
                    raise InputError(f"{path} exists already; give --continue to continue it, or another --out")
                _refuse_another_model(folder / SETTINGS, identity)
                self._keep_finished_rows(path, saves_images)
            write_text(folder / SETTINGS, json.dumps(identity))
            self._file = path.open("ab", buffering=0)
            if not path.stat().st_size:
                self._append([COLUMNS])
        except OSError as error:
            raise WorkError(f"--out {folder} cannot be written to: {reason_of(error)}; give another folder") from error

    def _keep_finished_rows(self, path: Path, saves_images: bool) -> None:
        """Drop rows with errors, so that they are tried again, and a last row that was cut off.

        Rows of an earlier version stay, without regions.
        """
        text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        complete = text[: text.rfind("\n") + 1]
        rows = parse_rows(complete)
        columns = EARLIER_COLUMNS if rows[:1] == [list(EARLIER_COLUMNS)] else COLUMNS
        is_table = rows[:1] == [list(columns)] if complete else ",".join(COLUMNS).startswith(text)
        if not is_table:
            raise WorkError(f"{path} is not a table that this command wrote; give another --out, or move the file away")
        named = [dict(zip(columns, row, strict=True)) for row in rows[1:] if len(row) == len(columns)]
        kept = [row for row in named if not row["error"] and row["score"] and (row["saved_as"] or not saves_images)]
        self.done = {os.path.abspath(row["path"]) for row in kept}
        self.names = {path_from_cell(row["saved_as"]) for row in kept if row["saved_as"]}
        content = csv_text([COLUMNS, *(_cells(row) for row in kept)])
        write_bytes(path, content.encode("utf-8", "surrogateescape"))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append rows by column name: all of them, or none.

        Raises:
            WorkError: they cannot be written.
        """
        if self._file is None:
            return
        try:
            self._append([_cells(row) for row in rows])
        except OSError as error:
            raise WorkError(f"cannot write {self._file.name}: {reason_of(error)}") from error

    def _append(self, rows: Sequence[Sequence[Any]]) -> None:
        """Append all rows, or none if the disk is full."""
        remaining = memoryview(csv_text(rows).encode("utf-8", "surrogateescape"))
        size_before = os.fstat(self._file.fileno()).st_size
        try:
            while remaining:  # a nearly full disk accepts a part of the data at first
                remaining = remaining[self._file.write(remaining) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(size_before)
            raise

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def parse_rows(text: str) -> list[list[str]]:
    """The rows of a CSV file; a row broken by a carriage return in a file name (earlier versions) is skipped."""
    reader, rows = csv.reader(io.StringIO(text)), []
    while True:
        try:
            rows.append(next(reader))
        except csv.Error:
            continue
        except StopIteration:
            return [row for row in rows if row]


def _cells(row: dict[str, Any]) -> list[Any]:
    """The values of a row in the order of the columns, with text escaped so that it is no formula."""
    escape = {"path": path_as_cell, "saved_as": path_as_cell, "error": as_cell}
    values = {column: row.get(column, "") for column in COLUMNS}
    return [escape[column](value) if column in escape else value for column, value in values.items()]


def _refuse_another_model(path: Path, identity: dict[str, Any]) -> None:
    """Refuse to mix the scores of two models in one table, where they would not be comparable."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # it is unknown which model began the table
    if before != identity:
        differing = ", ".join(key for key in {**before, **identity} if before.get(key) != identity.get(key))
        raise InputError(
            f"{path.parent / FILE} was begun with another model, other tiles or another --min_area ({differing}); "
            "give another --out"
        )
