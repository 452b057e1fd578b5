"""What the pictures of a training looked like and how they scored, for comparison with those that arrive."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import DATASETS
from datasets.files import ReadOptions, read_rgb
from inference import checkpoint
from serving.appearance import Appearance, measure
from utils import InputError, WorkError, evenly_chosen

MOST_PICTURES = 100  # of the training set are measured
FIGURES = Appearance._fields


def reference_of(path: Path) -> dict[str, list[float]]:
    """The reference of a checkpoint, as far as its training's folders are still there.

    Args:
        path: of the checkpoint, in the folder of its results.

    Returns:
        `good` and `defective`: image scores of the test images, from per_image.csv; `brightness`, `contrast` and
        `sharpness` of training images. A key is missing where nothing is known.
    """
    config = checkpoint.read_plain(path).get("config") or {}
    reference: dict[str, list[float]] = _scores(path, str(config.get("class_name", "")))
    return reference | appearance_of(_training_images(config), ReadOptions(int(config.get("bits", 16))))


def appearance_of(images: Sequence[Path], reading: ReadOptions) -> dict[str, list[float]]:
    """`brightness`, `contrast` and `sharpness` of some of the images, evenly chosen; {} if there are none."""
    measured = []
    for i in evenly_chosen(len(images), MOST_PICTURES):
        try:
            measured.append(measure(read_rgb(images[i], reading)))
        except WorkError:  # the training has reported it
            continue
    rounded = [[round(value, 6) for value in values] for values in zip(*measured, strict=True)]
    return dict(zip(FIGURES, rounded, strict=True)) if measured else {}


def _scores(path: Path, name: str) -> dict[str, list[float]]:
    """Scores of the test images, from the table in the folder of results, `RESULTS/models/<backbone>/<class>/…`."""
    scores: dict[str, list[float]] = {"good": [], "defective": []}
    try:
        with (path.resolve().parents[3] / "per_image.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("class") == name:
                    scores["defective" if float(row["label"]) else "good"].append(float(row["score"]))
    except (OSError, ValueError, KeyError, IndexError, csv.Error):
        return {}
    return {kind: values for kind, values in scores.items() if values}


def _training_images(config: dict[str, Any]) -> list[Path]:
    """The training images, where the folder of the training is still there and holds the class."""
    dataset, _, name = str(config.get("class_name", "")).partition("_")
    folder = Path(str(config.get("data_path") or ""))
    if dataset not in DATASETS or not name or not folder.is_absolute() or not folder.is_dir():
        return []
    try:
        return [sample.path for sample in DATASETS[dataset](folder, 0, 0.2).train(name)]
    except (InputError, WorkError, OSError):
        return []
