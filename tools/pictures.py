"""The images that the embedded backbone is distilled on: crops of photographs and of synthetic pictures, seeded."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

import perlin
from datasets.listing import list_images
from datasets.textures import FileTextures
from generation import procedural
from generation.photos import photo_folder
from utils import InputError

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
Rng = np.random.Generator
SLOTS = 256  # synthetic pictures in use at a time; each step replaces one
SIDE = 384  # of a synthetic picture
LONGEST = 640  # photographs are scaled down to this side
# public domain, CC0 or without known restrictions according to scikit-image, which has no note on page and moon
PHOTOS = (
    "astronaut.png", "rocket.jpg", "brick.png", "grass.png", "gravel.png", "chelsea.png", "camera.png", "coffee.png",
    "retina.jpg", "hubble_deep_field.jpg", "text.png", "coins.png", "page.png", "clock_motion.png", "moon.png",
)  # fmt: skip


# ------------------------------------------------------------------------------ synthetic pictures


def _colour(rng: Rng) -> tuple[int, int, int]:
    return tuple(int(v) for v in rng.integers(0, 256, 3))


def _colourise(rng: Rng, field: NDArray) -> Picture:
    """Colour a field in [0, 1] with a gradient of two to five drawn colours."""
    stops = rng.integers(0, 256, (int(rng.integers(2, 6)), 3))
    positions = np.linspace(0, 1, len(stops))
    channels = [np.interp(field, positions, stops[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def plasma(rng: Rng) -> Picture:
    """Noise with a power-law spectrum 1/f^β, from nearly white (β 0.5) to smooth clouds (β 3)."""
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    spectrum = np.maximum(np.hypot(fy, fx * rng.uniform(0.4, 2.5)), 1 / SIDE) ** -(rng.uniform(0.5, 3) / 2 + 0.5)
    planes = []
    for _ in range(int(rng.choice([1, 3]))):
        phase = rng.standard_normal((2, *spectrum.shape))
        plane = np.fft.irfft2((phase[0] + 1j * phase[1]) * spectrum, s=(SIDE, SIDE))
        planes.append(np.clip(0.5 + plane / (5 * plane.std()), 0, 1))
    if len(planes) == 1:
        return _colourise(rng, planes[0])
    return (np.stack(planes, axis=-1) * 255).astype(np.uint8)


def fractal(rng: Rng) -> Picture:
    """The attractor of a drawn iterated function system: how often each pixel is visited."""
    count, points = int(rng.integers(2, 7)), 60_000
    maps = rng.uniform(-1, 1, (count, 2, 3))
    for matrix in maps:  # make it a contraction, or the points diverge
        matrix[:, :2] *= rng.uniform(0.4, 0.9) / max(np.linalg.norm(matrix[:, :2], 2), 1e-3)
    position = np.zeros((points // 50, 2))
    visited = []
    for _ in range(70):  # many points at once; the first twenty steps only bring them to the attractor
        chosen = maps[rng.integers(count, size=len(position))]
        position = np.einsum("nij,nj->ni", chosen[:, :, :2], position) + chosen[:, :, 2]
        visited.append(position)
    positions = np.concatenate(visited[20:])
    low, high = np.percentile(positions, [0.5, 99.5], axis=0)
    hits, _, _ = np.histogram2d(
        *positions.T, bins=SIDE, range=list(zip(low, np.maximum(high, low + 1e-6), strict=True))
    )
    hits = cv2.GaussianBlur(np.log1p(hits).astype(np.float32), (0, 0), rng.uniform(0.4, 1.5))
    return _colourise(rng, hits / max(hits.max(), 1e-6))


def ground(rng: Rng) -> Picture:
    """A linear or radial gradient, sometimes with grain or steps."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    angle = rng.uniform(0, 2 * np.pi)
    linear = math.cos(angle) * x + math.sin(angle) * y
    field = linear if rng.random() < 0.6 else np.hypot(x - rng.uniform(0, 1), y - rng.uniform(0, 1))
    field = (field - field.min()) / (field.max() - field.min())
    if rng.random() < 0.3:
        steps = rng.integers(3, 20)
        field = np.floor(field * steps) / steps
    picture = _colourise(rng, field).astype(np.float32)
    if rng.random() < 0.6:
        picture += rng.normal(0, rng.uniform(1, 12), (SIDE, SIDE, 1))
    return np.clip(picture, 0, 255).astype(np.uint8)


