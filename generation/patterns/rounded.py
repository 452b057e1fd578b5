"""Patterns around centres: wood, rings, bubbles.

Each function draws one pattern, a field of heights (CANVAS, CANVAS) in [0, 1], from a random generator.
"""

from __future__ import annotations

import cv2
import numpy as np

from generation.patterns.fields import (
    CANVAS,
    Field,
    Rng,
    X,
    Y,
    fractal,
    log_uniform,
    profile,
    soft,
    spread,
    unit,
    wobble,
)


def wood(rng: Rng) -> Field:
    """Annual rings, cut lengthwise or across, with grain."""
    stretch, centre = log_uniform(rng, 0.03, 1), rng.uniform(-0.5, 1.5, 2)
    grain = fractal(rng, 40, 3, 0.7, 1 / (0.5 + 40 * (1 - stretch)))
    radius = np.hypot(X - centre[0], (Y - centre[1]) * stretch) + 0.02 * fractal(rng, 3, 3, 0.4, 1 / 3)
    rings = (radius * log_uniform(rng, 8, 50)).astype(np.float32) % 1
    return unit(rings ** np.float32(rng.uniform(0.6, 3)) + rng.uniform(0.1, 0.35) * grain)


def rings(rng: Rng) -> Field:
    """Rings or a spiral around a centre."""
    centre = rng.uniform(0.1, 0.9, 2)
    x, y = X - centre[0], Y - centre[1]
    turn = np.arctan2(y, x) / (2 * np.pi) * rng.integers(-3, 4)  # 0 arms: rings, else a spiral
    radius = np.hypot(x, y * rng.uniform(0.6, 1.6)) ** rng.uniform(0.6, 1.3)
    return profile(rng, (radius * log_uniform(rng, 5, 45) + turn).astype(np.float32)).astype(np.float32)


def rays(rng: Rng) -> Field:
    """Straight or bent rays from a centre."""
    centre = rng.uniform(0, 1, 2)
    x, y = X - centre[0], Y - centre[1]
    bend = rng.uniform(-1, 1) * np.hypot(x, y)
    return profile(rng, np.arctan2(y, x) / (2 * np.pi) * rng.integers(6, 60) + bend).astype(np.float32)


def bubbles(rng: Rng) -> Field:
    """Bubbles with a rim and a highlight."""
    ground = (255 * 0.35 * spread(fractal(rng, 3, 3))).astype(np.uint8)
    largest = log_uniform(rng, 10, 80)
    count = int(np.clip(60 * (60 / largest) ** 1.3, 20, 500))
    body, rim = (int(v) for v in rng.integers((40, 120), (130, 255)))
    for radius in sorted(largest * rng.power(0.7, count) + 2, reverse=True):
        x, y = (int(v) for v in rng.integers(0, CANVAS, 2))
        cv2.circle(ground, (x, y), round(radius), body, -1, cv2.LINE_AA)
        cv2.circle(ground, (x, y), round(radius), rim, max(1, round(radius * 0.12)), cv2.LINE_AA)
        shine = (round(x - radius * 0.35), round(y - radius * 0.35))
        cv2.circle(ground, shine, max(1, round(radius * 0.15)), 255, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(ground, (0, 0), rng.uniform(0.6, 2)).astype(np.float32) / 255


def stains(rng: Rng) -> Field:
    """Dried drops with dark rims."""
    height = np.zeros((CANVAS, CANVAS), np.float32)
    for _ in range(rng.integers(4, 14)):
        radius, centre = log_uniform(rng, 0.03, 0.35), rng.uniform(0, 1, 2)
        inside = (radius - np.hypot(X - centre[0], Y - centre[1])) * np.float32(CANVAS)
        # what dries leaves most at its rim
        height += rng.uniform(0.2, 1) * soft(inside, 4) * (0.4 + np.exp(-np.clip(inside, 0, None) / rng.uniform(3, 20)))
    return unit(wobble(rng, height, rng.uniform(3, 12), rng.uniform(4, 12)))
