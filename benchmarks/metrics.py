"""Time for all metrics of a test set on one core, and the memory of the process that computes them.

OMP_NUM_THREADS=1 python benchmarks/metrics.py [--maps 83] [--size 288] [--repeats 3]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

import metrics
from datasets.truth import PackedMasks
from training import evaluation


def test_set(count: int, size: int) -> tuple[np.ndarray, PackedMasks]:
    """Smooth maps and their masks; three of four have a defect with slightly higher scores."""
    rng = np.random.default_rng(0)
    maps, masks = np.empty((count, size, size), np.float32), PackedMasks(count, (size, size))
    for i in range(count):
        maps[i] = cv2.GaussianBlur(rng.random((size, size), np.float32), (0, 0), 4)
        mask = np.zeros((size, size), np.int8)
        if i % 4:
            mask[size // 6 : size // 3, size // 5 : size // 2] = 1
            maps[i][mask > 0] += 0.03
        masks[i] = mask
    return maps, masks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--maps", type=int, default=83)
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    maps, masks = test_set(args.maps, args.size)
    limits = (metrics.PRO_LIMIT, metrics.STRICT_PRO_LIMIT)
    works: dict[str, Callable[[], object]] = {
        "AUROC, AP, F1-max, PRO 30 %, PRO 5 %": lambda: metrics.all_pixel_metrics(maps, masks, limits),
        "PRO as published": lambda: metrics.compute_pro_published(masks, maps),
        "F1, precision, recall at a threshold": lambda: evaluation.pixels_at_threshold(maps, masks, 0.5),
    }
    total = 0.0
    for name, work in works.items():
        spent = []
        for _ in range(args.repeats):
            start = time.process_time()
            work()
            spent.append(time.process_time() - start)
        total += statistics.median(spent)
        print(f"{name:40}{statistics.median(spent):8.3f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{'together':40}{total:8.3f} s   peak of the process {peak:.2f} GB")


if __name__ == "__main__":
    main()
