"""Procedural textures, made from nothing but a random generator and the photographs in scikit-image's wheel.

A texture starts as a pattern: a field of heights with straight axes, on a canvas large enough to be rotated. It is then
photographed (rotation, perspective, warping), coloured with a palette, lit from one side and exposed, each at random,
so that one pattern gives images that differ in hue, brightness, scale and sharpness.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from generation.finishing import expose, light, paint, photograph, tint
from generation.patterns import PATTERNS
from generation.patterns.fields import Rng
from generation.photos import PHOTOS, crop_photo

KINDS: Sequence[str] = [name for name, _ in PATTERNS] + [name for name, _ in PHOTOS]


def draw(rng: Rng, kind: int, photos: Path) -> NDArray[np.uint8]:
    """Draw a texture.

    Args:
        rng: of all random draws; the same state gives the same texture, bit for bit on one machine.
        kind: index into KINDS.
        photos: `generation.photos.photo_folder()`.

    Returns:
        (SIDE, SIDE, 3) RGB.
    """
    if kind < len(PATTERNS):
        canvas = PATTERNS[kind][1](rng)
    else:
        canvas = crop_photo(rng, PHOTOS[kind - len(PATTERNS)][1], photos)
    field = photograph(rng, canvas)
    if field.ndim == 3:
        colours = tint(rng, field)
    else:
        height = field.astype(np.float32) / 255 if field.dtype == np.uint8 else field
        colours = paint(rng, height)
        if rng.random() < 0.55:
            colours = light(rng, colours, height)
    return (np.clip(expose(rng, colours), 0, 1) * 255 + 0.5).astype(np.uint8)
