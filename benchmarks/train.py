"""Speed of the training compared with the direct form in tests/reference.py, stage by stage, in the same run.

    .venv/bin/python benchmarks/train.py [--backbone wideresnet50 --dimension 1536 --size 288] [--gpu 0] [--memory]

Both forms use the same random weights and images and take turns. A stage is a part of a step or an epoch. f runs once
per step in the product, since f(I) of training and test images is kept, and three times in the direct form, whose
centre takes a pass over the data. The epoch is that of bottle (209 images, 83 test images), computed from the medians
of the stages; work of the first epoch alone (f of all images, once) has a line of its own.

The floor of a step is a lower bound of its time: its arithmetic operations and memory traffic, divided by the measured
speed of a matrix product and of a copy. Medians, ratios and floors are printed and written to
benchmarks/results/train_<backbone>.csv with the name of the machine. With --memory, --steps steps of each form run in a
process of their own instead, and the peak memory after some of them is printed, which must not grow.
"""

from __future__ import annotations

import argparse
import copy
import math
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import reference  # noqa: E402
import torch  # noqa: E402
from embedding import processor, whole_network_hooked  # noqa: E402
from loader import sources  # noqa: E402
from measuring import seconds_of, write_rows  # noqa: E402
from sklearn.metrics import average_precision_score, roc_auc_score  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import backbones  # noqa: E402
import perlin  # noqa: E402
from datasets import ImageSettings, Sample, TrainDataset, augment  # noqa: E402
from datasets.cache import GB, ImageCache  # noqa: E402
from datasets.preloading import TextureReading, plan_images, plan_textures  # noqa: E402
from datasets.textures import FileTextures  # noqa: E402
from datasets.truth import PackedMasks  # noqa: E402
from glass import GLASS  # noqa: E402
from inference.features import FeatureCache  # noqa: E402
from synthesis.gas import gas  # noqa: E402
from training.evaluation import Predictions, evaluate  # noqa: E402
from training.testing import TestMemory, score_set  # noqa: E402

LAYERS = ("layer2", "layer3")
IMAGES, TESTED = 209, 83
FORMS = ("direct", "fp32", "bf16")


