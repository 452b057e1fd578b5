"""Test sets of weak defects like MAD-sys (paper section 4.1), made from any class: `python main.py mad-sys`.

Textures under Perlin masks are blended onto good test images with transparency β: I·(1−m) + (1−β)·T·m + β·I·m, from
0.1, clearly visible, to 0.9, almost invisible. An image has the same mask and texture at every β, so that only β
differs.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import perlin
from datasets import augment
from datasets.base import Sample
from datasets.depth import read_as_found
from datasets.files import ReadOptions, read_rgb
from datasets.limits import AUTO, MAX_PIXELS
from datasets.mvtec import MVTecLayout
from datasets.textures import Textures, open_textures
from utils import InputError, WorkError, printable, progress_bar, write_atomically, write_text

CLASSES = ("carpet", "grid", "leather", "tile", "wood")
KIND = "synthetic"
MAX_DRAWS = 1000
SHARE = 946 / 320  # of anomalous to normal images in the subsets of the authors
SETTINGS = "mad_sys.json"


def make_anomaly(
    rng: np.random.Generator, image: NDArray[np.uint8], texture: Image.Image
) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Draw where an image is changed, and by which texture.

    Args:
        rng: of all random draws.
        image: (H, W, 3) RGB.
        texture: of any size; it is resized to cover the image, augmented by three of nine operations, and cropped.

    Returns:
        The mask (H, W) with at least one pixel, and the texture (H, W, 3).

    Raises:
        WorkError: the image is too small for any mask.
    """
    height, width = image.shape[:2]
    factor = max(height / texture.height, width / texture.width)
    size = max(width, round(texture.width * factor)), max(height, round(texture.height * factor))
    pattern = augment.augment_texture(texture.resize(size, Image.Resampling.BILINEAR), rng)
    left, top = (pattern.width - width) // 2, (pattern.height - height) // 2
    masks = (perlin.perlin_mask(rng, (height, width)) for _ in range(MAX_DRAWS))
    mask = next((mask for mask in masks if mask.any()), None)
    if mask is None:
        raise WorkError(f"no defect fits into an image of {height}x{width} pixels")
    return mask, np.asarray(pattern.crop((left, top, left + width, top + height)))


def blend(
    image: NDArray[np.uint8], texture: NDArray[np.uint8], mask: NDArray[np.bool_], beta: float
) -> NDArray[np.uint8]:
    """The image (H, W, 3) with (1−β)·texture + β·image under the mask, rounded."""
    out = image.copy()
    out[mask] = ((1 - beta) * texture[mask] + beta * image[mask] + 0.5).astype(np.uint8)
    return out


class Maker:
    """Writes the images of classes at every β, except those that exist already.

    Args:
        out: folder of the test sets.
        textures: to draw from.
        betas: transparencies.
        seed: of all random draws.
        readings: how the images of each class are read.
    """

    def __init__(
        self, out: Path, textures: Textures, betas: Sequence[float], seed: int, readings: Mapping[str, ReadOptions]
    ) -> None:
        self.out, self.textures, self.betas, self.seed = out, textures, betas, seed
        self.readings = readings

    def good(self, name: str, sample: Sample) -> None:
        """Copy a normal image unchanged."""
        content = sample.path.read_bytes()
        for beta in self.betas:
            self._write(self._folder(beta, name) / "test" / "good" / sample.path.name, content)

    def anomalous(self, name: str, sample: Sample, index: int) -> None:
        """Make the index-th anomalous image of a class from a normal one, with its mask, at every β."""
        paths = {
            beta: (
                self._folder(beta, name) / "test" / KIND / f"{index:03d}.png",
                self._folder(beta, name) / "ground_truth" / KIND / f"{index:03d}_mask.png",
            )
            for beta in self.betas
        }
        missing = {beta: pair for beta, pair in paths.items() if not all(path.exists() for path in pair)}
        if not missing:
            return
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode("utf-8", "surrogateescape")), index])
        image = np.asarray(read_rgb(sample.path, self.readings[name]))
        mask, texture = make_anomaly(rng, image, self.textures.read(int(rng.integers(len(self.textures)))))
        for beta, (path, mask_path) in missing.items():
            self._write(mask_path, _png(mask.astype(np.uint8) * 255))
            self._write(path, _png(blend(image, texture, mask, beta)))

    def _folder(self, beta: float, name: str) -> Path:
        return self.out / f"Beta_{beta:g}" / name

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        if not path.exists():
            write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _png(image: NDArray[np.uint8]) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    return encoded.getvalue()


