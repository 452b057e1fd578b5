"""Demo data, two classes to try everything with: `python main.py demo DIR`.

`wall` consists of crops of a photograph of bricks in the public domain (from scikit-image) under varying light; `plate`
is a rendered part with screws, a seal and a printed number, in varying pose and light. Their defects are drawn to look
like real ones, by other means than in training: no texture under Perlin noise. The layout is that of MVTec AD, with
masks.

The crops overlap, and all plates have the same drawing: good results here show that a model runs, no more.
"""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

from utils import InputError, WorkError, reason_of, temporary_beside, write_bytes, write_text

SIDE = 256  # of an image, in pixels
OVERSAMPLING = 2  # a plate is drawn this many times larger, then reduced
TRAIN, GOOD, DEFECTIVE = (
    40,
    16,
    4,
)  # numbers of images: for training, good ones for the test, and for each kind of defect
LEAST_COVERED = 0.3  # share of a pixel that a thin line covers, from which on the pixel counts as defective
LEAST_DIFFERENCE = 0.06  # of pixel values, more than the noise between two images of one plate
SETTINGS, FORMAT = "demo.json", 1

Image3 = NDArray[np.float32]  # (h, w, 3) in [0, 1], RGB
Part = tuple[Image3, NDArray[np.bool_]]  # an image, and where the part in it can be damaged
Mask = NDArray[np.float32]  # (h, w) in [0, 1]
Defect = Callable[[np.random.Generator, Image3, NDArray[np.bool_]], tuple[Image3, Mask]]


# -------------------------------------------------------------------------------------------- parts


def wall(rng: np.random.Generator) -> Part:
    """A piece of a brick wall, which can be damaged everywhere."""
    whole = skimage.data.brick()
    top, left = rng.integers(0, len(whole) - SIDE, 2)
    gray = whole[top : top + SIDE, left : left + SIDE].astype(np.float32) / 255
    if rng.random() < 0.5:
        gray = gray[:, ::-1]
    clay, mortar = np.array([0.62, 0.36, 0.28]), np.array([0.80, 0.77, 0.72])
    share = np.clip((gray - 0.38) / 0.25, 0, 1)[..., None]
    colour = (clay * (1 - share) + mortar * share) * (0.55 + gray[..., None])
    return _lit(rng, colour.astype(np.float32)), np.ones((SIDE, SIDE), bool)


def plate(rng: np.random.Generator, fault: str = "", fault_rng: np.random.Generator | None = None) -> Part:
    """A metal plate on a dark belt, and where it is.

    Args:
        rng: of the image; a plate with a fault is otherwise the same as one without, given the same state.
        fault: `missing_screw`, `broken_seal` or `misprint`; "" for none.
        fault_rng: of the fault.
    """
    side = SIDE * OVERSAMPLING
    fault_rng = fault_rng or np.random.default_rng(0)
    image = np.full((side, side, 3), (0.13, 0.14, 0.16), np.float32)
    image += rng.normal(0, 0.012, (side, side, 1)).astype(np.float32)
    body = np.zeros((side, side), np.uint8)
    _rounded(body, (0.14, 0.20), (0.86, 0.80), 0.06)
    brushed = cv2.blur(rng.normal(0, 0.10, (side, side)).astype(np.float32), (61, 1))  # brushed along the rows
    image[body > 0] = (np.array([0.62, 0.64, 0.66]) + brushed[..., None])[body > 0]
    rim = body - cv2.erode(body, np.ones((9, 9), np.uint8))
    image[rim > 0] *= 0.82
    turns = rng.uniform(0, np.pi, 4)
    missing = int(fault_rng.integers(4)) if fault == "missing_screw" else -1
    for i, at in enumerate(((0.22, 0.28), (0.78, 0.28), (0.22, 0.72), (0.78, 0.72))):
        _hole(image, at) if i == missing else _screw(image, at, turns[i])
    _seal(image, fault_rng if fault == "broken_seal" else None)
    _print_number(image, f"{rng.integers(100, 1000)}", fault_rng if fault == "misprint" else None)
    return _posed(rng, image, body > 0)


def _posed(rng: np.random.Generator, image: Image3, body: NDArray[np.bool_]) -> Part:
    """Rotated and shifted a little, reduced, and lit."""
    middle = (SIDE * OVERSAMPLING / 2, SIDE * OVERSAMPLING / 2)
    matrix = cv2.getRotationMatrix2D(middle, rng.uniform(-4, 4), rng.uniform(0.98, 1.02))
    matrix[:, 2] += rng.uniform(-0.02, 0.02, 2) * SIDE * OVERSAMPLING
    size = (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING)
    image = cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REFLECT)
    turned = cv2.warpAffine(body.astype(np.uint8), matrix, size)
    reduced = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return _lit(rng, reduced), cv2.resize(turned, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) > 0


