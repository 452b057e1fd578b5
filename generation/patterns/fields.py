"""What patterns are composed of: fields of values on a square canvas, noise, profiles and cells."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Rng = np.random.Generator
Pattern = Callable[[Rng], Field]

SIDE = 384  # of a finished texture, in pixels
CANVAS = 544  # of a pattern: the diagonal of a texture, so that it can be rotated by any angle
ROWS, COLUMNS = np.ogrid[:CANVAS, :CANVAS]  # in pixels, (CANVAS, 1) and (1, CANVAS)
Y, X = (axis.astype(np.float32) / CANVAS for axis in (ROWS, COLUMNS))  # the same in [0, 1)


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A random number whose logarithm is uniform between those of `low` and `high`."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def full(values: NDArray) -> Field:
    """Broadcast to (CANVAS, CANVAS) float32, copied."""
    return np.array(np.broadcast_to(values, (CANVAS, CANVAS)), np.float32)


def unit(values: NDArray) -> Field:
    """Stretched to [0, 1]; a constant gives 0."""
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-6)).astype(np.float32)


def soft(values: NDArray, width: float) -> NDArray:
    """0 below −width/2, 1 above width/2, linear between: a threshold without jagged edges."""
    return np.clip(values / width + 0.5, 0, 1)


def fractal(rng: Rng, cells: float, octaves: int = 4, persistence: float = 0.5, aspect: float = 1.0) -> Field:
    """Noise of several octaves, each twice as fine as the one before; mean about 0, deviation about 1.

    Args:
        rng: of all random draws.
        cells: number of cells across the canvas in the first octave.
        octaves: how many.
        persistence: weight of an octave relative to the one before.
        aspect: above 1 the noise is stretched along x.
    """
    total, power, weight = np.zeros((CANVAS, CANVAS), np.float32), 0.0, 1.0
    for _ in range(octaves):
        rows, columns = (max(2, round(min(c, CANVAS))) for c in (cells * math.sqrt(aspect), cells / math.sqrt(aspect)))
        grid = rng.standard_normal((rows, columns), np.float32)
        total += np.float32(weight) * cv2.resize(grid, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
        power, weight, cells = power + weight**2, weight * persistence, cells * 2
    return total / np.float32(0.75 * math.sqrt(power))  # interpolation reduces the deviation by a quarter


def spread(noise: Field, deviations: float = 2.2) -> Field:
    """Noise of mean 0 and deviation 1, mapped to [0, 1] and clipped."""
    return np.clip(0.5 + noise / (2 * deviations), 0, 1)


def wobble(rng: Rng, field: Field, pixels: float, cells: float) -> Field:
    """The field distorted by smooth noise, which moves a pixel by up to about two times `pixels`."""
    dx, dy = (fractal(rng, cells, 2) * np.float32(pixels) for _ in range(2))
    x, y = COLUMNS.astype(np.float32) + dx, ROWS.astype(np.float32) + dy
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def profile(rng: Rng, phase: NDArray) -> NDArray:
    """A periodic function of random shape, with values in [0, 1], of a phase in periods."""
    t = phase % 1
    kind = rng.integers(5)
    if kind == 0:
        return 0.5 - 0.5 * np.cos(2 * np.pi * t)
    if kind == 1:
        return t  # sawtooth
    triangle = 1 - np.abs(2 * t - 1)
    if kind == 2:
        return np.sqrt(triangle * (2 - triangle))  # semicircles
    width = rng.uniform(0.15, 0.85)
    return soft(triangle - width, 0.08 if kind == 3 else 0.5)


def steps(rng: Rng, count: int, evenness: float) -> Field:
    """`count` bands along (CANVAS,) with a random value each; with an evenness of 1 all have the same width."""
    widths = evenness / count + (1 - evenness) * rng.dirichlet(np.full(count, 0.8))
    band = np.searchsorted(np.cumsum(widths)[:-1], X[0])
    return rng.random(count).astype(np.float32)[band]


class Regions(NamedTuple):
    """The canvas divided into the cells of points.

    label: the nearest point, from 0, (CANVAS, CANVAS).
    near: distance from it in pixels, (CANVAS, CANVAS).
    border: distance from the nearest border of a cell in pixels, (CANVAS, CANVAS).
    points: (N, 2) as (x, y) in pixels, by label.
    """

    label: NDArray[np.int32]
    near: Field
    border: Field
    points: Field


def scatter(rng: Rng, across: float, jitter: float, staggered: bool = False) -> Field:
    """Points (N, 2) as (x, y) in pixels, about `across` × `across` on the canvas: a jittered grid."""
    count = math.ceil(across) + 2
    rows, columns = np.mgrid[-1 : count - 1, -1 : count - 1].astype(np.float32)
    if staggered:
        columns += 0.5 * (rows % 2)
    points = np.stack([columns, rows], -1).reshape(-1, 2) + 0.5
    points += rng.uniform(-0.5, 0.5, points.shape) * jitter
    return (points * (CANVAS / across)).astype(np.float32)


def find_regions(points: Field) -> Regions:
    """Divide the canvas into the cells of those points that lie on it."""
    pixels = np.round(points).astype(int)
    pixels = pixels[((pixels >= 0) & (pixels < CANVAS)).all(1)]
    seeds = np.ones((CANVAS, CANVAS), np.uint8)
    seeds[pixels[:, 1], pixels[:, 0]] = 0
    near, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    label -= 1
    inside = np.ones((CANVAS, CANVAS), np.uint8)
    inside[:, 1:][label[:, 1:] != label[:, :-1]] = 0
    inside[1:][label[1:] != label[:-1]] = 0
    border = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
    by_label = np.zeros((int(label.max()) + 1, 2), np.float32)
    by_label[label[pixels[:, 1], pixels[:, 0]]] = pixels
    return Regions(label, near, border, by_label)


def cell_values(rng: Rng, regions: Regions, low: float = 0.0, high: float = 1.0) -> Field:
    """A random value in [low, high] for each cell."""
    return rng.uniform(low, high, len(regions.points)).astype(np.float32)[regions.label]