class Bench:
    """The models, inputs and stages of all forms."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args = args
        self.device = torch.device("cpu" if args.gpu < 0 else f"cuda:{args.gpu}")
        backbone = backbones.load(args.backbone, "random", 0)
        size = (args.size, args.size)
        self.models = {
            form: GLASS(self.device).load(
                backbone=backbone, layers_to_extract_from=LAYERS, device=self.device, input_shape=(3, *size),
                pretrain_embed_dimension=args.dimension, target_embed_dimension=args.dimension, svd=args.svd,
                precision="fp32" if form == "direct" else form,
            )
            for form in args.forms
        }  # fmt: skip
        model = next(iter(self.models.values()))
        self.grid, self.width = model.grid, args.dimension
        generator = torch.Generator().manual_seed(0)
        self.image, self.aug = torch.randn(2, args.batch, 3, *size, generator=generator)
        self.mask = (torch.rand(args.batch, *self.grid, generator=generator) > 0.85).float()
        if self.device.type == "cuda":
            self.image, self.aug, self.mask = (x.to(self.device) for x in (self.image, self.aug, self.mask))
        self.whole = whole_network_hooked(copy.deepcopy(backbone).to(self.device), list(LAYERS))
        with torch.no_grad():
            features = model._embed(self.image)[0]
        self.features = {form: features.to(m.dtype) for form, m in self.models.items()}
        for m in self.models.values():
            m.set_centre(features.unflatten(0, (args.batch, -1)).mean(0))
        self.folder = folder

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """f in the direct form."""
        with torch.no_grad():
            return reference.unfold_embed(self.whole(images), 3, self.width, self.width)

    # ------------------------------------------------------------------------------------ stages

    def stages(self, form: str) -> dict[str, Callable[[], object]]:
        """The work of each stage of one form."""
        model = self.models[form]
        if form == "direct":
            return {
                "backbone": lambda: self._no_grad(lambda: self.whole(self.aug)),
                "f": lambda: self.embed(self.aug),
                "GAS": lambda: self._direct_gas(model),
                "step": lambda: reference.direct_step(model, self.embed, self.image, self.aug, self.mask),
            }
        return {
            "backbone": lambda: model.features.aggregator(self.aug),
            "f": lambda: self._no_grad(lambda: model._embed(self.aug)),
            "GAS": lambda: self._gas(model, form),
            "step": lambda: model.train_step(self.image, self.aug, self.mask, self.features[form]),
        }

    @staticmethod
    def _no_grad(work: Callable[[], object]) -> object:
        with torch.no_grad():
            return work()

    def _ascent(self, model: GLASS, form: str) -> tuple[torch.Tensor, torch.Tensor, dict]:
        true = model._project(self.features[form]).detach()
        noise = torch.randn(true.shape, generator=model.generator, device=self.device) * model.noise
        return true, noise, {"r_t": torch.tensor(1.0, device=self.device), "svd": model.svd}

    def _direct_gas(self, model: GLASS) -> object:
        model.discriminator.train()
        true, noise, settings = self._ascent(model, "direct")
        centre = model.c.repeat(self.args.batch, 1)
        return reference.direct_gas(
            model.discriminator, true, noise, centre, **settings, step=20, mining=1, radius=0.75
        )

    def _gas(self, model: GLASS, form: str) -> object:
        model.discriminator.train()
        true, noise, settings = self._ascent(model, form)
        return gas(model.discriminator, true, noise, model.c, **settings, dtype=model.dtype)

    def loaders(self) -> dict[str, Callable[[int], object]]:
        """The functions that build a training sample in the direct form and in the product."""
        images, textures = sources(self.folder, 900, None, None)
        settings = ImageSettings(resize=self.args.size, imagesize=self.args.size)
        cache, samples = ImageCache(GB), [Sample(path) for path in images]
        plan_images(cache, settings, samples, False, [], dict.fromkeys(images, (900, 900)))
        plan_textures(cache, settings, FileTextures(textures))
        cache.allocate()
        kept = TrainDataset(samples, settings, FileTextures(textures), self.grid, cache=cache)
        for data in (kept, TextureReading(kept, len(textures))):
            for i in range(len(data)):
                data.load(i)

        def direct(i: int) -> object:
            rng = np.random.default_rng(i)
            texture = textures[rng.integers(len(textures))]
            return reference.training_sample(
                rng, images[i % 24], texture, self.args.size, self.grid, augment.TEXTURE_OPERATIONS, perlin.rotate
            )

        return {"direct": direct, "ours": lambda i: kept[i, i % 24]}

    def evaluation(self, form: str) -> Callable[[], object]:
        """An evaluation of `TESTED` images that is not the first one."""
        model, size = self.models[form], (self.args.size, self.args.size)
        rng = np.random.default_rng(0)
        masks = PackedMasks(TESTED, size)
        for i in range(TESTED):
            mask = np.zeros(size, np.int8)
            if i % 4:
                y, x = rng.integers(0, self.args.size - 60, 2)
                mask[y : y + 40, x : x + 60] = 1
            masks[i] = mask
        labels = np.arange(TESTED) % 4 > 0
        rows = self.features[form].unflatten(0, (self.args.batch, -1))
        if form == "direct":
            return lambda: self._direct_evaluation(model, masks, labels)
        kept = FeatureCache(TESTED, tuple(rows.shape[1:]), model.dtype, self.device, 1 << 62)
        for i in range(TESTED):
            kept.put([i], rows[i % len(rows)])
        predictions = Predictions(np.zeros(0), np.zeros((0, *size), np.float32), labels, masks, [""] * TESTED)
        memory = TestMemory(kept, predictions)
        return lambda: evaluate(score_set(model.scorer(), [], None, memory))

    @torch.no_grad()
    def _direct_evaluation(self, model: GLASS, masks: PackedMasks, labels: np.ndarray) -> object:
        """All images pass the network; metrics by scikit-learn and by the loop of the published PRO."""
        model.set_mode(False)
        maps, scores = [], []
        for start in range(0, TESTED, self.args.batch):
            count = min(self.args.batch, TESTED - start)
            patch_scores = model.discriminator(model.pre_projection(self.embed(self.image[:count])))
            patch_scores = patch_scores.reshape(count, *self.grid)
            maps += [reference.segment(of_image, (self.args.size, self.args.size)) for of_image in patch_scores.cpu()]
            scores += patch_scores.flatten(1).amax(1).tolist()
        truth, flat = np.stack(list(masks)), np.stack(maps)
        both = roc_auc_score(truth.ravel(), flat.ravel()), average_precision_score(truth.ravel(), flat.ravel())
        return both, roc_auc_score(labels, scores), reference.pro_published(truth, flat)

    # ------------------------------------------------------------------------------------- floor

    def floor(self, form: str) -> float:
        """A lower bound of the seconds of a step: its operations and memory traffic at the machine's measured rates."""
        model, dtype = self.models[form], self.models[form].dtype
        rows, width, hidden = self.args.batch * math.prod(self.grid), self.width, model.dsc_hidden
        with FlopCounterMode(display=False) as counter:
            model.features.aggregator(self.aug)
        layer, square = 2 * rows * width * hidden, 2 * rows * width * width
        # an update is one product with W·Wᵀ, or two with W if that is less work
        update = min(2 * rows * hidden * hidden, 2 * layer)
        low = counter.get_total_flops() + model.step * update + 2 * square
        # y of both halves (and t on the hypersphere) is computed in float32; backward: to W, to A and through the path
        full = 2 * layer + (square if self.args.svd else 0)
        low += (5 if self.args.svd else 3) * layer + (square if self.args.svd else 0)
        traffic = 4 * rows * hidden * (5 * model.step + 40)
        return low / self._rate(dtype) + full / self._rate(torch.float32) + traffic / self._bandwidth()

    def _rate(self, dtype: torch.dtype) -> float:
        """Floating-point operations per second of a matrix product."""
        n = 1024 if self.device.type == "cpu" else 8192
        a, b = torch.randn(2, n, n, device=self.device).to(dtype)
        seconds = min(self.time(lambda: a @ b) for _ in range(10))
        return 2 * n**3 / seconds

    def _bandwidth(self) -> float:
        """Bytes read and written per second by a copy."""
        a = torch.zeros(1 << 26, device=self.device)
        b = torch.empty_like(a)
        return 2 * 4 * len(a) / min(self.time(lambda: b.copy_(a)) for _ in range(5))

    def time(self, work: Callable[[], object]) -> float:
        """Seconds of one call."""
        return seconds_of(work, self.device)


