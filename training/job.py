"""What the parts of a run share: its settings, its backbones, its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from datasets import ImageSettings, Layout, Sample, TestDataset, inventory
from datasets.cache import ImageCache
from datasets.check import Problem, drop_bad
from datasets.defects import Pair, of_class
from datasets.geometry import Size, Tiling
from datasets.inventory import Inventory
from datasets.textures import Textures
from datasets.tiles import TiledTestDataset, tiles_of
from inference import checkpoint
from training.record import Record

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Net:
    """A backbone with the layers used and the seed of what is trained on it. `name` is as given after -b."""

    name: str
    backbone: nn.Module
    layers: list[str]
    seed: int


@dataclass(frozen=True)
class ClassData:
    """One class: its samples and how its images are prepared. `image_sizes` are (width, height) in pixels.

    tiling: how its pictures are cut; None takes them whole. `settings` are then those of a tile.
    """

    name: str
    row: str
    train: list[Sample]
    test: list[Sample]
    settings: ImageSettings
    held_out: list[Sample]
    image_sizes: dict[Path, tuple[int, int]] = field(default_factory=dict)
    tiling: Tiling | None = None

    def seen(self, samples: Sequence[Sample]) -> list[Sample]:
        """What the model sees of samples: themselves, or their tiles."""
        return list(samples) if self.tiling is None else tiles_of(samples, self.tiling, self.image_sizes)

    def test_set(self, cache: ImageCache) -> TestDataset:
        """The test images, whole or in tiles."""
        if self.tiling is None or not self.test:
            return TestDataset(self.test, self.settings, cache)
        return TiledTestDataset(self.test, self.settings, self.tiling, self.image_sizes, cache)

    @property
    def median_size(self) -> tuple[int, int]:
        """(width, height) of the training pictures, of the test's where there are none."""
        sizes = [self.image_sizes[sample.path] for sample in self.train or self.test]
        return tuple(np.median(sizes, axis=0).round().astype(int).tolist())

    def without(self, problems: Sequence[Problem]) -> ClassData:
        """The class without the images that cannot be read."""
        parts = {name: drop_bad(getattr(self, name), problems) for name in ("train", "test", "held_out")}
        return replace(self, **parts)


@dataclass(frozen=True)
class KeptTextures:
    """The first `count` textures, kept in memory as they are after resizing to `resize`."""

    resize: Size | None
    cache: ImageCache
    count: int


@dataclass
class Run:
    """All that the classes of a run have in common.

    budget: bytes for what is kept in memory, of which `texture_room` may be textures.
    """

    main: Options
    net: Options
    dataset: Options
    device: torch.device
    results: Path
    models: Path
    layout: Layout
    nets: list[Net]
    textures: Textures | None
    defects: list[Pair]
    budget: int
    texture_room: int = 0
    kept_textures: KeptTextures | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    fingerprints: dict[Path, str] = field(default_factory=dict)  # of files' contents, as far as they were read
    trained: bool = False  # whether this run trained anything
    noted: str = ""  # when this call was noted in the settings

    @property
    def training(self) -> bool:
        """Whether classes are trained, not only tested."""
        return self.main["test"] == "ckpt"

    def defects_of(self, name: str) -> list[Pair]:
        """The known defects of a class."""
        return of_class(self.defects, self.dataset["defects"], name, self.layout.classes()) if self.defects else []

    def finished(self, data: ClassData) -> bool:
        """Whether a class is trained already, with every backbone."""
        return all(self.is_trained(self.folder(i) / data.row) for i in range(len(self.nets)))

    def is_trained(self, folder: Path) -> bool:
        """Whether the training of a class's folder is over."""
        latest = checkpoint.read_latest(folder)
        if latest is None:
            return checkpoint.find_best(folder) is not None
        record = latest.get("record")
        return isinstance(record, dict) and Record.of(record).is_over(self.net["meta_epochs"], self.net["patience"])

    def inventory_of(self, data: ClassData, foreground: bool) -> Inventory:
        """The files that a class's training comes from; with the user's foreground masks where `foreground`.

        Good images that a layout keeps for the test count as well: which ones these are depends on what there is.
        """
        parts = {inventory.TRAIN: [s.path for s in data.train], inventory.TEST: [s.path for s in data.held_out]}
        if foreground:
            parts[inventory.FOREGROUND] = self.layout.foreground(data.name, data.train) or []
        return Inventory.of(self.layout.root, parts, self.fingerprints)

    def folder(self, index: int) -> Path:
        """The checkpoints of all classes with one of several backbones."""
        return self.models / f"backbone_{index}"

    def row_of(self, data: ClassData, net: Net) -> str:
        """What a class is called in the results, with one of several backbones."""
        return data.row if len(self.nets) == 1 else f"{data.row} {net.name}"

    def trains(self, data: ClassData) -> bool:
        """Whether there is anything left to train of a class."""
        return self.training and not self.finished(data)
