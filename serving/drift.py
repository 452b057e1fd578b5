"""Whether the pictures that arrive have moved away from those of the training: scores, light, contrast, sharpness."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serving.pictures import Filter
from serving.recipes import Version
from serving.store import Store

LEAST = 20  # pictures on each side
BINS = 20
FIRST = 200  # pictures that stand in for the training, where nothing is known of it
# Two samples differ where the largest distance of their distributions (Kolmogorov and Smirnov) would be as large by
# chance in one of a thousand cases, and the means by half a standard deviation: with many pictures every trifle is
# beyond chance.
CRITICAL, LEAST_SHIFT = 1.95, 0.5
COLUMNS = ("score", "brightness", "contrast", "sharpness")


def drift_of(store: Store, active: Version, last: int) -> dict[str, Any]:
    """Compare the latest pictures of a recipe with its training, or with the first that arrived.

    Args:
        store: with the pictures.
        active: version; only pictures that were judged with its weights count.
        last: most pictures that are compared.

    Returns:
        `reference` (`training`, `first pictures` or None), `compared`, `moved`, `line`, and `figures` by name, of which
        each has its own `moved` and `line`, or is None where one side has fewer than 20 values.
    """
    chosen = Filter(recipe=active.recipe, digest=active.digest)
    recent = store.pictures.values(chosen, COLUMNS, last)
    known = active.figures.get("reference") or {}
    reference = {"score": known.get("good", []), **{name: known.get(name, []) for name in COLUMNS[1:]}}
    kind = "training" if any(len(values) >= LEAST for values in reference.values()) else None
    first = _first(store, chosen, len(recent["score"]))
    for name, values in reference.items():
        if len(values) < LEAST and len(first.get(name, [])) >= LEAST:
            reference[name], kind = first[name], kind or "first pictures"
    figures = {name: _compare(name, reference[name], recent[name]) for name in COLUMNS}
    moved = [figure["line"] for figure in figures.values() if figure and figure["moved"]]
    judged = [figure for figure in figures.values() if figure]
    line = "; ".join(moved) or ("nothing has moved" if judged else f"too few pictures to tell; {LEAST} are needed")
    return {
        "reference": kind, "compared": len(recent["score"]), "moved": bool(moved), "line": line, "figures": figures,
    }  # fmt: skip


def _first(store: Store, chosen: Filter, compared: int) -> dict[str, list[float]]:
    """Values of the first pictures that are still there and not among the latest ones."""
    older = max(0, store.pictures.count(chosen) - compared)
    found = store.pictures.page(chosen, "oldest", None, min(FIRST, older))[0] if older else []
    return {name: [getattr(picture, name) for picture in found] for name in COLUMNS}


def _compare(name: str, reference: list[float], recent: list[float]) -> dict[str, Any] | None:
    if min(len(reference), len(recent)) < LEAST:
        return None
    before, after = np.asarray(reference, np.float64), np.asarray(recent, np.float64)
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1)
    spread = max(float(before.std()), 1e-6)
    shift = float(after.mean() - before.mean()) / spread
    beyond_chance = distance(before, after) > CRITICAL * math.sqrt(1 / len(before) + 1 / len(after))
    moved = bool(beyond_chance and abs(shift) >= LEAST_SHIFT)
    way = "higher" if shift > 0 else "lower"
    line = (
        f"{name} is {way} than before: {after.mean():.3g} instead of {before.mean():.3g} on average, "
        f"{abs(shift):.1f} standard deviations"
    )
    sides = {
        key: {
            "count": len(values), "mean": float(values.mean()), "std": float(values.std()),
            "histogram": np.histogram(values, edges)[0].tolist(),
        }
        for key, values in (("reference", before), ("recent", after))
    }  # fmt: skip
    return {**sides, "edges": edges.tolist(), "shift": shift, "moved": moved, "line": line if moved else ""}


def distance(first: ArrayLike, second: ArrayLike) -> float:
    """The largest distance between the distribution functions of two samples, in [0, 1]."""
    a, b = (np.sort(np.asarray(values, np.float64)) for values in (first, second))
    at: NDArray[np.float64] = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max())
