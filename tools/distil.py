"""Distil the embedded backbone: a half-width ResNet-18 learns the features of the ImageNet ResNet-18.

    python -m tools.distil --weights pretrained --images DTD OUT

OUT holds the state (distil.pth), the losses (distil.csv) and, at the end, resnet18_half.safetensors. The same command
resumes a run that was stopped. The student's layer2 and layer3 are each trained to equal the teacher's through a linear
map, which is discarded afterwards. In addition, the distances between locations have to be similar without that map,
because anomaly detection works with distances.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import cv2
import torch
import torch.nn.functional as F
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn
from torch.utils.data import DataLoader

import backbones
from backbones import EMBEDDED_FILE, EMBEDDED_WIDTH, HalfResNet18
from commands.command import CONTEXT, Command
from commands.parameters import Finite
from common import NetworkFeatureAggregator
from datasets.textures import FileTextures
from networks.weights import unreadable
from tools.pictures import Crops, find_photographs, read_photographs
from training import saving
from utils import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    InputError,
    WorkError,
    choose_device,
    make_folder,
    progress_bar,
    seeded,
    write_bytes,
)

LAYERS = ("layer2", "layer3")
TEACHER_CHANNELS, STUDENT_CHANNELS = (128, 256), (2 * EMBEDDED_WIDTH, 4 * EMBEDDED_WIDTH)
PAIRS = 4096  # of locations whose distances are compared, per layer and step
DISTANCE_WEIGHT = 0.25  # of that loss
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
SAVE_EVERY = 200  # steps
WARM_UP = 200  # steps
VALIDATION_BATCHES, SCALE_BATCHES = 8, 16
COLUMNS = ("step", "crops", "loss", "layer2", "layer3", "distances", "explained2", "explained3", "rate", "seconds")


class Distillation:
    """The teacher, the student, and the training of the student.

    Args:
        teacher: gives the feature maps of layer2 and layer3.
        device: of student and teacher.
        steps: total number; the learning rate falls to 0 at the last one.
        rate: the highest learning rate.
        seed: of the student's initial weights.
    """

    def __init__(
        self, teacher: NetworkFeatureAggregator, device: torch.device, steps: int, rate: float, seed: int
    ) -> None:
        self.teacher, self.device, self.steps, self.rate = teacher, device, steps, rate
        with seeded(seed):
            self.student = HalfResNet18().to(device, memory_format=torch.channels_last).train()
            pairs = zip(STUDENT_CHANNELS, TEACHER_CHANNELS, strict=True)
            self.maps = nn.ModuleList(nn.Conv2d(student, teacher, 1) for student, teacher in pairs).to(device)
        # mean and standard deviation of the teacher's channels, (C_l,) for each layer
        self.mean, self.scale = [torch.zeros(0)] * 2, [torch.ones(0)] * 2
        self.features: dict[str, Tensor] = {}  # the student's, filled by hooks
        for name in LAYERS:
            self.student.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, output, n=name: self.features.update({n: output})
            )
        parameters = [*self.student.parameters(), *self.maps.parameters()]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=rate)

    def normalise(self, crops: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 → (B, 3, H, W), normalised for ImageNet networks."""
        x = crops.to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)

    def learn_scales(self, batches: Sequence[Tensor]) -> None:
        """Measure mean and standard deviation of the teacher's channels, so that all channels count the same."""
        maps = [self.teacher(self.normalise(batch)) for batch in batches]
        for i in range(len(LAYERS)):
            values = torch.cat([m[i].transpose(0, 1).flatten(1) for m in maps], dim=1).float()
            deviation = values.std(1)
            self.mean[i] = values.mean(1)
            self.scale[i] = deviation.clamp_min(0.25 * float(deviation.median()))  # do not amplify dead channels

    def targets(self, x: Tensor) -> list[Tensor]:
        """The teacher's feature maps, [(B, C_l, H_l, W_l), …], standardised."""
        with torch.no_grad():
            maps = self.teacher(x)
        pairs = zip(maps, self.mean, self.scale, strict=True)
        return [(m.float() - mean.view(-1, 1, 1)) / scale.view(-1, 1, 1) for m, mean, scale in pairs]

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The student's feature maps, and their images under the linear maps, which approximate `targets`.

        Args:
            x: (B, 3, H, W), normalised.
        """
        with torch.autocast(self.device.type, torch.bfloat16):
            self.student(x)
            features = self.take_features()
            mapped = [linear(f).float() for linear, f in zip(self.maps, features, strict=True)]
        return [f.float() for f in features], mapped

    def take_features(self) -> list[Tensor]:
        """The feature maps of the student's last forward pass."""
        return [self.features.pop(name) for name in LAYERS]

    def step(self, number: int, crops: Tensor) -> dict[str, float]:
        """Train one step; returns its losses."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate_at(number)
        x = self.normalise(crops)
        targets = self.targets(x)
        features, mapped = self.forward(x)
        losses = [F.smooth_l1_loss(m, t) for m, t in zip(mapped, targets, strict=True)]
        generator = torch.Generator().manual_seed(number)
        distance_loss = sum(_distance_loss(f, t, generator) for f, t in zip(features, targets, strict=True))
        loss = sum(losses) + DISTANCE_WEIGHT * distance_loss
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        values = {"loss": loss, "layer2": losses[0], "layer3": losses[1], "distances": distance_loss}
        return {name: float(value.detach()) for name, value in values.items()}

    def _rate_at(self, number: int) -> float:
        warm_up = min(1.0, (number + 1) / WARM_UP)
        return self.rate * warm_up * 0.5 * (1 + math.cos(math.pi * number / self.steps))

    @torch.no_grad()
    def explained(self, batches: Sequence[Tensor]) -> tuple[float, float]:
        """Share of the teacher's variance that the student explains, for each layer; at most 1."""
        self.student.eval()
        missed, total = [0.0, 0.0], [0.0, 0.0]
        for batch in batches:
            x = self.normalise(batch)
            for i, (mapped, target) in enumerate(zip(self.forward(x)[1], self.targets(x), strict=True)):
                missed[i] += float((mapped - target).square().sum())
                total[i] += float((target - target.mean((0, 2, 3), keepdim=True)).square().sum())
        self.student.train()
        return tuple(1 - m / t for m, t in zip(missed, total, strict=True))

    def state(self) -> dict[str, Any]:
        """Everything that is needed to resume."""
        return {
            "student": self.student.state_dict(), "maps": self.maps.state_dict(),
            "optimiser": self.optimiser.state_dict(), "mean": self.mean, "scale": self.scale,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        for name in ("student", "maps", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.mean, self.scale = state["mean"], state["scale"]


def _distance_loss(features: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    """How much the distances of drawn pairs of locations differ between two feature maps (B, C, H, W).

    The distances in a map are divided by their mean.
    """
    locations = features.shape[0] * features.shape[2] * features.shape[3]
    pairs = torch.randint(locations, (2, PAIRS), generator=generator).to(features.device)
    distances = []
    for x in (features, target):
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)
        squared = (rows[pairs[0]] - rows[pairs[1]]).square().sum(1)
        distance = (squared + 1e-6).sqrt()
        distances.append(distance / distance.mean().clamp_min(1e-6))
    return F.smooth_l1_loss(*distances)


def scale_outputs(student: HalfResNet18, factors: Sequence[float]) -> None:
    """Multiply the outputs of layer2 and layer3 by a positive factor each, exactly, without any other change.

    A positive factor commutes with ReLU: it goes into the norms at the end of a block, and out again where the block's
    output is read.
    """
    with torch.no_grad():
        for name, factor in zip(LAYERS, factors, strict=True):
            first, second = student.get_submodule(name)
            for norm in (first.bn2, first.downsample[1], second.bn2):
                norm.weight *= factor
                norm.bias *= factor
            second.conv1.weight /= factor
        for convolution in (student.layer3[0].conv1, student.layer3[0].downsample[0]):
            convolution.weight /= factors[0]


@torch.no_grad()
def match_scale(work: Distillation, batches: Sequence[Tensor]) -> list[float]:
    """Scale the student's channels to the teacher's mean standard deviation, as GLASS adds noise of an absolute size.

    Returns:
        The factor of each layer.
    """
    work.student.eval()
    variances = [[0.0, 0.0], [0.0, 0.0]]  # of student and teacher, for each layer
    for batch in batches:
        x = work.normalise(batch)
        work.student(x)
        for i, pair in enumerate(zip(work.take_features(), work.teacher(x), strict=True)):
            for j, feature_map in enumerate(pair):
                variances[i][j] += float(feature_map.float().std((0, 2, 3)).square().mean())
    factors = [math.sqrt(teacher / student) for student, teacher in variances]
    scale_outputs(work.student, factors)
    return factors


def save_weights(student: nn.Module, path: Path) -> None:
    """Save in float16; the statistics of batch norms stay float32, whose range they may need."""
    kept = {k: v for k, v in student.state_dict().items() if not k.endswith("num_batches_tracked")}
    tensors = {k: (v if "running" in k else v.half()).contiguous().cpu() for k, v in kept.items()}
    write_bytes(path, as_safetensors(tensors))


def _with_bar(loader: DataLoader, first: int, total: int, batch: int) -> Iterator[tuple[int, Tensor]]:
    """Number and crops of each step, under a progress bar."""
    with progress_bar(total * batch, "crop", initial=first * batch) as bar:
        for number, crops in enumerate(loader, first):
            yield number, crops
            bar.update(batch)


@click.command("distil", cls=Command, context_settings=CONTEXT)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--images", type=FOLDER, required=True, help="Folder of photographs, at any depth.")
@click.option("--weights", default="pretrained", help="Weights of the ImageNet ResNet-18.")
@click.option("--held_out", multiple=True, help="Name of a folder below --images to leave out; may be repeated.")
@click.option("--crops", default=600_000, type=click.IntRange(1), help="Total number of crops.")
@click.option("--batch", default=64, type=click.IntRange(2), help="Crops per step.")
@click.option("--side", default=128, type=click.IntRange(64), help="Side of a crop in pixels.")
@click.option("--rate", default=2e-3, type=Finite(0, 1, min_open=True), help="Highest learning rate.")
@click.option("--seed", default=0, type=click.IntRange(0, 2**32 - 1), help="Seed of every random draw.")
@click.option("--gpu", default=-1, type=click.IntRange(-1), help="CUDA device; -1 is the CPU.")
@click.option("--num_workers", default=0, type=click.IntRange(0), help="Worker processes that make crops.")
def main(out: Path, images: Path, weights: str, held_out: tuple[str, ...], crops: int, batch: int, side: int,
         rate: float, seed: int, gpu: int, num_workers: int) -> None:  # fmt: skip
    """Distil the ImageNet ResNet-18 into the embedded backbone, in OUT."""
    files = find_photographs(images, held_out)
    settings = {"pictures": files.digest(), "crops": crops, "batch": batch, "side": side, "rate": rate, "seed": seed}
    distil(out, files, weights, settings, choose_device((gpu,)), num_workers)


def distil(
    out: Path, files: FileTextures, weights: str, settings: dict[str, Any], device: torch.device, workers: int
) -> None:
    """Train, or resume a training, and write the weights at the end.

    Args:
        out: folder of the state, the losses and the weights.
        files: the photographs.
        weights: of the teacher, see `backbones.load`.
        settings: crops, batch, side, rate, seed and a digest of the images; to resume, they have to be the same.
        device: of student and teacher.
        workers: number of processes that make crops.

    Raises:
        InputError: the weights do not fit, or `out` was begun with other settings.
        WorkError: an image or the state cannot be read.
    """
    cv2.setNumThreads(1)
    make_folder(out, "OUT")
    side, batch, steps = settings["side"], settings["batch"], -(-settings["crops"] // settings["batch"])
    teacher = NetworkFeatureAggregator(
        backbones.load("resnet18", weights), LAYERS, device, (3, side, side), False, torch.bfloat16
    )
    settings = {**settings, "teacher": teacher.fingerprint}
    work = Distillation(teacher, device, steps, settings["rate"], settings["seed"])
    photographs = read_photographs(files)
    unseen = Crops(photographs, settings["seed"] + 1, batch, side, VALIDATION_BATCHES)
    validation = [unseen[i] for i in range(VALIDATION_BATCHES)]
    first, seconds, state_path = 0, 0.0, out / "distil.pth"
    if state_path.exists():
        state = _read_state(state_path, device, settings)
        work.load(state)
        first, seconds = state["step"], state["seconds"]
    else:
        work.learn_scales([unseen[VALIDATION_BATCHES + i] for i in range(SCALE_BATCHES)])
    dataset = Crops(photographs, settings["seed"], batch, side, steps)
    loader = DataLoader(dataset, batch_size=None, sampler=range(first, steps), num_workers=workers)
    started, losses = time.monotonic() - seconds, []
    for number, crops in _with_bar(loader, first, steps, batch):
        losses.append(work.step(number, crops))
        if (number + 1) % SAVE_EVERY == 0 or number + 1 == steps:
            seconds = time.monotonic() - started
            row = _row(work, number + 1, losses, validation, batch, seconds)
            saving.save({**work.state(), "asked": settings, "step": number + 1, "seconds": seconds}, state_path)
            _append(out / "distil.csv", row)
            losses = []
    factors = match_scale(work, validation)
    click.echo(f"{EMBEDDED_FILE.name}: layer2 scaled by {factors[0]:.4f}, layer3 by {factors[1]:.4f}")
    save_weights(work.student, out / EMBEDDED_FILE.name)


def _read_state(path: Path, device: torch.device, settings: dict[str, Any]) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        before = dict(state["asked"])
    except Exception as error:  # unpickling, zip and tensor errors of a damaged or foreign file
        raise WorkError(f"{path}: {unreadable(error)}; move it away to start again") from error
    differing = [f"{key} was {before.get(key)}, is {v}" for key, v in settings.items() if before.get(key) != v]
    if differing:
        raise InputError(f"{path} was begun with other settings ({'; '.join(differing)}); give another OUT")
    return state


def _row(
    work: Distillation, step: int, losses: list[dict[str, float]], validation: list[Tensor], batch: int, seconds: float
) -> dict[str, Any]:
    """A row of distil.csv: the mean losses since the last row, and the explained variance."""
    explained = work.explained(validation)
    row = {name: round(sum(values[name] for values in losses) / len(losses), 5) for name in losses[0]}
    row |= {"step": step, "crops": step * batch, "explained2": round(explained[0], 4), "seconds": round(seconds)}
    row |= {"explained3": round(explained[1], 4), "rate": f"{work.optimiser.param_groups[0]['lr']:.2e}"}
    return row


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
