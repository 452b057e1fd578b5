"""What a run leaves for people: CSV and Excel tables, its settings, pictures.

`python main.py report RESULTS [RESULTS…]` compares runs, see `compare.py`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from reporting.cells import as_cell, csv_text, from_cell, path_as_cell, workbook
from reporting.drawing import heatmap, save_image
from utils import IMAGENET_MEAN, IMAGENET_STD, LOGGER, WorkError, write_bytes, write_text

ROW_NAMES = "Row Names"
COLUMNS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro", "best_epoch")
MEAN = "Mean"
SETTINGS = "settings.json"
UNKNOWN_GRAY = 128
LONGEST_NAME = 200  # bytes of a picture's; file systems take 255 with the suffix, some fewer
# control characters, surrogates (bytes of a path that are not text), and what XML does not know
NOT_FOR_EXCEL = re.compile(f"{ILLEGAL_CHARACTERS_RE.pattern}|[\ud800-\udfff\ufffe\uffff]")
BAR_WIDTH = 36  # pixels of the heatmap's scale


# ------------------------------------------------------------------------------------------ tables


def write_results(folder: Path, rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Write results.csv: a row a class, last their mean.

    Rows of other classes that lie there from earlier runs are kept.

    Args:
        folder: the results folder.
        rows: row name → figures, the metrics in [0, 1].

    Returns:
        The table as written, without rounding.
    """
    path = folder / "results.csv"
    table = pd.DataFrame.from_dict({name: dict(figures) for name, figures in rows.items()}, orient="index")
    before = read_rows(path)
    order = dict.fromkeys((*table.columns, *before.columns))  # what is joined below comes out sorted
    earlier, same = before[~before.index.isin([*rows, MEAN])], before[before.index.isin(list(rows))]
    if len(earlier):
        if len(rows) == 1:  # once a run
            LOGGER.info("%s: kept the rows of earlier runs: %s", path, ", ".join(earlier.index))
        table = pd.concat([earlier, table])
    if len(same):  # a test alone has no figures of the last epoch: those of its training stay
        table = table.combine_first(same[[c for c in same.columns if c.startswith("last_")]]).reindex(table.index)
    further = [c for c in order if c not in COLUMNS]
    table = table.reindex(columns=[*COLUMNS, *further])
    table.loc[MEAN] = table.mean(numeric_only=True)
    table.index.name = ROW_NAMES
    _write_csv(path, table)
    return table


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_bytes(path, _as_csv(table.rename(index=_as_cell)).encode("utf-8"))


def _as_csv(table: pd.DataFrame, index: bool = True) -> str:
    """As pandas writes it, but for cells with a carriage return, which it does not quote."""
    # it does where lines end with one
    text = table.to_csv(na_rep="nan", float_format="%.6g", index=index, lineterminator="\r\n")
    return csv_text(csv.reader(io.StringIO(text, newline="")))


def _as_cell(value: Any) -> Any:
    return as_cell(value) if isinstance(value, str) else value


def write_workbook(
    folder: Path, table: pd.DataFrame, settings: Mapping[str, Any], per_image: Mapping[str, list[dict[str, Any]]]
) -> None:
    """Write results.xlsx: a sheet of results, one of settings, one a class of its images' scores."""
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
    """Text without the characters that Excel refuses."""
    return NOT_FOR_EXCEL.sub("?", value) if isinstance(value, str) else value


def _sheet_name(name: str, taken: set[str]) -> str:
    """What Excel allows: 31 characters, none of []:*?/\\, no two alike; `taken` grows by it."""
    plain = re.sub(r"[\[\]:*?/\\']", "_", _for_excel(name).replace("?", "_"))
    short, number = plain[:31], 2
    while short.lower() in taken:
        short, number = f"{plain[:27]} {number}", number + 1
    taken.add(short.lower())
    return short


