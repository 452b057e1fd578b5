"""Where a result is anomalous, as plain values for JSON."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from inference.judge import Result

MOST = 100  # regions of a picture; of more, the largest


def regions_of(result: Result) -> list[dict[str, Any]]:
    """The connected regions above the pixel threshold, the highest first; [] for a model without thresholds.

    Returns:
        For each its `box` [x, y, width, height], `area` in pixels, `centre` [x, y] and the `highest` value of the map,
        in pixels of the image.
    """
    if result.mask is None or not result.mask.any():
        return []
    count, labels, stats, centres = cv2.connectedComponentsWithStats(result.mask.astype(np.uint8), connectivity=8)
    largest = sorted(range(1, count), key=lambda i: -int(stats[i, cv2.CC_STAT_AREA]))[:MOST]
    regions = []
    for i in largest:
        x, y, width, height, area = (int(value) for value in stats[i])
        part = (slice(y, y + height), slice(x, x + width))
        highest = float(result.map[part][labels[part] == i].max())
        centre = [round(float(value), 1) for value in centres[i]]
        regions.append({"box": [x, y, width, height], "area": area, "centre": centre, "highest": round(highest, 6)})
    return sorted(regions, key=lambda region: -region["highest"])
