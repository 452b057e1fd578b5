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


def _axis(size: int, cells: int) -> tuple[NDArray, NDArray]:
    """Interpolation along one axis as two (size, cells+1) matrices: weights, and weights times offset.

    Perlin noise is Σ over a cell's four corners of fade(row)·fade(column)·(g_row·Δrow + g_col·Δcolumn); each
    term is a product of a row and a column factor, so the sum over corners is two small matrix products.
    """
    length = math.ceil(size / cells)  # sizes that the cells do not divide: larger noise, cut
    index = np.arange(size)
    cell, t = index // length, (index % length) / length
    weights = np.zeros((size, cells + 1))
    weights[index, cell] = 1 - _fade(t)
    weights[index, cell + 1] = _fade(t)
    offsets = np.zeros_like(weights)
    offsets[index, cell] = t
    offsets[index, cell + 1] = t - 1
    return weights, weights * offsets


def perlin_noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> NDArray[np.float32]:
    """Noise of about [−1, 1] with a random unit gradient at each corner of a grid of `cells` cells.

    Args:
        rng: where the gradients come from.
        size: (H, W) in pixels.
        cells: (rows, columns), each ≥ 1.

    Returns:
        (H, W) float32.
    """
    angle = 2 * np.pi * rng.random((cells[0] + 1, cells[1] + 1))
    row_weight, row_offset = _axis(size[0], cells[0])
    col_weight, col_offset = _axis(size[1], cells[1])
    noise = row_offset @ np.cos(angle) @ col_weight.T + row_weight @ np.sin(angle) @ col_offset.T
    return (math.sqrt(2) * noise).astype(np.float32)


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
