"""report.html: one self-contained file, written from what each class left in `report/`."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from inference.thresholds import TRAINING, Thresholds
from reporting import charts, class_record, tables
from reporting.formats import duration, number, percent, valid_utf8
from training.evaluation import NEIGHBOURS
from utils import WorkError, write_text

FILE = "report.html"
# by what the kept epoch was chosen
CHOSEN = {
    "best": "the epoch was chosen on the test set, as in the published code, so its figures are optimistic",
    "last": "the last epoch was kept; no test image influenced the choice",
    "val": "the epoch was chosen on held-out good images and synthetic defects; no test image influenced the choice",
}
# columns of results.csv that the page shows in percent, with their headings
SHOWN = (
    ("image_auroc", "image AUROC"), ("image_ap", "image AP"), ("pixel_auroc", "pixel AUROC"), ("pixel_ap", "pixel AP"),
    ("pixel_pro", "PRO 30 %"), ("pixel_pro_5", "PRO 5 %"), ("pixel_pro_published", "PRO as published"),
    ("image_f1", "image F1"), ("image_precision", "precision"), ("image_recall", "recall"),
    ("false_alarms", "false alarms"), ("image_f1_max", "image F1-max (oracle)"), ("pixel_f1", "pixel F1"),
    ("pixel_f1_max", "pixel F1-max (oracle)"),
)  # fmt: skip
# about the examples shown for a class without test images, by whether they were held out of the training
EXAMPLES = {
    True: "These are good images that were held out of the training, some of them shown again with a synthetic defect. "
    "Good images should stay below the threshold; how well real defects are detected cannot be seen here.",
    False: "These are good images of the training itself. They should stay below the threshold; new images may score "
    "higher.",
}
# what rendering a damaged record can raise
DAMAGED = (LookupError, TypeError, ValueError, AttributeError, jinja2.TemplateError)


@dataclass(frozen=True)
class ClassSection:
    """The section of a class, and what else the page takes from its record.

    Attributes:
        source: what the section was rendered from; it is valid as long as this stays the same.
        row: name of the class in the tables.
        select: what the kept epoch was chosen by.
        html: of the section.
        images: the rows of its test images in per_image.csv.
    """

    source: tuple[Any, ...]
    row: str
    select: str | None
    html: str
    images: list[dict[str, Any]]


class Page:
    """The page of a results folder. A class's section is rendered only once, however often the page is written.

    Args:
        results: the folder.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self._sections: dict[Path, ClassSection] = {}
        self._outdated: dict[Path, tuple[int, int, int]] = {}  # signatures of records that this run will replace
        self._same_choice = True  # whether all epochs were chosen in the same way, which is then stated only once

    def check(self, replaced_rows: Collection[str] = ()) -> None:
        """Render the sections of the classes that earlier runs left.

        Args:
            replaced_rows: classes whose records this run replaces; they are not looked at.

        Raises:
            WorkError: a record is damaged; the message names the file.
        """
        replaced = {class_record.path_of(self.results, row) for row in replaced_rows}
        self._outdated = {path: _signature(path) for path in replaced if path.exists()}
        table = tables.read_rows(self.results / "results.csv")
        for path in class_record.paths(self.results):
            if path in replaced:
                continue
            try:
                _check_images(self._section(path, table).images)
            except DAMAGED as error:
                raise WorkError(f"{path} was not written by a run ({_short(error)}); move it away") from error

    def write(self) -> None:
        """Write report.html, per_image.csv and results.xlsx from the files in the results folder.

        Raises:
            WorkError: a file cannot be read or written.
        """
        results = self.results
        table = tables.read_rows(results / "results.csv")
        settings = tables.read_settings(results)
        sections = self._all_sections(table)
        same_choice = len({section.select for section in sections}) == 1
        if sections and same_choice != self._same_choice:
            self._same_choice = same_choice
            sections = self._all_sections(table)
        order = {name: i for i, name in enumerate(table.index)}
        sections.sort(key=lambda section: (order.get(section.row, len(order)), section.row))
        per_image = {section.row: section.images for section in sections if section.images}
        tables.write_per_image(results, per_image)
        if len(table):
            tables.write_workbook(results, table, settings, per_image)
        write_text(results / FILE, valid_utf8(render(results, table, sections, settings)))

    def _all_sections(self, table: pd.DataFrame) -> list[ClassSection]:
        """The section of each class. A damaged record that this run has not replaced yet is skipped until then."""
        sections = []
        for path in class_record.paths(self.results):
            try:
                sections.append(self._section(path, table))
            except (WorkError, *DAMAGED):
                if self._outdated.get(path) != _signature(path):
                    raise
        return sections

    def _section(self, path: Path, table: pd.DataFrame) -> ClassSection:
        """The section of a class, rendered again only if something in it has changed.

        Args:
            path: of the class's record.
            table: results.csv.
        """
        section = self._sections.get(path)
        state = _signature(path), self._same_choice
        if section is not None and section.source == (*state, repr(_kept_figures(table, section.row))):
            return section
        record = class_record.read(path)
        row, select = record["row"], record.get("select")
        note = CHOSEN.get(select, "") if self._same_choice else ""
        template = environment().get_template("class.html")
        html = template.render(c=_class_view(record, table), note=note, chosen=CHOSEN)
        source = (*state, repr(_kept_figures(table, row)))
        self._sections[path] = ClassSection(source, row, select, html, record["images"])
        return self._sections[path]


