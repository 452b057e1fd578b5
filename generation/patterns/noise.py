"""Patterns of noise: clouds, marble, sand and their like.

Each function draws one pattern, a field of heights (CANVAS, CANVAS) in [0, 1], from a random generator.
"""

from __future__ import annotations

import cv2
import numpy as np

from generation.patterns.fields import CANVAS, Field, Rng, X, Y, fractal, full, log_uniform, profile, soft, spread, unit


def clouds(rng: Rng) -> Field:
    """Noise from soft to rough."""
    return spread(fractal(rng, log_uniform(rng, 2, 40), int(rng.integers(1, 8)), rng.uniform(0.35, 0.85)))


def marble(rng: Rng) -> Field:
    """Veins along distorted stripes."""
    phase = log_uniform(rng, 1, 12) * X + rng.uniform(0.3, 1.2) * fractal(rng, rng.uniform(2, 5), 5, 0.55)
    return np.abs(np.sin(np.pi * phase)) ** np.float32(rng.uniform(0.3, 1.5))


def ridges(rng: Rng) -> Field:
    """Sharp ridges where noise changes its sign."""
    cells, total = log_uniform(rng, 2, 16), np.zeros((CANVAS, CANVAS), np.float32)
    for octave in range(4):
        total += np.abs(fractal(rng, cells * 2**octave, 1)) * np.float32(0.55**octave)
    return 1 - np.clip(total / 2.2, 0, 1) ** np.float32(rng.uniform(0.4, 1))


def agate(rng: Rng) -> Field:
    """Bands along the contour lines of noise."""
    noise = fractal(rng, log_uniform(rng, 2, 6), 4, rng.uniform(0.3, 0.5))
    return profile(rng, noise * np.float32(log_uniform(rng, 1, 5))).astype(np.float32)


def labyrinth(rng: Rng) -> Field:
    """A maze, or spots or holes, of one width."""
    # noise of one scale alone, cut: a maze in the middle, spots or holes towards either end
    sigma, (sx, sy) = log_uniform(rng, 1.5, 8), rng.uniform(0.6, 1.6, 2)
    noise = rng.standard_normal((CANVAS, CANVAS), np.float32)
    fine, coarse = (cv2.GaussianBlur(noise, (0, 0), sigma * sx * k, sigmaY=sigma * sy * k) for k in (1.0, 1.6))
    band = fine - coarse
    return soft(band / band.std() + rng.uniform(-1, 1), rng.uniform(0.3, 2)).astype(np.float32)


def blotches(rng: Rng) -> Field:
    """Overlapping stains with soft or hard edges."""
    total = np.zeros((CANVAS, CANVAS), np.float32)
    for _ in range(rng.integers(1, 4)):
        noise = fractal(rng, log_uniform(rng, 2, 14), 5, rng.uniform(0.4, 0.75))
        total += rng.uniform(0.3, 1) * soft(noise - rng.uniform(-0.3, 1.1), log_uniform(rng, 0.05, 0.8))
    return unit(total + 0.1 * fractal(rng, 40, 3))


def sand(rng: Rng) -> Field:
    """Grains with uneven shade."""
    grains = cv2.GaussianBlur(rng.standard_normal((CANVAS, CANVAS), np.float32), (0, 0), log_uniform(rng, 0.5, 2.5))
    return spread(grains / grains.std() + rng.uniform(0, 0.8) * fractal(rng, 4, 3), 3)


def brushed(rng: Rng) -> Field:
    """Fine noise drawn out in one direction, as on brushed metal."""
    noise = fractal(rng, log_uniform(rng, 8, 60), 4, rng.uniform(0.5, 0.9), log_uniform(rng, 15, 200))
    return spread(noise, rng.uniform(1.5, 3))


def folds(rng: Rng) -> Field:
    """Creases, drawn out in one direction."""
    noise = np.abs(fractal(rng, log_uniform(rng, 2, 10), 3, 0.4, log_uniform(rng, 1, 8)))
    return np.clip(noise / 2, 0, 1) ** np.float32(rng.uniform(0.4, 1.2))


def gradient(rng: Rng) -> Field:
    """A gradient: linear, around a centre, by angle, or of smooth noise."""
    kind = rng.integers(4)
    x, y = X - rng.uniform(0.2, 0.8), Y - rng.uniform(0.2, 0.8)
    if kind == 0:
        return full(X)
    if kind == 1:
        return unit(np.hypot(x, y * rng.uniform(0.5, 2)))
    if kind == 2:
        return (np.arctan2(y, x) / (2 * np.pi) * rng.integers(1, 4) % 1).astype(np.float32)
    return spread(fractal(rng, 3, 1))
