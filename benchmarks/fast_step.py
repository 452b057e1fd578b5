"""A training step of `net --recipe fast` beside one of the published training in float32, in turns in the same run.

    .venv/bin/python benchmarks/fast_step.py [--backbone efficientnet_lite0] [--size 256] [--repeats 9]

Both have the same backbone, images and batch size. The published step embeds the images with anomalies; f(I) of the
images without is kept, as in a training. The step of the recipe uses kept features; what keeping them costs, once for
each of `local_kept` images, has a line of its own, without the drawing of the anomaly. Medians and ratios are printed
and written to benchmarks/results/fast_step.csv with the name of the machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from embedding import processor  # noqa: E402
from measuring import seconds_of, write_rows  # noqa: E402

import backbones  # noqa: E402
from glass import GLASS  # noqa: E402
from inference.settings import FAST, Settings  # noqa: E402
from training.kept_images import KeptBatch, train_step  # noqa: E402

LAYERS = ("layer2", "layer3")
BATCH = 8
IMAGES = 32  # that the memory is filled from


def build(args: argparse.Namespace, **settings: object) -> GLASS:
    """A model of the backbone with these settings."""
    allowed = {name: value for name, value in settings.items() if name in Settings.names_for_load()}
    pooling = {"pooling": "channels"} if args.backbone == backbones.EMBEDDED else {}
    dimension = None if pooling else args.dimension
    return GLASS("cpu").load(
        backbones.load(args.backbone, "pretrained" if pooling else "random", 0), LAYERS, "cpu",
        (3, args.size, args.size), dimension, dimension, **pooling, **allowed,
    )  # fmt: skip


def works(args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, args.size, args.size, generator=generator)
    image, aug, own = images[:BATCH], images[-BATCH:], torch.arange(BATCH)
    done: dict[str, Callable[[], object]] = {}
    for name, svd in (("published, manifold", 0), ("published, hypersphere", 1)):
        model = build(args, svd=svd)
        mask = (torch.rand(BATCH, *model.grid, generator=generator) > 0.85).float()
        with torch.no_grad():
            known = model._embed(image)[0]
        model.set_centre(known.unflatten(0, (BATCH, -1)).mean(0))
        done[name] = lambda m=model, mask=mask, known=known: m.train_step(None, aug, mask, known)
    fast = build(args, **FAST)
    with torch.no_grad():
        patches = fast.features.embed_alone(images)
        rows = torch.linspace(0, len(patches) - 1, min(fast.memory, len(patches))).long()
        owners = rows // (len(patches) // IMAGES)
        fast.features.memory.fill(patches[rows], owners, torch.arange(IMAGES), len(rows) // 2)
        true, local = (fast.features.stored(x, own).flatten(0, 1) for x in (image, aug))
        fast.set_centre(fast._embed(image, own)[0].unflatten(0, (BATCH, -1)).mean(0))
    batch = KeptBatch(BATCH, true, local, mask.flatten() > 0)
    done["fast"] = lambda: train_step(fast, batch)

    def keep() -> object:
        with torch.no_grad():
            return fast.features.stored(aug, own)

    done["fast: keeping the features of a batch"] = keep
    return done


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=backbones.EMBEDDED)
    parser.add_argument("--dimension", type=int, default=1536, help="not for efficientnet_lite0")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    stages, spent = works(args), {}
    for round_ in range(args.repeats + 1):  # the first round is a warm-up
        for name, work in stages.items():
            seconds = seconds_of(work, torch.device("cpu"))
            if round_:
                spent.setdefault(name, []).append(seconds)
    medians = {name: statistics.median(times) for name, times in spent.items()}
    rows = []
    for name, seconds in medians.items():
        ratio = round(medians["published, manifold"] / seconds, 1)
        rows.append(
            {"work": name, "seconds": round(seconds, 4), "times faster than the published manifold": ratio,
             "backbone": args.backbone, "size": args.size, "batch": BATCH, "machine": processor()}
        )  # fmt: skip
        print(f"{name:40s} {seconds:8.3f} s  {ratio:6.1f}×")
    write_rows("fast_step", rows)


if __name__ == "__main__":
    main()
