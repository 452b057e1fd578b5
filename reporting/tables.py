"""The tables of a results folder (results.csv, results.xlsx, per_image.csv) and its settings.json."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from reporting.cells import as_cell, csv_text, from_cell, path_as_cell, workbook
from reporting.formats import percent, percent_with_deviation
from training.evaluation import NEIGHBOURS
from utils import LOGGER, WorkError, write_bytes, write_text

ROW_NAMES = "Row Names"
COLUMNS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro", "best_epoch")
MEAN = "Mean"
SETTINGS = "settings.json"
LONGEST_SHEET_NAME = 31  # characters, a limit of Excel
# control characters, surrogates (bytes of a path that are not text), and characters that XML does not allow
NOT_FOR_EXCEL = re.compile(f"{ILLEGAL_CHARACTERS_RE.pattern}|[\ud800-\udfff\ufffe\uffff]")


# ------------------------------------------------------------------------------------- results.csv


def write_results(folder: Path, rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Write results.csv: one row per class, then their mean.

    Rows that earlier runs wrote for other classes are kept.

    Args:
        folder: the results folder.
        rows: row name → figures, the metrics in [0, 1].

    Returns:
        The table as written, without rounding.

    Raises:
        WorkError: the existing file cannot be read, or the new one cannot be written.
    """
    path = folder / "results.csv"
    table = pd.DataFrame.from_dict({name: dict(figures) for name, figures in rows.items()}, orient="index")
    existing = read_rows(path)
    order = dict.fromkeys((*table.columns, *existing.columns))  # joining below sorts the columns
    others = existing[~existing.index.isin([*rows, MEAN])]
    replaced = existing[existing.index.isin(list(rows))]
    if len(others):
        if len(rows) == 1:  # only for the first class of a run
            LOGGER.info("%s: kept the rows of earlier runs: %s", path, ", ".join(others.index))
        table = pd.concat([others, table])
    if len(replaced):
        table = table.combine_first(_kept_figures(replaced, rows)).reindex(table.index)
    table = table.reindex(columns=[*COLUMNS, *(c for c in order if c not in COLUMNS)])
    table.loc[MEAN] = table.mean(numeric_only=True)
    table.index.name = ROW_NAMES
    _write_csv(path, table)
    return table


