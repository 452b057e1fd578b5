"""Drawing a contact sheet: small images with the outlines of their masks."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from datasets.foreground import resize_mask
from utils import printable

COLUMNS, ROWS = 6, 4
TILE, LABEL = 224, 18  # side of an image and height of a line of text, in pixels


def draw_tile(
    image: Image.Image, mask: NDArray[np.bool_], label: str, truth: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """One image of a sheet, dimmed outside its mask, whose outline is red; that of the ground truth is green.

    Args:
        image: of any size.
        mask: (H, W), the foreground.
        label: written above.
        truth: (H, W), the defect.

    Returns:
        (TILE + LABEL, TILE, 3) RGB.
    """
    scale = TILE / max(image.size)
    width, height = size = tuple(max(1, round(side * scale)) for side in image.size)
    small = np.asarray(image.resize(size)).copy()
    small[resize_mask(mask, size) <= 0.5] //= 3
    for region, colour in ((mask, (255, 0, 0)), (truth, (0, 255, 0))):
        if region is not None:
            shown = (resize_mask(region, size) > 0.5).astype(np.uint8)
            outlines, _ = cv2.findContours(shown, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(small, outlines, -1, colour, 1)
    tile = np.full((TILE, TILE, 3), 255, np.uint8)
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile[top : top + height, left : left + width] = small
    return np.vstack([_text(f"{label}  {mask.mean():.0%}", TILE), tile])


def draw_sheet(tiles: Sequence[NDArray[np.uint8]], title: str) -> NDArray[np.uint8]:
    """Arrange tiles in rows under a title: (H, W, 3) RGB."""
    columns = min(COLUMNS, len(tiles))
    blank = np.full_like(tiles[0], 255)
    tiles = [*tiles, *[blank] * (-len(tiles) % columns)]
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    legend = "red: the mask's outline, dark outside; % of the image kept; green: the defect, where it is known"
    return np.vstack([_text(line, rows[0].shape[1]) for line in (title, legend)] + rows)


def _text(text: str, width: int) -> NDArray[np.uint8]:
    """A line of text, black on white: (LABEL, width, 3)."""
    strip = Image.new("RGB", (width, LABEL), "white")
    ImageDraw.Draw(strip).text((4, 1), printable(text), "black", ImageFont.load_default(LABEL - 6))
    return np.asarray(strip)
