"""Several runs side by side, as a table for the terminal and as an HTML file: `python main.py report`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd

from reporting import class_record, page, tables
from reporting.formats import MISSING, percent, percent_with_deviation, points, valid_utf8
from training.evaluation import METRICS, OF_NEIGHBOURS
from utils import InputError, printable, write_text

COMPARED = (*METRICS, "image_f1", "false_alarms", "last_image_auroc", "last_pixel_auroc", *OF_NEIGHBOURS)
NOT_COMPARED = ("results_path", "models_path")  # options that always differ
NO_TEST_IMAGES = "no class of these runs has test images"

Comparison = list[tuple[str, list[tuple[str, list[float]]]]]


class RunTable(NamedTuple):
    """The results and settings of a run, under a short unique name."""

    name: str
    folder: Path
    table: pd.DataFrame
    settings: Mapping[str, Any]

    def value(self, row: str, column: str) -> float:
        """A value of results.csv; nan if it is missing."""
        if row not in self.table.index or column not in self.table.columns:
            return math.nan
        return float(self.table.loc[row, column])

    def shown(self, row: str, metric: str) -> str:
        """A metric in percent, with its standard deviation if the run has several seeds."""
        value, deviation = self.value(row, metric), self.value(row, f"{metric}_std")
        return percent(value) if math.isnan(deviation) else percent_with_deviation(value, deviation)


# ---------------------------------------------------------------------------------------- reading


def read_runs(folders: Sequence[Path]) -> list[RunTable]:
    """Read several results folders and give each run a unique name.

    Raises:
        InputError: a folder is not a results folder.
        WorkError: a file in it is damaged.
    """
    runs: list[RunTable] = []
    for folder in folders:
        runs.append(_read_run(folder, [run.name for run in runs]))
    return runs


def _read_run(folder: Path, taken_names: Sequence[str]) -> RunTable:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the --results_path of a run")
    table = tables.read_rows(folder / "results.csv")
    if not len(table) and not (folder / class_record.FOLDER).is_dir():
        inside = sorted(f.name for f in folder.iterdir() if (f / "results.csv").is_file())
        hint = f"; results folders inside it: {', '.join(inside[:3])}" if inside else ""
        raise InputError(f"{folder} is not the results folder of a finished run: it has no results.csv{hint}")
    settings = tables.read_settings(folder)
    if not settings:  # with several seeds, the settings are those of any seed
        settings = next(filter(None, map(tables.read_settings, sorted(folder.glob("seed_*")))), {})
    plain = printable(folder.resolve().name)
    name, number = plain, 2
    while name in taken_names:
        name, number = f"{plain} ({number})", number + 1
    return RunTable(name, folder, table, settings)


# ------------------------------------------------------------------------------------- comparing


def differing_settings(runs: Sequence[RunTable]) -> list[tuple[str, list[str]]]:
    """The options whose values differ between the runs, with the value of each run."""
    flat = [
        {f"{part} {k}": v for part, values in run.settings.get("arguments", {}).items() for k, v in values.items()}
        for run in runs
    ]
    names = dict.fromkeys(name for options in flat for name in options if name.split()[-1] not in NOT_COMPARED)
    values = {name: [printable(str(options.get(name, MISSING))) for options in flat] for name in names}
    return [(name, of_runs) for name, of_runs in values.items() if len(set(of_runs)) > 1]


def comparison(runs: Sequence[RunTable]) -> Comparison:
    """For each class and metric, the values of the runs.

    Returns:
        [(class, [(metric, [value of each run, …]), …]), …]; nan if a run has no such value. Metrics that no run has are
        left out.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.table.index if name != tables.MEAN))
    rows = []
    for name in (*names, tables.MEAN) if len(names) > 1 else names:
        values = [(metric, [run.value(name, metric) for run in runs]) for metric in COMPARED]
        rows.append((name, [(m, of_runs) for m, of_runs in values if not all(math.isnan(v) for v in of_runs)]))
    return rows