def _lit(rng: np.random.Generator, image: Image3) -> Image3:
    """Apply brightness and colour of the light, its falloff from one side to the other, and camera noise."""
    yy, xx = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    falloff = 1 + rng.uniform(0, 0.08) * (np.cos(angle) * xx + np.sin(angle) * yy)
    light = rng.uniform(0.92, 1.08) * (1 + rng.normal(0, 0.01, 3))
    lit = image * (falloff[..., None] * light).astype(np.float32)
    return (lit + rng.normal(0, 0.008, image.shape)).clip(0, 1).astype(np.float32)


def _pixel(at: tuple[float, float]) -> tuple[int, int]:
    return round(at[0] * SIDE * OVERSAMPLING), round(at[1] * SIDE * OVERSAMPLING)


def _rounded(mask: NDArray[np.uint8], low: tuple[float, float], high: tuple[float, float], radius: float) -> None:
    """Draw a rectangle with rounded corners, in shares of the side."""
    (left, top), (right, bottom), r = _pixel(low), _pixel(high), round(radius * SIDE * OVERSAMPLING)
    cv2.rectangle(mask, (left + r, top), (right - r, bottom), 1, -1)
    cv2.rectangle(mask, (left, top + r), (right, bottom - r), 1, -1)
    for x in (left + r, right - r):
        for y in (top + r, bottom - r):
            cv2.circle(mask, (x, y), r, 1, -1)


def _screw(image: Image3, at: tuple[float, float], angle: float) -> None:
    x, y = _pixel(at)
    cv2.circle(image, (x, y), 21, (0.30, 0.31, 0.33), -1, cv2.LINE_AA)
    cv2.circle(image, (x, y), 18, (0.74, 0.72, 0.66), -1, cv2.LINE_AA)
    cv2.circle(image, (x - 4, y - 4), 7, (0.84, 0.82, 0.77), -1, cv2.LINE_AA)
    dx, dy = round(14 * np.cos(angle)), round(14 * np.sin(angle))
    cv2.line(image, (x - dx, y - dy), (x + dx, y + dy), (0.25, 0.25, 0.26), 4, cv2.LINE_AA)


def _hole(image: Image3, at: tuple[float, float]) -> None:
    cv2.circle(image, _pixel(at), 21, (0.30, 0.31, 0.33), -1, cv2.LINE_AA)
    cv2.circle(image, _pixel(at), 16, (0.05, 0.05, 0.06), -1, cv2.LINE_AA)


def _seal(image: Image3, broken: np.random.Generator | None) -> None:
    """Draw a rubber ring, from which a piece is missing if it is broken."""
    begin, missing = (float(broken.uniform(0, 360)), float(broken.uniform(25, 60))) if broken else (0.0, 0.0)
    axes, centre = (round(0.13 * SIDE * OVERSAMPLING),) * 2, _pixel((0.40, 0.50))
    for colour, width in (((0.10, 0.22, 0.42), 16), ((0.16, 0.32, 0.56), 5)):
        cv2.ellipse(image, centre, axes, begin, 0, 360 - missing, colour, width, cv2.LINE_AA)


def _print_number(image: Image3, number: str, wrong: np.random.Generator | None) -> None:
    """Print the manufacturer and a number; a misprint is smeared or printed twice."""
    x, y = _pixel((0.58, 0.47))
    _text(image, "GLS", (x, y))
    _text(image, number, (x, y + 52))
    if wrong is None:
        return
    if wrong.random() < 0.5:
        _text(image, number, (x + int(wrong.integers(5, 10)), y + 52 + int(wrong.integers(12, 20))))
        return
    part = image[y + 18 : y + 60, x - 4 : x + 84]
    part[:] = cv2.blur(part, (35, 9))


def _text(image: Image3, text: str, at: tuple[int, int]) -> None:
    ink = np.zeros(image.shape[:2], np.uint8)
    cv2.putText(ink, text, at, cv2.FONT_HERSHEY_DUPLEX, 1.15, 255, 3, cv2.LINE_AA)
    share = ink[..., None].astype(np.float32) / 255
    image[:] = image * (1 - share) + share * np.float32(0.13)


# ------------------------------------------------------------------------------------------ defects


