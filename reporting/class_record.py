"""What report.html needs of a class, kept as JSON in `report/`, so that later runs can write the page again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference.thresholds import HELD_OUT
from reporting import gallery
from reporting.curves import curves
from reporting.formats import valid_utf8
from training.evaluation import Tested
from utils import WorkError, printable, write_text

FOLDER = "report"  # of the records, in the results folder
LONGEST_NAME = 150  # bytes


# ------------------------------------------------------------------------------------------ records


def of_tested(
    tested: Tested, dataset: Any, history: Sequence[Mapping[str, Any]], seed: int, select: str
) -> dict[str, Any]:
    """The record of a class with test images.

    Args:
        tested: scores, maps, ground truth, figures and thresholds.
        dataset: of the test images.
        history: figures of each epoch.
        seed: of the gallery's sample.
        select: what the kept epoch was chosen by: `best`, `last` or `val`.
    """
    return {
        "select": select,
        "figures": tested.figures,
        "thresholds": tested.thresholds and tested.thresholds.plain(),
        "history": list(history),
        "images": _image_rows(tested),
        "curves": curves(tested.predictions),
        "gallery": gallery.cards(tested, dataset, seed),
    }


def of_untested(
    state: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    epoch: int | None,
    examples: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of a class without test images.

    Args:
        state: the checkpoint of the kept epoch.
        history: figures of each epoch.
        epoch: the kept one.
        examples: see `of_examples`.
    """
    select = state.get("config", {}).get("select", "best")
    return {
        "select": "val" if select == "val" else "last", "figures": {"best_epoch": epoch},
        "thresholds": state.get("thresholds"), "history": list(history), "images": [], "curves": {}, "gallery": [],
        "looked_at": examples,
    }  # fmt: skip


def of_examples(tested: Tested, dataset: Any, seed: int) -> dict[str, Any]:
    """Examples to show if there are no test images: good images, and some of them with synthetic defects.

    Args:
        tested: scores and maps of these images.
        dataset: of these images.
        seed: of the gallery's sample.
    """
    images = _image_rows(tested)
    for row in images:
        row["path"] += " with a synthetic defect" if row["label"] else ""
    held_out = bool(tested.thresholds and tested.thresholds.source == HELD_OUT)
    return {"images": images, "gallery": gallery.cards(tested, dataset, seed), "held_out": held_out}


def _image_rows(tested: Tested) -> list[dict[str, Any]]:
    """Path, label, score, normalised score, decision and mask area (share of pixels above the threshold) per image."""
    predictions, thresholds = tested.predictions, tested.thresholds
    scores = predictions.scores
    normalised = thresholds.normalise(scores) if thresholds else [None] * len(scores)
    rows = []
    for i, (path, label) in enumerate(zip(predictions.paths, predictions.labels, strict=True)):
        rows.append(
            {
                "path": printable(path),
                "label": int(label),
                "score": float(scores[i]),
                "normalised_score": normalised[i],
                "decision": int(scores[i] > thresholds.image) if thresholds else None,
                "mask_area": float((predictions.maps[i] > thresholds.pixel).mean()) if thresholds else None,
            }
        )
    return rows


# -------------------------------------------------------------------------------------------- files


def save(results: Path, row: str, record: Mapping[str, Any]) -> None:
    """Write the record of a class.

    Args:
        results: the results folder.
        row: name of the class in the tables.
        record: of the class; NaN becomes null.

    Raises:
        WorkError: it cannot be written.
    """
    write_text(path_of(results, row), json.dumps(_plain({"row": row, **record})) + "\n")


def path_of(results: Path, row: str) -> Path:
    """The file of a class's record; a name that is too long for a file system is shortened."""
    encoded = row.encode("utf-8", "surrogateescape")
    if len(encoded) > LONGEST_NAME:
        row = f"{row[:40]}-{hashlib.sha256(encoded).hexdigest()[:16]}"
    return results / FOLDER / f"{row}.json"


def paths(results: Path) -> list[Path]:
    """The files of all records in a results folder."""
    return sorted((results / FOLDER).glob("*.json"))


def read_existing(results: Path, row: str) -> dict[str, Any] | None:
    """The record that an earlier run left of a class; None if there is none.

    Raises:
        WorkError: it is damaged.
    """
    path = path_of(results, row)
    return read(path) if path.exists() else None


def read(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        WorkError: it is damaged.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WorkError(f"cannot read {path} of an earlier run: {error}; move it away") from error
    if not isinstance(record, dict) or not isinstance(record.get("row"), str):
        raise WorkError(f"{path} was not written by a run; move it away")
    return record


def _plain(value: Any) -> Any:
    """The value in the types of JSON; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return valid_utf8(value) if isinstance(value, str) else value