def _shape(rng: Rng, canvas: Picture, colour: tuple[int, int, int]) -> None:
    """Draw one filled or outlined ellipse, polygon, box, line or word into the canvas."""
    centre = [int(v) for v in rng.integers(0, SIDE, 2)]
    size = int(SIDE * math.exp(rng.uniform(math.log(0.01), math.log(0.45))))
    thickness = -1 if rng.random() < 0.6 else int(rng.integers(1, 8))
    kind = int(rng.integers(5))
    if kind == 0:
        axes = (size, max(2, int(size * rng.uniform(0.2, 1))))
        cv2.ellipse(canvas, centre, axes, rng.uniform(0, 180), 0, rng.choice([360, 360, 200]), colour, thickness, 16)
    elif kind == 1:
        turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        radii = size * rng.uniform(0.4, 1, len(turns))
        corners = np.stack([np.cos(turns), np.sin(turns)], axis=1) * radii[:, None] + centre
        corners = corners.astype(np.int32)[None]
        cv2.fillPoly(canvas, corners, colour, 16) if thickness < 0 else cv2.polylines(
            canvas, corners, True, colour, thickness, 16
        )
    elif kind == 2:
        box = cv2.boxPoints((centre, (size, max(2, size * rng.uniform(0.1, 1))), rng.choice([0, rng.uniform(0, 90)])))
        cv2.fillPoly(canvas, box.astype(np.int32)[None], colour, 16)
    elif kind == 3:
        bend = np.cumsum(rng.normal(0, size / 4, (int(rng.integers(2, 8)), 2)), axis=0) + centre
        cv2.polylines(canvas, bend.astype(np.int32)[None], False, colour, abs(thickness), 16)
    else:
        word = "".join(rng.choice(list(string.ascii_letters + string.digits + ".-/+ "), int(rng.integers(1, 12))))
        scale = max(0.3, size / 40)
        cv2.putText(canvas, word, centre, int(rng.integers(0, 8)), scale, colour, int(rng.integers(1, 4)), 16)


def scene(rng: Rng) -> Picture:
    """A few or many shapes on a background, similar to a rendered part or a print."""
    canvas = rng.choice([ground, plasma])(rng)
    colours = [_colour(rng) for _ in range(int(rng.integers(1, 6)))]
    for _ in range(int(math.exp(rng.uniform(math.log(2), math.log(80))))):
        before = canvas.copy() if rng.random() < 0.3 else None
        _shape(rng, canvas, colours[rng.integers(len(colours))])
        if before is not None:  # half transparent
            canvas = cv2.addWeighted(before, 0.5, canvas, 0.5, 0)
    return canvas


def texture(rng: Rng) -> Picture:
    """A texture of one of the built-in kinds."""
    return procedural.draw(rng, int(rng.integers(len(procedural.KINDS))), photo_folder())


KINDS: tuple[Callable[[Rng], Picture], ...] = (texture, texture, scene, scene, fractal, plasma)


# ------------------------------------------------------------------------------------------ crops


def find_photographs(folder: Path, left_out: Sequence[str]) -> FileTextures:
    """The images of a folder, at any depth.

    Args:
        folder: to search.
        left_out: names of subfolders to skip.

    Raises:
        InputError: there is no image, or no subfolder of a name in `left_out`.
    """
    inside = {path: path.relative_to(folder).parts[:-1] for path in list_images(folder, recursive=True)}
    if not inside:
        raise InputError(f"--images {folder}: the folder holds no image, at any depth")
    unknown = set(left_out) - {part for parts in inside.values() for part in parts}
    if unknown:
        raise InputError(f"--held_out {', '.join(sorted(unknown))}: {folder} has no folder of that name with images")
    kept = [path for path, parts in inside.items() if not set(parts) & set(left_out)]
    if not kept:
        raise InputError(f"--held_out {', '.join(left_out)} leaves out every image of {folder}")
    return FileTextures(kept)


def read_photographs(files: FileTextures) -> list[Picture]:
    """Read the photographs and those that come with scikit-image into memory.

    Returns:
        (H, W, 3) uint8 each, with sides of at most `LONGEST` pixels.

    Raises:
        WorkError: one cannot be read; the message names it.
    """
    bundled = photo_folder()
    pictures = [np.asarray(files.read(i).convert("RGB")) for i in range(len(files))]
    pictures += [_read(bundled / name) for name in PHOTOS if (bundled / name).is_file()]
    return [_no_larger(picture) for picture in pictures]


