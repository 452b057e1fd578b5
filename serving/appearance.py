"""How a picture looks as a whole, in three figures that move when the light, the lens or the camera change."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

SIDE = 256  # pixels of the longer side at which it is measured, so that larger pictures are not sharper ones


class Appearance(NamedTuple):
    """Figures of a picture, each from 0 to 1.

    brightness: mean of the gray values.
    contrast: their standard deviation.
    sharpness: standard deviation of their Laplacian.
    """

    brightness: float
    contrast: float
    sharpness: float


def measure(image: Image.Image) -> Appearance:
    """The figures of an RGB image."""
    gray = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY)
    scale = SIDE / max(gray.shape)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in gray.shape[::-1])
        gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    gray = gray.astype(np.float32) / 255
    edges = cv2.Laplacian(gray, cv2.CV_32F)
    return Appearance(float(gray.mean()), float(gray.std()), min(1.0, float(edges.std())))
