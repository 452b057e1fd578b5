"""Pictures written and coloured, the same wherever they are shown. Needs OpenCV and NumPy alone."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from utils import WorkError, write_bytes

CONTOUR = (255, 0, 255)  # magenta, BGR: seldom a product's own


def heatmap(anomaly_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W) in [0, 1] → (H, W, 3) BGR; blue is 0, red is 1, in every picture alike."""
    return cv2.applyColorMap((anomaly_map.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_JET)


def save_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a BGR or gray picture beside, then rename.

    Raises:
        WorkError: it cannot be written.
    """
    write_bytes(path, encode_png(path, image))


def encode_png(path: Path, image: NDArray[np.uint8]) -> bytes:
    """A BGR or gray picture as the content of a PNG file, which `path` names in errors.

    Raises:
        WorkError: it cannot be encoded.
    """
    done, data = cv2.imencode(".png", image)
    if not done:
        raise WorkError(f"cannot encode {path}")
    return data.tobytes()


def outline(drawn: NDArray[np.uint8], mask: NDArray[np.bool_], thickness: int) -> None:
    """Draw the border of a mask's regions on a BGR picture of its size."""
    found = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(drawn, found, -1, CONTOUR, thickness, cv2.LINE_AA)