def scratch(rng: np.random.Generator, image: Image3, where: NDArray[np.bool_]) -> tuple[Image3, Mask]:
    """A thin bent line with a bright and a dark edge."""
    drawn = np.zeros((2, SIDE, SIDE), np.float32)
    y, x = _somewhere(rng, where, 30)
    heading, points = rng.uniform(0, 2 * np.pi), [(x, y)]
    for _ in range(int(rng.integers(6, 12))):
        heading += rng.normal(0, 0.18)
        x, y = x + 7 * np.cos(heading), y + 7 * np.sin(heading)
        points.append((x, y))
    width = int(rng.integers(1, 3))
    for i, offset in enumerate((0, 1)):
        line = (np.array(points) * 16).astype(np.int32) + 16 * offset
        cv2.polylines(drawn[i], [line], False, 1.0, width, cv2.LINE_AA, 4)
    drawn *= where
    strength = rng.uniform(0.65, 0.95)
    out = image * (1 - 0.8 * strength * drawn[1][..., None])
    out += drawn[0][..., None] * (np.float32(0.95) - out) * strength
    return out, (np.maximum(drawn[0], drawn[1]) > LEAST_COVERED).astype(np.float32)


def _stained(rng: np.random.Generator, image: Image3, where: NDArray[np.bool_], strength: float) -> tuple[Image3, Mask]:
    """A dried liquid: an uneven blot, darker at its border."""
    y, x = _somewhere(rng, where, 26)
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    bumps = sum(rng.normal(0, 0.14 / k) * np.cos(k * angles + rng.uniform(0, 6)) for k in (2, 3, 5))
    radius = rng.uniform(11, 19) * (1 + bumps)
    outline = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
    blot = np.zeros((SIDE, SIDE), np.float32)
    cv2.fillPoly(blot, [(outline * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    inside = cv2.GaussianBlur(blot, (0, 0), 4)
    shade = cv2.GaussianBlur(blot, (0, 0), 0.9) * (1 - 0.45 * inside) * where
    colour = np.array([0.30, 0.22, 0.12]) * rng.uniform(0.7, 1.2)
    out = image * (1 - strength * shade[..., None]) + strength * shade[..., None] * colour.astype(np.float32)
    return out.astype(np.float32), blot * where


def stain(rng: np.random.Generator, image: Image3, where: NDArray[np.bool_]) -> tuple[Image3, Mask]:
    """A clearly visible blot."""
    return _stained(rng, image, where, rng.uniform(0.65, 0.9))


def weak_stain(rng: np.random.Generator, image: Image3, where: NDArray[np.bool_]) -> tuple[Image3, Mask]:
    """A faint blot."""
    return _stained(rng, image, where, rng.uniform(0.36, 0.50))


def hole(rng: np.random.Generator, image: Image3, where: NDArray[np.bool_]) -> tuple[Image3, Mask]:
    """A dark pit with a bright rim on the side away from the light."""
    y, x = _somewhere(rng, where, 24)
    at, axes = (round(16 * x), round(16 * y)), rng.uniform(4, 9, 2)
    pit, turn = np.zeros((SIDE, SIDE), np.float32), rng.uniform(0, 180)
    cv2.ellipse(pit, at, tuple(round(16 * a) for a in axes), turn, 0, 360, 1.0, -1, cv2.LINE_AA, 4)
    rim = np.zeros_like(pit)
    cv2.ellipse(rim, at, tuple(round(16 * (a + 1)) for a in axes), turn, 20, 160, 1.0, 2, cv2.LINE_AA, 4)
    out = image + rim[..., None] * 0.35 * (1 - image)
    out = out * (1 - pit[..., None]) + pit[..., None] * np.float32(0.06)
    return out.astype(np.float32), np.maximum(pit, rim)


def chipped(rng: np.random.Generator, image: Image3, where: NDArray[np.bool_]) -> tuple[Image3, Mask]:
    """A piece broken off: a jagged patch of paler, rough stone."""
    y, x = _somewhere(rng, where, 30)
    count = int(rng.integers(7, 12))
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    radius = rng.uniform(9, 24, count)
    outline = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
    patch = np.zeros((SIDE, SIDE), np.float32)
    cv2.fillPoly(patch, [(outline * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
    rough = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 1.6)
    stone = np.array([0.74, 0.56, 0.46]) * (1 + 0.9 * rough[..., None])
    shadow = np.roll(patch, (2, 2), (0, 1)) * (1 - patch)
    out = image * (1 - 0.5 * shadow[..., None])
    out = out * (1 - patch[..., None]) + patch[..., None] * stone
    return out.clip(0, 1).astype(np.float32), np.maximum(patch, shadow)


def _somewhere(rng: np.random.Generator, where: NDArray[np.bool_], margin: int) -> tuple[float, float]:
    """A random position (y, x), if possible at least `margin` pixels inside."""
    padded = cv2.copyMakeBorder(where.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.nonzero(distance >= min(margin, float(distance.max())))
    i = rng.integers(len(rows))
    return float(rows[i]), float(columns[i])


PARTS: dict[str, Callable[[np.random.Generator], Part]] = {"wall": wall, "plate": plate}
PAINTED: dict[str, dict[str, Defect]] = {
    "wall": {"chipped": chipped, "hole": hole, "scratch": scratch, "stain": stain, "weak_stain": weak_stain},
    "plate": {"hole": hole, "scratch": scratch, "stain": stain, "weak_stain": weak_stain},
}
FAULTS = {"wall": (), "plate": ("missing_screw", "broken_seal", "misprint")}


# -------------------------------------------------------------------------------------------- files


def good_image(name: str, seed: int, number: int) -> Image3:
    """The image of a class without a defect that has this number."""
    return PARTS[name](np.random.default_rng([seed, zlib.crc32(name.encode()), number]))[0]


def defective_image(name: str, kind: str, seed: int, number: int) -> tuple[Image3, Mask]:
    """The image with this kind of defect that has this number, and the mask of the defect."""
    key = [seed, zlib.crc32(f"{name}/{kind}".encode()), number]
    rng, defect_rng = np.random.default_rng(key), np.random.default_rng([*key, 1])
    if kind in FAULTS[name]:
        faulty, intact = plate(rng, kind, defect_rng)[0], plate(np.random.default_rng(key))[0]
        return faulty, _largest(np.abs(faulty - intact).max(2) > LEAST_DIFFERENCE)
    return PAINTED[name][kind](defect_rng, *PARTS[name](rng))


def _largest(mask: NDArray[np.bool_]) -> Mask:
    """The largest region of a mask and those not much smaller, with gaps closed; the rest are differences of edges."""
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = 1 + np.flatnonzero(areas >= 0.3 * areas.max())
    return np.isin(labels, kept).astype(np.float32)


def kinds_of(name: str) -> list[str]:
    """The defects of a class."""
    return sorted((*PAINTED[name], *FAULTS[name]))


def make(folder: Path, seed: int) -> None:
    """Write both classes; `folder` never contains only a part of them.

    Args:
        folder: may exist, if it is empty or was made with the same seed.
        seed: of all images.

    Raises:
        InputError: the folder contains something else.
        WorkError: it cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        if read_seed(folder) != seed:
            raise InputError(f"{folder} holds something else already; give another folder, or remove it")
        missing = [name for name in PARTS if not (folder / name).is_dir()]
        if missing:
            raise InputError(f"{folder} was made as demo data, but {', '.join(missing)} is missing; remove the folder")
        return
    exists = folder.exists()  # it is kept: it may be a link, a mount point or somebody's current folder
    temporary = temporary_beside(folder / "new" if exists else folder)
    try:
        for name in PARTS:
            _write_class(temporary / name, name, seed)
        write_text(temporary / SETTINGS, json.dumps({"format": FORMAT, "seed": seed}))
        if exists:
            for name in (*PARTS, SETTINGS):
                (temporary / name).rename(folder / name)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise WorkError(f"cannot write {folder}: {reason_of(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_seed(folder: Path) -> int | None:
    """The seed of the demo data in a folder; None if it contains no demo data."""
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(settings, dict) and settings.get("format") == FORMAT
    return settings.get("seed") if same else None


def _write_class(base: Path, name: str, seed: int) -> None:
    for i in range(TRAIN + GOOD):
        target = base / "train" / "good" if i < TRAIN else base / "test" / "good"
        _write(target / f"{i if i < TRAIN else i - TRAIN:03d}.png", good_image(name, seed, i))
    for kind in kinds_of(name):
        for i in range(DEFECTIVE):
            image, mask = defective_image(name, kind, seed, i)
            _write(base / "test" / kind / f"{i:03d}.png", image)
            _write(base / "ground_truth" / kind / f"{i:03d}_mask.png", (mask > 0.5).astype(np.float32))


def _write(path: Path, image: NDArray[np.float32]) -> None:
    encoded = io.BytesIO()
    Image.fromarray((image * 255 + 0.5).astype(np.uint8)).save(encoded, "PNG")
    write_bytes(path, encoded.getvalue())
