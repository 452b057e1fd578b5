"""Drawing: heatmaps, outlines, ground truth and the pictures of test images. Needs only OpenCV and NumPy."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from utils import IMAGENET_MEAN, IMAGENET_STD, WorkError, write_bytes

CONTOUR = (255, 0, 255)  # magenta in BGR, a colour that products rarely have
UNKNOWN_GRAY = 128  # where the ground truth is unknown
BAR_WIDTH = 36  # of the heatmap's colour scale, in pixels
LONGEST_NAME = 200  # bytes of a file name without its suffix; file systems allow 255 with it, some fewer


# ------------------------------------------------------------------------------------------ colours


def heatmap(anomaly_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colour a map (H, W) in [0, 1], (H, W, 3) BGR: 0 is blue and 1 is red, the same in every picture."""
    return cv2.applyColorMap((anomaly_map.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_JET)


def scale_bar(height: int) -> NDArray[np.uint8]:
    """The colour scale of the heatmap, (height, BAR_WIDTH, 3) BGR: 1 at the top, 0 at the bottom."""
    bar = np.full((height, BAR_WIDTH, 3), 255, np.uint8)
    bar[:, 3:11] = heatmap(np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(8, axis=1))
    for value, y in ((1.0, 10), (0.5, height // 2 + 4), (0.0, height - 3)):
        cv2.putText(bar, f"{value:g}", (14, y), cv2.FONT_HERSHEY_SIMPLEX, 0.32, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def outline(drawn: NDArray[np.uint8], mask: NDArray[np.bool_], thickness: int) -> None:
    """Draw the outline of a mask's regions on a BGR picture of the same size, in place."""
    contours = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(drawn, contours, -1, CONTOUR, thickness, cv2.LINE_AA)


def to_bgr(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Undo the ImageNet normalisation: (3, H, W) float32 → (H, W, 3) BGR uint8."""
    rgb = image.transpose(1, 2, 0) * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    return np.ascontiguousarray((rgb.clip(0, 1) * 255).round().astype(np.uint8)[..., ::-1])


def show_truth(mask: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Ground truth (H, W) as gray values: white where anomalous (> 0), gray where unknown (< 0), otherwise black."""
    return np.where(mask < 0, UNKNOWN_GRAY, np.where(mask > 0, 255, 0)).astype(np.uint8)


# ------------------------------------------------------------------------- pictures of test images


def picture(image: NDArray[np.float32], mask: NDArray[np.int8], anomaly_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Image, ground truth, heatmap and colour scale side by side, (H, 3 W + BAR_WIDTH, 3) BGR.

    Args:
        image: normalised, (3, H, W).
        mask: ground truth, (H, W): > 0 anomalous, < 0 unknown.
        anomaly_map: (H, W) in [0, 1].
    """
    truth = cv2.cvtColor(show_truth(mask), cv2.COLOR_GRAY2BGR)
    return np.hstack([to_bgr(image), truth, heatmap(anomaly_map), scale_bar(len(truth))])


def save_picture(
    path: Path, image: NDArray[np.float32], mask: NDArray[np.int8], anomaly_map: NDArray[np.float32]
) -> None:
    """Write `picture` to a PNG file.

    Raises:
        WorkError: it cannot be written.
    """
    save_image(path, picture(image, mask, anomaly_map))


def picture_name(image_path: str, taken: set[str]) -> str:
    """The file name for the picture of a test image: `…/test/broken/000.png` → `broken_000.png`.

    Args:
        image_path: of the test image.
        taken: names in use; a number is appended to avoid them, and the new name is added.
    """
    path = Path(image_path or "image")
    stem = f"{path.parent.name}_{path.stem}".lstrip("_")
    if len(os.fsencode(stem)) > LONGEST_NAME:
        stem = f"{stem[:40]}-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:16]}"
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}_{number}.png", number + 1
    taken.add(name)
    return name


# -------------------------------------------------------------------------------------------- files


def save_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a BGR or gray picture to a PNG file, atomically.

    Raises:
        WorkError: it cannot be written.
    """
    write_bytes(path, encode_png(path, image))


def encode_png(path: Path, image: NDArray[np.uint8]) -> bytes:
    """Encode a BGR or gray picture as PNG; `path` names it in the error message.

    Raises:
        WorkError: it cannot be encoded.
    """
    success, data = cv2.imencode(".png", image)
    if not success:
        raise WorkError(f"cannot encode {path}")
    return data.tobytes()