def _read(path: Path) -> Picture:
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _no_larger(picture: Picture) -> Picture:
    scale = LONGEST / max(picture.shape[:2])
    if scale >= 1:
        return np.ascontiguousarray(picture)
    height, width = (max(1, round(scale * side)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _crop(rng: Rng, picture: Picture, side: int) -> Picture:
    """A square of any size from a third of `side` to the whole picture, resized to `side`, rotated and mirrored."""
    height, width = picture.shape[:2]
    longest = min(height, width)
    length = min(longest, round(math.exp(rng.uniform(math.log(min(side / 3, longest)), math.log(longest)))))
    y, x = int(rng.integers(height - length + 1)), int(rng.integers(width - length + 1))
    crop = picture[y : y + length, x : x + length]
    smoothing = cv2.INTER_AREA if length > side else rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])
    crop = cv2.resize(crop, (side, side), interpolation=int(smoothing))
    if rng.random() < 0.3:
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), rng.uniform(-180, 180), rng.uniform(1, 1.42))
        crop = cv2.warpAffine(crop, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.rot90(crop, rng.integers(4))[:, :: rng.choice([-1, 1])]


def _relight(rng: Rng, x: NDArray) -> NDArray:
    """Change colour, brightness, contrast, sharpness and grain; (side, side, 3) float32 in [0, 1]."""
    if rng.random() < 0.35:
        x = np.repeat(x @ np.array([[0.299], [0.587], [0.114]], np.float32), 3, axis=2)
    elif rng.random() < 0.4:
        x = x[:, :, rng.permutation(3)]
    if rng.random() < 0.05:
        x = 1 - x
    if rng.random() < 0.7:
        x = np.clip(x, 0, 1) ** math.exp(rng.normal(0, 0.35))
        contrast = math.exp(rng.uniform(math.log(0.2), math.log(1.6)))
        x = (x - x.mean()) * contrast + np.clip(x.mean() + rng.normal(0, 0.12), 0.08, 0.92)
    if rng.random() < 0.3:
        x = x * rng.uniform(0.75, 1.25, 3).astype(np.float32)
    if rng.random() < 0.2:
        x = cv2.GaussianBlur(np.ascontiguousarray(x, np.float32), (0, 0), rng.uniform(0.4, 2))
    if rng.random() < 0.3:
        x = x + rng.standard_normal(x.shape, np.float32) * math.exp(rng.uniform(math.log(0.004), math.log(0.06)))
    return np.clip(x, 0, 1).astype(np.float32)


class Crops(Dataset[Tensor]):
    """Batches of crops; a batch depends only on the seed and its number.

    Args:
        photographs: (H, W, 3) uint8 each.
        seed: of all draws.
        batch: crops per batch.
        side: of a crop, in pixels.
        count: number of batches.
    """

    def __init__(self, photographs: Sequence[Picture], seed: int, batch: int, side: int, count: int) -> None:
        self.photographs, self.seed, self.batch, self.side, self.count = photographs, seed, batch, side, count
        self._synthetic = lru_cache(SLOTS)(self._make)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        """(batch, side, side, 3) uint8."""
        rng = np.random.default_rng([self.seed, 1, number])
        crops = [self._draw(rng, number) for _ in range(self.batch)]
        return torch.from_numpy(np.stack(crops))

    def _make(self, slot: int, generation: int) -> Picture:
        rng = np.random.default_rng([self.seed, 2, slot, generation])
        return KINDS[slot % len(KINDS)](rng)

    def _picture(self, rng: Rng, number: int) -> Picture:
        if rng.random() < 0.55:
            return self.photographs[rng.integers(len(self.photographs))]
        slot = int(rng.integers(SLOTS))
        return self._synthetic(slot, (number + slot) // SLOTS)

    def _draw(self, rng: Rng, number: int) -> Picture:
        x = _crop(rng, self._picture(rng, number), self.side).astype(np.float32) / 255
        if rng.random() < 0.3:  # a patch of another picture, like a defect
            other = _crop(rng, self._picture(rng, number), self.side).astype(np.float32) / 255
            mask = perlin.perlin_mask(rng, (self.side, self.side))[..., None]
            x = np.where(mask, x + rng.uniform(0.2, 1) * (other - x), x)
        return (_relight(rng, x) * 255 + 0.5).astype(np.uint8)
