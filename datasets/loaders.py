"""Loaders, whose workers can be ended, and the sampler that makes epochs reproducible."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from utils import cores


class EpochSampler(Sampler):
    """Keys (epoch, index) of one epoch, shuffled by seed and epoch.

    Args:
        size: of the data set.
        seed: of the shuffle.
        count: how many keys an epoch has; by default all.
        least: an epoch has at least as many keys; it goes through the images several times for that.
        shuffle: whether to shuffle; otherwise the keys are in order.

    Attributes:
        known: tells whether the features of an image are known; with it, keys are (epoch, index, whether the image is
            wanted).
    """

    known: Callable[[int], bool] | None = None

    def __init__(self, size: int, seed: int, count: int | None = None, shuffle: bool = True, least: int = 0) -> None:
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.count = max(min(size, count or size), least if size else 0)
        self.passes = -(-self.count // size) if size else 1
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        keys: list[tuple[int, int]] = []
        for epoch in range(self.epoch * self.passes, (self.epoch + 1) * self.passes):
            order = np.arange(self.size)
            if self.shuffle:
                np.random.default_rng([self.seed, epoch]).shuffle(order)
            keys += [(epoch, int(i)) for i in order]
        keys = keys[: self.count]
        known = self.known
        return iter(keys if known is None else [(epoch, i, not known(i)) for epoch, i in keys])


def _use_one_thread(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism


def _collate(items: list[Any]) -> Any:
    """A batch; a key that only some items have is collated over those."""
    if not isinstance(items[0], dict):
        return default_collate(items)
    names = dict.fromkeys(name for item in items for name in item)
    return {name: default_collate([item[name] for item in items if name in item]) for name in names}


class Loader(DataLoader):
    """A loader whose workers can be ended before the loader is deleted."""

    def end_workers(self) -> None:
        """End the workers that wait for the next iteration, which would start new ones."""
        self._iterator = None


def end_workers(loader: Any) -> None:
    """End the waiting workers of a loader, if it has any."""
    if isinstance(loader, Loader):
        loader.end_workers()


def make_loader(
    dataset: Dataset,
    batch_size: int,
    num_workers: int,
    sampler: Sampler | None = None,
    keep_workers: bool = True,
    pin_memory: bool = False,
) -> Loader:
    """A loader with at most as many workers as the machine has cores, which `keep_workers` keeps between epochs."""
    workers = min(num_workers, cores(), -(-len(dataset) // batch_size))
    return Loader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=keep_workers and workers > 0,
        worker_init_fn=_use_one_thread,
        collate_fn=_collate,
        pin_memory=pin_memory,
    )
