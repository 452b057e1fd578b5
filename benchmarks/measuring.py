"""Functions that the benchmarks share: timing a call, and writing a table."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, including the work that it starts on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def write_rows(name: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Write benchmarks/results/<name>.csv; the keys of the first row are the header."""
    path = ROOT / "benchmarks" / "results" / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
