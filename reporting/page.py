"""report.html: one file that needs no network, made anew from what each class left in `report/`."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve, roc_curve

from inference.thresholds import HELD_OUT, TRAINING, Thresholds
from reporting import charts, gallery
from reporting import tables as report
from training.evaluation import Tested
from utils import WorkError, printable, write_text

FILE = "report.html"
FOLDER = "report"  # what is kept of each class, below the results
LONGEST_NAME = 150  # bytes
POINTS = 400  # of a curve
PIXEL_STEPS = 256
CHOSEN = {
    "best": "the epoch was chosen on the test set, as published: its figures are too good",
    "last": "the last epoch is the one kept; no test image chose it",
    "val": "the epoch was chosen on held-out good images and synthetic defects; no test image chose it",
}
# name in the results, heading, whether it is a share to be shown in percent
SHOWN = (
    ("image_auroc", "image AUROC"), ("image_ap", "image AP"), ("pixel_auroc", "pixel AUROC"), ("pixel_ap", "pixel AP"),
    ("pixel_pro", "PRO 30 %"), ("pixel_pro_5", "PRO 5 %"), ("pixel_pro_published", "PRO as published"),
    ("image_f1", "image F1"), ("image_precision", "precision"), ("image_recall", "recall"),
    ("false_alarms", "false alarms"), ("image_f1_max", "image F1-max (oracle)"), ("pixel_f1", "pixel F1"),
    ("pixel_f1_max", "pixel F1-max (oracle)"),
)  # fmt: skip


# of a class without test images, by whether the images shown were held out of the training
INSTEAD = {
    True: "These are good pictures that were held out of the training, and some of them again with synthetic defects. "
    "Good ones should stay below the threshold; of real defects this says little.",
    False: "These are good pictures of the training itself. They should stay below the threshold; new ones may score "
    "higher.",
}


# ------------------------------------------------------------------------------- what is kept of a class


def tested(found: Tested, dataset: Any, history: Sequence[Mapping[str, Any]], seed: int, select: str) -> dict[str, Any]:
    """What the report needs of a class that was tested.

    Args:
        found: scores, maps, truth, figures and thresholds.
        dataset: of the tested images.
        history: figures of each epoch.
        seed: of the gallery's sample.
        select: what chose the epoch.
    """
    return {
        "select": select,
        "figures": found.figures,
        "thresholds": found.thresholds and found.thresholds.plain(),
        "history": list(history),
        "images": _per_image(found),
        "curves": _curves(found),
        "gallery": gallery.cards(found, dataset, seed),
    }


def untested(
    state: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    epoch: int | None,
    shown: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The same of a class without test images.

    Args:
        state: its checkpoint, of the kept `epoch`.
        shown: what `looked_at` gave, in place of a test.
    """
    select = state.get("config", {}).get("select", "best")
    return {
        "select": "val" if select == "val" else "last", "figures": {"best_epoch": epoch},
        "thresholds": state.get("thresholds"), "history": list(history), "images": [], "curves": {}, "gallery": [],
        "looked_at": shown,
    }  # fmt: skip


def looked_at(found: Tested, dataset: Any, seed: int) -> dict[str, Any]:
    """What the report shows of images that are no test: good ones, and the same with synthetic defects if any."""
    images = _per_image(found)
    for row in images:
        row["path"] += " with a synthetic defect" if row["label"] else ""
    held_out = bool(found.thresholds and found.thresholds.source == HELD_OUT)
    return {"images": images, "gallery": gallery.cards(found, dataset, seed), "held_out": held_out}


def save_class(results: Path, row: str, data: Mapping[str, Any]) -> None:
    """Keep it below the results, as JSON without NaN."""
    write_text(_file_of(results, row), json.dumps(_plain({"row": row, **data})) + "\n")


def _file_of(results: Path, row: str) -> Path:
    """Where a class is kept; a name too long for a file system is cut."""
    raw = row.encode("utf-8", "surrogateescape")
    if len(raw) > LONGEST_NAME:
        row = f"{row[:40]}-{hashlib.sha256(raw).hexdigest()[:16]}"
    return results / FOLDER / f"{row}.json"


def read_history(results: Path, row: str) -> dict[str, Any] | None:
    """What an earlier run kept of a class; None where there is nothing."""
    path = _file_of(results, row)
    return _read(path) if path.exists() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WorkError(f"cannot read {path} of an earlier run: {error}; move it away") from error
    if not isinstance(data, dict) or not isinstance(data.get("row"), str):
        raise WorkError(f"{path} is not what a run writes; move it away")
    return data


