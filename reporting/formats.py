"""How numbers and text are shown to people: percentages, durations, text that is valid UTF-8."""

from __future__ import annotations

import math

MISSING = "–"  # shown for a value that could not be computed


def percent(value: float | None) -> str:
    """0.9876 → `98.76`."""
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.2f}"


def percent_with_deviation(value: float, deviation: float) -> str:
    """`98.76 ± 0.12`, in percent."""
    return f"{percent(value)} ± {percent(deviation)}"


def points(value: float, reference: float) -> str:
    """The difference to a reference in percentage points, `+1.23`; "" if one of them is missing."""
    return "" if math.isnan(value) or math.isnan(reference) else f"{100 * (value - reference):+.2f}"


def number(value: float | None) -> str:
    """Four significant digits."""
    return MISSING if value is None or math.isnan(value) else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """`2 h 5 min`, `3 min 20 s` or `7 s`."""
    if seconds is None:
        return MISSING
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def valid_utf8(text: str) -> str:
    """Text that may hold a file name which is not UTF-8, as valid UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
