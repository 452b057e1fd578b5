"""From a pattern to an image of a surface: camera position, colours, light and exposure, each at random."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from generation.patterns.fields import CANVAS, SIDE, Field, Rng, log_uniform, soft


def photograph(rng: Rng, canvas: NDArray) -> NDArray:
    """The canvas seen by a camera, (CANVAS, CANVAS[, 3]) → (SIDE, SIDE[, 3]): rotated, in perspective, warped."""
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
        field = _warp(rng, field, log_uniform(rng, 0.7, 12))
    return field


def _smooth(rng: Rng, cells: int) -> Field:
    """Smooth noise (SIDE, SIDE) with a standard deviation of about 1."""
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
    """(256, 3) RGB in [0, 1]: a few colours of related hue, and interpolated ones between them."""
    count = int(rng.integers(2, 7))
    lightness = rng.uniform(12, 92) + log_uniform(rng, 10, 90) * (rng.random(count) - 0.5)
    if rng.random() < 0.6:  # the higher the lighter, as on most surfaces; otherwise colours as of a print
        lightness = np.sort(lightness)[:: rng.choice([1, 1, -1])]
    # most surfaces are brown, red, yellow or gray
    hue = rng.normal(70, 35) if rng.random() < 0.45 else rng.uniform(0, 360)
    hues = np.radians(hue + rng.choice([6, 25, 110]) * rng.normal(0, 1, count))
    chroma = 0.0 if rng.random() < 0.15 else rng.gamma(1.5, 16)
    chromas = np.minimum(chroma * rng.uniform(0.3, 1.5, count), 95)
    knots = np.stack([np.clip(lightness, 2, 98), chromas * np.cos(hues), chromas * np.sin(hues)], 1)
    places = np.concatenate([[0], np.sort(rng.random(count - 2)), [1]])
    lab = np.stack([np.interp(np.linspace(0, 1, 256), places, knots[:, i]) for i in range(3)], 1)
    return _to_rgb(lab[None])[0]


def paint(rng: Rng, height: Field) -> Field:
    """(SIDE, SIDE) in [0, 1] → (SIDE, SIDE, 3) RGB: coloured by one palette, or by two that alternate."""
    index = (255 * np.clip(height, 0, 1)).astype(np.uint8)
    colours = _palette(rng)[index]
    if rng.random() < 0.3:
        share = soft(_smooth(rng, int(rng.integers(3, 10))), log_uniform(rng, 0.3, 4))[..., None]
        colours += share * (_palette(rng)[index] - colours)
    return colours


def tint(rng: Rng, image: NDArray[np.uint8]) -> Field:
    """A coloured image (SIDE, SIDE, 3) with its hue rotated and its saturation changed."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    turn, factor = rng.choice([0.0, rng.uniform(0, 2 * np.pi)]), rng.uniform(0.2, 1.6)
    a, b = factor * lab[..., 1], factor * lab[..., 2]
    lab[..., 1], lab[..., 2] = a * math.cos(turn) - b * math.sin(turn), a * math.sin(turn) + b * math.cos(turn)
    return _to_rgb(lab)


def light(rng: Rng, colours: Field, height: Field) -> Field:
    """Light from one side: slopes that face it are brighter, and shine where the surface is glossy."""
    smooth = cv2.GaussianBlur(height, (0, 0), log_uniform(rng, 0.6, 3))
    angle = rng.uniform(0, 2 * np.pi)
    along_x, along_y = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    slope = along_x * math.cos(angle) + along_y * math.sin(angle)
    slope = np.clip(slope / max(3 * float(slope.std()), 1e-6), -1, 1)
    gloss = rng.choice([0.0, rng.uniform(0, 0.8)]) * np.clip(slope - 0.6, 0, None)
    return colours * (1 + rng.uniform(0.1, 0.7) * slope)[..., None] + gloss[..., None]


def expose(rng: Rng, colours: Field) -> Field:
    """Uneven illumination, blur, and the noise of a camera."""
    if rng.random() < 0.5:
        colours = colours * (1 + rng.uniform(0.03, 0.22) * _smooth(rng, int(rng.integers(2, 4))))[..., None]
    if rng.random() < 0.2:
        colours = cv2.GaussianBlur(colours, (0, 0), log_uniform(rng, 0.6, 3))
    if rng.random() < 0.7:
        grain = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE), np.float32), (0, 0), rng.uniform(0.3, 1.2))
        colours = colours + np.float32(log_uniform(rng, 0.004, 0.06) / grain.std()) * grain[..., None]
    return colours
