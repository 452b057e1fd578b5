"""The charts of report.html, as SVG elements."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SIZE = (4.4, 3.1)  # inches
# share of the figure; a layout computed from the texts would take as long as the drawing itself
MARGINS = {"left": 0.13, "right": 0.97, "bottom": 0.16, "top": 0.9}
GOOD, BAD, INK = "#2a78c2", "#c8442c", "#333333"


def _figure(title: str, x_label: str, y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE)
    figure.subplots_adjust(**MARGINS)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element; the prefix `name` makes its ids unique in the page."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None, "Creator": None})
    svg = re.search(r"<svg.*</svg>", text.getvalue(), re.DOTALL)[0]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    return re.sub(r'(<svg[^>]*?) height="[^"]+"([^>]*?) width="[^"]+"', r'\1\2 role="img"', svg, count=1)


def roc(curves: Mapping[str, Any], name: str) -> str:
    """True positive rate against false positive rate, of images and of pixels.

    Args:
        curves: see `reporting.curves`.
        name: of the class in the page.
    """
    figure, axes = _figure("ROC", "false positive rate", "true positive rate")
    _plot_curves(axes, curves, "roc")
    if axes.lines:
        axes.legend(frameon=False, loc="lower right")
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    return _svg(figure, f"{name}-roc")


def precision_recall(curves: Mapping[str, Any], name: str) -> str:
    """Precision against recall, of images and of pixels; see `roc`."""
    figure, axes = _figure("Precision and recall", "recall", "precision")
    _plot_curves(axes, curves, "pr")
    if axes.lines:
        axes.legend(frameon=False)
    axes.set_ylim(0, 1.03)
    return _svg(figure, f"{name}-pr")


def _plot_curves(axes: Any, curves: Mapping[str, Any], kind: str) -> None:
    for unit, style, colour in (("image", "-", INK), ("pixel", "--", GOOD)):
        if curve := curves.get(f"{unit}_{kind}"):
            axes.plot(*curve, style, color=colour, label=f"{unit}s")


def histogram(
    scores: Sequence[float], labels: Sequence[bool], threshold: float | None, name: str, defects: str = "defective"
) -> str:
    """Histogram of the image scores.

    Args:
        scores: normalised ones if there is a threshold.
        labels: whether each image is defective.
        threshold: drawn as a line; None draws none.
        name: of the class in the page.
        defects: what the legend calls the defective images.
    """
    x_label = "image score" if threshold is None else "image score, normalised (threshold at 0.5)"
    figure, axes = _figure("Scores", x_label, "images")
    values, bad = np.asarray(scores, float), np.asarray(labels, bool)
    edges = np.linspace(0, 1, 31)
    axes.hist(values[~bad], edges, color=GOOD, alpha=0.65, label=f"good ({int((~bad).sum())})")
    axes.hist(values[bad], edges, color=BAD, alpha=0.65, label=f"{defects} ({int(bad.sum())})")
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle="--", label="threshold")
    axes.legend(frameon=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure, f"{name}-scores")


def training(history: Sequence[Mapping[str, Any]], best_epoch: int | None, name: str, on_validation_set: bool) -> str:
    """The loss of each epoch, and the AUROCs of each evaluation if there were any.

    Args:
        history: figures of each epoch.
        best_epoch: the kept one, drawn as a line; None draws none.
        name: of the class in the page.
        on_validation_set: whether the AUROCs were measured on the validation set, otherwise on the test set.
    """
    figure, axes = _figure("Training", "epoch", "loss")
    losses = [row["loss"] for row in history]
    axes.plot([row["epoch"] for row in history], losses, color=INK, label="loss", linewidth=1.2)
    axes.set_ylim(0, 1.1 * max(losses))
    aurocs = {
        kind: [(row["epoch"], 100 * row[f"{kind}_auroc"]) for row in history if _is_known(row.get(f"{kind}_auroc"))]
        for kind in ("image", "pixel")
    }
    right = axes.twinx() if any(aurocs.values()) else None
    for (kind, points), colour in zip(aurocs.items(), (BAD, GOOD), strict=True):
        if points:
            right.plot(*zip(*points, strict=True), color=colour, marker="." if len(points) < 30 else "",
                       linewidth=1.2, label=f"{kind} AUROC")  # fmt: skip
    if right is not None:
        right.set_ylabel("AUROC on the validation set, %" if on_validation_set else "AUROC on the test set, %")
        right.spines["top"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if best_epoch is not None:
        axes.axvline(best_epoch, color="#999999", linestyle="--", linewidth=1, label="kept epoch")
    figure.subplots_adjust(bottom=0.31, right=0.87 if right else MARGINS["right"])
    lines = [line for side in (axes, right) if side for line in side.get_legend_handles_labels()[0]]
    axes.legend(lines, [line.get_label() for line in lines], frameon=False, fontsize=8, ncols=2,
                loc="upper center", bbox_to_anchor=(0.5, -0.22))  # fmt: skip
    return _svg(figure, f"{name}-training")


def _is_known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)