def write_per_image(folder: Path, per_image: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write per_image.csv: path, label, score, normalised score, decision, mask area, class of each test image."""
    if not per_image:
        (folder / "per_image.csv").unlink(missing_ok=True)
        return
    parts = [pd.DataFrame(rows).assign(**{"class": name}) for name, rows in per_image.items()]
    table = pd.concat(parts).astype({"decision": "Int64"})
    table = table.assign(**{"path": table["path"].map(path_as_cell), "class": table["class"].map(as_cell)})
    write_bytes(folder / "per_image.csv", _as_csv(table, index=False).encode("utf-8", "replace"))


def write_seeds(folder: Path, runs: Sequence[Path]) -> str:
    """Write results.csv and results.xlsx of several runs that differ by their seed alone: mean and deviation.

    Args:
        folder: where to.
        runs: results folders, one a seed; one without results is left out.

    Returns:
        The table for people, `mean ± deviation` in percent. The last row is the mean over the classes.
    """
    tables = [table for table in (read_rows(run / "results.csv") for run in runs) if len(table)]
    everything = pd.concat(tables)
    order = list(dict.fromkeys(name for table in tables for name in table.index if name != MEAN))
    grouped = everything.groupby(level=0)
    mean, deviation, count = grouped.mean(numeric_only=True), grouped.std(numeric_only=True), grouped.size()
    names = [name for name in (*order, MEAN) if name in mean.index]
    measured = [c for c in COLUMNS if c != COLUMNS[-1]]
    table = mean.reindex(names).assign(seeds=count)
    for column in measured:
        table[f"{column}_std"] = deviation[column]
    spread = [f"{column}_std" for column in measured]
    further = [c for c in mean.columns if c not in COLUMNS]
    table = table.reindex(columns=[*COLUMNS, "seeds", *spread, *further])
    table.index.name = ROW_NAMES
    _write_csv(folder / "results.csv", table)
    write_workbook(folder, table, {}, {})
    shown = {
        column: [f"{_share(a)} ± {_share(b)}" for a, b in zip(table[column], table[f"{column}_std"], strict=True)]
        for column in measured
    }
    return pd.DataFrame(shown, index=table.index).to_string()


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def read_rows(path: Path) -> pd.DataFrame:
    """A results.csv, by row name; an empty table where there is none.

    Raises:
        WorkError: it is something else.
    """
    if not path.exists():
        return pd.DataFrame()
    try:
        _check_csv(path)
        # a class may be called 7 or NA
        table = pd.read_csv(path, converters={ROW_NAMES: str}).set_index(ROW_NAMES).apply(pd.to_numeric)
        if table.index.has_duplicates:
            raise ValueError(f"two rows {table.index[table.index.duplicated()][0]!r}")
        return table.rename(index=lambda name: from_cell(name) if isinstance(name, str) else name)
    except (ValueError, TypeError, OSError, KeyError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise WorkError(f"cannot read {path} of an earlier run: {reason}; move it away") from error


def _check_csv(path: Path) -> None:
    """Whether a file has the shape of a results.csv.

    Raises:
        ValueError: it has not.
    """
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    missing = [column for column in (ROW_NAMES, *COLUMNS) if column not in header]
    if missing:
        raise ValueError(f"it has no column {missing[0]!r}")
    if len(set(header)) < len(header):
        raise ValueError("two columns have the same name")
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"the row {row[0]!r} has {len(row)} values, the header has {len(header)}")
        if not row[header.index(ROW_NAMES)]:
            raise ValueError("a row has no name")


def format_table(table: pd.DataFrame) -> str:
    """The published columns of the results in percent, for people."""
    shown = (100 * table[list(COLUMNS[:-1])]).map(lambda v: "–" if math.isnan(v) else f"{v:.2f}")
    shown[COLUMNS[-1]] = ["" if name == MEAN else f"{v:.0f}" for name, v in table[COLUMNS[-1]].items()]
    return shown.to_string()


def read_settings(folder: Path) -> dict[str, Any]:
    """settings.json of a results folder; {} where there is none.

    Raises:
        WorkError: it is damaged.
    """
    path = folder / SETTINGS
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise WorkError(f"cannot read {path}: {error}; move it away") from error
    if not _are_settings(settings):
        raise WorkError(f"{path} is not what a run writes; move it away")
    return settings


def _are_settings(settings: Any) -> bool:
    """Whether everything that is read of a settings.json, where it is there at all, is of its kind."""
    if not isinstance(settings, dict):
        return False
    kinds = {"arguments": dict, "models": dict, "versions": dict, "device": dict, "written": str, "command": list}
    if not all(isinstance(settings.get(key, kind()), kind) for key, kind in kinds.items()):
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
    """Write settings.json."""
    write_text(folder / SETTINGS, json.dumps(settings, indent=1, default=str) + "\n")


# ---------------------------------------------------------------------------------------- pictures


def picture_name(image_path: str, taken: set[str]) -> str:
    """`…/test/broken/000.png` → `broken_000.png`; with a number where that is in `taken`, which grows by it."""
    path = Path(image_path or "image")
    stem = f"{path.parent.name}_{path.stem}".lstrip("_")
    if len(os.fsencode(stem)) > LONGEST_NAME:
        stem = f"{stem[:40]}-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:16]}"
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}_{number}.png", number + 1
    taken.add(name)
    return name


def to_bgr(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Normalised (3, H, W) → (H, W, 3) BGR uint8."""
    rgb = image.transpose(1, 2, 0) * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    return np.ascontiguousarray((rgb.clip(0, 1) * 255).round().astype(np.uint8)[..., ::-1])


def show_truth(mask: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(H, W) mask → white where anomalous, gray where not known, else black."""
    return np.where(mask < 0, UNKNOWN_GRAY, np.where(mask > 0, 255, 0)).astype(np.uint8)


def scale_bar(height: int) -> NDArray[np.uint8]:
    """What the heatmap's colours mean, (height, BAR_WIDTH, 3) BGR: 1 at the top, 0 at the bottom."""
    bar = np.full((height, BAR_WIDTH, 3), 255, np.uint8)
    bar[:, 3:11] = heatmap(np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(8, axis=1))
    for value, y in ((1.0, 10), (0.5, height // 2 + 4), (0.0, height - 3)):
        text = f"{value:g}"
        cv2.putText(bar, text, (14, y), cv2.FONT_HERSHEY_SIMPLEX, 0.32, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def picture(image: NDArray[np.float32], mask: NDArray[np.int8], anomaly_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """image | truth | heatmap | its scale, side by side, BGR.

    Args:
        image: normalised (3, H, W).
        mask: (H, W); > 0 is shown white, < 0 (not known) gray.
        anomaly_map: (H, W) in [0, 1].
    """
    truth = show_truth(mask)
    parts = [to_bgr(image), cv2.cvtColor(truth, cv2.COLOR_GRAY2BGR), heatmap(anomaly_map), scale_bar(len(truth))]
    return np.hstack(parts)


def save_picture(
    path: Path, image: NDArray[np.float32], mask: NDArray[np.int8], anomaly_map: NDArray[np.float32]
) -> None:
    """Write `picture` to a .png file."""
    save_image(path, picture(image, mask, anomaly_map))