def _choose(layout: MVTecLayout, requested: Sequence[str]) -> dict[str, list[Sample]]:
    """The good test images of each requested class.

    Raises:
        InputError: a class does not exist, or has no good test image.
    """
    known = layout.classes()
    names = layout.choose(requested) if requested else [name for name in CLASSES if name in known]
    if not names:
        raise InputError(
            f"{layout.root} has none of {', '.join(CLASSES)}; name a class with -d, it has {', '.join(known) or 'none'}"
        )
    chosen = {name: [s for s in layout.test(name) if not s.is_anomaly] for name in names}
    for name, samples in chosen.items():
        if not samples:
            raise InputError(f"class {name}: no good test image in {layout.root / name / 'test' / 'good'}")
    return chosen


def _keep_settings(out: Path, settings: dict[str, Any]) -> None:
    """Record the settings in the folder, whose test sets must all be made with the same.

    Raises:
        InputError: it was made with other settings.
        WorkError: the record of its settings cannot be read or written.
    """
    path = out / SETTINGS
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WorkError(f"cannot read {path}: {error}") from error
        changes = [
            f"{key} was {before.get(key)}, is {value}" for key, value in settings.items() if before.get(key) != value
        ]
        if changes:
            raise InputError(f"{out} was made with other settings ({'; '.join(changes)}); give another folder")
    else:
        write_text(path, json.dumps(settings, indent=2) + "\n")


def make(
    mvtec: Path,
    dtd: str,
    out: Path,
    betas: Sequence[float],
    classes: Sequence[str] = (),
    seed: int = 0,
    count: int | None = None,
    bits: int | str = AUTO,
    max_pixels: int = MAX_PIXELS,
) -> str:
    """Write the test sets, with a progress bar on standard error; existing images are kept.

    Args:
        mvtec: folder in the layout of MVTec AD, with good test images.
        dtd: folder of texture images, or the word builtin.
        out: gets a folder `Beta_0.1` and so on for each transparency.
        betas: transparencies, each between 0 and 1.
        classes: names; () for those of `CLASSES` that exist.
        seed: of all random draws.
        count: anomalous images of each class; None: `SHARE` times its normal ones.
        bits: used in 16-bit files, or `auto`.
        max_pixels: an image with more is refused.

    Returns:
        A line that says what was made.

    Raises:
        InputError: a folder or class does not exist, or `out` was made with other settings.
        WorkError: an image cannot be read or written.
    """
    if out.resolve().is_relative_to(mvtec.resolve()):
        raise InputError(f"OUT {out} lies in MVTEC {mvtec}, whose images it would join; give a folder elsewhere")
    chosen = _choose(MVTecLayout(mvtec), classes)
    reading = ReadOptions(max_pixels=max_pixels)
    textures = open_textures(dtd, seed, reading)
    _keep_settings(out, {"source": str(mvtec), "textures": str(dtd), "seed": seed, "count": count})
    # an anomalous image must look like the copy of the normal one, which a test reads with its bit depth
    readings = {name: read_as_found(name, bits, samples, reading) for name, samples in chosen.items()}
    maker = Maker(out, textures, tuple(dict.fromkeys(betas)), seed, readings)
    total = _write_all(maker, chosen, count)
    subsets = ", ".join(f"Beta_{beta:g}" for beta in maker.betas)
    return printable(f"{out}: {subsets}, each with {total} test images of {', '.join(chosen)}")


def _write_all(maker: Maker, chosen: Mapping[str, Sequence[Sample]], count: int | None) -> int:
    """Write the normal images of each class and `count` anomalous ones; returns how many images a test set has."""
    counts = {name: count or round(SHARE * len(samples)) for name, samples in chosen.items()}
    total = sum(len(samples) + counts[name] for name, samples in chosen.items())
    with progress_bar(total, "img", "test images") as bar:
        for name, samples in chosen.items():
            for sample in samples:
                maker.good(name, sample)
                bar.update(1)
            for index in range(counts[name]):
                maker.anomalous(name, samples[index % len(samples)], index)
                bar.update(1)
    return total
