"""Checks of the files that earlier runs left, before anything is trained.

A damaged file, or one that does not match the present options and images, stops a run at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from datasets import inventory
from datasets.check import check_pictures
from datasets.inventory import Inventory
from inference import checkpoint
from reporting import class_record, page
from reporting import tables as report
from training.job import ClassData, Options, Run
from training.reading import Reader
from training.state import refuse_other_split
from utils import LOGGER, InputError, WorkError, printable

FILES = ("results.csv", "results.xlsx", "per_image.csv", page.FILE, report.SETTINGS)
FOLDERS = ("models", "training", "eval", class_record.FOLDER, "judge", "foreground", "splits", "skipped")


class EarlierTrainings:
    """The earlier trainings in the folders of a run's classes."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def refuse_other_data(self, classes: Sequence[ClassData]) -> list[ClassData]:
        """Stop before anything is trained if the training of a class was started with other files.

        Returns:
            The classes, without unreadable files that their trainings had left out as well (`--skip_bad`).

        Raises:
            InputError: the message names the class, both sets of files, and what the user can do.
        """
        if not self.run.training:
            return list(classes)
        kept, refused = [], {}
        for data in classes:
            data, message = self._compare(data)
            kept.append(data)
            if message:
                refused[data.row] = message
        if refused:
            first, *others = refused
            more = f" (and so for {', '.join(others)})" if others else ""
            raise InputError(refused[first] + more)
        return kept

    def refuse_other_splits(self, data: ClassData) -> None:
        """Stop if the training of a class kept other good images for the test than this run would.

        Raises:
            InputError: the message says which options to give.
        """
        split = {"split_seed": self.run.dataset["split_seed"], "test_share": self.run.dataset["test_share"]}
        for folder in self._folders(data) if data.held_out else ():
            refuse_other_split(checkpoint.config_of(folder, self.run.training) or {}, split, folder)

    def _folders(self, data: ClassData) -> list[Path]:
        return [self.run.folder(index) / data.row for index in range(len(self.run.nets))]

    def _compare(self, data: ClassData) -> tuple[ClassData, str]:
        """The class, and a message about what is wrong with its files; "" if nothing is."""
        differences = {}
        for folder in self._folders(data):
            config = checkpoint.config_of(folder)
            if config is None:
                continue
            if "data" not in config:
                LOGGER.info(
                    "%s: the checkpoint in %s, of an earlier version, does not say which images it was trained on; the "
                    "present ones are assumed", data.row, folder,
                )  # fmt: skip
                continue
            before = inventory.load(folder, config["data"])
            now = self.run.inventory_of(data, config["foreground"])
            if now.digest != config["data"]:
                data = self._without_unreadable(data, before)
                now = self.run.inventory_of(data, config["foreground"])
            if now.digest != config["data"]:
                differences[folder] = _describe_difference(config, before, now)
        if not differences:
            return data, ""
        option = "--models_path" if self.run.main["models_path"] else "--results_path"
        folder, difference = next(iter(differences.items()))
        return data, (
            f"class {data.row}: its training in {folder} was started with other images: {difference}; give another "
            f"{option}, restore the images, or delete {' and '.join(map(str, differences))} to train again"
        )

    def _without_unreadable(self, data: ClassData, before: Inventory | None) -> ClassData:
        """The class without new images that cannot be read, since its training may have left them out.

        Raises:
            WorkError: there are such images, the training is not over, and `--skip_bad` is not given.
        """
        paths = [sample.path for sample in (*data.train, *data.held_out)]
        new = [p for p in paths if before is None or inventory.below(p, self.run.layout.root) not in before.files]
        problems = check_pictures(new, full=f"{data.row}: new images", reading=data.settings.reading)
        if problems and not self.run.finished(data):
            Reader(self.run).stop_or_skip(f"class {data.row}", problems)
        elif problems:
            LOGGER.warning(
                "%s: %d files cannot be read, such as %s; they are left out", data.row, len(problems), problems[0]
            )
        return data.without(problems)


def _describe_difference(config: dict[str, Any], before: Inventory | None, now: Inventory) -> str:
    counts = f"{config['data_images']} then in {config['data_path']}, {now.images} now in {printable(now.root)}"
    return counts if before is None else f"{counts}, {before.differences(now)}"


def check_results(results: Path, rewritten: Collection[str] = ()) -> page.Page:
    """Check the tables, the settings and the records for the report.

    Args:
        results: the results folder.
        rewritten: rows whose records the run replaces before they are read.

    Returns:
        The page, with the records of earlier runs.

    Raises:
        WorkError: a file is damaged or cannot be written; the message says which, and what to do.
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
    report_page = page.Page(results)
    report_page.check(rewritten)
    return report_page


def _refuse_read_only(folder: Path, option: str) -> None:
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise WorkError(f"{folder} cannot be written to; change its permissions, or give another {option}")


def check_checkpoints(folder: Path, trained: bool) -> None:
    """Verify the checkpoint in the folder of a class that the run will use.

    Args:
        folder: of the class's checkpoints.
        trained: whether there is nothing left to train.

    Raises:
        WorkError: it is damaged; the message says what to do.
    """
    if not folder.is_dir():
        return
    if not trained and (folder / checkpoint.LATEST).exists():
        checkpoint.verify(folder / checkpoint.LATEST)
    chosen = checkpoint.find_chosen(folder) if trained else None
    if chosen is not None:
        checkpoint.verify(chosen[0])


def check_seed(results: Path, models: Path, seed: int, dataset: Options) -> None:
    """Check the files of an earlier run with one of several seeds, before the first of them is trained.

    Args:
        results: results folder of the seed.
        models: folder that contains the checkpoints of the seed.
        seed: the seed.
        dataset: options of the command.

    Raises:
        InputError: the earlier run kept other good images for the test.
        WorkError: a file is damaged.
    """
    if not results.is_dir():
        return
    check_results(results)
    for folder in sorted(path.parent for path in models.glob(f"**/backbone_*/*/{checkpoint.LATEST}")):
        checkpoint.verify(folder / checkpoint.LATEST)
        config = checkpoint.config_of(folder) or {}
        if config.get("split_seed", dataset["split_seed"]) != dataset["split_seed"]:
            before = config["split_seed"]
            raise InputError(
                f"{folder} was trained with split_seed {before}, but {dataset['split_seed']} is given; continue one "
                f"seed at a time: --seed {seed} --results_path {results} … dataset --split_seed {before}"
            )


def check_place(folder: Path) -> None:
    """Check that a training can write to the folder of its class.

    Raises:
        WorkError: it cannot.
    """
    _refuse_read_only(folder, "--models_path")
    if (folder / "tb").exists() and not (folder / "tb").is_dir():
        raise WorkError(f"{folder / 'tb'} is a file, but a training writes a folder of that name; move it away")
