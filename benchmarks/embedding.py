"""Speed of the patch embedding f compared with unfolding, as in the published code, in the same run.

    .venv/bin/python benchmarks/embedding.py [--size 288] [--batch 8] [--repeats 5] [--backbone wideresnet50]

Both forms use the same random weights and images and take turns. Medians and their ratio are printed and written to
benchmarks/results/embedding.csv with the name of the machine. The values are compared as well.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import reference  # noqa: E402
from measuring import write_rows  # noqa: E402

import backbones  # noqa: E402
from glass import GLASS  # noqa: E402

PRODUCT = "product (cut network, fused pooling)"


def processor() -> str:
    """The name of the processor, as far as the system provides it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def whole_network_hooked(backbone: torch.nn.Module, layers: list[str]) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """The feature maps as in the published code, with hooks on a network that runs to its end."""
    outputs: dict[str, torch.Tensor] = {}
    for name in layers:
        backbone.get_submodule(name).register_forward_hook(lambda _m, _i, out, n=name: outputs.__setitem__(n, out))

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        backbone(images)
        return [outputs[name] for name in layers]

    return run


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backbone", default="wideresnet50")
    parser.add_argument("--dimension", type=int, default=1536)
    return parser.parse_args()


def make_forms(args: argparse.Namespace) -> dict[str, Callable[[], torch.Tensor]]:
    """What is measured, the reference first."""
    layers, shape = ["layer2", "layer3"], (3, args.size, args.size)
    backbone = backbones.load(args.backbone, "random")
    model = GLASS("cpu").load(
        backbone=backbone, layers_to_extract_from=layers, device="cpu", input_shape=shape,
        pretrain_embed_dimension=args.dimension, target_embed_dimension=args.dimension,
    )  # fmt: skip
    whole = whole_network_hooked(backbone, layers)
    images = torch.randn(args.batch, *shape, generator=torch.Generator().manual_seed(0))
    return {
        "reference (whole network, unfolded)": lambda: reference.unfold_embed(
            whole(images), 3, args.dimension, args.dimension
        ),
        "cut network, unfolded": lambda: reference.unfold_embed(
            model.features.aggregator(images), 3, args.dimension, args.dimension
        ),
        PRODUCT: lambda: model._embed(images)[0],
        "backbone of the product alone": lambda: model.features.aggregator(images)[0],
    }


def main() -> None:
    """Measure, print and write the results."""
    args = parse_arguments()
    forms = make_forms(args)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    with torch.no_grad():
        values = {name: form() for name, form in forms.items()}  # a first round to warm up
        for _ in range(args.repeats):
            for name, form in forms.items():
                start = time.perf_counter()
                form()
                seconds[name].append(time.perf_counter() - start)
    expected = values[next(iter(forms))]
    difference = (expected - values[PRODUCT]).abs().max().item()
    base = statistics.median(next(iter(seconds.values())))
    machine = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    rows = [
        {
            "form": name, "median_s": round(statistics.median(times), 3), "min_s": round(min(times), 3),
            "ratio": round(base / statistics.median(times), 2), "max_difference": f"{difference:.2g}",
            "largest_value": f"{expected.abs().max().item():.3g}", "backbone": args.backbone,
            "batch": args.batch, "size": args.size, "repeats": args.repeats, "machine": machine,
        }
        for name, times in seconds.items()
    ]  # fmt: skip
    for row in rows:
        print(f"{row['form']:40s} {row['median_s']:8.3f} s   {row['ratio']:5.2f}×")
    print(
        f"largest difference between reference and product: {difference:.2g} (values up to {rows[0]['largest_value']})"
    )
    print(machine)
    write_rows("embedding", rows)


if __name__ == "__main__":
    main()
