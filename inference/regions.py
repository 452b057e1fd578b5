"""Connected regions of an anomaly map above the pixel threshold. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

MOST_LISTED = 100  # regions in a table or a line of JSON; a row stays below the 32,767 characters of a cell in Excel


@dataclass(frozen=True)
class Region:
    """Pixels above the pixel threshold that touch each other, at an edge or a corner.

    Lengths are in pixels of the original image; a pixel's coordinates are those of its upper left corner.

    Attributes:
        box: (x, y, width, height) of the smallest upright rectangle around it.
        area: number of pixels.
        centre: (x, y), the mean of the pixels' coordinates.
        highest: highest value of the anomaly map in it, in [0, 1].
    """

    box: tuple[int, int, int, int]
    area: int
    centre: tuple[float, float]
    highest: float

    def plain(self) -> dict[str, Any]:
        """Values for JSON: `box`, `area`, `centre` to a tenth of a pixel, `highest` to six digits."""
        centre = [round(coordinate, 1) for coordinate in self.centre]
        return {"box": list(self.box), "area": self.area, "centre": centre, "highest": float(f"{self.highest:.6g}")}


def find_regions(anomaly_map: NDArray[np.float32], above: NDArray[np.bool_], min_area: int = 1) -> tuple[Region, ...]:
    """The connected regions of an anomaly map, the highest value first, and from top to bottom where it is the same.

    Args:
        anomaly_map: (h, w), in the size of the original image.
        above: (h, w), which of its pixels are above the pixel threshold.
        min_area: smallest number of pixels of a region; smaller ones are left out.
    """
    rows = np.flatnonzero(above.any(1))
    if not len(rows):
        return ()
    columns = np.flatnonzero(above.any(0))
    top, left = int(rows[0]), int(columns[0])
    part = slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1)
    marked, values = above[part], anomaly_map[part]
    count, labels, boxes, centres = cv2.connectedComponentsWithStats(marked.astype(np.uint8), connectivity=8)
    peaks = np.full(count, -np.inf, values.dtype)
    np.maximum.at(peaks, labels[marked], values[marked])
    found = [
        Region(
            (left + int(x), top + int(y), int(width), int(height)), int(area),
            (left + float(centres[i, 0]), top + float(centres[i, 1])), float(peaks[i]),
        )
        for i, (x, y, width, height, area) in enumerate(boxes)
        if i and area >= min_area  # 0 is what is not above
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda region: (-region.highest, region.box[1], region.box[0], region.centre)))


def as_cell(regions: Sequence[Region] | None) -> str:
    """The first `MOST_LISTED` regions as compact JSON; "" if there is no threshold."""
    if regions is None:
        return ""
    return json.dumps([region.plain() for region in regions[:MOST_LISTED]], separators=(",", ":"))
