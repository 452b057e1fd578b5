"""Speed of scoring images compared with the unfolded form in tests/reference.py, in the same run.

    .venv/bin/python benchmarks/inference.py [--backbone wideresnet50 --dimension 1536 --size 288] [--gpu 0] [--onnx]

The pooling is the default of the backbone; --dimension belongs to that of the paper. All forms use the same random
weights and images and take turns. `direct` is the whole network with hooks, unfolded neighbourhoods, A, D and its batch
norms one after another, and scipy's Gaussian filter for each map; `backbone` is the cut and folded network alone, a
lower bound. --onnx adds the exported graph in float32 and int8, which starts from uint8
images while the others get prepared ones. Medians and ratios are printed and written to
benchmarks/results/inference_<backbone>.csv with the name of the machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import reference  # noqa: E402
import torch  # noqa: E402
from embedding import processor, whole_network_hooked  # noqa: E402
from measuring import seconds_of, write_rows  # noqa: E402
from PIL import Image  # noqa: E402
from skimage import data as photographs  # noqa: E402

import backbones  # noqa: E402
from common import NetworkFeatureAggregator, RescaleSegmentor  # noqa: E402
from datasets.settings import ImageSettings  # noqa: E402
from inference.features import PRECISIONS, PatchFeatures  # noqa: E402
from inference.head import ScoringHead, build_heads  # noqa: E402
from inference.inspector import Inspector  # noqa: E402
from inference.scorer import Scorer  # noqa: E402
from inference.settings import CHANNELS, Settings  # noqa: E402
from tools import script  # noqa: E402

LAYERS = ["layer2", "layer3"]


class Bench:
    """The models and inputs of all forms, with one backbone."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.size = args, (args.size, args.size)
        self.device = torch.device("cpu" if args.gpu < 0 else f"cuda:{args.gpu}")
        self.backbone = backbones.load(args.backbone, "random", 0)
        self.pooling = backbones.default_pooling(args.backbone)
        self.dimensions = (None, None) if self.pooling == CHANNELS else (args.dimension, args.dimension)
        self.settings = ImageSettings(resize=args.size, imagesize=args.size)
        self.models = {precision: self._inspector(precision) for precision in PRECISIONS}
        self.whole = whole_network_hooked(copy.deepcopy(self.backbone).to(self.device), LAYERS)
        model = self.models["fp32"]
        photograph = Image.fromarray(photographs.brick()).convert("RGB")
        self.pictures = [photograph.rotate(7 * i) for i in range(args.batch)]
        self.images = torch.stack([model.prepare(picture) for picture in self.pictures]).to(self.device)

    def _inspector(self, precision: str) -> Inspector:
        settings, dtype = (
            Settings(LAYERS, (3, *self.size), *self.dimensions, pooling=self.pooling),
            PRECISIONS[precision],
        )
        features = PatchFeatures(self.backbone, settings, self.device, dtype)
        self.heads = build_heads(features.settings, self.device)
        scorer = Scorer(features, ScoringHead(*self.heads, dtype), RescaleSegmentor(self.device, self.size))
        config = {"backbone": self.args.backbone, "layers_to_extract_from": LAYERS}
        return Inspector(scorer, {"config": config}, self.settings)

    @torch.no_grad()
    def direct(self, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Scores and maps in the most direct form."""
        projection, discriminator = (head.eval() for head in self.heads)
        maps = self.whole(images)
        if self.pooling == CHANNELS:
            features = reference.embed_channels(maps, 3)
        else:
            features = reference.unfold_embed(maps, 3, *self.dimensions)
        grid = self.models["fp32"].scorer.features.grid
        scores = discriminator(projection(features)).reshape(len(images), *grid).cpu()
        maps = np.stack([reference.segment(patch_scores, self.size) for patch_scores in scores])
        return scores.flatten(1).amax(1).numpy(), maps

    def forms(self, count: int) -> dict[str, Callable[[], object]]:
        """The work of each form for `count` images."""
        images = self.images[:count]
        aggregators = {f"backbone {p}": m.scorer.features.aggregator for p, m in self.models.items()}
        return {
            "direct": lambda: self.direct(images),
            **{f"{form}": lambda model=model: model.score(images) for form, model in self.models.items()},
            **{name: lambda run=run: self._alone(run, images) for name, run in aggregators.items()},
            **({} if not self.args.onnx else self._graphs(count)),
        }

    @staticmethod
    @torch.no_grad()
    def _alone(run: NetworkFeatureAggregator, images: torch.Tensor) -> object:
        return run(images)

    def _graphs(self, count: int) -> dict[str, Callable[[], object]]:
        export = script("pth2onnx")
        model = self.models["fp32"]
        folder = tempfile.TemporaryDirectory()
        files = [Path(folder.name) / f"{i}.png" for i in range(len(self.pictures))]
        for file, picture in zip(files, self.pictures, strict=True):
            picture.save(file)
        inputs = {"image": np.stack([np.asarray(p.resize(self.size)) for p in self.pictures[:count]])}
        graphs: dict[str, Callable[[], object]] = {}
        to_int8 = export.quantisation.to_int8
        for name, change in (("onnx fp32", None), ("onnx int8", lambda net: to_int8(net, model, files))):
            graph = export.export(model, export.GraphOptions(), change).SerializeToString()
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            graphs[name] = lambda session=session: session.run(None, inputs)
        folder.cleanup()
        return graphs

    def time(self, work: Callable[[], object]) -> float:
        """Seconds of one call."""
        return seconds_of(work, self.device)


def measure(bench: Bench, count: int) -> dict[str, float]:
    """Median seconds of each form."""
    forms = bench.forms(count)
    spent: dict[str, list[float]] = {form: [] for form in forms}
    for round_ in range(bench.args.repeats + 1):  # the first round is a warm-up
        for form, work in forms.items():
            seconds = bench.time(work)
            if round_:
                spent[form].append(seconds)
    return {form: statistics.median(times) for form, times in spent.items()}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="wideresnet50")
    parser.add_argument("--dimension", type=int, default=1536)
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpu", type=int, default=-1)
    parser.add_argument("--onnx", action="store_true")
    args = parser.parse_args()
    bench = Bench(args)
    fast, direct = bench.models["fp32"].score(bench.images), bench.direct(bench.images)
    differences = [float(np.abs(a - b).max()) for a, b in zip(fast, direct, strict=True)]
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else processor()
    machine = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    rows = []
    for count in dict.fromkeys((args.batch, 1)):
        medians = measure(bench, count)
        print(f"{args.backbone} {args.size}x{args.size}, batch size {count}; {machine}")
        for form, seconds in medians.items():
            ratio = medians["direct"] / seconds
            print(f"  {form:16s} {1000 * seconds:9.1f} ms  {count / seconds:7.2f} images/s  {ratio:5.2f}×")
            rows.append({"backbone": args.backbone, "size": args.size, "batch": count, "form": form,
                         "milliseconds": round(1000 * seconds, 2), "ratio": round(ratio, 2),
                         "machine": machine})  # fmt: skip
    print(f"largest difference between fp32 and direct: score {differences[0]:.1e}, map {differences[1]:.1e}")
    write_rows(f"inference_{args.backbone}", rows)


if __name__ == "__main__":
    main()