def _kept_figures(replaced: pd.DataFrame, rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Figures of earlier runs that stay: of the last epoch, and of nearest neighbours where a run only tests.

    Args:
        replaced: the earlier rows.
        rows: the new ones.
    """
    kept = replaced[[c for c in replaced.columns if c.startswith(("last_", NEIGHBOURS))]].copy()
    # another training may have other features, so its row does not keep them
    trained = [name for name in kept.index if "last_epoch" in rows[name]]
    kept.loc[trained, [c for c in kept.columns if c.startswith(NEIGHBOURS)]] = math.nan
    return kept


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_bytes(path, _as_csv(table.rename(index=_escape_name)).encode("utf-8"))


def _as_csv(table: pd.DataFrame, index: bool = True) -> str:
    """CSV as pandas writes it, except that cells with a carriage return are quoted."""
    # pandas quotes them only if lines end with a carriage return
    text = table.to_csv(na_rep="nan", float_format="%.6g", index=index, lineterminator="\r\n")
    return csv_text(csv.reader(io.StringIO(text, newline="")))


def _escape_name(value: Any) -> Any:
    return as_cell(value) if isinstance(value, str) else value


def write_workbook(
    folder: Path, table: pd.DataFrame, settings: Mapping[str, Any], per_image: Mapping[str, list[dict[str, Any]]]
) -> None:
    """Write results.xlsx: a sheet of results, a sheet of settings, and a sheet of image scores for each class.

    Args:
        folder: the results folder.
        table: of the results.
        settings: see `read_settings`.
        per_image: class → its rows, see `write_per_image`.

    Raises:
        WorkError: it cannot be written.
    """
    flat = [
        (part, name, _for_excel(str(value)))
        for part, values in (*settings.get("arguments", {}).items(), ("versions", settings.get("versions", {})),
                             ("device", settings.get("device", {})))
        for name, value in values.items()
    ]  # fmt: skip

    def fill(book: pd.ExcelWriter) -> None:
        table.rename(index=_for_excel).to_excel(book, sheet_name="results", na_rep="nan")
        pd.DataFrame(flat, columns=["part", "name", "value"]).to_excel(book, sheet_name="settings", index=False)
        taken = {"results", "settings"}
        for name, rows in per_image.items():
            pd.DataFrame(rows).map(_for_excel).to_excel(
                book, sheet_name=_sheet_name(name, taken), index=False, na_rep="nan"
            )

    write_bytes(folder / "results.xlsx", workbook(fill))


def _for_excel(value: Any) -> Any:
    """Text without the characters that Excel does not allow."""
    return NOT_FOR_EXCEL.sub("?", value) if isinstance(value, str) else value


def _sheet_name(name: str, taken: set[str]) -> str:
    """A name that Excel allows: 31 characters, none of []:*?/\\, unique; it is added to `taken`."""
    plain = re.sub(r"[\[\]:*?/\\']", "_", _for_excel(name).replace("?", "_"))
    short, number = plain[:LONGEST_SHEET_NAME], 2
    while short.lower() in taken:
        short, number = f"{plain[: LONGEST_SHEET_NAME - 4]} {number}", number + 1
    taken.add(short.lower())
    return short


def write_per_image(folder: Path, per_image: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write per_image.csv, with a row for each test image; without images, remove the file.

    Args:
        folder: the results folder.
        per_image: class → rows of path, label, score, normalised_score, decision and mask_area.

    Raises:
        WorkError: it cannot be written.
    """
    if not per_image:
        (folder / "per_image.csv").unlink(missing_ok=True)
        return
    parts = [pd.DataFrame(rows).assign(**{"class": name}) for name, rows in per_image.items()]
    table = pd.concat(parts).astype({"decision": "Int64"})
    table = table.assign(**{"path": table["path"].map(path_as_cell), "class": table["class"].map(as_cell)})
    write_bytes(folder / "per_image.csv", _as_csv(table, index=False).encode("utf-8", "replace"))


def write_seeds(folder: Path, runs: Sequence[Path]) -> str:
    """Write results.csv and results.xlsx of runs that differ only by their seed: mean and standard deviation.

    Args:
        folder: gets the files.
        runs: results folders, one per seed; those without results are skipped.

    Returns:
        The table for people, `mean ± deviation` in percent. The last row is the mean over the classes.
    """
    tables = [table for table in (read_rows(run / "results.csv") for run in runs) if len(table)]
    order = list(dict.fromkeys(name for table in tables for name in table.index if name != MEAN))
    grouped = pd.concat(tables).groupby(level=0)
    mean, deviation, count = grouped.mean(numeric_only=True), grouped.std(numeric_only=True), grouped.size()
    table = mean.reindex([name for name in (*order, MEAN) if name in mean.index]).assign(seeds=count)
    metrics = COLUMNS[:-1]
    further = [c for c in mean.columns if c not in COLUMNS]
    of_neighbours = [c for c in further if c.startswith(NEIGHBOURS)]
    deviations = [f"{column}_std" for column in metrics]
    deviations_of_neighbours = [f"{column}_std" for column in of_neighbours]
    for column in (*metrics, *of_neighbours):
        table[f"{column}_std"] = deviation[column]
    table = table.reindex(columns=[*COLUMNS, "seeds", *deviations, *further, *deviations_of_neighbours])
    table.index.name = ROW_NAMES
    _write_csv(folder / "results.csv", table)
    write_workbook(folder, table, {}, {})
    shown = {
        column: [percent_with_deviation(a, b) for a, b in zip(table[column], table[name], strict=True)]
        for column, name in zip(metrics, deviations, strict=True)
    }
    return pd.DataFrame(shown, index=table.index).to_string()


def read_rows(path: Path) -> pd.DataFrame:
    """Read a results.csv, indexed by row name; an empty table if there is none.

    Raises:
        WorkError: the file is not a results.csv.
    """
    if not path.exists():
        return pd.DataFrame()
    try:
        _check_csv(path)
        # keep row names as text: a class may be called 7 or NA
        table = pd.read_csv(path, converters={ROW_NAMES: str}).set_index(ROW_NAMES).apply(pd.to_numeric)
        if table.index.has_duplicates:
            raise ValueError(f"it has two rows {table.index[table.index.duplicated()][0]!r}")
        return table.rename(index=lambda name: from_cell(name) if isinstance(name, str) else name)
    except (ValueError, TypeError, OSError, KeyError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise WorkError(f"cannot read {path} of an earlier run: {reason}; move it away") from error


def _check_csv(path: Path) -> None:
    """Check that a file has the shape of a results.csv.

    Raises:
        ValueError: it does not.
    """
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    missing = [column for column in (ROW_NAMES, *COLUMNS) if column not in header]
    if missing:
        raise ValueError(f"it has no column {missing[0]!r}")
    if len(set(header)) < len(header):
        raise ValueError("it has two columns of the same name")
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"the row {row[0]!r} has {len(row)} values, the header has {len(header)}")
        if not row[header.index(ROW_NAMES)]:
            raise ValueError("it has a row without a name")


def format_table(table: pd.DataFrame) -> str:
    """The published columns of the results in percent, for people."""
    shown = table[list(COLUMNS[:-1])].map(percent)
    shown[COLUMNS[-1]] = ["" if name == MEAN else f"{v:.0f}" for name, v in table[COLUMNS[-1]].items()]
    return shown.to_string()


# ----------------------------------------------------------------------------------- settings.json


def read_settings(folder: Path) -> dict[str, Any]:
    """Read settings.json of a results folder; {} if there is none.

    Raises:
        WorkError: it is damaged.
    """
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise WorkError(f"cannot read {path}: {error}; move it away") from error
    if not _are_settings(settings):
        raise WorkError(f"{path} was not written by a run; move it away")
    return settings


def _are_settings(settings: Any) -> bool:
    """Whether each entry that is read later has the expected type, if it is present."""
    if not isinstance(settings, dict):
        return False
    types = {"arguments": dict, "models": dict, "versions": dict, "device": dict, "written": str, "command": list}
    if not all(isinstance(settings.get(key, type_()), type_) for key, type_ in types.items()):
        return False
    calls, duration = settings.get("later_calls", []), settings.get("duration_seconds")
    if "written" in settings and not {"kind", "name", "threads"} <= set(settings.get("device", {})):
        return False
    return (
        all(isinstance(values, dict) for values in settings.get("arguments", {}).values())
        and all(isinstance(word, str) for word in settings.get("command", []))
        and isinstance(calls, list)
        and all(isinstance(call, dict) and isinstance(call.get("written"), str) for call in calls)
        and (duration is None or (isinstance(duration, (int, float)) and math.isfinite(duration)))
        and ("written" not in settings or "duration_seconds" in settings)
    )


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write settings.json.

    Raises:
        WorkError: it cannot be written.
    """
    write_text(folder / SETTINGS, json.dumps(settings, indent=1, default=str) + "\n")