def write(results: Path) -> None:
    """Write report.html and the tables beside it from the files in the results folder.

    Raises:
        WorkError: a file is damaged, or cannot be written.
    """
    page = Page(results)
    page.check()
    page.write()


def _signature(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file is written again."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _check_images(images: Sequence[Mapping[str, Any]]) -> None:
    """Check the image rows of a record.

    Raises:
        LookupError, TypeError, ValueError: a value is missing or wrong.
    """
    for row in images:
        if not isinstance(row["path"], str) or row["label"] not in (0, 1) or row["decision"] not in (None, 0, 1):
            raise ValueError(f"the image {row['path']!r} has the label {row['label']}, the decision {row['decision']}")
        for key in ("score", "normalised_score", "mask_area"):
            if row[key] is not None:
                float(row[key])


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"


# ---------------------------------------------------------------------------------------- rendering


def render(results: Path, table: pd.DataFrame, sections: Sequence[ClassSection], settings: Mapping[str, Any]) -> str:
    """The HTML of the page.

    Args:
        results: the results folder.
        table: results.csv.
        sections: of the classes, in the order of the page.
        settings: of the run.
    """
    choices = {section.select for section in sections}
    return environment().get_template("report.html").render(
        title=results.resolve().name,
        note=_sentence(CHOSEN.get(choices.pop(), "")) if len(choices) == 1 else "",
        columns=[(key, heading) for key, heading in SHOWN if key in table.columns],
        rows=[(name, table.loc[name].to_dict()) for name in table.index],
        mean=tables.MEAN,
        classes=[(_id_of(section.row), section.row, section.html) for section in sections],
        settings=settings,
        arguments=[(part, sorted(values.items())) for part, values in settings.get("arguments", {}).items()],
    )  # fmt: skip


def _class_view(record: dict[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """What the template shows of a class."""
    thresholds = Thresholds.of({k: math.nan if v is None else v for k, v in (record["thresholds"] or {}).items()})
    class_id = _id_of(record["row"])
    examples = record.get("looked_at") or {}
    images = record["images"] or examples.get("images", [])
    cards = [{**card, **images[card["index"]]} for card in record["gallery"] or examples.get("gallery", [])]
    figures = _kept_figures(table, record["row"]) | record["figures"]
    return {
        "name": record["row"],
        "id": class_id,
        "select": record.get("select"),
        "figures": figures,
        "neighbours": _beside_neighbours(figures),
        "thresholds": thresholds,
        "charts": _charts(record, images, thresholds, class_id),
        "optimistic": bool(thresholds and thresholds.source == TRAINING),
        "cards": cards,
        "tested": len(record["images"]),
        "outcomes": sorted({card["outcome"] for card in cards}),
        "examples": EXAMPLES[examples["held_out"]] if examples else "",
    }


def _charts(
    record: Mapping[str, Any], images: Sequence[Mapping[str, Any]], thresholds: Thresholds | None, class_id: str
) -> list[str]:
    """The charts of a class as SVG: scores, ROC, precision and recall, training; those that there are data for."""
    drawn = []
    if images:
        scores = [row["normalised_score" if thresholds else "score"] for row in images]
        defects = "synthetic defects" if record.get("looked_at") else "defective"
        labels = [row["label"] for row in images]
        drawn.append(charts.histogram(scores, labels, 0.5 if thresholds else None, class_id, defects))
    if record["curves"]:
        drawn.append(charts.roc(record["curves"], class_id))
        drawn.append(charts.precision_recall(record["curves"], class_id))
    if record["history"]:
        best_epoch, on_validation_set = record["figures"].get("best_epoch"), record.get("select") == "val"
        drawn.append(charts.training(record["history"], best_epoch, class_id, on_validation_set))
    return drawn


def _id_of(row: str) -> str:
    """The id of a class in the page. It depends on the name alone, so that a section stays valid in every page."""
    return f"class-{hashlib.sha256(row.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def _kept_figures(table: pd.DataFrame, row: str) -> dict[str, float]:
    """The figures that a run which only tests finds in results.csv: of the last epoch, and of nearest neighbours.

    Those of the last epoch are there if it is known, with nan for a missing metric.
    """
    figures = table.loc[row].to_dict() if row in table.index else {}
    last = {k: v for k, v in figures.items() if k.startswith("last_")}
    last = {} if math.isnan(last.get("last_epoch", math.nan)) else last
    return last | {k: v for k, v in figures.items() if k.startswith(NEIGHBOURS) and not math.isnan(v)}


def _beside_neighbours(figures: Mapping[str, float | None]) -> list[tuple[str, float, float, str]]:
    """Metric, value of the model, value of nearest neighbours, and which is ahead as shown; [] if none was compared."""
    rows = []
    for key, heading in SHOWN:
        own, other = (figures.get(name) for name in (key, f"{NEIGHBOURS}{key}"))
        if own is None or other is None or math.isnan(own) or math.isnan(other):
            continue
        lead = round(100 * own, 2) - round(100 * other, 2)
        rows.append((heading, own, other, "model" if lead > 0 else "nearest neighbours" if lead < 0 else "equal"))
    return rows


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["percent"] = percent
    environment.filters["number"] = number
    environment.filters["duration"] = duration
    environment.filters["tail"] = lambda path: "/".join(Path(path).parts[-2:])
    return environment
