"""The cost of threads that spin while they wait for each other: alone, and beside programs that use the same cores.

    .venv/bin/python benchmarks/spinning.py [--epochs 3 --repeats 1 --beside 2]

It measures the time of a training of the demo's plate with main.py on the CPU, with the default GOMP_SPINCOUNT of
libgomp and with that of the project (see commands/program.py). --beside is the number of other processes that compute
all the time; with 0, only the training alone is measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_SPIN = "300000"  # of libgomp if there are no more threads than cores
BUSY = "while True: sum(range(100000))"


def training(folder: Path, epochs: int, spin: str | None) -> float:
    """Seconds of one run of main.py, including its start."""
    results = tempfile.mkdtemp(dir=folder)
    network = f"-b efficientnet_lite0 --meta_epochs {epochs} --eval_epochs {epochs} --select last --dsc_hidden 256"
    images = "--resize 256 --imagesize 256 --distribution 2 --fg 0 --num_workers 2 -d plate"
    words = f"--gpu -1 --results_path {results} net {network} dataset {images} folder {folder / 'data'} builtin".split()
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    env |= {"GOMP_SPINCOUNT": spin} if spin else {}
    start = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "main.py"), *words], env=env, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure both in turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--beside", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        demo = [sys.executable, str(ROOT / "main.py"), "demo", str(Path(name) / "data")]
        subprocess.run(demo, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for count in dict.fromkeys((0, args.beside)):
            busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
            try:
                turns = [
                    [training(Path(name), args.epochs, s) for s in (DEFAULT_SPIN, None)] for _ in range(args.repeats)
                ]
            finally:
                for process in busy:
                    process.kill()
            default, project = (statistics.median(column) for column in zip(*turns, strict=True))
            ratio = default / project
            print(f"beside {count} processes: default {default:.1f} s, project {project:.1f} s ({ratio:.2f}×)")


if __name__ == "__main__":
    main()
