"""Text in the cells of tables: it is never read as a formula, and never breaks a row in two.

A spreadsheet takes a cell that begins with one of `= + - @`, a tab or a line end for a formula, wherever the text comes
from (OWASP, "CSV Injection"). In a CSV file, a path gets the prefix `./`, which names the same file for every program
that reads it. Other text gets an apostrophe, as OWASP advises, which `from_cell` removes. In Excel, the type of the
cell marks it as text. Numbers stay as they are.
"""

from __future__ import annotations

import csv
import gc
import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from utils import WorkError, reason_of

if TYPE_CHECKING:  # pandas and openpyxl are missing where only an exported graph runs
    from openpyxl import Workbook
    from pandas import ExcelWriter

FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
ESCAPED = re.compile(rf"'+{FORMULA.pattern}")  # text that has the apostrophe already gets a second one


def as_cell(text: str) -> str:
    """Text that is not a path, for a cell of a CSV file."""
    return f"'{text}" if FORMULA.match(text) or ESCAPED.match(text) else text


def from_cell(cell: str) -> str:
    """Undo `as_cell`."""
    return cell[1:] if ESCAPED.match(cell) else cell


def path_as_cell(path: str) -> str:
    """A path for a cell of a CSV file; it still names the same file."""
    return f"./{path}" if FORMULA.match(path) else path


def path_from_cell(cell: str) -> str:
    """Undo `path_as_cell`; a `./` that the path had before is removed too."""
    return cell[2:] if cell.startswith("./") and FORMULA.match(cell[2:]) else cell


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    r"""Rows as CSV, one line each.

    A row with a carriage return in a cell is quoted, because readers take the carriage return for a line end. The
    module `csv` does so only if its own lines end with one.
    """
    text = io.StringIO(newline="")
    plain, quoted = (
        csv.writer(text, lineterminator="\n", quoting=quoting) for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:
        has_carriage_return = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoted if has_carriage_return else plain).writerow(row)
    return text.getvalue()


def workbook(fill: Callable[[ExcelWriter], None]) -> bytes:
    """The content of an Excel file, in which no text is a formula.

    Args:
        fill: writes the sheets.

    Raises:
        WorkError: there is no space for the temporary files that openpyxl needs.
    """
    import pandas  # missing where only an exported graph runs

    content, failure, hook = io.BytesIO(), "", sys.unraisablehook
    # an unfinished openpyxl file fails again when it is freed, which Python would print with a traceback
    sys.unraisablehook = lambda _: None
    try:
        with pandas.ExcelWriter(content, engine="openpyxl") as book:
            fill(book)
            keep_text(book.book)
    except OSError as error:
        failure = reason_of(error)
    finally:
        if failure:
            gc.collect()
        sys.unraisablehook = hook
    if failure:
        folder = tempfile.gettempdir()
        raise WorkError(f"cannot write temporary files in {folder}: {failure}; set TMPDIR to another folder")
    return content.getvalue()


def keep_text(book: Workbook) -> None:
    """Turn cells that openpyxl, or Excel when they are edited, would take for a formula or an error code into text."""
    for sheet in book.worksheets:
        for cell in (cell for row in sheet.iter_rows() for cell in row if isinstance(cell.value, str)):
            if cell.data_type in ("f", "e"):
                cell.data_type = "s"
            if FORMULA.match(cell.value):
                cell.quotePrefix = True
