"""What a person with a CPU has after some minutes: figures of whole commands, from their start to the report.

    .venv/bin/python benchmarks/minutes.py --data MVTEC/bottle --data TILE/magnetic_tile --textures DTD \
        --seed 0 --seed 1 --seed 2 --epochs 2 --epochs 12 --published 4 --backbone resnet18=resnet18.pth

Each --data is the folder of a class in the layout of MVTec AD. For each class and seed it runs `net --recipe fast` with
each number of --epochs and each backbone, and with --published MINUTES also the published training with the same
backbone, which is interrupted after that time and tested as it is. `--baseline` adds the figures of nearest neighbours
on the same features (`nn_…`). No test image chooses anything: the last epoch is tested. The runs go one after another,
on as many cores as the process may use; seconds are those of the whole command.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import write_rows  # noqa: E402
from training.evaluation import METRICS, OF_NEIGHBOURS  # noqa: E402


def run(
    data: Path, results: Path, net: Sequence[str], args: argparse.Namespace, seed: int, limit: float | None = None
) -> float:
    """Train and test a class; returns the seconds that the command took.

    Args:
        data: folder of the class.
        results: folder of the run.
        net: options of the model.
        args: of this benchmark.
        seed: of the training.
        limit: seconds after which the training is interrupted; it is tested in its last state.
    """
    size = str(args.size)
    before = ["--gpu", "-1", "--seed", str(seed), "--results_path", str(results)]
    after = [
        "dataset", "--fg", "0", "--resize", size, "--imagesize", size, "--num_workers", str(args.workers),
        "-d", data.name, "mvtec", str(data.parent), str(args.textures),
    ]  # fmt: skip
    main = [sys.executable, str(ROOT / "main.py")]
    start = time.monotonic()
    with (results.parent / f"{results.name}.log").open("w") as log:
        process = subprocess.Popen(
            [*main, *before, "net", *net, *after], stdout=log, stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a background job would ignore
        )  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            code = subprocess.call([*main, "--test", "test", *before, "net", *net, *after], stdout=log, stderr=log)
    if code:
        raise SystemExit(f"the run failed, see {log.name}")
    return time.monotonic() - start


def figures_of(results: Path) -> dict[str, float]:
    """The metrics of the only class of a run, in percent."""
    with (results / "results.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    return {name: round(100 * float(row[name]), 2) for name in (*METRICS, *OF_NEIGHBOURS) if row.get(name)}


def main() -> None:
    """Run everything, print each row as soon as it is there, and write benchmarks/results/minutes.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--textures", type=Path, required=True)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--epochs", type=int, action="append", help="of the fast recipe; by default its own")
    parser.add_argument("--published", type=float, metavar="MINUTES")
    parser.add_argument("--backbone", action="append", metavar="NAME[=WEIGHTS]", help="default: efficientnet_lite0")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (data, seed, backbone) in enumerate(_combinations(args)):
            name, _, weights = backbone.partition("=")
            net = ["-b", name, *(["--weights", weights] if weights else [])]
            kinds = [
                ("fast", ["--recipe", "fast", "--baseline", *_epochs(count)], None) for count in args.epochs or [0]
            ]
            if args.published:
                kinds.append(("published", ["--select", "last", "--eval_epochs", "640"], 60 * args.published))
            for kind, options, limit in kinds:
                results = Path(folder) / f"{number}_{len(rows)}"
                seconds = run(data, results, [*net, *options], args, seed, limit)
                epochs = options[-1] if "--meta_epochs" in options else ""
                rows.append(
                    {"class": data.name, "backbone": name, "training": kind, "epochs": epochs, "seed": seed,
                     "seconds": round(seconds), "cores": len(os.sched_getaffinity(0))} | figures_of(results)
                )  # fmt: skip
                print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    names = list(dict.fromkeys(key for row in rows for key in row))
    write_rows("minutes", [{name: row.get(name, "") for name in names} for row in rows])


def _combinations(args: argparse.Namespace) -> list[tuple[Path, int, str]]:
    backbones = args.backbone or ["efficientnet_lite0"]
    return [(data, seed, backbone) for data in args.data for seed in args.seed or [0] for backbone in backbones]


def _epochs(count: int) -> list[str]:
    return ["--meta_epochs", str(count)] if count else []


if __name__ == "__main__":
    main()
