"""Make the embedded backbone: a half-width ResNet-18 learns to give the features of the ImageNet ResNet-18.

    python -m tools.distil --weights pretrained --images DTD OUT

OUT keeps the state (distil.pth), the losses (distil.csv) and, at the end, resnet18_half.safetensors. The same command
goes on where it was stopped. The student's layer2 and layer3, each through a linear map that is thrown away afterwards,
are to equal the teacher's; besides, how far any two places lie apart is to be alike without the map, since distances
are what anomaly detection lives on.
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
from tqdm import tqdm

import backbones
from commands.command import CONTEXT, Command
from commands.parameters import Finite
from common import NetworkFeatureAggregator
from datasets.textures import FileTextures
from embedded import FILE, WIDTH, HalfResNet18
from inference import checkpoint
from tools.pictures import Crops, find_photographs, read_photographs
from utils import IMAGENET_MEAN, IMAGENET_STD, InputError, WorkError, choose_device, make_folder, seeded, write_bytes

LAYERS = ("layer2", "layer3")
TEACHER_CHANNELS, STUDENT_CHANNELS = (128, 256), (2 * WIDTH, 4 * WIDTH)
PAIRS = 4096  # places whose distances are compared, a layer and step
DISTANCES = 0.25  # weight of that
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
SAVE_EVERY = 200  # steps
COLUMNS = ("step", "crops", "loss", "layer2", "layer3", "distances", "explained2", "explained3", "rate", "seconds")


class Distillation:
    """Teacher, student and what trains it.

    Args:
        teacher: gives the maps of layer2 and layer3.
        device: of student and teacher.
        steps: in all; the learning rate falls to 0 at the last one.
        rate: the highest learning rate.
        seed: of the student's first weights.
    """

    def __init__(
        self, teacher: NetworkFeatureAggregator, device: torch.device, steps: int, rate: float, seed: int
    ) -> None:
        self.teacher, self.device, self.steps, self.rate = teacher, device, steps, rate
        with seeded(seed):
            self.student = HalfResNet18().to(device, memory_format=torch.channels_last).train()
            pairs = zip(STUDENT_CHANNELS, TEACHER_CHANNELS, strict=True)
            self.maps = nn.ModuleList(nn.Conv2d(own, theirs, 1) for own, theirs in pairs).to(device)
        # of the teacher's channels: (C_l,) each
        self.mean, self.scale = [torch.zeros(0)] * 2, [torch.ones(0)] * 2
        self.own: dict[str, Tensor] = {}
        for name in LAYERS:
            self.student.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, n=name: self.own.update({n: out})
            )
        parameters = [*self.student.parameters(), *self.maps.parameters()]
        decaying = [p for p in parameters if p.ndim > 1]
        rest = [p for p in parameters if p.ndim <= 1]
        groups = [{"params": decaying, "weight_decay": 0.02}, {"params": rest, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=rate)

    def normalise(self, crops: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 → (B, 3, H, W) as ImageNet networks want it."""
        x = crops.to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last)

    def learn_scales(self, batches: Sequence[Tensor]) -> None:
        """Mean and deviation of the teacher's channels, so that none counts for more than another by its size."""
        maps = [self.teacher(self.normalise(batch)) for batch in batches]
        for i in range(len(LAYERS)):
            values = torch.cat([m[i].transpose(0, 1).flatten(1) for m in maps], dim=1).float()
            deviation = values.std(1)
            self.mean[i] = values.mean(1)
            self.scale[i] = deviation.clamp_min(0.25 * float(deviation.median()))  # but a dead one does not count

    def targets(self, x: Tensor) -> list[Tensor]:
        """The teacher's maps, [(B, C_l, H_l, W_l), …], scaled."""
        with torch.no_grad():
            maps = self.teacher(x)
        pairs = zip(maps, self.mean, self.scale, strict=True)
        return [(m.float() - mean.view(-1, 1, 1)) / scale.view(-1, 1, 1) for m, mean, scale in pairs]

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(B, 3, H, W) → the student's own maps, and the same through the linear maps, as `targets` gives them."""
        with torch.autocast(self.device.type, torch.bfloat16):
            self.student(x)
            own = [self.own.pop(name) for name in LAYERS]
            mapped = [m(o).float() for m, o in zip(self.maps, own, strict=True)]
        return [o.float() for o in own], mapped

    def step(self, number: int, crops: Tensor) -> dict[str, float]:
        """One step; its losses."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate_at(number)
        x = self.normalise(crops)
        targets = self.targets(x)
        own, mapped = self.forward(x)
        losses = [F.smooth_l1_loss(m, t) for m, t in zip(mapped, targets, strict=True)]
        generator = torch.Generator().manual_seed(number)
        apart = sum(_distances(o, t, generator) for o, t in zip(own, targets, strict=True))
        loss = sum(losses) + DISTANCES * apart
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        values = {"loss": loss, "layer2": losses[0], "layer3": losses[1], "distances": apart}
        return {name: float(value.detach()) for name, value in values.items()}

    def _rate_at(self, number: int) -> float:
        warm = min(1.0, (number + 1) / 200)
        return self.rate * warm * 0.5 * (1 + math.cos(math.pi * number / self.steps))

    @torch.no_grad()
    def explained(self, batches: Sequence[Tensor]) -> tuple[float, float]:
        """Share of the teacher's variance that the student explains, a layer; at most 1."""
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
        """Everything that a resume needs."""
        return {
            "student": self.student.state_dict(), "maps": self.maps.state_dict(),
            "optimiser": self.optimiser.state_dict(), "mean": self.mean, "scale": self.scale,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        for name in ("student", "maps", "optimiser"):
            getattr(self, name).load_state_dict(state[name])
        self.mean, self.scale = state["mean"], state["scale"]


def _distances(own: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
    """How differently pairs of places lie apart in two maps (B, C, H, W), each by its own mean distance."""
    places = own.shape[0] * own.shape[2] * own.shape[3]
    pairs = torch.randint(places, (2, PAIRS), generator=generator).to(own.device)
    apart = []
    for x in (own, target):
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)
        squared = (rows[pairs[0]] - rows[pairs[1]]).square().sum(1)
        distance = (squared + 1e-6).sqrt()
        apart.append(distance / distance.mean().clamp_min(1e-6))
    return F.smooth_l1_loss(apart[0], apart[1])


def scale_outputs(student: HalfResNet18, factors: Sequence[float]) -> None:
    """Multiply what layer2 and layer3 give by a factor each, exactly, and change nothing else.

    ReLU lets a positive factor pass: the norms at the end of a block take it in, and what reads the block takes it out.
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
    """Let the student's channels deviate as much as the teacher's do on average: the noise of GLASS is no relative one.

    Returns:
        The factor of each layer.
    """
    work.student.eval()
    deviations = [[0.0, 0.0], [0.0, 0.0]]
    for batch in batches:
        x = work.normalise(batch)
        work.student(x)
        own = [work.own.pop(name) for name in LAYERS]
        for i, pair in enumerate(zip(own, work.teacher(x), strict=True)):
            for j, one in enumerate(pair):
                deviations[i][j] += float(one.float().std((0, 2, 3)).square().mean())
    factors = [math.sqrt(theirs / ours) for ours, theirs in deviations]
    scale_outputs(work.student, factors)
    return factors


def save_weights(student: nn.Module, path: Path) -> None:
    """float16; what batch norms have measured stays float32, whose range it may need."""
    kept = {k: v for k, v in student.state_dict().items() if not k.endswith("num_batches_tracked")}
    tensors = {k: (v if "running" in k else v.half()).contiguous().cpu() for k, v in kept.items()}
    write_bytes(path, as_safetensors(tensors))


def _steps(loader: DataLoader, first: int, total: int, batch: int) -> Iterator[tuple[int, Tensor]]:
    with tqdm(total=total * batch, initial=first * batch, unit="crop", mininterval=5, dynamic_ncols=True) as bar:
        for number, crops in enumerate(loader, first):
            yield number, crops
            bar.update(batch)


@click.command("distil", cls=Command, context_settings=CONTEXT)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--images", type=FOLDER, required=True, help="Folder of photographs, at any depth.")
@click.option("--weights", default="pretrained", help="Of the ImageNet ResNet-18.")
@click.option("--held_out", multiple=True, help="Name of a folder below --images to leave out; may be repeated.")
@click.option("--crops", default=600_000, type=click.IntRange(1), help="To look at in all.")
@click.option("--batch", default=64, type=click.IntRange(2), help="Crops a step.")
@click.option("--side", default=128, type=click.IntRange(64), help="Of a crop, in pixels.")
@click.option("--rate", default=2e-3, type=Finite(0, 1, min_open=True), help="Highest learning rate.")
@click.option("--seed", default=0, type=click.IntRange(0, 2**32 - 1), help="Start of every random draw.")
@click.option("--gpu", default=-1, type=click.IntRange(-1), help="Index; -1 is the CPU.")
@click.option("--num_workers", default=0, type=click.IntRange(0), help="Processes that make crops.")
def main(out: Path, images: Path, weights: str, held_out: tuple[str, ...], crops: int, batch: int, side: int,
         rate: float, seed: int, gpu: int, num_workers: int) -> None:  # fmt: skip
    """Distil the ImageNet ResNet-18 into the embedded backbone, in OUT."""
    files = find_photographs(images, held_out)
    asked = {"pictures": files.digest(), "crops": crops, "batch": batch, "side": side, "rate": rate, "seed": seed}
    distil(out, files, weights, asked, choose_device((gpu,)), num_workers)


def distil(
    out: Path, files: FileTextures, weights: str, asked: dict[str, Any], device: torch.device, workers: int
) -> None:
    """Train, or go on training, and write the weights when done.

    Args:
        out: folder of the state, the losses and the weights.
        files: the photographs.
        weights: of the teacher, as `backbones.load` takes them.
        asked: settings that may not change when going on: crops, batch, side, rate, seed and what tells the pictures.
        workers: processes that make crops.

    Raises:
        InputError: the weights do not fit, or `out` was begun with something else.
        WorkError: a picture or the state cannot be read.
    """
    cv2.setNumThreads(1)
    make_folder(out, "OUT")
    batch, steps = asked["batch"], -(-asked["crops"] // asked["batch"])
    teacher = NetworkFeatureAggregator(
        backbones.load("resnet18", weights), LAYERS, device, (3, asked["side"], asked["side"]), False, torch.bfloat16
    )
    asked = {**asked, "teacher": teacher.fingerprint}
    work = Distillation(teacher, device, steps, asked["rate"], asked["seed"])
    photographs = read_photographs(files)
    dataset = Crops(photographs, asked["seed"], batch, asked["side"], steps)
    unseen = Crops(photographs, asked["seed"] + 1, batch, asked["side"], 8)
    judged = [unseen[i] for i in range(8)]
    first, spent, latest = 0, 0.0, out / "distil.pth"
    if latest.exists():
        state = _read_state(latest, device, asked)
        work.load(state)
        first, spent = state["step"], state["seconds"]
    else:
        work.learn_scales([unseen[8 + i] for i in range(16)])
    loader = DataLoader(dataset, batch_size=None, sampler=range(first, steps), num_workers=workers)
    began, seen = time.monotonic() - spent, []
    for number, crops in _steps(loader, first, steps, batch):
        seen.append(work.step(number, crops))
        if (number + 1) % SAVE_EVERY == 0 or number + 1 == steps:
            spent = time.monotonic() - began
            row = _row(work, number + 1, seen, judged, batch, spent)
            checkpoint.save({**work.state(), "asked": asked, "step": number + 1, "seconds": spent}, latest)
            _log(out / "distil.csv", row)
            seen = []
    factors = match_scale(work, judged)
    click.echo(f"{FILE.name}: layer2 scaled by {factors[0]:.4f}, layer3 by {factors[1]:.4f}")
    save_weights(work.student, out / FILE.name)


def _read_state(path: Path, device: torch.device, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        begun = dict(state["asked"])
    except Exception as error:  # unpickling, zip and tensor errors of a damaged or foreign file
        raise WorkError(f"{path}: {checkpoint.unreadable(error)}; take it away to begin anew") from error
    other = [f"{key} was {begun.get(key)}, is {value}" for key, value in asked.items() if begun.get(key) != value]
    if other:
        raise InputError(f"{path} was begun otherwise ({'; '.join(other)}); take another OUT")
    return state


def _row(
    work: Distillation, step: int, seen: list[dict[str, float]], judged: list[Tensor], batch: int, seconds: float
) -> dict[str, Any]:
    explained = work.explained(judged)
    row = {name: round(sum(one[name] for one in seen) / len(seen), 5) for name in seen[0]}
    row |= {"step": step, "crops": step * batch, "explained2": round(explained[0], 4), "seconds": round(seconds)}
    row |= {"explained3": round(explained[1], 4), "rate": f"{work.optimiser.param_groups[0]['lr']:.2e}"}
    return row


def _log(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
