"""Patterns along straight axes: stripes, grids, bricks and woven surfaces.

Each function draws one pattern, a field of heights (CANVAS, CANVAS) in [0, 1], from a random generator.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from generation.patterns.fields import (
    CANVAS,
    Field,
    Rng,
    X,
    Y,
    fractal,
    full,
    log_uniform,
    profile,
    soft,
    spread,
    steps,
    unit,
)


def stripes(rng: Rng) -> Field:
    """Stripes of equal width."""
    return full(profile(rng, X * log_uniform(rng, 4, 70)))


def bands(rng: Rng) -> Field:
    """Bands of different widths and shades."""
    values = steps(rng, int(rng.integers(3, 40)), rng.uniform(0, 1))
    repeats = int(rng.integers(1, 5))
    return full(np.tile(values[::repeats], repeats)[:CANVAS])


def zigzag(rng: Rng) -> Field:
    """Zigzag or wavy lines."""
    across, height = log_uniform(rng, 2, 20), rng.uniform(0.2, 1.5)
    t = X * across
    swing = 0.5 * np.sin(2 * np.pi * t) if rng.random() < 0.4 else np.abs(2 * (t % 1) - 1)
    return profile(rng, Y * log_uniform(rng, 6, 40) + height * swing).astype(np.float32)


def checks(rng: Rng) -> Field:
    """A chequerboard, with some variety of its shades."""
    across, down = log_uniform(rng, 3, 40), rng.uniform(0.6, 1.6)
    column, row = np.floor(X * across).astype(int), np.floor(Y * across * down).astype(int)
    variety = rng.uniform(0, 0.5) * rng.random((row.max() + 1, column.max() + 1))
    return unit((row + column) % 2 + (variety - variety.mean())[row, column])


def blocks(rng: Rng) -> Field:
    """Overlaid grids of rectangles of random shades."""
    total = np.zeros((CANVAS, CANVAS), np.float32)
    for _ in range(rng.integers(1, 4)):
        rows, columns = (round(log_uniform(rng, 2, 40)) for _ in range(2))
        grid = rng.random((rows, columns), np.float32)
        total += rng.uniform(0.3, 1) * cv2.resize(grid, (CANVAS, CANVAS), interpolation=cv2.INTER_NEAREST)
    return unit(total)


def plaid(rng: Rng) -> Field:
    """A woven pattern of coloured stripes in both directions."""
    threads = int(rng.integers(40, 140))
    warp, weft = (steps(rng, int(rng.integers(3, 10)), rng.uniform(0, 0.8)) for _ in range(2))
    repeats = int(rng.integers(1, 5))
    warp, weft = (np.tile(s[::repeats], repeats)[:CANVAS] for s in (warp, weft))
    twill = ((X + Y) * threads % 1) < 0.5  # which of the two threads lies on top
    weight = rng.uniform(0.3, 0.7) + rng.uniform(0, 0.3) * (twill - 0.5)
    return unit(weight * warp[None] + (1 - weight) * weft[:, None])


def lattice(rng: Rng) -> Field:
    """Crossing lines."""
    across, width = log_uniform(rng, 4, 40), rng.uniform(0.04, 0.3)
    down = across * rng.choice([1.0, rng.uniform(0.3, 2)])
    lines = [soft(width - np.abs((t % 1) - 0.5), 0.08) for t in (X * across, Y * down)]
    return full(np.maximum(lines[0], lines[1] * rng.uniform(0.4, 1)))


def bricks(rng: Rng) -> Field:
    """Bricks or tiles with joints."""
    rows, across = log_uniform(rng, 4, 24), log_uniform(rng, 3, 16)
    y = Y * rows
    row = np.floor(y).astype(int)
    shift = rng.choice([0.0, 0.5, 0.33]) * row if rng.random() < 0.8 else rng.random(row.max() + 1)[row]
    x = X * across + shift
    column = np.floor(x).astype(int)
    face = rng.uniform(0.4, 1, (row.max() + 1, column.max() + 1))[row, column]
    joint = rng.uniform(1.5, 7)  # pixels
    edge = [np.minimum(t % 1, 1 - t % 1) * CANVAS / n for t, n in ((x, across), (y, rows))]
    solid = soft(np.minimum(edge[0], edge[1]) - joint, rng.uniform(1, 6))
    return unit(solid * (face + rng.uniform(0, 0.12) * fractal(rng, 30, 4)))


def weave(rng: Rng) -> Field:
    """Strands that cross over and under each other."""
    across, twill = log_uniform(rng, 6, 60), int(rng.choice([2, 2, 3, 4]))
    x, y = X * across, Y * across * rng.uniform(0.7, 1.4)
    over = (np.floor(x) + np.floor(y)) % twill < twill / 2
    across_x, across_y = (np.sin(np.pi * (t % 1)) ** 0.7 for t in (x, y))
    sag = rng.uniform(0.2, 0.7)
    strands = np.where(over, across_y * (1 - sag + sag * across_x), across_x * (1 - sag + sag * across_y) * 0.9)
    fibre = np.where(over, fractal(rng, across * 2, 2, 0.6, 30), fractal(rng, across * 2, 2, 0.6, 1 / 30))
    return unit(strands + rng.uniform(0, 0.2) * fibre)


def knit(rng: Rng) -> Field:
    """Rows of loops."""
    across = log_uniform(rng, 5, 28)
    u, v = X * across, Y * across * rng.uniform(0.6, 1.6)
    slanted = v + rng.uniform(0.4, 1.4) * np.abs((u % 1) - 0.5) * 2
    loop = np.sin(np.pi * (slanted % 1)) ** rng.uniform(0.4, 1.2) * np.abs(np.sin(2 * np.pi * u)) ** 0.5
    return unit(loop + rng.uniform(0, 0.15) * fractal(rng, 60, 2))


def herringbone(rng: Rng) -> Field:
    """Slanted lines whose direction alternates from column to column."""
    across, lean = log_uniform(rng, 2, 18), rng.uniform(0.5, 3)
    u = X * across
    t = Y * log_uniform(rng, 8, 50) + lean * np.where(np.floor(u) % 2 == 0, u % 1, 1 - u % 1)
    seam = np.abs(np.sin(np.pi * u)) ** rng.uniform(0.05, 0.5)
    return unit(profile(rng, t) * seam + rng.uniform(0, 0.1) * fractal(rng, 40, 3))


def linen(rng: Rng) -> Field:
    """Irregular threads in both directions."""
    cells, aspect = log_uniform(rng, 20, 70), log_uniform(rng, 20, 150)
    along = fractal(rng, cells, 2, 0.7, aspect)
    across = fractal(rng, cells * rng.uniform(0.6, 1.5), 2, 0.7, 1 / aspect)
    return spread(along + rng.uniform(0.3, 1) * across, 3)


def halftone(rng: Rng) -> Field:
    """A screen of dots whose size varies."""
    across = log_uniform(rng, 12, 70)
    screen = np.cos(2 * np.pi * X * across) + np.cos(2 * np.pi * Y * across)
    return soft(screen / 2 + 0.8 * fractal(rng, rng.uniform(2, 6), 3), 0.4).astype(np.float32)


def moire(rng: Rng) -> Field:
    """The interference of two sets of waves."""
    waves = []
    for _ in range(2):
        centre, along = rng.uniform(-0.5, 1.5, 2), rng.uniform(-1, 1, 2)
        straight = rng.random() < 0.5
        distance = along[0] * X + along[1] * Y if straight else np.hypot(X - centre[0], Y - centre[1])
        waves.append(np.sin(2 * np.pi * distance.astype(np.float32) * np.float32(log_uniform(rng, 5, 50))))
    return unit(waves[0] * waves[1] if rng.random() < 0.5 else waves[0] + waves[1])


def ornament(rng: Rng) -> Field:
    """A piece of noise, mirrored to a seamless tile and repeated."""
    # a piece of noise, mirrored to a tile without seams, all over
    side = round(CANVAS / log_uniform(rng, 2, 14) / 2)
    at = rng.integers(0, CANVAS - side, 2)
    piece = fractal(rng, log_uniform(rng, 1, 3) * CANVAS / side / 2, 3)[at[0] : at[0] + side, at[1] : at[1] + side]
    piece = soft(piece - piece.mean(), log_uniform(rng, 0.1, 2))
    tile = np.block([[piece, piece[:, ::-1]], [piece[::-1], piece[::-1, ::-1]]])
    repeats = math.ceil(CANVAS / (2 * side))
    return unit(np.tile(tile, (repeats, repeats))[:CANVAS, :CANVAS])
