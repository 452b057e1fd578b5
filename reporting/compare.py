"""`python main.py report RESULTS [RESULTS…]`: several runs side by side, as a table and as one HTML file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd

from reporting import page
from reporting import tables as report
from training.evaluation import METRICS
from utils import InputError, printable, write_text

COMPARED = (*METRICS, "image_f1", "false_alarms", "last_image_auroc", "last_pixel_auroc")


class RunTable(NamedTuple):
    """A run's results and settings, by a short name."""

    name: str
    folder: Path
    table: pd.DataFrame
    settings: Mapping[str, Any]


def read_run(folder: Path, taken: Sequence[str] = ()) -> RunTable:
    """Read a results folder.

    Raises:
        InputError: it is none.
        WorkError: a file in it is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the --results_path of a run")
    table = report.read_rows(folder / "results.csv")
    if not len(table) and not (folder / page.FOLDER).is_dir():
        inside = sorted(f.name for f in folder.iterdir() if (f / "results.csv").is_file())
        hint = f"; {', '.join(inside[:3])} in it {'is' if len(inside) == 1 else 'are'}" if inside else ""
        raise InputError(f"{folder} is no results folder of a run that tested anything: no results.csv in it{hint}")
    settings = report.read_settings(folder)
    for first in sorted(folder.glob("seed_*")) if not settings else ():  # several seeds: all but the seed is the same
        settings = settings or report.read_settings(first)
    plain = printable(folder.resolve().name)
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain} ({number})", number + 1
    return RunTable(name, folder, table, settings)


def read_runs(folders: Sequence[Path]) -> list[RunTable]:
    """Several, each with a name of its own."""
    runs: list[RunTable] = []
    for folder in folders:
        runs.append(read_run(folder, [run.name for run in runs]))
    return runs


def differing_settings(runs: Sequence[RunTable]) -> list[tuple[str, list[str]]]:
    """Arguments that are not the same in all runs, with each one's value."""
    flat = [
        {f"{part} {k}": v for part, values in run.settings.get("arguments", {}).items() for k, v in values.items()}
        for run in runs
    ]
    names = dict.fromkeys(
        name for one in flat for name in one if name.split()[-1] not in ("results_path", "models_path")
    )
    values = {name: [printable(str(one.get(name, "–"))) for one in flat] for name in names}
    return [(name, given) for name, given in values.items() if len(set(given)) > 1]


def comparison(runs: Sequence[RunTable]) -> list[tuple[str, list[tuple[str, list[float]]]]]:
    """(class, [(metric, its value in each run), …]); nan where a run has none; metrics that no run has are left out."""
    names = list(dict.fromkeys(name for run in runs for name in run.table.index if name != report.MEAN))
    rows = []
    for name in (*names, report.MEAN) if len(names) > 1 else names:
        found = [(m, [_value(run.table, name, m) for run in runs]) for m in COMPARED]
        rows.append((name, [(m, values) for m, values in found if not all(math.isnan(v) for v in values)]))
    return rows


def _value(table: pd.DataFrame, row: str, column: str) -> float:
    if row not in table.index or column not in table.columns:
        return math.nan
    return float(table.loc[row, column])


def as_text(runs: Sequence[RunTable]) -> str:
    """The comparison for a terminal: percent, with the difference to the first run in points."""
    records = []
    for name, metrics in comparison(runs):
        for metric, values in metrics:
            record = {"class": name, "metric": metric}
            for i, (run, value) in enumerate(zip(runs, values, strict=True)):
                record[run.name] = _with_deviation(run, name, metric, value) + (
                    _difference(value, values[0]) if i else ""
                )
            records.append(record)
    return pd.DataFrame(records).to_string(index=False) if records else "no class of these runs has test images"


def _shown(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def _with_deviation(run: RunTable, row: str, metric: str, value: float) -> str:
    """In percent; of several seeds with their standard deviation."""
    deviation = _value(run.table, row, f"{metric}_std")
    return _shown(value) if math.isnan(deviation) else f"{_shown(value)} ± {_shown(deviation)}"


def _difference(value: float, first: float) -> str:
    return "" if math.isnan(value) or math.isnan(first) else f" ({100 * (value - first):+.2f})"


def render(
    runs: Sequence[RunTable], title: str, note: str = "", home: Path | None = None, summary: pd.DataFrame | None = None
) -> str:
    """The comparison as a page of its own; reports below `home` are linked, `summary` is a table with deviations."""
    means = []
    for name in summary.index if summary is not None else ():
        pairs = [(summary.loc[name, m], summary.loc[name, f"{m}_std"]) for m in METRICS]
        means.append((name, [f"{_shown(a)} ± {_shown(b)}" for a, b in pairs]))
    view = [
        (name, [(m, [(_with_deviation(runs[i], name, m, v), _difference(v, vs[0]).strip(" ()") if i else "")
                     for i, v in enumerate(vs)]) for m, vs in metrics])
        for name, metrics in comparison(runs)
    ]  # fmt: skip
    links = []
    for run in runs:
        inside = home is not None and run.folder.resolve().is_relative_to(home.resolve())
        there = inside and (run.folder / page.FILE).exists()
        place = run.folder.resolve().relative_to(home.resolve()) / page.FILE if there else None
        # a name may hold what means something in an address, and bytes that are no text
        links.append(quote(os.fsencode(place.as_posix())) if place else "")
    return page.environment().get_template("compare.html").render(
        title=title, note=note, runs=list(zip([run.name for run in runs], links, strict=True)), classes=view,
        mean=report.MEAN, metrics=METRICS, means=means, differing=differing_settings(runs),
    )  # fmt: skip


def write_seeds(results: Path, folders: Sequence[Path]) -> None:
    """Write report.html of runs that differ by their seed alone; `report.write_seeds` came before."""
    runs = read_runs([folder for folder in folders if len(report.read_rows(folder / "results.csv"))])
    note = "The same training with several seeds: mean ± standard deviation, then each seed against the first."
    summary = report.read_rows(results / "results.csv")
    write_text(results / page.FILE, page._plain(render(runs, results.resolve().name, note, results, summary)))


def compare(results: Sequence[Path], out: Path | None = None) -> tuple[str, Path]:
    """Compare runs with the first of them in an HTML file; of a single run write its report again.

    Args:
        results: the `--results_path` of each run.
        out: file of the comparison; None: `comparison.html` here, or of a single run its own report.

    Returns:
        The comparison for a terminal, and the file that was written.

    Raises:
        InputError: a folder is not one of results.
        WorkError: a file cannot be read or written.
    """
    runs = read_runs(results)
    if len(runs) == 1 and (results[0] / page.FOLDER).is_dir() and out is None:
        page.write(results[0])
        return as_text(runs), results[0] / page.FILE
    written = out or Path("comparison.html")
    write_text(written, page._plain(render(runs, "Comparison", home=written.resolve().parent)))
    return as_text(runs), written
