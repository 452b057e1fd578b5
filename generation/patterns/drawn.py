"""Patterns of drawn lines and shapes on a ground of noise: scratches, fibres, flecks.

Each function draws one pattern, a field of heights (CANVAS, CANVAS) in [0, 1], from a random generator.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from generation.patterns.fields import CANVAS, Field, Rng, fractal, log_uniform, spread, wobble


def _ground(rng: Rng) -> NDArray[np.uint8]:
    return (60 + 100 * spread(fractal(rng, log_uniform(rng, 2, 30), 5, 0.6))).astype(np.uint8)


def scratches(rng: Rng) -> Field:
    """Scratches, mostly in one direction."""
    canvas, direction, spread = _ground(rng), rng.uniform(0, np.pi), rng.choice([0.05, 0.3, 1.6])
    for _ in range(rng.integers(15, 250)):
        start, angle = rng.uniform(0, CANVAS, 2), direction + rng.normal(0, spread)
        end = start + log_uniform(rng, 20, 600) * np.array([np.cos(angle), np.sin(angle)])
        shade = int(rng.choice([rng.integers(0, 60), rng.integers(190, 256)]))
        cv2.line(
            canvas, *(tuple(p.astype(int).tolist()) for p in (start, end)), shade, int(rng.integers(1, 3)), cv2.LINE_AA
        )
    return wobble(rng, canvas.astype(np.float32) / 255, rng.uniform(0, 3), 4)


def crosshatch(rng: Rng) -> Field:
    """Hatching in several directions."""
    canvas = np.full((CANVAS, CANVAS), 230, np.uint8)
    length, thick = log_uniform(rng, 20, 300), int(rng.integers(1, 4))
    for angle in rng.uniform(0, np.pi, rng.integers(2, 5)):
        along = np.array([np.cos(angle), np.sin(angle)])
        for _ in range(rng.integers(60, 350)):
            middle, reach = rng.uniform(0, CANVAS, 2), along * length * rng.uniform(0.3, 1) + rng.normal(0, 4, 2)
            ends = [tuple(np.round(p).astype(int).tolist()) for p in (middle - reach / 2, middle + reach / 2)]
            cv2.line(canvas, *ends, int(rng.integers(0, 160)), thick, cv2.LINE_AA)
    return wobble(rng, canvas.astype(np.float32) / 255, rng.uniform(0, 2), 10)


def fibres(rng: Rng) -> Field:
    """Curved fibres."""
    canvas, count = _ground(rng), int(rng.integers(60, 500))
    points, step = 14, log_uniform(rng, 5, 30)
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) * rng.choice([0.1, 1]) + rng.normal(0, 0.3, (count, points)).cumsum(1)
    path = rng.uniform(-50, CANVAS + 50, (count, 1, 2)) + step * np.stack([np.cos(angle), np.sin(angle)], -1).cumsum(1)
    low, high = sorted(rng.integers(0, 256, 2))
    for curve in np.round(path).astype(np.int32):
        cv2.polylines(canvas, [curve], False, int(rng.integers(low, high + 1)), int(rng.integers(1, 4)), cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 1.5)).astype(np.float32) / 255


def webs(rng: Rng) -> Field:
    """Spider webs."""
    canvas = (_ground(rng) * 0.6).astype(np.uint8)
    for _ in range(rng.integers(1, 4)):
        centre, spokes = rng.uniform(0.1, 0.9, 2) * CANVAS, int(rng.integers(10, 30))
        angle = (np.arange(spokes) + rng.uniform(-0.3, 0.3, spokes)) * 2 * np.pi / spokes
        along = np.stack([np.cos(angle), np.sin(angle)], -1)
        radius = np.cumsum(rng.uniform(6, 24, rng.integers(8, 30)))
        rings = centre + radius[:, None, None] * rng.uniform(0.94, 1.06, (len(radius), spokes, 1)) * along
        rings = list(np.round(rings).astype(np.int32))
        rays = [np.round(np.stack([centre, centre + 800 * a])).astype(np.int32) for a in along]
        cv2.polylines(canvas, rings, True, int(rng.integers(150, 256)), 1, cv2.LINE_AA)
        cv2.polylines(canvas, rays, False, int(rng.integers(150, 256)), 1, cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def flecks(rng: Rng) -> Field:
    """Polygonal flecks of different shades."""
    canvas, largest = _ground(rng), log_uniform(rng, 4, 60)
    for _ in range(int(np.clip(300 * (25 / largest) ** 1.2, 60, 1200))):
        corners = rng.normal(0, largest * rng.power(0.8), (int(rng.integers(3, 7)), 2)) + rng.uniform(0, CANVAS, 2)
        hull = cv2.convexHull(np.round(corners).astype(np.int32))
        cv2.fillConvexPoly(canvas, hull, int(rng.integers(0, 256)), cv2.LINE_AA)
    return canvas.astype(np.float32) / 255
