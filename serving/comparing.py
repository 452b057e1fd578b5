"""Two versions of a recipe on the same pictures: figures, and a page of the pictures that they decide differently."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from datasets import Sample
from datasets.base import GOOD
from datasets.files import read_rgb
from datasets.masks import read_mask_of
from inference.inspector import Inspector
from metrics import compute_imagewise_retrieval_metrics, pixel_metrics
from serving.recipes import DEFECTIVE, UNSURE, Version
from utils import write_atomically, write_text

SIDE = 256  # pixels of the square at which maps and masks are compared
THUMBNAIL = 240  # pixels
TOLERANCE = 0.01  # of the image AUROC, by which a new version may be lower
BATCH = 8


class Scored:
    """A version's scores and decisions of the pictures, and its figures.

    Args:
        model: of the version.
        version: gives the decisions; its thresholds may be None.
        samples: the pictures.
    """

    def __init__(self, model: Inspector, version: Version, samples: Sequence[Sample]) -> None:
        self.scores: list[float] = []
        maps, masks = [], []
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            for sample, result in zip(batch, model.predict_images([s.path for s in batch]), strict=True):
                self.scores.append(float(result.score))
                small = cv2.resize(result.map, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
                masks.append(np.where(np.isfinite(small), _mask(sample, model), -1).astype(np.int8))
                maps.append(np.nan_to_num(small))
        self.decisions = [version.decide(score) for score in self.scores]
        labels = [sample.is_anomaly for sample in samples]
        image = compute_imagewise_retrieval_metrics(self.scores, labels)
        pixel = pixel_metrics(np.stack(maps), np.stack(masks))
        named = {"image": image, "pixel": pixel}
        self.figures = {f"{of}_{name}": known(value) for of, values in named.items() for name, value in values.items()}
        self.figures |= self._counts(labels, version) | {"pictures": len(samples), "defective": sum(labels)}

    def _counts(self, labels: Sequence[bool], version: Version) -> dict[str, int | None]:
        if version.defective is None:
            return {"misses": None, "false_alarms": None, "unsure": None}
        pairs = list(zip(labels, self.decisions, strict=True))
        return {
            "misses": sum(is_defect and decision == GOOD for is_defect, decision in pairs),
            "false_alarms": sum(not is_defect and decision == DEFECTIVE for is_defect, decision in pairs),
            "unsure": self.decisions.count(UNSURE),
        }


def known(value: float) -> float | None:
    """None for a figure that cannot be computed."""
    return float(value) if math.isfinite(value) else None


def _mask(sample: Sample, model: Inspector) -> np.ndarray:
    """(SIDE, SIDE): 1 defect, 0 none, −1 unknown."""
    if sample.mask is None:
        return np.full((SIDE, SIDE), -1 if sample.is_anomaly else 0, np.int8)
    mask = read_mask_of(sample.mask, sample.path, reading=model.reading)
    return cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


def worse(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Why a new version is worse than the old one; None if it is not.

    It is worse if it has more misses and false alarms together, or an image AUROC lower by more than `TOLERANCE`. What
    cannot be computed for both does not count.

    Args:
        old, new: figures of `Scored`.
    """
    if None not in (old["misses"], new["misses"]):
        before, after = (figures["misses"] + figures["false_alarms"] for figures in (old, new))
        if after > before:
            return f"{after} misses and false alarms instead of {before}"
    if None not in (old["image_auroc"], new["image_auroc"]) and old["image_auroc"] - new["image_auroc"] > TOLERANCE:
        return f"image AUROC {new['image_auroc']:.4f} instead of {old['image_auroc']:.4f}"
    return None


def rows(samples: Sequence[Sample], names: Sequence[str], old: Scored, new: Scored) -> list[dict[str, Any]]:
    """One row for each picture: names, scores, decisions, and what it is."""
    return [
        {
            "name": names[i], "old_score": old.scores[i], "new_score": new.scores[i],
            "old_decision": old.decisions[i], "new_decision": new.decisions[i],
            "mark": "defective" if sample.is_anomaly else GOOD,
        }
        for i, sample in enumerate(samples)
    ]  # fmt: skip


def write_page(folder: Path, samples: Sequence[Sample], comparison: dict[str, Any], model: Inspector) -> Path:
    """Write `comparison.html` with the figures and the pictures that are decided differently, and their thumbnails.

    Returns:
        The page's path.

    Raises:
        WorkError: it cannot be written.
    """
    items = []
    for i, row in enumerate(comparison["pictures"]):
        if row["old_decision"] == row["new_decision"]:
            continue
        picture = read_rgb(samples[i].path, model.reading)
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        file = folder / "differences" / f"{i:06d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda path, kept=picture: _save(kept, path))
        said = f"{row['old_decision']} ({row['old_score']:.3f}) → {row['new_decision']} ({row['new_score']:.3f})"
        caption = html.escape(f"{row['name']}: is {row['mark']}; {said}")
        items.append(f'<figure><img src="differences/{file.name}" alt=""><figcaption>{caption}</figcaption></figure>')
    keys = list(comparison["old"])
    table = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{shown(comparison['old'][key])}</td>"
        f"<td>{shown(comparison['new'][key])}</td></tr>"
        for key in keys
    )
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Old and new</title><h1>Old and new</h1>'
        f"<table><tr><th></th><th>old</th><th>new</th></tr>{table}</table>"
        f"<h2>Pictures that are decided differently: {len(items)}</h2>{''.join(items)}</html>\n"
    )
    write_text(folder / "comparison.html", page)
    return folder / "comparison.html"


def _save(picture: Image.Image, path: Path) -> None:
    with path.open("wb") as file:
        picture.save(file, "JPEG")


def shown(value: float | int | None) -> str:
    """A figure as text."""
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
