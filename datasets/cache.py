"""Decoded, resized images, kept in memory that the workers of a loader share."""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.memory import free_memory, system_free

GB = 1 << 30
SHARE_OF_FREE = 0.25


class SharedBytes:
    """Zeroed memory that worker processes share, whether they are forked or spawned.

    A forked worker inherits an anonymous map. Unlike `multiprocessing.shared_memory`, it takes no room in /dev/shm
    (64 MB in many containers, and a write beyond it kills the process), and nothing of it is left behind when a run is
    killed. A spawned worker receives torch's shared memory, which the workers need for their batches anyway.

    Args:
        size: in bytes.
    """

    def __init__(self, size: int) -> None:
        forked = multiprocessing.get_start_method() == "fork"
        self._memory: Any = mmap.mmap(-1, size) if forked else torch.zeros(size, dtype=torch.uint8).share_memory_()
        self._view: NDArray[np.uint8] | None = None

    @property
    def array(self) -> NDArray[np.uint8]:
        """(size,) uint8, writable."""
        if self._view is None:
            memory = self._memory
            self._view = memory.numpy() if isinstance(memory, torch.Tensor) else np.frombuffer(memory, np.uint8)
        return self._view

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self._memory, torch.Tensor):
            raise TypeError("memory made for forked workers cannot be handed to spawned ones")
        return {"_memory": self._memory, "_view": None}


class ImageCache:
    """uint8 arrays by key, each made once and kept as long as the budget allows.

    First call `plan` for everything, in order of importance, then `allocate`, then `get`. What does not fit is made
    anew each time.

    Args:
        budget: in bytes.
        beneath: another cache, which is asked for what this one has no place for.
    """

    def __init__(self, budget: int, beneath: ImageCache | None = None) -> None:
        self.budget, self.used, self.beneath = int(budget), 0, beneath
        self._places: dict[Hashable, tuple[int, tuple[int, ...]]] = {}
        self._memory: SharedBytes | None = None

    def plan(self, key: Hashable, shape: tuple[int, ...]) -> bool:
        """Reserve room for an array of `shape`; returns whether there was any.

        Raises:
            RuntimeError: the memory is already allocated.
        """
        if self._memory is not None:
            raise RuntimeError("plan comes before get")
        size = 1 + int(np.prod(shape))  # the first byte tells whether the array is filled
        if key in self._places:
            return True
        if self.used + size > self.budget:
            return False
        self._places[key] = (self.used, tuple(shape))
        self.used += size
        return True

    def allocate(self) -> None:
        """Allocate the memory; before the workers start, since otherwise each would have its own."""
        if self._memory is None and self.used:
            self._memory = SharedBytes(self.used)

    def get(self, key: Hashable, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The array of a key, from `make` if it is not kept yet. It must not be written to."""
        place = self._places.get(key)
        if place is None or self._memory is None:
            return make() if self.beneath is None else self.beneath.get(key, make)
        start, shape = place
        memory = self._memory.array
        kept = memory[start + 1 : start + 1 + int(np.prod(shape))].reshape(shape)
        if not memory[start]:
            array = make()
            if array.shape != shape:  # the header of the file states a wrong size
                return array
            kept[:] = array
            memory[start] = 1  # set last: two workers at the same time write the same bytes
        return kept


def cache_budget(gigabytes: float | None) -> int:
    """Bytes that may be kept: as requested, otherwise a quarter of the free memory."""
    return int(gigabytes * GB) if gigabytes is not None else int(free_memory() * SHARE_OF_FREE)


def describe_budget(gigabytes: float | None, budget: int) -> str:
    """The result of `cache_budget` and where it comes from, for the log."""
    if gigabytes is not None:
        return f"at most {budget / GB:.2f} GB"
    unknown = "" if system_free() else " (the system does not report how much is free: --cache_gb sets it)"
    return f"at most {budget / GB:.2f} GB, a quarter of free memory{unknown}"