def as_text(runs: Sequence[RunTable]) -> str:
    """The comparison for a terminal, in percent, with the difference to the first run in percentage points."""
    records = []
    for name, metrics in comparison(runs):
        for metric, values in metrics:
            record = {"class": name, "metric": metric}
            for i, (run, value) in enumerate(zip(runs, values, strict=True)):
                difference = points(value, values[0]) if i else ""
                record[run.name] = run.shown(name, metric) + (f" ({difference})" if difference else "")
            records.append(record)
    return pd.DataFrame(records).to_string(index=False) if records else NO_TEST_IMAGES


# --------------------------------------------------------------------------------------- the page


def render(
    runs: Sequence[RunTable], title: str, home: Path, note: str = "", summary: pd.DataFrame | None = None
) -> str:
    """The comparison as HTML.

    Args:
        runs: to compare with the first of them.
        title: of the page.
        home: folder of the page; reports of runs below it are linked.
        note: a paragraph at the top.
        summary: table with means and deviations to show first.
    """
    means = []
    for name in summary.index if summary is not None else ():
        pairs = [(summary.loc[name, metric], summary.loc[name, f"{metric}_std"]) for metric in METRICS]
        means.append((name, [percent_with_deviation(*pair) for pair in pairs]))
    return page.environment().get_template("compare.html").render(
        title=title, note=note, runs=[(run.name, _link(run, home)) for run in runs],
        classes=[(name, [(m, _cells(runs, name, m, values)) for m, values in metrics])
                 for name, metrics in comparison(runs)],
        mean=tables.MEAN, metrics=METRICS, means=means, differing=differing_settings(runs),
    )  # fmt: skip


def _cells(runs: Sequence[RunTable], name: str, metric: str, values: Sequence[float]) -> list[tuple[str, str]]:
    """The value of each run as text, and its difference to the first run."""
    return [
        (run.shown(name, metric), points(value, values[0]) if i else "")
        for i, (run, value) in enumerate(zip(runs, values, strict=True))
    ]


def _link(run: RunTable, home: Path) -> str:
    """The address of a run's report relative to `home`; "" if there is no report below it."""
    report, home = run.folder.resolve() / page.FILE, home.resolve()
    if not report.is_relative_to(home) or not report.exists():
        return ""
    # a file name may hold bytes that are not text, and characters with a meaning in addresses
    return quote(os.fsencode(report.relative_to(home).as_posix()))


def write_seeds(results: Path, folders: Sequence[Path]) -> None:
    """Write report.html of runs that differ only by their seed, after `tables.write_seeds`.

    Args:
        results: folder of the page.
        folders: results folder of each seed.

    Raises:
        WorkError: a file cannot be read or written.
    """
    runs = read_runs([folder for folder in folders if len(tables.read_rows(folder / "results.csv"))])
    note = "The same training with several seeds: mean ± standard deviation, then each seed compared with the first."
    summary = tables.read_rows(results / "results.csv")
    html = render(runs, results.resolve().name, results, note, summary)
    write_text(results / page.FILE, valid_utf8(html))


def compare(results: Sequence[Path], out: Path | None = None) -> tuple[str, Path]:
    """Compare runs with the first of them in an HTML file; for a single run, write its report again.

    Args:
        results: the `--results_path` of each run.
        out: file of the comparison; by default comparison.html in the current folder, or the report of a single run.

    Returns:
        The comparison for a terminal, and the file that was written.

    Raises:
        InputError: a folder is not a results folder.
        WorkError: a file cannot be read or written.
    """
    runs = read_runs(results)
    if len(runs) == 1 and (results[0] / class_record.FOLDER).is_dir() and out is None:
        page.write(results[0])
        return as_text(runs), results[0] / page.FILE
    out = out or Path("comparison.html")
    write_text(out, valid_utf8(render(runs, "Comparison", out.resolve().parent)))
    return as_text(runs), out
