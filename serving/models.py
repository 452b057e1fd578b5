"""The models in use: found on the command line, entered in the store, and loaded once each."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference import checkpoint
from inference.inspector import Inspector, load_checkpoint
from inference.thresholds import Thresholds
from serving.recipes import Version, digest_of
from serving.reference import reference_of
from serving.store import Store
from utils import LOGGER, InputError, WorkError


@dataclass(frozen=True)
class Loaded:
    """A version of a recipe together with its model."""

    version: Version
    model: Inspector


def find_checkpoints(paths: Sequence[Path]) -> dict[str, Path]:
    """The checkpoints that paths of the command line mean, by class name.

    Args:
        paths: each a checkpoint, the folder of a class, or a folder that holds such folders at any depth.

    Raises:
        InputError: there is none, or two have the same class name.
        WorkError: one is damaged.
    """
    found: dict[str, Path] = {}
    for path in [chosen for given in paths for chosen in _chosen_below(given)]:
        config = checkpoint.read_plain(path).get("config")
        name = str(config.get("class_name", "")) if isinstance(config, dict) else ""
        if not name:
            raise WorkError(f"{path} does not say which class it was trained on; train it again with this version")
        if name in found:
            raise InputError(f"--models: {found[name]} and {path} are both of {name}; give one of the two")
        found[name] = path
    return found


def _chosen_below(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"--models {path}: no such file or folder; give a checkpoint or a folder of results")
    # rglob does not follow links to folders, which could lead back
    folders = sorted({p.parent for p in path.rglob("ckpt_best_*.pth")} | {p.parent for p in path.rglob("ckpt.pth")})
    chosen = [found[0] for folder in folders if (found := checkpoint.find_chosen(folder)) is not None]
    if not chosen:
        raise InputError(f"--models {path}: no ckpt_best_*.pth in it; give a checkpoint or a folder of results")
    return chosen


def register(store: Store, checkpoints: dict[str, Path]) -> None:
    """Enter checkpoints in the store that it does not know; a known one leaves the recipe as it is.

    Raises:
        WorkError: one cannot be copied.
    """
    for name, path in checkpoints.items():
        digest = digest_of(path)
        known = name in store.recipes.names()
        if known and any(version.digest == digest for version in store.recipes.versions(name)):
            continue
        thresholds = Thresholds.of(checkpoint.read_plain(path).get("thresholds"))
        image = None if thresholds is None else min(max(thresholds.image, 0.0), 1.0)
        figures = {"reference": reference_of(path)}
        version = store.recipes.add(name, path, image, image, "first", figures)
        if known:
            LOGGER.info("%s: %s is new, it becomes version %d and judges from now on", name, path, version.number)


class Shelf:
    """The models of the recipes that are served, in memory once each.

    Args:
        store: that knows the recipes.
        names: of the recipes.
        options: of `load_checkpoint`: device, weights, precision, max_pixels, min_area.

    Raises:
        InputError, WorkError: a model cannot be loaded.
    """

    def __init__(self, store: Store, names: Sequence[str], options: dict[str, Any]) -> None:
        self._store, self._options = store, options
        self._lock = threading.Lock()
        self._refused: dict[str, str] = {}  # recipe → digest of a checkpoint that cannot be loaded
        self._loaded = {name: self._load(store.recipes.active(name)) for name in names}

    def names(self) -> list[str]:
        """The recipes that are served, sorted."""
        return sorted(self._loaded)

    def current(self, recipe: str) -> Loaded:
        """The version that judges now, with its model, which is loaded if another process has activated it.

        A version whose model cannot be loaded is reported once, and the one before it goes on judging.
        """
        with self._lock:
            before, version = self._loaded[recipe], self._store.recipes.active(recipe)
            if version == before.version or self._refused.get(recipe) == version.digest:
                return before
            try:
                model = before.model if version.digest == before.version.digest else self._load(version).model
            except (InputError, WorkError, RuntimeError) as error:
                self._refused[recipe] = version.digest
                LOGGER.error("%s: version %d cannot be used: %s", recipe, version.number, error)
                return before
            self._refused.pop(recipe, None)
            self._loaded[recipe] = Loaded(version, model)
            LOGGER.info("%s: version %d judges from now on", recipe, version.number)
            return self._loaded[recipe]

    def model(self, recipe: str) -> Inspector:
        """The model in memory."""
        return self._loaded[recipe].model

    def _load(self, version: Version) -> Loaded:
        return Loaded(version, load_checkpoint(self._store.recipes.checkpoint(version), **self._options))


def limit_threads(cores: int) -> None:
    """Let PyTorch use at most as many threads as there are cores; OMP_NUM_THREADS may ask for fewer."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), cores)))
