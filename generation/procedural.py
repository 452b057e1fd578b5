"""Textures out of nothing but a random generator, and out of the pictures that scikit-image's wheel brings along.

A texture starts as a pattern, a field of heights, straight and on a canvas large enough to be turned. It is then
photographed (rotation, perspective, warping), coloured by a palette, lit from the side and dirtied, each at random,
so that one pattern gives pictures that differ in hue, brightness, scale and sharpness.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from utils import WorkError

Field = NDArray[np.float32]
Rng = np.random.Generator
Pattern = Callable[[Rng], Field]

SIDE = 384  # of a finished texture, in pixels
CANVAS = 544  # of a pattern: the diagonal of a texture, so that it may be turned by any angle
_Y, _X = np.ogrid[:CANVAS, :CANVAS]
Y, X = (axis.astype(np.float32) / CANVAS for axis in (_Y, _X))  # (CANVAS, 1), (1, CANVAS) in [0, 1)


# ------------------------------------------------------------------------------------------- tools


def _log_uniform(rng: Rng, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _full(values: NDArray) -> Field:
    """Broadcast to (CANVAS, CANVAS) float32 of its own memory."""
    return np.array(np.broadcast_to(values, (CANVAS, CANVAS)), np.float32)


def _unit(values: NDArray) -> Field:
    """Stretched to [0, 1]; a constant gives 0."""
    low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-6)).astype(np.float32)


def _soft(values: NDArray, width: float) -> NDArray:
    """0 below −width/2, 1 above width/2, straight between: a threshold without jagged edges."""
    return np.clip(values / width + 0.5, 0, 1)


def _fractal(rng: Rng, cells: float, octaves: int = 4, persistence: float = 0.5, aspect: float = 1.0) -> Field:
    """Noise of several octaves, each twice as fine as the one before; mean about 0, deviation about 1.

    Args:
        cells: across the canvas in the first octave.
        persistence: weight of an octave relative to the one before.
        aspect: above 1 the noise is drawn out along x.
    """
    total, power, weight = np.zeros((CANVAS, CANVAS), np.float32), 0.0, 1.0
    for _ in range(octaves):
        rows, columns = (max(2, round(min(c, CANVAS))) for c in (cells * math.sqrt(aspect), cells / math.sqrt(aspect)))
        grid = rng.standard_normal((rows, columns), np.float32)
        total += np.float32(weight) * cv2.resize(grid, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
        power, weight, cells = power + weight**2, weight * persistence, cells * 2
    return total / np.float32(0.75 * math.sqrt(power))  # interpolation takes a quarter of the deviation


def _spread(noise: Field, deviations: float = 2.2) -> Field:
    """Noise of mean 0 and deviation 1 to [0, 1], its tails cut."""
    return np.clip(0.5 + noise / (2 * deviations), 0, 1)


def _wobble(rng: Rng, field: Field, pixels: float, cells: float) -> Field:
    """Each pixel fetched from up to about two times `pixels` away, by smooth noise."""
    dx, dy = (_fractal(rng, cells, 2) * np.float32(pixels) for _ in range(2))
    x, y = _X.astype(np.float32) + dx, _Y.astype(np.float32) + dy
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _profile(rng: Rng, phase: NDArray) -> NDArray:
    """A periodic function of a drawn shape, of a phase in periods; [0, 1]."""
    t = phase % 1
    kind = rng.integers(5)
    if kind == 0:
        return 0.5 - 0.5 * np.cos(2 * np.pi * t)
    if kind == 1:
        return t  # a saw
    tri = 1 - np.abs(2 * t - 1)
    if kind == 2:
        return np.sqrt(tri * (2 - tri))  # half round
    width = rng.uniform(0.15, 0.85)
    return _soft(tri - width, 0.08 if kind == 3 else 0.5)


def _steps(rng: Rng, count: int, evenness: float) -> Field:
    """(CANVAS,) of `count` bands with a random value each; evenness 1 gives all the same width."""
    widths = evenness / count + (1 - evenness) * rng.dirichlet(np.full(count, 0.8))
    band = np.searchsorted(np.cumsum(widths)[:-1], X[0])
    return rng.random(count).astype(np.float32)[band]


class Regions(NamedTuple):
    """A plane cut into the cells of points, all (CANVAS, CANVAS): which point is nearest (from 0), how far it is,
    how far the nearest border is, both in pixels; and the points (N, 2) as (x, y) by label."""

    label: NDArray[np.int32]
    near: Field
    border: Field
    points: Field


def _scatter(rng: Rng, across: float, jitter: float, staggered: bool = False) -> Field:
    """(N, 2) points (x, y) in pixels, about `across` × `across` on the canvas: a grid that is jittered."""
    count = math.ceil(across) + 2
    rows, columns = np.mgrid[-1 : count - 1, -1 : count - 1].astype(np.float32)
    if staggered:
        columns += 0.5 * (rows % 2)
    points = np.stack([columns, rows], -1).reshape(-1, 2) + 0.5
    points += rng.uniform(-0.5, 0.5, points.shape) * jitter
    return (points * (CANVAS / across)).astype(np.float32)


def _regions(points: Field) -> Regions:
    """The cell of each point that lies on the canvas."""
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


def _a_cell(rng: Rng, regions: Regions, low: float = 0.0, high: float = 1.0) -> Field:
    """A random value in [low, high] for each cell."""
    return rng.uniform(low, high, len(regions.points)).astype(np.float32)[regions.label]


# ------------------------------------------------------------------------------- patterns: noise


def _clouds(rng: Rng) -> Field:
    return _spread(_fractal(rng, _log_uniform(rng, 2, 40), int(rng.integers(1, 8)), rng.uniform(0.35, 0.85)))


def _marble(rng: Rng) -> Field:
    phase = _log_uniform(rng, 1, 12) * X + rng.uniform(0.3, 1.2) * _fractal(rng, rng.uniform(2, 5), 5, 0.55)
    return np.abs(np.sin(np.pi * phase)) ** np.float32(rng.uniform(0.3, 1.5))


def _ridges(rng: Rng) -> Field:
    cells, total = _log_uniform(rng, 2, 16), np.zeros((CANVAS, CANVAS), np.float32)
    for octave in range(4):
        total += np.abs(_fractal(rng, cells * 2**octave, 1)) * np.float32(0.55**octave)
    return 1 - np.clip(total / 2.2, 0, 1) ** np.float32(rng.uniform(0.4, 1))


def _agate(rng: Rng) -> Field:
    noise = _fractal(rng, _log_uniform(rng, 2, 6), 4, rng.uniform(0.3, 0.5))
    return _profile(rng, noise * np.float32(_log_uniform(rng, 1, 5))).astype(np.float32)


def _labyrinth(rng: Rng) -> Field:
    # noise of one scale alone, cut: a maze in the middle, spots or holes towards either end
    sigma, (sx, sy) = _log_uniform(rng, 1.5, 8), rng.uniform(0.6, 1.6, 2)
    noise = rng.standard_normal((CANVAS, CANVAS), np.float32)
    fine, coarse = (cv2.GaussianBlur(noise, (0, 0), sigma * sx * k, sigmaY=sigma * sy * k) for k in (1.0, 1.6))
    band = fine - coarse
    return _soft(band / band.std() + rng.uniform(-1, 1), rng.uniform(0.3, 2)).astype(np.float32)


def _blotches(rng: Rng) -> Field:
    total = np.zeros((CANVAS, CANVAS), np.float32)
    for _ in range(rng.integers(1, 4)):
        noise = _fractal(rng, _log_uniform(rng, 2, 14), 5, rng.uniform(0.4, 0.75))
        total += rng.uniform(0.3, 1) * _soft(noise - rng.uniform(-0.3, 1.1), _log_uniform(rng, 0.05, 0.8))
    return _unit(total + 0.1 * _fractal(rng, 40, 3))


def _sand(rng: Rng) -> Field:
    grains = cv2.GaussianBlur(rng.standard_normal((CANVAS, CANVAS), np.float32), (0, 0), _log_uniform(rng, 0.5, 2.5))
    return _spread(grains / grains.std() + rng.uniform(0, 0.8) * _fractal(rng, 4, 3), 3)


def _brushed(rng: Rng) -> Field:
    noise = _fractal(rng, _log_uniform(rng, 8, 60), 4, rng.uniform(0.5, 0.9), _log_uniform(rng, 15, 200))
    return _spread(noise, rng.uniform(1.5, 3))


def _folds(rng: Rng) -> Field:
    noise = np.abs(_fractal(rng, _log_uniform(rng, 2, 10), 3, 0.4, _log_uniform(rng, 1, 8)))
    return np.clip(noise / 2, 0, 1) ** np.float32(rng.uniform(0.4, 1.2))


def _gradient(rng: Rng) -> Field:
    kind = rng.integers(4)
    x, y = X - rng.uniform(0.2, 0.8), Y - rng.uniform(0.2, 0.8)
    if kind == 0:
        return _full(X)
    if kind == 1:
        return _unit(np.hypot(x, y * rng.uniform(0.5, 2)))
    if kind == 2:
        return (np.arctan2(y, x) / (2 * np.pi) * rng.integers(1, 4) % 1).astype(np.float32)
    return _spread(_fractal(rng, 3, 1))


# ----------------------------------------------------------------------------- patterns: straight


def _stripes(rng: Rng) -> Field:
    return _full(_profile(rng, X * _log_uniform(rng, 4, 70)))


def _bands(rng: Rng) -> Field:
    steps = _steps(rng, int(rng.integers(3, 40)), rng.uniform(0, 1))
    repeats = int(rng.integers(1, 5))
    return _full(np.tile(steps[::repeats], repeats)[:CANVAS])


def _zigzag(rng: Rng) -> Field:
    across, height = _log_uniform(rng, 2, 20), rng.uniform(0.2, 1.5)
    t = X * across
    swing = 0.5 * np.sin(2 * np.pi * t) if rng.random() < 0.4 else np.abs(2 * (t % 1) - 1)
    return _profile(rng, Y * _log_uniform(rng, 6, 40) + height * swing).astype(np.float32)


def _checks(rng: Rng) -> Field:
    across, down = _log_uniform(rng, 3, 40), rng.uniform(0.6, 1.6)
    column, row = np.floor(X * across).astype(int), np.floor(Y * across * down).astype(int)
    variety = rng.uniform(0, 0.5) * rng.random((row.max() + 1, column.max() + 1))
    return _unit((row + column) % 2 + (variety - variety.mean())[row, column])


def _blocks(rng: Rng) -> Field:
    total = np.zeros((CANVAS, CANVAS), np.float32)
    for _ in range(rng.integers(1, 4)):
        rows, columns = (round(_log_uniform(rng, 2, 40)) for _ in range(2))
        grid = rng.random((rows, columns), np.float32)
        total += rng.uniform(0.3, 1) * cv2.resize(grid, (CANVAS, CANVAS), interpolation=cv2.INTER_NEAREST)
    return _unit(total)


def _plaid(rng: Rng) -> Field:
    threads = int(rng.integers(40, 140))
    warp, weft = (_steps(rng, int(rng.integers(3, 10)), rng.uniform(0, 0.8)) for _ in range(2))
    repeats = int(rng.integers(1, 5))
    warp, weft = (np.tile(s[::repeats], repeats)[:CANVAS] for s in (warp, weft))
    twill = ((X + Y) * threads % 1) < 0.5  # which of the two threads lies on top
    weight = rng.uniform(0.3, 0.7) + rng.uniform(0, 0.3) * (twill - 0.5)
    return _unit(weight * warp[None] + (1 - weight) * weft[:, None])


def _lattice(rng: Rng) -> Field:
    across, width = _log_uniform(rng, 4, 40), rng.uniform(0.04, 0.3)
    down = across * rng.choice([1.0, rng.uniform(0.3, 2)])
    lines = [_soft(width - np.abs((t % 1) - 0.5), 0.08) for t in (X * across, Y * down)]
    return _full(np.maximum(lines[0], lines[1] * rng.uniform(0.4, 1)))


def _bricks(rng: Rng) -> Field:
    rows, across = _log_uniform(rng, 4, 24), _log_uniform(rng, 3, 16)
    y = Y * rows
    row = np.floor(y).astype(int)
    shift = rng.choice([0.0, 0.5, 0.33]) * row if rng.random() < 0.8 else rng.random(row.max() + 1)[row]
    x = X * across + shift
    column = np.floor(x).astype(int)
    face = rng.uniform(0.4, 1, (row.max() + 1, column.max() + 1))[row, column]
    joint = rng.uniform(1.5, 7)  # pixels
    edge = [np.minimum(t % 1, 1 - t % 1) * CANVAS / n for t, n in ((x, across), (y, rows))]
    solid = _soft(np.minimum(edge[0], edge[1]) - joint, rng.uniform(1, 6))
    return _unit(solid * (face + rng.uniform(0, 0.12) * _fractal(rng, 30, 4)))


def _weave(rng: Rng) -> Field:
    across, twill = _log_uniform(rng, 6, 60), int(rng.choice([2, 2, 3, 4]))
    x, y = X * across, Y * across * rng.uniform(0.7, 1.4)
    over = (np.floor(x) + np.floor(y)) % twill < twill / 2
    across_x, across_y = (np.sin(np.pi * (t % 1)) ** 0.7 for t in (x, y))
    sag = rng.uniform(0.2, 0.7)
    strands = np.where(over, across_y * (1 - sag + sag * across_x), across_x * (1 - sag + sag * across_y) * 0.9)
    fibre = np.where(over, _fractal(rng, across * 2, 2, 0.6, 30), _fractal(rng, across * 2, 2, 0.6, 1 / 30))
    return _unit(strands + rng.uniform(0, 0.2) * fibre)


def _knit(rng: Rng) -> Field:
    across = _log_uniform(rng, 5, 28)
    u, v = X * across, Y * across * rng.uniform(0.6, 1.6)
    slanted = v + rng.uniform(0.4, 1.4) * np.abs((u % 1) - 0.5) * 2
    loop = np.sin(np.pi * (slanted % 1)) ** rng.uniform(0.4, 1.2) * np.abs(np.sin(2 * np.pi * u)) ** 0.5
    return _unit(loop + rng.uniform(0, 0.15) * _fractal(rng, 60, 2))


def _herringbone(rng: Rng) -> Field:
    across, lean = _log_uniform(rng, 2, 18), rng.uniform(0.5, 3)
    u = X * across
    t = Y * _log_uniform(rng, 8, 50) + lean * np.where(np.floor(u) % 2 == 0, u % 1, 1 - u % 1)
    seam = np.abs(np.sin(np.pi * u)) ** rng.uniform(0.05, 0.5)
    return _unit(_profile(rng, t) * seam + rng.uniform(0, 0.1) * _fractal(rng, 40, 3))


def _linen(rng: Rng) -> Field:
    cells, aspect = _log_uniform(rng, 20, 70), _log_uniform(rng, 20, 150)
    along = _fractal(rng, cells, 2, 0.7, aspect)
    across = _fractal(rng, cells * rng.uniform(0.6, 1.5), 2, 0.7, 1 / aspect)
    return _spread(along + rng.uniform(0.3, 1) * across, 3)


def _halftone(rng: Rng) -> Field:
    across = _log_uniform(rng, 12, 70)
    screen = np.cos(2 * np.pi * X * across) + np.cos(2 * np.pi * Y * across)
    return _soft(screen / 2 + 0.8 * _fractal(rng, rng.uniform(2, 6), 3), 0.4).astype(np.float32)


def _moire(rng: Rng) -> Field:
    waves = []
    for _ in range(2):
        centre, along = rng.uniform(-0.5, 1.5, 2), rng.uniform(-1, 1, 2)
        straight = rng.random() < 0.5
        distance = along[0] * X + along[1] * Y if straight else np.hypot(X - centre[0], Y - centre[1])
        waves.append(np.sin(2 * np.pi * distance.astype(np.float32) * np.float32(_log_uniform(rng, 5, 50))))
    return _unit(waves[0] * waves[1] if rng.random() < 0.5 else waves[0] + waves[1])


def _ornament(rng: Rng) -> Field:
    # a piece of noise, mirrored to a tile without seams, all over
    side = round(CANVAS / _log_uniform(rng, 2, 14) / 2)
    at = rng.integers(0, CANVAS - side, 2)
    piece = _fractal(rng, _log_uniform(rng, 1, 3) * CANVAS / side / 2, 3)[at[0] : at[0] + side, at[1] : at[1] + side]
    piece = _soft(piece - piece.mean(), _log_uniform(rng, 0.1, 2))
    tile = np.block([[piece, piece[:, ::-1]], [piece[::-1], piece[::-1, ::-1]]])
    repeats = math.ceil(CANVAS / (2 * side))
    return _unit(np.tile(tile, (repeats, repeats))[:CANVAS, :CANVAS])


# -------------------------------------------------------------------------------- patterns: cells


def _cells(rng: Rng) -> Field:
    regions = _regions(_scatter(rng, _log_uniform(rng, 4, 36), rng.uniform(0.5, 1)))
    edge = _soft(regions.border - rng.uniform(0, 4), rng.uniform(1, 6))
    return _unit(edge * _a_cell(rng, regions, rng.uniform(0.1, 0.9), 1) + rng.uniform(-0.2, 0.2) * (1 - edge))


def _honeycomb(rng: Rng) -> Field:
    across = _log_uniform(rng, 5, 30)
    regions = _regions(_scatter(rng, across, rng.uniform(0, 0.25), staggered=True))
    depth = np.clip(regions.border / (CANVAS / across * rng.uniform(0.15, 0.5)), 0, 1)
    return _unit(depth ** rng.uniform(0.3, 2) * _a_cell(rng, regions, rng.uniform(0.5, 1), 1))


def _cracks(rng: Rng) -> Field:
    across, ground = _log_uniform(rng, 3, 14), _spread(_fractal(rng, 8, 6, 0.65), 3)
    height = 0.75 + rng.uniform(0.1, 0.5) * (ground - 0.5)
    for level in range(rng.integers(1, 4)):
        regions = _regions(_scatter(rng, across * 2.2**level, 1))
        width = rng.uniform(0.8, 5) / (level + 1) * (0.4 + 1.2 * ground)  # a crack is not equally wide everywhere
        gap = 1 - _soft(regions.border - width, rng.uniform(1, 3))
        height = height * (1 - gap * 0.8**level) + rng.uniform(0, 0.06) * _a_cell(rng, regions)
    return _unit(_wobble(rng, height.astype(np.float32), rng.uniform(2, 7), rng.uniform(8, 25)))


def _crystals(rng: Rng) -> Field:
    regions = _regions(_scatter(rng, _log_uniform(rng, 3, 20), 1) * np.float32(rng.uniform(0.8, 1.2)))
    lean = rng.normal(0, 1, (len(regions.points), 2)).astype(np.float32)[regions.label]
    offset = [(axis - regions.points[:, i][regions.label]) for i, axis in enumerate((_X, _Y))]
    facet = lean[..., 0] * offset[0] + lean[..., 1] * offset[1]
    return _unit(_spread(facet / facet.std()) + rng.uniform(0.2, 1) * _a_cell(rng, regions))


def _leather(rng: Rng) -> Field:
    across = _log_uniform(rng, 14, 50)
    fine, coarse = (_regions(_scatter(rng, n, 1)).border for n in (across, across / rng.uniform(2, 4)))
    height = np.clip(fine / (CANVAS / across * 0.4), 0, 1) ** 0.6 * _soft(coarse - 1, 4)
    return _unit(_wobble(rng, height.astype(np.float32), 2.5, 20) + 0.08 * _fractal(rng, 60, 3))


def _bumps(rng: Rng) -> Field:
    across = _log_uniform(rng, 5, 36)
    regions = _regions(_scatter(rng, across, rng.choice([0.0, rng.uniform(0, 0.8)]), bool(rng.random() < 0.6)))
    slope = np.clip(1 - regions.near / (CANVAS / across * rng.uniform(0.45, 0.75)), 0, 1)
    round_top = rng.random() < 0.6
    return _unit((np.sqrt(slope * (2 - slope)) if round_top else slope) * _a_cell(rng, regions, 0.8, 1))


def _dots(rng: Rng) -> Field:
    across = _log_uniform(rng, 4, 40)
    regions = _regions(_scatter(rng, across, rng.choice([0.0, rng.uniform(0, 0.7)]), bool(rng.random() < 0.5)))
    radius = CANVAS / across * _a_cell(rng, regions, rng.uniform(0.1, 0.4), 0.4)
    inside = _soft(radius - regions.near, rng.uniform(1, 5))
    return _unit(inside * _a_cell(rng, regions, rng.uniform(0.3, 1), 1))


def _mesh(rng: Rng) -> Field:
    across = _log_uniform(rng, 8, 45)
    regions = _regions(_scatter(rng, across, rng.uniform(0, 0.3), bool(rng.random() < 0.7)))
    hole = _soft(CANVAS / across * rng.uniform(0.3, 0.5) - regions.near, 2)
    return _unit(1 - hole + 0.15 * _fractal(rng, 60, 2) * (1 - hole))


# ------------------------------------------------------------------------------- patterns: round


def _wood(rng: Rng) -> Field:
    stretch, centre = _log_uniform(rng, 0.03, 1), rng.uniform(-0.5, 1.5, 2)
    grain = _fractal(rng, 40, 3, 0.7, 1 / (0.5 + 40 * (1 - stretch)))
    radius = np.hypot(X - centre[0], (Y - centre[1]) * stretch) + 0.02 * _fractal(rng, 3, 3, 0.4, 1 / 3)
    rings = (radius * _log_uniform(rng, 8, 50)).astype(np.float32) % 1
    return _unit(rings ** np.float32(rng.uniform(0.6, 3)) + rng.uniform(0.1, 0.35) * grain)


def _rings(rng: Rng) -> Field:
    centre = rng.uniform(0.1, 0.9, 2)
    x, y = X - centre[0], Y - centre[1]
    turn = np.arctan2(y, x) / (2 * np.pi) * rng.integers(-3, 4)  # 0 arms: rings, else a spiral
    radius = np.hypot(x, y * rng.uniform(0.6, 1.6)) ** rng.uniform(0.6, 1.3)
    return _profile(rng, (radius * _log_uniform(rng, 5, 45) + turn).astype(np.float32)).astype(np.float32)


def _rays(rng: Rng) -> Field:
    centre = rng.uniform(0, 1, 2)
    x, y = X - centre[0], Y - centre[1]
    bend = rng.uniform(-1, 1) * np.hypot(x, y)
    return _profile(rng, np.arctan2(y, x) / (2 * np.pi) * rng.integers(6, 60) + bend).astype(np.float32)


def _bubbles(rng: Rng) -> Field:
    ground = (255 * 0.35 * _spread(_fractal(rng, 3, 3))).astype(np.uint8)
    largest = _log_uniform(rng, 10, 80)
    count = int(np.clip(60 * (60 / largest) ** 1.3, 20, 500))
    body, rim = (int(v) for v in rng.integers((40, 120), (130, 255)))
    for radius in sorted(largest * rng.power(0.7, count) + 2, reverse=True):
        x, y = (int(v) for v in rng.integers(0, CANVAS, 2))
        cv2.circle(ground, (x, y), round(radius), body, -1, cv2.LINE_AA)
        cv2.circle(ground, (x, y), round(radius), rim, max(1, round(radius * 0.12)), cv2.LINE_AA)
        shine = (round(x - radius * 0.35), round(y - radius * 0.35))
        cv2.circle(ground, shine, max(1, round(radius * 0.15)), 255, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(ground, (0, 0), rng.uniform(0.6, 2)).astype(np.float32) / 255


def _stains(rng: Rng) -> Field:
    height = np.zeros((CANVAS, CANVAS), np.float32)
    for _ in range(rng.integers(4, 14)):
        radius, centre = _log_uniform(rng, 0.03, 0.35), rng.uniform(0, 1, 2)
        inside = (radius - np.hypot(X - centre[0], Y - centre[1])) * np.float32(CANVAS)
        # what dries leaves most at its rim
        height += (
            rng.uniform(0.2, 1) * _soft(inside, 4) * (0.4 + np.exp(-np.clip(inside, 0, None) / rng.uniform(3, 20)))
        )
    return _unit(_wobble(rng, height, rng.uniform(3, 12), rng.uniform(4, 12)))


# ------------------------------------------------------------------------------- patterns: lines


def _ground(rng: Rng) -> NDArray[np.uint8]:
    return (60 + 100 * _spread(_fractal(rng, _log_uniform(rng, 2, 30), 5, 0.6))).astype(np.uint8)


def _scratches(rng: Rng) -> Field:
    canvas, direction, spread = _ground(rng), rng.uniform(0, np.pi), rng.choice([0.05, 0.3, 1.6])
    for _ in range(rng.integers(15, 250)):
        start, angle = rng.uniform(0, CANVAS, 2), direction + rng.normal(0, spread)
        end = start + _log_uniform(rng, 20, 600) * np.array([np.cos(angle), np.sin(angle)])
        shade = int(rng.choice([rng.integers(0, 60), rng.integers(190, 256)]))
        cv2.line(
            canvas, *(tuple(p.astype(int).tolist()) for p in (start, end)), shade, int(rng.integers(1, 3)), cv2.LINE_AA
        )
    return _wobble(rng, canvas.astype(np.float32) / 255, rng.uniform(0, 3), 4)


def _crosshatch(rng: Rng) -> Field:
    canvas = np.full((CANVAS, CANVAS), 230, np.uint8)
    length, thick = _log_uniform(rng, 20, 300), int(rng.integers(1, 4))
    for angle in rng.uniform(0, np.pi, rng.integers(2, 5)):
        along = np.array([np.cos(angle), np.sin(angle)])
        for _ in range(rng.integers(60, 350)):
            middle, reach = rng.uniform(0, CANVAS, 2), along * length * rng.uniform(0.3, 1) + rng.normal(0, 4, 2)
            ends = [tuple(np.round(p).astype(int).tolist()) for p in (middle - reach / 2, middle + reach / 2)]
            cv2.line(canvas, *ends, int(rng.integers(0, 160)), thick, cv2.LINE_AA)
    return _wobble(rng, canvas.astype(np.float32) / 255, rng.uniform(0, 2), 10)


def _fibres(rng: Rng) -> Field:
    canvas, count = _ground(rng), int(rng.integers(60, 500))
    points, step = 14, _log_uniform(rng, 5, 30)
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) * rng.choice([0.1, 1]) + rng.normal(0, 0.3, (count, points)).cumsum(1)
    path = rng.uniform(-50, CANVAS + 50, (count, 1, 2)) + step * np.stack([np.cos(angle), np.sin(angle)], -1).cumsum(1)
    low, high = sorted(rng.integers(0, 256, 2))
    for curve in np.round(path).astype(np.int32):
        cv2.polylines(canvas, [curve], False, int(rng.integers(low, high + 1)), int(rng.integers(1, 4)), cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 1.5)).astype(np.float32) / 255


def _webs(rng: Rng) -> Field:
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


def _flecks(rng: Rng) -> Field:
    canvas, largest = _ground(rng), _log_uniform(rng, 4, 60)
    for _ in range(int(np.clip(300 * (25 / largest) ** 1.2, 60, 1200))):
        corners = rng.normal(0, largest * rng.power(0.8), (int(rng.integers(3, 7)), 2)) + rng.uniform(0, CANVAS, 2)
        hull = cv2.convexHull(np.round(corners).astype(np.int32))
        cv2.fillConvexPoly(canvas, hull, int(rng.integers(0, 256)), cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


# --------------------------------------------------------------------------------- patterns: both


def _layers(rng: Rng) -> Field:
    """Two patterns, one showing where the other has come off."""
    first, second = (PATTERNS[i][1](rng) for i in rng.choice(len(PATTERNS) - 1, 2, replace=False))
    bare = _soft(_fractal(rng, _log_uniform(rng, 2, 8), 5, 0.6) - rng.uniform(-0.5, 0.5), _log_uniform(rng, 0.1, 1.5))
    return _unit(first * (1 - bare) + (second * rng.uniform(0.3, 1) + rng.uniform(-0.5, 0.5)) * bare)


PATTERNS: tuple[tuple[str, Pattern], ...] = (
    ("noise", _clouds), ("stripes", _stripes), ("checks", _checks), ("cells", _cells), ("cracks", _cracks),
    ("dots", _dots), ("gradient", _gradient), ("marble", _marble), ("ridges", _ridges), ("agate", _agate),
    ("labyrinth", _labyrinth), ("blotches", _blotches), ("sand", _sand), ("brushed", _brushed), ("folds", _folds),
    ("bands", _bands), ("zigzag", _zigzag), ("blocks", _blocks), ("plaid", _plaid), ("lattice", _lattice),
    ("bricks", _bricks), ("weave", _weave), ("knit", _knit), ("herringbone", _herringbone), ("linen", _linen),
    ("halftone", _halftone), ("moire", _moire), ("ornament", _ornament), ("honeycomb", _honeycomb),
    ("crystals", _crystals), ("leather", _leather), ("bumps", _bumps), ("mesh", _mesh), ("wood", _wood),
    ("rings", _rings), ("rays", _rays), ("bubbles", _bubbles), ("stains", _stains), ("scratches", _scratches),
    ("crosshatch", _crosshatch), ("fibres", _fibres), ("webs", _webs), ("flecks", _flecks),
    ("layers", _layers),  # last: it draws from those before it
)  # fmt: skip


# --------------------------------------------------------------------------------------- pictures


class Photo(NamedTuple):
    """A picture inside scikit-image's wheel: file in its data folder, and the part used as shares of its sides."""

    file: str
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom


