"""Foreground masks: where in an image the object lies, so that synthetic anomalies are placed on it.

What the background looks like is learnt from the good images of a class, without labels: colours and textures that are
common along the border of the images and rare in their middle belong to the background, the rest to the object. Both
are then learnt once more from the regions found in this way, and the background of an image is what looks like it *and*
is connected to the image's border. A doubtful pixel is assigned to the object: an anomaly on the background does less
harm than a part of the object that never gets one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from utils import InputError, refuse_former_command

EXAMINED = 40  # images of a class, at least, if it has as many

# finding the object; lengths in pixels of the reduced copy, whose longer side is SIDE
SIDE = 256
RING = 0.04  # share of the shorter side: the border, where the background is visible if it is anywhere
BINS = (4, 64, 64, 64)  # texture, lightness, a, b
TEXTURE_STEPS = np.array([2.5, 6, 14], np.float32)  # standard deviations of the lightness, of 255
TEXTURE_WINDOW = 5
RARE = 1e-5  # share of the pixels; a bin with a smaller share carries little evidence
EVIDENCE_LIMIT = 3.0
SURE_BACKGROUND = 1.0  # log of the ratio: e times as common on the background as on the object
SMOOTHING = 1.5
GAP_CLOSED = 3  # the background enters an object through no gap narrower than twice this
LEAST_OBJECT, LEAST_BACKGROUND = 0.001, 0.005  # shares of the image; a smaller region belongs to what surrounds it
MARGIN = 2

# an object must differ from the background by CLEAR_GAP, or by GAP and by many times the spread within either
CLEAR_GAP, GAP, GAP_IN_SPREADS = 2.5, 0.8, 6.0
LEAST_KEPT, LEAST_LEFT_OUT = 0.002, 0.15  # shares of an image, on average
NEAR, FAR, MOST_ALIKE = 3, 8, 0.25  # strips along the outline: their distances, and how alike they may be

# in which share of the images a place has to be object, to be taken for object; and what share of the usual area is
# too little
ALWAYS, SOMETIMES, LEAST_OF_USUAL = 0.8, 0.2, 0.5


@dataclass(frozen=True, eq=False)
class Foreground:
    """Finds the object in the images of one class.

    Attributes:
        fills_image: whether the class fills its images, as a texture does: then masks are True everywhere.
        reason: the verdict and why, one line.
    """

    fills_image: bool
    reason: str
    _evidence: NDArray[np.float32] = field(repr=False)  # (bins,); positive values speak for background
    _frequency: NDArray[np.float32] = field(repr=False)  # (SIDE, SIDE), share of the images that have the object there
    _usual: float = 1.0  # usual area of the object, as a share of the image

    @classmethod
    def fit(cls, images: Iterable[Image.Image]) -> Foreground:
        """Learn a class from good images.

        Args:
            images: RGB, of any sizes. All are iterated over, but of many only 40 to 79, evenly chosen, are examined.

        Raises:
            InputError: there are no images.
        """
        codes = _some_codes(images)
        if not codes:
            raise InputError("foreground masks are learnt from good images, and there is none")
        evidence, threshold, doubt = _border_against_middle(codes)
        objects = [_find_object(evidence[code], threshold) for code in codes]
        if doubt is None:
            evidence = _log_ratio(_shares(codes, [~mask for mask in objects]), _shares(codes, objects))
            objects = [_find_object(evidence[code], SURE_BACKGROUND) for code in codes]
            doubt = _doubt(codes, objects)
        frequency = np.mean([resize_mask(mask, (SIDE, SIDE)) for mask in objects], 0, dtype=np.float32)
        usual = float(np.median([mask.mean() for mask in objects]))
        verdict = f"an object on {usual:.0%} of an image" if doubt is None else f"fills the image: {doubt}"
        return cls(doubt is not None, f"{verdict} ({len(codes)} images looked at)", evidence, frequency, usual)

    def mask(self, image: Image.Image) -> NDArray[np.bool_]:
        """Where the object is: (H, W) of the same size as the RGB image, with holes filled and a small margin.

        A place that has the object in most images counts as object in each. If far less than the usual area is found,
        the mask is extended to all places that have the object in some images; if it still is too small, to the whole
        image.
        """
        width, height = image.size
        whole = np.ones((height, width), np.bool_)
        if self.fills_image:
            return whole
        code = _codes(_reduce(image))
        frequency = resize_mask(self._frequency, code.shape[::-1])
        mask = _find_object(self._evidence[code], SURE_BACKGROUND) | (frequency >= ALWAYS)
        if mask.mean() <= LEAST_OF_USUAL * self._usual:
            mask |= frequency >= SOMETIMES
        if mask.mean() <= LEAST_OF_USUAL * self._usual:
            return whole
        return resize_mask(_widen(mask), image.size) > 0.25


def _some_codes(images: Iterable[Image.Image]) -> list[NDArray[np.int32]]:
    """The codes of every 2^n-th image: at least EXAMINED of them, if there are as many, and less than twice that."""
    kept: list[NDArray[np.int32]] = []
    step = 1
    for number, image in enumerate(images):
        if number % step == 0:
            kept.append(_codes(_reduce(image)))
        if len(kept) == 2 * EXAMINED:
            kept, step = kept[::2], 2 * step
    return kept


def _reduce(image: Image.Image) -> NDArray[np.uint8]:
    """Reduce an RGB image to (h, w, 3) uint8 with a longer side of SIDE."""
    longer = max(image.size)
    size = tuple(max(8, round(side * SIDE / longer)) for side in image.size)
    factor = longer // (SIDE * 3 // 2)
    if factor > 1:  # several times faster than INTER_AREA on the full size
        image = image.reduce(factor)
    return cv2.resize(np.asarray(image.convert("RGB")), size, interpolation=cv2.INTER_AREA)


def _codes(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The bin of texture and colour that each pixel falls into: (h, w, 3) → (h, w)."""
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    light = lab[..., 0].astype(np.float32)
    window = (TEXTURE_WINDOW, TEXTURE_WINDOW)
    variance = cv2.blur(light * light, window) - cv2.blur(light, window) ** 2
    # the minimum over all windows that contain the pixel: next to an edge, the window on its own side
    deviation = cv2.erode(np.sqrt(np.maximum(variance, 0)), np.ones(window, np.uint8))
    texture = np.searchsorted(TEXTURE_STEPS, deviation).astype(np.int32)
    lightness, a, b = cv2.split(cv2.GaussianBlur(lab, (0, 0), 1.0).astype(np.int32) // 4)
    return ((texture * BINS[1] + lightness) * BINS[2] + a) * BINS[3] + b


def _shares(codes: Sequence[NDArray[np.int32]], masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
    """The share of the masked pixels in each bin, smoothed: (bins,). Zeros if no pixel is masked."""
    chosen = np.concatenate([code[mask] for code, mask in zip(codes, masks, strict=True)])
    counts = np.bincount(chosen, minlength=int(np.prod(BINS))).reshape(BINS).astype(np.float32)
    counts = gaussian_filter(counts, (0.5, 1, 1, 1), mode="nearest", truncate=2)
    return counts.ravel() / max(len(chosen), 1)


def _log_ratio(background: NDArray[np.float32], objects: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithm of how much more common each bin is on the background; 0 for what is on neither: (bins,)."""
    return np.clip(np.log((background + RARE) / (objects + RARE)), -EVIDENCE_LIMIT, EVIDENCE_LIMIT)


def _border_against_middle(codes: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.float32], float, str | None]:
    """The first estimate: evidence (bins,), its threshold, and a doubt if border and middle look alike, else None."""
    rings = [_ring(code.shape) for code in codes]
    border, middle = _shares(codes, rings), _shares(codes, [~ring for ring in rings])
    evidence = _log_ratio(border, middle)
    threshold, gap, spread = _split(evidence, border + middle)
    clear = gap >= CLEAR_GAP or (gap >= GAP and gap >= GAP_IN_SPREADS * spread)
    return evidence, threshold, None if clear else "its border looks like its middle"


def _ring(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    width = max(1, round(RING * min(shape)))
    ring = np.ones(shape, np.bool_)
    ring[width:-width, width:-width] = False
    return ring


def _split(values: NDArray[np.float32], weights: NDArray[np.float32]) -> tuple[float, float, float]:
    """Otsu's threshold of weighted values, the distance between the means on both sides, and the spread around them."""
    counts, edges = np.histogram(values, 120, (-EVIDENCE_LIMIT, EVIDENCE_LIMIT), weights=weights)
    shares, centres = counts / counts.sum(), (edges[1:] + edges[:-1]) / 2
    below, moment = np.cumsum(shares)[:-1], np.cumsum(shares * centres)
    mean, moment = moment[-1], moment[:-1]
    inside = (below > 1e-6) & (below < 1 - 1e-6)
    if not inside.any():  # all values are equal
        return 0.0, 0.0, 0.0
    between = np.where(inside, (mean * below - moment) ** 2 / np.where(inside, below * (1 - below), 1), 0)
    best = int(np.flatnonzero(between >= between.max() - 1e-9).mean())  # the middle of an empty range
    gap = (mean - moment[best]) / (1 - below[best]) - moment[best] / below[best]
    within = (shares * centres**2).sum() - mean**2 - between[best]
    return float(edges[best + 1]), float(gap), float(np.sqrt(max(within, 0)))


def _find_object(evidence: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Everything except the background that is connected to the border: (h, w) → (h, w)."""
    likely = (cv2.GaussianBlur(evidence, (0, 0), SMOOTHING) < threshold).astype(np.uint8)
    pad = 2 * GAP_CLOSED
    likely = cv2.copyMakeBorder(likely, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
    likely = cv2.morphologyEx(likely, cv2.MORPH_CLOSE, _disc(GAP_CLOSED))[pad:-pad, pad:-pad]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(likely, connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= LEAST_OBJECT * likely.size
    large[0] = False
    background = (~large[labels]).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(background, connectivity=4)
    outside = np.zeros(count, np.bool_)
    for side in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        outside[side] = True
    outside &= stats[:, cv2.CC_STAT_AREA] >= LEAST_BACKGROUND * likely.size
    outside[0] = False
    return ~outside[labels]


def _doubt(codes: Sequence[NDArray[np.int32]], objects: Sequence[NDArray[np.bool_]]) -> str | None:
    """Why the regions found are not an object on a background; None if they may be."""
    if np.mean([mask.mean() for mask in objects]) < LEAST_KEPT:
        return "nothing stands out from the ground"
    left_out = 1 - np.mean([_widen(mask).mean() for mask in objects])
    if left_out < LEAST_LEFT_OUT:
        return f"only {left_out:.1%} of an image would be left out"
    inner, outer = [], []
    for mask in objects:
        for bands, part in ((inner, mask), (outer, ~mask)):
            depth = cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 3)
            bands.append((depth > NEAR) & (depth <= FAR))
    # vignetting makes the border differ from the middle too, but without an edge anywhere
    alike = float(np.minimum(_shares(codes, inner), _shares(codes, outer)).sum())
    return f"no clear outline (both of its sides are {alike:.0%} alike)" if alike > MOST_ALIKE else None


def _disc(radius: int) -> NDArray[np.uint8]:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _widen(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return cv2.dilate(mask.astype(np.uint8), _disc(MARGIN)) > 0


def resize_mask(values: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.float32]:
    """Resize (h, w) to `size` (width, height): float32, (height, width)."""
    shrinks = size[0] < values.shape[1] and size[1] < values.shape[0]
    # INTER_LINEAR would miss thin parts when it shrinks
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(values.astype(np.float32), size, interpolation=interpolation)


if (
    __name__ == "__main__"
):  # it was a command once; a script that still calls it must not go on
    sys.exit(refuse_former_command("foreground"))