def _plain(value: Any) -> Any:
    """Values that JSON knows; what is no number becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(value, str) else value


def _per_image(found: Tested) -> list[dict[str, Any]]:
    """Path, label, score, normalised score, decision and mask area (share of pixels above the threshold)."""
    scores, thresholds = found.found.scores, found.thresholds
    normalised = thresholds.normalise(scores) if thresholds else [None] * len(scores)
    rows = []
    for i, (path, label) in enumerate(zip(found.found.paths, found.found.labels, strict=True)):
        area = float((found.found.maps[i] > thresholds.pixel).mean()) if thresholds else None
        rows.append(
            {
                "path": printable(path),
                "label": int(label),
                "score": float(scores[i]),
                "normalised_score": normalised[i],
                "decision": int(scores[i] > thresholds.image) if thresholds else None,
                "mask_area": area,
            }
        )
    return rows


def _thin(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    chosen = np.unique(np.linspace(0, len(x) - 1, POINTS).astype(int))
    return [np.round(x[chosen], 5).tolist(), np.round(y[chosen], 5).tolist()]


def _curves(found: Tested) -> dict[str, Any]:
    """ROC and precision-recall curves of images and pixels, where there are both kinds; thinned out for drawing."""
    labels, curves = found.found.labels, {}
    if labels.any() and not labels.all():
        fpr, tpr, _ = roc_curve(labels, found.found.scores)
        precision, recall, _ = precision_recall_curve(labels, found.found.scores)
        curves = {"image_roc": _thin(fpr, tpr), "image_pr": _thin(recall[::-1], precision[::-1])}
    hits, alarms = _pixel_counts(found)
    if hits is not None and hits[-1] and alarms[-1]:
        recall, precision = hits / hits[-1], hits / np.maximum(hits + alarms, 1)
        curves["pixel_roc"] = _thin(np.r_[0, alarms / alarms[-1]], np.r_[0, recall])
        curves["pixel_pr"] = _thin(recall[hits > 0], precision[hits > 0])
    return curves


def _pixel_counts(found: Tested) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Anomalous and normal pixels at or above each of `PIXEL_STEPS` scores, from the highest down to the lowest."""
    maps, masks = found.found.maps, found.found.masks
    values = [np.asarray(maps[i])[masks[i] > 0] for i in range(len(masks))]
    anomalous = np.concatenate([v[:: max(1, len(v) // 2000)] for v in values if len(v)] or [np.zeros(0)])
    if not len(anomalous):
        return None, None
    # half of the steps by the anomalous pixels' own scores, half spread out over those of the normal ones
    edges = np.quantile(anomalous, np.linspace(0, 1, PIXEL_STEPS // 2))
    low, high = min(float(np.min(m)) for m in maps), max(float(np.max(m)) for m in maps)
    edges = np.unique(np.r_[edges, np.linspace(low, high, PIXEL_STEPS // 2)])
    counts = np.zeros((2, len(edges)), np.int64)
    for i in range(len(masks)):
        one, mask = np.asarray(maps[i]), masks[i]
        for kind, which in enumerate((mask > 0, mask == 0)):
            at = np.searchsorted(edges, one[which].astype(np.float64), side="right") - 1
            counts[kind] += np.bincount(at.clip(0), minlength=len(edges))
    return tuple(counts[:, ::-1].cumsum(axis=1))


# ---------------------------------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Part:
    """A class's part of the page, and what else is made of its file.

    source: what it was made from; it holds as long as that is the same.
    """

    source: tuple[Any, ...]
    row: str
    select: str | None
    section: str
    images: list[dict[str, Any]]


class Page:
    """The page of a results folder. A class's part is rendered once, however often the page is written.

    Args:
        results: the folder.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self._parts: dict[Path, Part] = {}
        self._to_come: dict[Path, tuple[int, int, int]] = {}  # what earlier runs left of rows that are written anew
        self._one_choice = True  # whether all classes' epochs were chosen alike, which is then said once for all

    def check(self, own: Collection[str] = ()) -> None:
        """Render what earlier runs kept of classes, but for `own`, rows that are written anew before they are read.

        Raises:
            WorkError: something that is kept is damaged; names the file.
        """
        leave_out = {_file_of(self.results, row) for row in own}
        self._to_come = {path: _signature(path) for path in leave_out if path.exists()}
        table = report.read_rows(self.results / "results.csv")
        for path in sorted((self.results / FOLDER).glob("*.json")):
            if path in leave_out:
                continue
            try:
                _check_images(self._part(path, table).images)
            except (LookupError, TypeError, ValueError, AttributeError, jinja2.TemplateError) as error:
                raise WorkError(f"{path} is not what a run writes ({_short(error)}); move it away") from error

    def write(self) -> None:
        """Write report.html, per_image.csv and the sheets of results.xlsx from what lies below the results.

        Raises:
            WorkError: a file cannot be read or written.
        """
        results = self.results
        table = report.read_rows(results / "results.csv")
        settings = report.read_settings(results)
        parts = self._all_parts(table)
        if (len({part.select for part in parts}) == 1) != self._one_choice and parts:
            self._one_choice = not self._one_choice
            parts = self._all_parts(table)
        order = {name: i for i, name in enumerate(table.index)}
        parts.sort(key=lambda part: (order.get(part.row, len(order)), part.row))
        per_image = {part.row: part.images for part in parts if part.images}
        report.write_per_image(results, per_image)
        if len(table):
            report.write_workbook(results, table, settings, per_image)
        write_text(results / FILE, _plain(render(results, table, parts, settings)))

    def _all_parts(self, table: pd.DataFrame) -> list[Part]:
        """The part of each class; what is damaged and written anew later in the run is left out until then."""
        parts = []
        for path in sorted((self.results / FOLDER).glob("*.json")):
            try:
                parts.append(self._part(path, table))
            except (WorkError, LookupError, TypeError, ValueError, AttributeError, jinja2.TemplateError):
                if self._to_come.get(path) != _signature(path):
                    raise
        return parts

    def _part(self, path: Path, table: pd.DataFrame) -> Part:
        """What a file makes of its class, anew only where something of it has changed.

        Args:
            path: of what was kept of the class.
            table: of the results.
        """
        known = self._parts.get(path)
        said = _signature(path), self._one_choice
        if known is not None and known.source == (*said, repr(_last_figures(table, known.row))):
            return known
        data = _read(path)
        note = CHOSEN.get(data.get("select"), "") if self._one_choice else ""
        section = environment().get_template("class.html").render(c=_class_view(data, table), note=note, chosen=CHOSEN)
        source = (*said, repr(_last_figures(table, data["row"])))
        self._parts[path] = Part(source, data["row"], data.get("select"), section, data["images"])
        return self._parts[path]


def _signature(path: Path) -> tuple[int, int, int]:
    """Tells whether a file was written anew."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def write(results: Path) -> None:
    """Write report.html and the tables beside it from what lies below the results.

    Raises:
        WorkError: a file is damaged, or cannot be written.
    """
    page = Page(results)
    page.check()
    page.write()


def _check_images(images: Sequence[Mapping[str, Any]]) -> None:
    """Whether the rows about images are as `_per_image` makes them.

    Raises:
        LookupError, TypeError, ValueError: they are not.
    """
    for row in images:
        if not isinstance(row["path"], str) or row["label"] not in (0, 1) or row["decision"] not in (None, 0, 1):
            raise ValueError(f"the image {row['path']!r} has the label {row['label']}, the decision {row['decision']}")
        for key in ("score", "normalised_score", "mask_area"):
            if row[key] is not None:
                float(row[key])


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"


def render(results: Path, table: pd.DataFrame, parts: Sequence[Part], settings: Mapping[str, Any]) -> str:
    """The page's HTML."""
    arguments = settings.get("arguments", {})
    selected = {part.select for part in parts}
    return environment().get_template("report.html").render(
        title=results.resolve().name,
        note=_sentence(CHOSEN.get(selected.pop(), "")) if len(selected) == 1 else "",
        columns=[(key, heading) for key, heading in SHOWN if key in table.columns],
        rows=[(name, table.loc[name].to_dict()) for name in table.index],
        mean=report.MEAN,
        classes=[(_id_of(part.row), part.row, part.section) for part in parts],
        settings=settings,
        arguments=[(part, sorted(values.items())) for part, values in arguments.items()],
    )  # fmt: skip


def _id_of(row: str) -> str:
    """What a class is called within the page; whichever other classes there are, so that its part stays the same."""
    return f"class-{hashlib.sha256(row.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def _last_figures(table: pd.DataFrame, row: str) -> dict[str, float]:
    """Of the last epoch: a test alone does not know of it, the table does. A metric that the test set lacks is nan."""
    figures = table.loc[row].to_dict() if row in table.index else {}
    last = {k: v for k, v in figures.items() if k.startswith("last_")}
    return {} if math.isnan(last.get("last_epoch", math.nan)) else last


def _class_view(data: dict[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """What the template shows of a class."""
    figures = _last_figures(table, data["row"]) | data["figures"]
    thresholds = Thresholds.of({k: math.nan if v is None else v for k, v in (data["thresholds"] or {}).items()})
    name = _id_of(data["row"])
    instead = data.get("looked_at") or {}
    images = data["images"] or instead.get("images", [])
    key = "normalised_score" if thresholds else "score"
    pictures = []
    if images:
        values, labels = [row[key] for row in images], [row["label"] for row in images]
        called = "synthetic defects" if instead else "defective"
        pictures.append(charts.histogram(values, labels, 0.5 if thresholds else None, name, called))
    if data["curves"]:
        pictures += [charts.roc(data["curves"], name), charts.precision_recall(data["curves"], name)]
    if data["history"]:
        best = data["figures"].get("best_epoch")
        pictures.append(charts.training(data["history"], best, name, data.get("select") == "val"))
    cards = [{**card, **images[card["index"]]} for card in data["gallery"] or instead.get("gallery", [])]
    return {
        "name": data["row"], "id": name, "select": data.get("select"),
        "figures": figures, "thresholds": thresholds, "charts": pictures,
        "optimistic": bool(thresholds and thresholds.source == TRAINING), "cards": cards, "tested": len(data["images"]),
        "outcomes": sorted({card["outcome"] for card in cards}), "epochs": len(data["history"]),
        "instead": INSTEAD[instead["held_out"]] if instead else "",
    }  # fmt: skip


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""


@functools.cache
def environment() -> jinja2.Environment:
    """Where the templates are found."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["percent"] = _percent
    environment.filters["number"] = _number
    environment.filters["time"] = _time
    environment.filters["tail"] = lambda path: "/".join(Path(path).parts[-2:])
    return environment


def _percent(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