def measure(bench: Bench) -> dict[str, dict[str, float]]:
    """Median seconds of each form and stage."""
    args = bench.args
    spent: dict[str, dict[str, list[float]]] = {form: {} for form in args.forms}
    for round_ in range(args.repeats + 1):  # the first round is a warm-up
        for form in args.forms:
            for name, work in bench.stages(form).items():
                seconds = bench.time(work)
                if round_:
                    spent[form].setdefault(name, []).append(seconds)
    for form in args.forms:
        work = bench.evaluation(form)
        spent[form]["evaluation"] = [bench.time(work) for _ in range(1 if form == "direct" else args.repeats + 1)]
    for name, work in bench.loaders().items():
        times = [bench.time(lambda work=work: [work(i) for i in range(24)]) / 24 for _ in range(3)]
        for form in args.forms:
            if (form == "direct") == (name == "direct"):
                spent[form]["sample"] = times
    return {form: {name: statistics.median(times) for name, times in stages.items()} for form, stages in spent.items()}


def table(medians: dict[str, dict[str, float]], floors: dict[str, float], batch: int) -> list[dict[str, object]]:
    """The time of each stage per step or epoch, in all forms."""
    rows = []
    steps = IMAGES / batch
    for form, s in medians.items():
        direct = form == "direct"
        passes = 3 if direct else 1
        per_step = {
            "loader, a step": (2 if direct else 1) * batch * s["sample"],
            "backbone, a step": passes * s["backbone"],
            "pooling, a step": passes * (s["f"] - s["backbone"]),
            "GAS (forward), a step": s["GAS"],
            "rest of a step": s["step"] - s["GAS"] - (2 if direct else 1) * s["f"],
            "step with its share of the centre pass": s["step"] + (s["f"] if direct else 0),
        }
        step = per_step["step with its share of the centre pass"]
        epoch = steps * (step + per_step["loader, a step"]) + s["evaluation"]
        first = 0 if direct else (IMAGES + TESTED) / batch * s["f"]
        stages = {
            **per_step, "evaluation": s["evaluation"], "epoch of bottle": epoch,
            "once, f of all images": first, "floor of a step": floors.get(form, 0.0),
        }  # fmt: skip
        rows += [{"stage": name, "form": form, "seconds": seconds} for name, seconds in stages.items()]
    base = {row["stage"]: row["seconds"] for row in rows if row["form"] == "direct"}
    for row in rows:
        compared = base.get(row["stage"]) and row["seconds"] > 1e-6
        row["ratio"] = round(base[row["stage"]] / row["seconds"], 2) if compared else ""
        row["seconds"] = round(row["seconds"], 4)
    return rows