# Only what scikit-image's own notes (skimage/data/_fetchers.py, 0.25.2) call CC0 or public domain and the wheel holds.
PHOTOS: tuple[tuple[str, Photo], ...] = (
    ("brick", Photo("brick.png")),  # CC0, CC0Textures "Bricks25"
    ("grass", Photo("grass.png")),  # CC0, linolafett
    ("gravel", Photo("gravel.png")),  # CC0, CC0Textures "Gravel04"
    ("fur", Photo("chelsea.png", (0.0, 0.45, 1.0, 1.0))),  # CC0, Stefan van der Walt
    ("lawn", Photo("camera.png", (0.0, 0.72, 1.0, 1.0))),  # CC0, Lav Varshney
    ("table", Photo("coffee.png", (0.0, 0.0, 0.45, 1.0))),  # CC0, Rachel Michetti
    ("tissue", Photo("retina.jpg", (0.18, 0.18, 0.82, 0.82))),  # CC0, Häggström in WikiJournal of Medicine
    ("stars", Photo("hubble_deep_field.jpg")),  # public domain, NASA
    ("print", Photo("text.png")),  # public domain, Wikipedia "Corner.png"
)


def photo_folder() -> Path:
    """The data folder of scikit-image, which is found but not imported: nothing there may reach for the network.

    Raises:
        WorkError: scikit-image or a picture of it is not installed.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise WorkError("AUG_PATH builtin: scikit-image is not installed; pip install -r requirements.txt")
    folder = Path(found.submodule_search_locations[0]) / "data"
    missing = [photo.file for _, photo in PHOTOS if not (folder / photo.file).is_file()]
    if missing:
        raise WorkError(f"AUG_PATH builtin: {folder} lacks {', '.join(missing)}; pip install -r requirements.txt")
    return folder


def _photo(rng: Rng, path: Path, box: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """A crop of a picture, resized and mirrored into (CANVAS, CANVAS) or (CANVAS, CANVAS, 3)."""
    with Image.open(path) as image:
        image.draft(None, (600, 600))  # a large JPEG is decoded small
        width, height = image.size
        left, top, right, bottom = (round(s * n) for s, n in zip(box, (width, height) * 2, strict=True))
        side = round(min(right - left, bottom - top) * rng.uniform(0.5, 1))
        x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(top, bottom - side + 1))
        crop = np.asarray(image.crop((x, y, x + side, y + side)))
    target = round(CANVAS * rng.choice([1.0, rng.uniform(0.3, 1)]))
    crop = cv2.resize(crop, (target, target), interpolation=cv2.INTER_AREA if target < side else cv2.INTER_CUBIC)
    crop = np.rot90(crop, rng.integers(4))[:: rng.choice([-1, 1])]
    rest = CANVAS - target
    return cv2.copyMakeBorder(np.ascontiguousarray(crop), 0, rest, 0, rest, cv2.BORDER_REFLECT)


# -------------------------------------------------------------------------------------- finishing


def _photograph(rng: Rng, canvas: NDArray) -> NDArray:
    """(CANVAS, CANVAS[, 3]) → (SIDE, SIDE[, 3]): turned, in perspective, warped."""
    angle = rng.choice([0.0, 90.0, rng.normal(0, 5), rng.uniform(-180, 180), rng.uniform(-180, 180)])
    half = SIDE / 2 * rng.uniform(0.7, 1)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    if rng.random() < 0.4:
        corners *= rng.uniform(0.6, 1, (4, 1))
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    corners = (corners @ np.array([[c, s], [-s, c]]) + CANVAS / 2).astype(np.float32)
    square = np.array([[0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, square)
    field = cv2.warpPerspective(canvas, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    if rng.random() < 0.5:
        field = _warp(rng, field, _log_uniform(rng, 0.7, 12))
    return field


def _smooth(rng: Rng, cells: int) -> Field:
    """(SIDE, SIDE) smooth noise of deviation about 1."""
    grid = rng.standard_normal((cells, cells), np.float32)
    return cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) / np.float32(0.75)


def _warp(rng: Rng, field: NDArray, pixels: float) -> NDArray:
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    cells = int(rng.integers(2, 10))
    x, y = (axis + np.float32(pixels) * _smooth(rng, cells) for axis in (x, y))
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _to_rgb(lab: NDArray) -> Field:
    return np.clip(cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB), 0, 1)


def _palette(rng: Rng) -> Field:
    """(256, 3) RGB in [0, 1]: a few colours related in hue, and what lies between them."""
    count = int(rng.integers(2, 7))
    light = rng.uniform(12, 92) + _log_uniform(rng, 10, 90) * (rng.random(count) - 0.5)
    if rng.random() < 0.6:  # height as light, as on most surfaces; else colours as of a print
        light = np.sort(light)[:: rng.choice([1, 1, -1])]
    # surfaces are mostly brown, red, yellow and gray
    hue = rng.normal(70, 35) if rng.random() < 0.45 else rng.uniform(0, 360)
    hues = np.radians(hue + rng.choice([6, 25, 110]) * rng.normal(0, 1, count))
    chroma = 0.0 if rng.random() < 0.15 else rng.gamma(1.5, 16)
    chromas = np.minimum(chroma * rng.uniform(0.3, 1.5, count), 95)
    knots = np.stack([np.clip(light, 2, 98), chromas * np.cos(hues), chromas * np.sin(hues)], 1)
    places = np.concatenate([[0], np.sort(rng.random(count - 2)), [1]])
    lab = np.stack([np.interp(np.linspace(0, 1, 256), places, knots[:, i]) for i in range(3)], 1)
    return _to_rgb(lab[None])[0]


def _paint(rng: Rng, height: Field) -> Field:
    """(SIDE, SIDE) in [0, 1] → (SIDE, SIDE, 3) RGB: one palette, or two that give way to each other."""
    index = (255 * np.clip(height, 0, 1)).astype(np.uint8)
    colours = _palette(rng)[index]
    if rng.random() < 0.3:
        share = _soft(_smooth(rng, int(rng.integers(3, 10))), _log_uniform(rng, 0.3, 4))[..., None]
        colours += share * (_palette(rng)[index] - colours)
    return colours


def _tint(rng: Rng, picture: NDArray[np.uint8]) -> Field:
    """A coloured picture (SIDE, SIDE, 3) with its hue turned and its saturation changed."""
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    turn, factor = rng.choice([0.0, rng.uniform(0, 2 * np.pi)]), rng.uniform(0.2, 1.6)
    a, b = factor * lab[..., 1], factor * lab[..., 2]
    lab[..., 1], lab[..., 2] = a * math.cos(turn) - b * math.sin(turn), a * math.sin(turn) + b * math.cos(turn)
    return _to_rgb(lab)


def _light(rng: Rng, colours: Field, height: Field) -> Field:
    """Light from a side on the heights: slopes towards it are brighter, and shine where the surface is glossy."""
    smooth = cv2.GaussianBlur(height, (0, 0), _log_uniform(rng, 0.6, 3))
    angle = rng.uniform(0, 2 * np.pi)
    slope = cv2.Sobel(smooth, cv2.CV_32F, 1, 0) * math.cos(angle) + cv2.Sobel(smooth, cv2.CV_32F, 0, 1) * math.sin(
        angle
    )
    slope = np.clip(slope / max(3 * float(slope.std()), 1e-6), -1, 1)
    gloss = rng.choice([0.0, rng.uniform(0, 0.8)]) * np.clip(slope - 0.6, 0, None)
    return colours * (1 + rng.uniform(0.1, 0.7) * slope)[..., None] + gloss[..., None]


def _expose(rng: Rng, colours: Field) -> Field:
    """Uneven light over the picture, sharpness, and the grain of the camera."""
    if rng.random() < 0.5:
        colours = colours * (1 + rng.uniform(0.03, 0.22) * _smooth(rng, int(rng.integers(2, 4))))[..., None]
    if rng.random() < 0.2:
        colours = cv2.GaussianBlur(colours, (0, 0), _log_uniform(rng, 0.6, 3))
    if rng.random() < 0.7:
        grain = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE), np.float32), (0, 0), rng.uniform(0.3, 1.2))
        colours = colours + np.float32(_log_uniform(rng, 0.004, 0.06) / grain.std()) * grain[..., None]
    return colours


# -------------------------------------------------------------------------------------------- all

KINDS: Sequence[str] = [name for name, _ in PATTERNS] + [name for name, _ in PHOTOS]


def draw(rng: Rng, kind: int, photos: Path) -> NDArray[np.uint8]:
    """A texture.

    Args:
        rng: of all draws; the same state gives the same picture, bit for bit on one machine.
        kind: index into KINDS.
        photos: `photo_folder()`.

    Returns:
        (SIDE, SIDE, 3) RGB.
    """
    if kind < len(PATTERNS):
        canvas = PATTERNS[kind][1](rng)
    else:
        photo = PHOTOS[kind - len(PATTERNS)][1]
        canvas = _photo(rng, photos / photo.file, photo.box)
    field = _photograph(rng, canvas)
    if field.ndim == 3:
        colours = _tint(rng, field)
    else:
        height = field.astype(np.float32) / 255 if field.dtype == np.uint8 else field
        colours = _paint(rng, height)
        if rng.random() < 0.55:
            colours = _light(rng, colours, height)
    return (np.clip(_expose(rng, colours), 0, 1) * 255 + 0.5).astype(np.uint8)
