"""Augmentation of 8-bit images, with every random draw from a given generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torchvision.transforms.functional as F
from PIL.Image import Image
from torchvision.transforms import InterpolationMode

Operation = Callable[[Image, np.random.Generator], Image]
OPERATIONS_PER_TEXTURE = 3
ROTATION = 45.0  # degrees


def _saturation_and_hue(image: Image, rng: np.random.Generator) -> Image:
    saturation, hue = rng.uniform(0.8, 1.2), rng.uniform(-0.2, 0.2)
    if rng.random() < 0.5:
        return F.adjust_hue(F.adjust_saturation(image, saturation), hue)
    return F.adjust_saturation(F.adjust_hue(image, hue), saturation)


# the nine operations of the published code, three of which are applied to a texture
TEXTURE_OPERATIONS: tuple[Operation, ...] = (
    lambda image, rng: F.adjust_contrast(image, rng.uniform(0.8, 1.2)),
    lambda image, rng: F.adjust_brightness(image, rng.uniform(0.8, 1.2)),
    _saturation_and_hue,
    lambda image, rng: F.hflip(image),
    lambda image, rng: F.vflip(image),
    lambda image, rng: F.rgb_to_grayscale(image, 3),
    lambda image, rng: F.autocontrast(image),
    lambda image, rng: F.equalize(image),
    lambda image, rng: F.rotate(image, rng.uniform(-ROTATION, ROTATION), InterpolationMode.NEAREST),
)


def augment_texture(image: Image, rng: np.random.Generator) -> Image:
    """Apply three different operations of the nine, in the order drawn."""
    for index in rng.choice(len(TEXTURE_OPERATIONS), OPERATIONS_PER_TEXTURE, replace=False):
        image = TEXTURE_OPERATIONS[index](image, rng)
    return image


def jitter(image: Image, rng: np.random.Generator, brightness: float, contrast: float, saturation: float) -> Image:
    """Change brightness, contrast and saturation in random order, by factors uniform in [max(0, 1 − x), 1 + x].

    A width x of 0 leaves the property unchanged.
    """
    kinds = (
        (F.adjust_brightness, brightness),
        (F.adjust_contrast, contrast),
        (F.adjust_saturation, saturation),
    )
    for index in rng.permutation(len(kinds)):
        adjust, width = kinds[index]
        if width > 0:
            image = adjust(image, rng.uniform(max(0.0, 1 - width), 1 + width))
    return image


def affine(image: Image, rng: np.random.Generator, degrees: float, translate: float, scale: float) -> Image:
    """Rotation in ±degrees, shift in ±translate of each side, scale in 1 ± scale; bilinear, black outside."""
    if not (degrees or translate or scale):
        return image
    width, height = image.size
    angle = rng.uniform(-degrees, degrees)
    shift = [round(rng.uniform(-translate, translate) * side) for side in (width, height)]
    factor = rng.uniform(1 - scale, 1 + scale)
    return F.affine(image, angle, shift, factor, [0.0, 0.0], InterpolationMode.BILINEAR)
