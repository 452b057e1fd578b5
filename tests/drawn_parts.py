"""Drawn parts on a background, with their masks, and textures: what foreground masks are tested with."""

import cv2
import numpy as np
from PIL import Image

SIZE = 200


def grain(rng, shape, sigma=2.0, strength=30):
    """Texture of one lightness on the whole: (H, W, 1)."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), sigma)
    return strength * (noise / noise.std())[..., None]


def disc(rng, height=SIZE, width=SIZE, radius=0.33, jitter=0.03):
    yy, xx = np.mgrid[:height, :width]
    cy, cx = (side * (0.5 + rng.uniform(-jitter, jitter)) for side in (height, width))
    return np.hypot(yy - cy, xx - cx) < radius * min(height, width)


def part(kind, rng):
    """One image and where the object is in it."""
    yy, xx = np.mgrid[:SIZE, :SIZE] / SIZE
    mask, ground, paint = disc(rng), 60.0, np.array([150.0, 130, 100])
    if kind == "dark":
        ground, paint = 220.0, np.array([70.0, 70, 75])
    elif kind == "border":
        mask = (np.abs(yy - 0.5) < 0.2) & (xx < 0.7 + rng.uniform(-0.05, 0.05))
    elif kind == "through":
        mask = np.abs(xx - 0.5 + rng.uniform(-0.02, 0.02)) < 0.2
    elif kind == "thin":
        turn = rng.uniform(0, np.pi)
        along = (xx - 0.5) * np.cos(turn) + (yy - 0.5) * np.sin(turn)
        across = (xx - 0.5) * np.sin(turn) - (yy - 0.5) * np.cos(turn)
        mask = (np.abs(across) < 0.008) & (np.abs(along) < 0.4)
    elif kind == "several":
        places = [
            (y + rng.uniform(-0.04, 0.04), x + rng.uniform(-0.04, 0.04)) for y in (0.27, 0.72) for x in (0.27, 0.72)
        ]
        mask = np.any([np.hypot(yy - y, xx - x) < 0.13 for y, x in places], 0)
    elif kind == "sizes":
        mask = disc(rng, *rng.integers(90, 400, 2))
    image = rng.normal(ground, 5, (*mask.shape, 1)) + rng.normal(0, 1.5, (*mask.shape, 3))
    if kind == "shaded":
        image += 60 * xx[..., None]
    elif kind == "rough ground":
        image, paint = 120 + grain(rng, mask.shape) * np.ones(3), np.array([120.0, 120, 120])
    image[mask] = paint + rng.normal(0, 4, (mask.sum(), 1))
    if kind == "rough object":
        image[mask] = 60 + grain(rng, mask.shape)[mask]
    picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    return picture.convert("L").convert("RGB") if kind == "gray" else picture, mask


def parts(kind, count=6, seed=0):
    rng = np.random.default_rng(seed)
    images, masks = zip(*(part(kind, rng) for _ in range(count)), strict=True)
    return list(images), list(masks)


def texture(kind, rng):
    """One image without any ground."""
    image = 130 + rng.normal(0, 10, (SIZE, SIZE, 3))
    if kind == "coarse":
        image += grain(rng, (SIZE, SIZE), 8, 40)
    elif kind == "striped":
        image += 50 * (np.sin(np.arange(SIZE) / 5 + rng.uniform(0, 6)) > 0)[:, None]
    elif kind == "flat":
        image[:] = 128
    elif kind == "vignette":
        yy, xx = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
        image -= 35 * (yy**2 + xx**2)[..., None]
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))