def write(rows: list[dict[str, object]], args: argparse.Namespace, machine: str) -> None:
    """Print the results and write them."""
    forms = {str(row["form"]) for row in rows}
    print(f"{'':42s}" + "".join(f"{form:>18s}" for form in FORMS if form in forms))
    for stage in dict.fromkeys(row["stage"] for row in rows):
        cells = [f"{row['seconds']:9.3f} s {row['ratio'] or 0:5.2f}×" for row in rows if row["stage"] == stage]
        print(f"{stage:42s}" + "".join(f"{cell:>18s}" for cell in cells))
    print(machine)
    settings = {name: getattr(args, name) for name in ("backbone", "dimension", "size", "batch", "svd", "repeats")}
    write_rows(f"train_{args.backbone}", [{**row, **settings, "machine": machine} for row in rows])


def memory(args: argparse.Namespace) -> None:
    """Print the peak memory of each form, in a process of its own."""
    for form in args.forms:
        command = [sys.executable, __file__, *sys.argv[1:], "--peak", form]
        done = subprocess.run([c for c in command if c != "--memory"], stdout=subprocess.PIPE, text=True, check=True)
        print(f"{form:8s} {done.stdout.strip()}")


def peak(bench: Bench, form: str) -> None:
    """Do training steps, and print the peak memory after some of them."""
    cuda, step = bench.device.type == "cuda", bench.stages(form)["step"]
    for done in range(1, bench.args.steps + 1):
        step()
        if done in (3, 10, 50, 100, bench.args.steps):
            used = torch.cuda.max_memory_allocated(bench.device) if cuda else peak_of_process()
            print(f"{done}: {used / GB:.3f} GB", end="  ", flush=True)


def peak_of_process() -> int:
    """The peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="wideresnet50")
    parser.add_argument("--dimension", type=int, default=1536)
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--svd", type=int, default=1, help="1 hypersphere, the more expensive variant; 0 manifold")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpu", type=int, default=-1)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--steps", type=int, default=200, help="of --memory")
    parser.add_argument("--peak", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        memory(args)
        return
    if args.peak:
        args.forms = [args.peak]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        if args.peak:
            peak(bench, args.peak)
            return
        medians = measure(bench)
        floors = {form: bench.floor(form) for form in args.forms if form != "direct"}
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else processor()
    machine = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    write(table(medians, floors, args.batch), args, machine)


if __name__ == "__main__":
    main()
