"""What an earlier run left of a class, and whether it goes together with what is given now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoint
from datasets import inventory
from datasets.check import check_pictures
from datasets.inventory import Inventory
from errors import InputError
from glass import refuse_other_split
from job import ClassData, Run
from utils import LOGGER, printable


def inventory_of(this: Run, data: ClassData, foreground: bool) -> Inventory:
    """The files that a class's training comes from; with the user's foreground masks where `foreground`.

    Good images that a layout keeps for the test count too: which ones these are depends on what there is.
    """
    parts = {inventory.TRAIN: [s.path for s in data.train], inventory.TEST: [s.path for s in data.held_out]}
    if foreground:
        parts[inventory.FOREGROUND] = this.layout.foreground(data.name, data.train) or []
    return Inventory.of(this.layout.root, parts, this.fingerprints)


def refuse_other_data(this: Run, classes: Sequence[ClassData]) -> list[ClassData]:
    """Stop before the first class is trained where one of them was trained, or begun, with other files.

    Returns:
        The classes, without files that cannot be read and that their trainings had left out (`--skip_bad`).

    Raises:
        InputError: names the class, both sets of files, and what can be done.
    """
    if not this.training:
        return list(classes)
    kept, refused = [], {}
    for data in classes:
        data, message = _compare(this, data)
        kept.append(data)
        if message:
            refused[data.row] = message
    if refused:
        first, *others = refused
        more = f" (and so for {', '.join(others)})" if others else ""
        raise InputError(refused[first] + more)
    return kept


def refuse_other_splits(this: Run, data: ClassData) -> None:
    """Stop where a class's training kept other good images for the test than this run would.

    Raises:
        InputError: says which options to give.
    """
    own = {"split_seed": this.dataset["split_seed"], "test_share": this.dataset["test_share"]}
    for folder in _folders(this, data) if data.held_out else ():
        refuse_other_split(checkpoint.config_of(folder, this.training) or {}, own, folder)


def _folders(this: Run, data: ClassData) -> list[Path]:
    return [this.models / f"backbone_{index}" / data.row for index in range(len(this.nets))]


def _compare(this: Run, data: ClassData) -> tuple[ClassData, str]:
    """The class, and what is wrong with its files; "" where nothing is."""
    other = {}
    for folder in _folders(this, data):
        config = checkpoint.config_of(folder)
        if config is None:
            continue
        if "data" not in config:
            LOGGER.info(
                "%s: the checkpoint in %s, of an earlier version, does not say which images it was trained on; taken "
                "to be the present ones", data.row, folder,
            )  # fmt: skip
            continue
        before = inventory.load(folder, config["data"])
        now = inventory_of(this, data, config["foreground"])
        if now.digest != config["data"]:
            data = _without_unreadable(this, data, before)
            now = inventory_of(this, data, config["foreground"])
        if now.digest != config["data"]:
            other[folder] = _both_sides(config, before, now)
    if not other:
        return data, ""
    place = "--models_path" if this.main["models_path"] else "--results_path"
    folder, sides = next(iter(other.items()))
    return data, (
        f"class {data.row}: its training in {folder} was begun with other images: {sides}; give another {place}, "
        f"put the images back as they were, or delete {' and '.join(map(str, other))} to train anew"
    )


def _without_unreadable(this: Run, data: ClassData, before: Inventory | None) -> ClassData:
    """The class without the images that are new and cannot be read: its training may have left them out."""
    paths = [sample.path for sample in (*data.train, *data.held_out)]
    new = [p for p in paths if before is None or inventory.below(p, this.layout.root) not in before.files]
    return data.without(check_pictures(new, full=f"{data.row}: new images"))


def _both_sides(config: dict[str, Any], before: Inventory | None, now: Inventory) -> str:
    then = f"{config['data_images']} then in {config['data_path']}, {now.images} now in {printable(now.root)}"
    return then if before is None else f"{then}, {before.differences(now)}"
