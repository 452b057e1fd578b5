"""The data that the parts of a run share: its options, its backbones, its classes."""

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
from datasets.roi import RegionOfInterest
from datasets.textures import Textures
from datasets.tiles import TiledTestDataset, tiles_of
from inference import checkpoint
from training.record import Record

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Net:
    """A backbone with the layers used and the seed of the model trained on it; `name` is the value of -b."""

    name: str
    backbone: nn.Module
    layers: list[str]
    seed: int


@dataclass(frozen=True)
class ClassData:
    """One class: its samples and the preparation of its images.

    Attributes:
        name: of the class in the data set.
        row: name of the class in tables, folders and checkpoints.
        train, test: its samples.
        settings: of its images; with `tiling` those of a tile.
        held_out: good samples among `test` that the layout keeps for the test.
        image_sizes: (width, height) of the images in pixels.
        tiling: how images are cut into tiles; None uses whole images.
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
        """The samples that the model sees: the given ones, or their tiles."""
        return list(samples) if self.tiling is None else tiles_of(samples, self.tiling, self.image_sizes)

    def test_set(self, cache: ImageCache) -> TestDataset:
        """The test images, whole or in tiles."""
        if self.tiling is None or not self.test:
            return TestDataset(self.test, self.settings, cache)
        return TiledTestDataset(self.test, self.settings, self.tiling, self.image_sizes, cache)

    @property
    def median_size(self) -> tuple[int, int]:
        """Median (width, height) of the training images; of the test images if there are none."""
        sizes = [self.image_sizes[sample.path] for sample in self.train or self.test]
        return tuple(np.median(sizes, axis=0).round().astype(int).tolist())

    def without(self, problems: Sequence[Problem]) -> ClassData:
        """The class without the images that cannot be read."""
        parts = {name: drop_bad(getattr(self, name), problems) for name in ("train", "test", "held_out")}
        return replace(self, **parts)


@dataclass(frozen=True)
class KeptTextures:
    """The first `count` textures in memory, resized to `resize`."""

    resize: Size | None
    cache: ImageCache
    count: int


@dataclass
class Run:
    """Everything that the classes of a run have in common.

    Attributes:
        main, net, dataset: options of the three commands, by name.
        device: of the computation.
        results: the results folder.
        models: folder of the checkpoints.
        layout: of the data set.
        nets: the backbones.
        textures: None without training.
        defects: known defects of all classes.
        roi: the region of interest of --roi; None without the option.
        budget: memory for images and textures in bytes; at most `texture_room` of it is for textures.
        rows: figures of the classes, by the name of their row.
        configs: settings of the chosen checkpoints.
        fingerprints: digests of the files read so far.
        trained: whether this run trained anything.
        noted: time at which this run was noted in settings.json.
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
    fingerprints: dict[Path, str] = field(default_factory=dict)
    trained: bool = False
    noted: str = ""
    roi: RegionOfInterest | None = None

    @property
    def training(self) -> bool:
        """Whether classes are trained and not only tested."""
        return self.main["test"] == "ckpt"

    def defects_of(self, name: str) -> list[Pair]:
        """The known defects of a class."""
        return of_class(self.defects, self.dataset["defects"], name, self.layout.classes()) if self.defects else []

    def finished(self, data: ClassData) -> bool:
        """Whether the training of a class is over with every backbone."""
        return all(self.is_trained(self.folder(i) / data.row) for i in range(len(self.nets)))

    def is_trained(self, folder: Path) -> bool:
        """Whether the training in the folder of a class is over."""
        latest = checkpoint.read_latest(folder)
        if latest is None:
            return checkpoint.find_best(folder) is not None
        record = latest.get("record")
        return isinstance(record, dict) and Record.of(record).is_over(self.net["meta_epochs"], self.net["patience"])

    def inventory_of(self, data: ClassData, foreground: bool) -> Inventory:
        """The files that the training of a class depends on; with `foreground`, also the user's foreground masks.

        They include good images that a layout keeps for the test, since their choice depends on all good images.
        """
        parts = {inventory.TRAIN: [s.path for s in data.train], inventory.TEST: [s.path for s in data.held_out]}
        if foreground:
            parts[inventory.FOREGROUND] = self.layout.foreground(data.name, data.train) or []
        return Inventory.of(self.layout.root, parts, self.fingerprints)

    def folder(self, index: int) -> Path:
        """The folder of the checkpoints of all classes with one backbone."""
        return self.models / f"backbone_{index}"

    def row_of(self, data: ClassData, net: Net) -> str:
        """The name of a class in the results, with the name of the backbone if there are several."""
        return data.row if len(self.nets) == 1 else f"{data.row} {net.name}"

    def trains(self, data: ClassData) -> bool:
        """Whether this run still has to train a class."""
        return self.training and not self.finished(data)
