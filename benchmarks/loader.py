"""Speed of building training samples compared with the direct form, in the same run.

    .venv/bin/python benchmarks/loader.py [--size 288] [--source 900] [--samples 60] [--data DIR --textures DIR]

It uses one core and no workers. Both forms build samples from the same 900x900 PNG files, including textures, LAS and
texture augmentation. The product has the pixels of all images in its cache, as in a training: a run reads images and
textures once before it trains, and the last lines show the time for that. Medians and ratios are printed and written to
benchmarks/results/loader.csv with the name of the machine. Without --data and --textures, images are generated; with
them, the first training images are enlarged to the source size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import reference  # noqa: E402
import torch  # noqa: E402
from embedding import processor  # noqa: E402
from measuring import write_rows  # noqa: E402
from PIL import Image  # noqa: E402

import perlin  # noqa: E402
from datasets import ImageSettings, Sample, TrainDataset, augment  # noqa: E402
from datasets.cache import GB, ImageCache  # noqa: E402
from datasets.listing import list_images  # noqa: E402
from datasets.preloading import TextureReading, plan_images, plan_textures  # noqa: E402
from datasets.textures import BuiltinTextures, FileTextures  # noqa: E402
from synthesis import las  # noqa: E402


def sources(folder: Path, side: int, data: str | None, textures: str | None) -> tuple[list[Path], list[Path]]:
    """24 images of `side` x `side` pixels and 40 textures, as files in `folder`."""
    originals = list_images(Path(data), recursive=True)[:24] if data else []
    images, patterns = [], list_images(Path(textures), recursive=True)[:400:10] if textures else []
    rng = np.random.default_rng(0)
    for i in range(24):
        image = (
            np.asarray(Image.open(originals[i]).convert("RGB"))
            if originals
            else rng.integers(0, 256, (60, 60, 3), np.uint8)
        )
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
        grain = rng.normal(0, 2, image.shape)  # as in a photograph, so that PNG cannot compress the image well
        Image.fromarray((image + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
        images.append(folder / f"{i:03d}.png")
    for i in range(0 if patterns else 40):
        pattern = cv2.resize(rng.integers(0, 256, (40, 60, 3), np.uint8), (480, 320), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(pattern).save(folder / f"texture_{i:03d}.jpg", quality=95)
        patterns.append(folder / f"texture_{i:03d}.jpg")
    return images, patterns


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--source", type=int, default=900)
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data")
    parser.add_argument("--textures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        images, textures = sources(Path(folder), args.source, args.data, args.textures)
        write(args, measure(args, images, textures))


def measure(args: argparse.Namespace, images: list[Path], textures: list[Path]) -> dict[str, list[float]]:
    """Milliseconds per sample or mask of each form, one value per round."""
    size, grid = (args.size, args.size), (args.size // 8, args.size // 8)
    settings, samples = ImageSettings(resize=args.size, imagesize=args.size), [Sample(p) for p in images]
    cache = ImageCache(GB)
    sides = dict.fromkeys(images, (args.source, args.source))
    plan_images(cache, settings, samples, False, [], sides)
    for source in (FileTextures(textures), BuiltinTextures(0)):
        plan_textures(cache, settings, source)
    cache.allocate()
    kept = TrainDataset(samples, settings, FileTextures(textures), grid, cache=cache)
    builtin = TrainDataset(samples, settings, BuiltinTextures(0), grid, cache=cache)
    unkept = TrainDataset(samples, settings, FileTextures(textures), grid)
    bare = TrainDataset(samples, settings, BuiltinTextures(0), grid)
    for data in (kept, TextureReading(kept, len(kept.textures)), TextureReading(builtin, len(builtin.textures))):
        for i in range(len(data)):
            data.load(i)

    def direct(rng: np.random.Generator, i: int) -> None:
        image, texture = images[i % len(images)], textures[rng.integers(len(textures))]
        reference.training_sample(rng, image, texture, args.size, grid, augment.TEXTURE_OPERATIONS, perlin.rotate)

    forms: dict[str, Callable[[np.random.Generator, int], object]] = {
        "sample, direct": direct,
        "sample, nothing kept": lambda _rng, i: unkept[0, i % len(images)],
        "sample, second epoch on": lambda _rng, i: kept[i, i % len(images)],
        "sample, built-in textures": lambda _rng, i: builtin[i, i % len(images)],
        "Perlin mask, direct": lambda rng, _i: reference.perlin_mask(rng, size, perlin.rotate),
        "Perlin mask": lambda rng, _i: las.las_mask(rng, size, grid),
        "once: image read": lambda _rng, i: unkept.load(i % len(images)),
        "once: texture read": lambda _rng, i: unkept.texture_pixels(i % len(textures)),
        "once: built-in texture made": lambda _rng, i: bare.texture_pixels(7 * i % len(bare.textures)),
    }
    spent: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(args.repeats + 1):
        for name, form in forms.items():
            rng = np.random.default_rng(round_)
            start = time.process_time()
            for i in range(args.samples):
                form(rng, i)
            if round_:  # the first round is a warm-up
                spent[name].append(1000 * (time.process_time() - start) / args.samples)
    return spent


def write(args: argparse.Namespace, spent: dict[str, list[float]]) -> None:
    """Print the results and write them."""
    machine = f"{processor()}, 1 thread, torch {torch.__version__}"
    rows = []
    for name, times in spent.items():
        base = spent["Perlin mask, direct" if name.startswith("Perlin") else "sample, direct"]
        median = statistics.median(times)
        rows.append({
            "form": name, "median_ms": round(median, 2), "min_ms": round(min(times), 2),
            "ratio": round(statistics.median(base) / median, 2), "size": args.size, "source": args.source,
            "samples": args.samples, "repeats": args.repeats, "pictures": "real" if args.data else "made",
            "machine": machine,
        })  # fmt: skip
        print(f"{name:28s} {median:8.2f} ms of one core   {rows[-1]['ratio']:6.2f}×")
    print(machine)
    write_rows("loader", rows)


if __name__ == "__main__":
    main()
