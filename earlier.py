"""What earlier runs left, looked at before anything is trained: what is damaged or does not fit stops a run at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import checkpoint
import page
import report
from errors import WorkError

FILES = ("results.csv", "results.xlsx", "per_image.csv", page.FILE, report.SETTINGS)
FOLDERS = ("models", "training", "eval", page.FOLDER, "judge", "foreground", "splits", "skipped")


def check_results(results: Path, own: Collection[str] = ()) -> page.Page:
    """Look at the tables, the settings and what is kept for the report.

    Args:
        results: the results folder.
        own: rows that the run writes anew before they are read.

    Returns:
        The page, with what earlier runs kept.

    Raises:
        WorkError: a file is damaged, or cannot be written; says which, and what to do.
    """
    for name in FILES:
        if (results / name).is_dir():
            raise WorkError(f"{results / name} is a folder, but a run writes a file of that name; move it away")
    for name in FOLDERS:
        folder = results / name
        if folder.exists() and not folder.is_dir():
            raise WorkError(f"{folder} is a file, but a run writes a folder of that name; move it away")
        _refuse_read_only(folder, "--results_path")
    report.read_rows(results / "results.csv")
    report.read_settings(results)
    made = page.Page(results)
    made.check(own)
    return made


def _refuse_read_only(folder: Path, option: str) -> None:
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise WorkError(f"{folder} cannot be written to; change its permissions, or give another {option}")


def check_checkpoints(folder: Path, name: str, trained: bool) -> None:
    """Read the checkpoints in the folder of a class that are going to be used.

    Args:
        folder: of the class's checkpoints.
        name: of the class.
        trained: whether there is nothing left to train.

    Raises:
        WorkError: one is damaged; says which, and what to do.
    """
    if not folder.is_dir():
        return
    latest, best = folder / checkpoint.LATEST, checkpoint.find_best(folder)
    if latest.exists() and not trained:
        keep = f", or {checkpoint.LATEST} alone to take {best[0].name} for a finished training" if best else ""
        with _advice(f"move {folder} away to train {name} anew{keep}"):
            checkpoint.verify(latest)
    if best is not None and trained:
        keep = f", or {best[0].name} alone to take the latest epoch" if latest.exists() else ""
        with _advice(f"move {folder} away to train {name} anew{keep}"):
            checkpoint.verify(best[0])


def check_place(folder: Path) -> None:
    """Whether a training can write to the folder of its class.

    Raises:
        WorkError: it cannot.
    """
    _refuse_read_only(folder, "--models_path")
    if (folder / "tb").exists() and not (folder / "tb").is_dir():
        raise WorkError(f"{folder / 'tb'} is a file, but a training writes a folder of that name; move it away")


@contextmanager
def _advice(what_to_do: str) -> Iterator[None]:
    try:
        yield
    except WorkError as error:
        raise WorkError(f"{error}; {what_to_do}") from error
