"""Text in the cells of tables: never a formula, never torn into two rows.

A spreadsheet takes a cell that begins with one of `= + - @`, a tab or a line end for a formula, wherever the text comes
from (OWASP, "CSV Injection"). In a CSV file a path gets `./` in front, which names the same file for every program that
reads it; other text gets an apostrophe, as OWASP advises, which `from_cell` takes away again. In Excel the cell's own
type says that it is text. Numbers are left as they are.
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

if TYPE_CHECKING:  # what runs an exported graph has neither pandas nor openpyxl
    from openpyxl import Workbook
    from pandas import ExcelWriter

FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
ESCAPED = re.compile(rf"'+{FORMULA.pattern}")  # an apostrophe of the text's own is doubled, so that none is lost


def as_cell(text: str) -> str:
    """Text that is no path, for a cell of a CSV file."""
    return f"'{text}" if FORMULA.match(text) or ESCAPED.match(text) else text


def from_cell(cell: str) -> str:
    """What `as_cell` was given."""
    return cell[1:] if ESCAPED.match(cell) else cell


def path_as_cell(path: str) -> str:
    """A path for a cell of a CSV file; it names the same file as before."""
    return f"./{path}" if FORMULA.match(path) else path


def path_from_cell(cell: str) -> str:
    """What `path_as_cell` was given, but for a `./` that was there before."""
    return cell[2:] if cell.startswith("./") and FORMULA.match(cell[2:]) else cell


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    r"""Rows as CSV, a line each.

    A carriage return inside a cell is a line end to those who read it, so its row is quoted; `csv` does so only where
    it ends lines with one itself.
    """
    text = io.StringIO(newline="")
    plain, quoted = (
        csv.writer(text, lineterminator="\n", quoting=quoting) for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:
        torn = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoted if torn else plain).writerow(row)
    return text.getvalue()


def workbook(fill: Callable[[ExcelWriter], None]) -> bytes:
    """The content of an Excel file whose sheets `fill` writes; its text is no formula.

    Raises:
        WorkError: there is no room for the temporary files that openpyxl needs.
    """
    import pandas

    content, failure, hook = io.BytesIO(), "", sys.unraisablehook
    # what openpyxl did not finish fails once more as it is freed, which Python would print with a traceback
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
        place = tempfile.gettempdir()
        raise WorkError(f"cannot write temporary files in {place}: {failure}; the variable TMPDIR names another place")
    return content.getvalue()


def keep_text(book: Workbook) -> None:
    """Make text of every cell that openpyxl took for a formula or an error code, and of what Excel might on editing."""
    for sheet in book.worksheets:
        for cell in (cell for row in sheet.iter_rows() for cell in row if isinstance(cell.value, str)):
            if cell.data_type in ("f", "e"):
                cell.data_type = "s"
            if FORMULA.match(cell.value):
                cell.quotePrefix = True
