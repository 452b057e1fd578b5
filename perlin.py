"""Perlin noise and the masks of local anomalies that are cut from it (paper section 3.3)."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.5
MAX_SCALE_EXPONENT = 5


def _fade(t: NDArray) -> NDArray:
    return t * t * t * (t * (t * 6 - 15) + 10)


def perlin_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> NDArray[np.float32]:
    """Noise of about [−1, 1] with a random unit gradient at each corner of a grid of `cells` cells.

    The noise is Σ over a cell's four corners of fade(row)·fade(column)·(g_row·Δrow + g_col·Δcolumn). Each term is
    a row factor times a column factor, so rows are interpolated once a column of corners, not once a pixel.

    Args:
        rng: where the gradients come from.
        size: (H, W) in pixels.
        cells: (rows, columns), each ≥ 1.

    Returns:
        (H, W) float32.
    """
    angle = (2 * np.pi * rng.random((cells[0] + 1, cells[1] + 1))).astype(np.float32)
    y, fy = _cell(size[0], cells[0])
    x, fx = _cell(size[1], cells[1])
    by_row = _interpolate_rows(np.cos(angle), (1 - fy) * y, fy * (y - 1))[: size[0], :, None]  # (H, columns+1, 1)
    by_column = _interpolate_rows(np.sin(angle), 1 - fy, fy)[: size[0], :, None]
    noise = by_row[:, :-1] * (1 - fx) + by_row[:, 1:] * fx
    noise += by_column[:, :-1] * ((1 - fx) * x) + by_column[:, 1:] * (fx * (x - 1))  # (H, columns, cell width)
    # a view cut to size would keep warpAffine from reading it
    return np.ascontiguousarray(noise.reshape(size[0], -1)[:, : size[1]]) * np.float32(math.sqrt(2))


def _cell(size: int, cells: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Offsets within a cell along one axis and their fade; sizes that the cells do not divide make larger cells."""
    length = math.ceil(size / cells)
    t = np.arange(length, dtype=np.float32) / np.float32(length)
    return t, _fade(t)


def _interpolate_rows(corners: NDArray, upper: NDArray, lower: NDArray) -> NDArray[np.float32]:
    """(rows+1, columns+1) corner values, weights of a cell's upper and lower corners → (rows·height, columns+1)."""
    between = corners[:-1, None] * upper[:, None] + corners[1:, None] * lower[:, None]
    return between.reshape(-1, corners.shape[1])


def rotate(image: NDArray, angle: float) -> NDArray:
    """Rotate about the centre: bilinear, same size, zeros outside.

    Args:
        image: (H, W) float32.
        angle: degrees; positive is clockwise as an image is shown.
    """
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, 1)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


def threshold_mask(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.bool_]:
    """One thresholded noise: grid of 2^i × 2^j cells with i, j from {0..5}, rotated by up to ±90°. (H, W)."""
    cells = 2 ** rng.integers(0, MAX_SCALE_EXPONENT + 1, size=2)
    noise = perlin_noise(rng, size, (int(cells[0]), int(cells[1])))
    return rotate(noise, rng.uniform(-90, 90)) > THRESHOLD


def perlin_mask(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Two masks combined: union, intersection or the first alone, each in a third of the cases. (H, W)."""
    first, second = threshold_mask(rng, size), threshold_mask(rng, size)
    kind = rng.integers(3)
    if kind == 0:
        return first | second
    return first & second if kind == 1 else first
