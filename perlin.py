"""Perlin noise, and masks of local anomalies made from it by a threshold (paper section 3.3)."""

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
    """Perlin noise with a random unit gradient at each corner of a grid of cells.

    The noise is the sum of fade(row)·fade(column)·(g_row·Δrow + g_col·Δcolumn) over the four corners of a cell. Each
    term is a row factor times a column factor, so rows are interpolated once per column of corners, not once per pixel.

    Args:
        rng: random generator of the gradients.
        size: (H, W) in pixels.
        cells: number of cells (vertically, horizontally), each ≥ 1.

    Returns:
        (H, W) float32, about in [−1, 1].
    """
    angle = (2 * np.pi * rng.random((cells[0] + 1, cells[1] + 1))).astype(np.float32)
    y, fy = _cell(size[0], cells[0])
    x, fx = _cell(size[1], cells[1])
    by_row = _interpolate_rows(np.cos(angle), (1 - fy) * y, fy * (y - 1))[: size[0], :, None]  # (H, columns+1, 1)
    by_column = _interpolate_rows(np.sin(angle), 1 - fy, fy)[: size[0], :, None]
    noise = by_row[:, :-1] * (1 - fx) + by_row[:, 1:] * fx
    noise += by_column[:, :-1] * ((1 - fx) * x) + by_column[:, 1:] * (fx * (x - 1))  # (H, columns, cell width)
    # OpenCV does not accept the cropped view, which is not contiguous
    return np.ascontiguousarray(noise.reshape(size[0], -1)[:, : size[1]]) * np.float32(math.sqrt(2))


def _cell(size: int, cells: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Offsets of the pixels within a cell along one axis, and their fade; the length of a cell is rounded up."""
    length = math.ceil(size / cells)
    t = np.arange(length, dtype=np.float32) / np.float32(length)
    return t, _fade(t)


def _interpolate_rows(corners: NDArray, upper: NDArray, lower: NDArray) -> NDArray[np.float32]:
    """Interpolate vertically between corner values (rows+1, columns+1) → (rows·height, columns+1).

    `upper` and `lower` (height,) are the weights of a cell's upper and lower corners.
    """
    interpolated = corners[:-1, None] * upper[:, None] + corners[1:, None] * lower[:, None]
    return interpolated.reshape(-1, corners.shape[1])


def rotate(image: NDArray, angle: float) -> NDArray:
    """Rotate an image about its centre with bilinear interpolation; the size stays, and the outside is 0.

    Args:
        image: (H, W) float32.
        angle: in degrees; positive is clockwise as the image is displayed.
    """
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, 1)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)


def threshold_mask(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask (H, W): noise with 2^i × 2^j cells, i and j from {0..5}, rotated by up to ±90° and thresholded."""
    cells = 2 ** rng.integers(0, MAX_SCALE_EXPONENT + 1, size=2)
    noise = perlin_noise(rng, size, (int(cells[0]), int(cells[1])))
    return rotate(noise, rng.uniform(-90, 90)) > THRESHOLD


def perlin_mask(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask (H, W) of two: their union, their intersection or the first alone, each with probability 1/3."""
    first, second = threshold_mask(rng, size), threshold_mask(rng, size)
    kind = rng.integers(3)
    if kind == 0:
        return first | second
    return first & second if kind == 1 else first
