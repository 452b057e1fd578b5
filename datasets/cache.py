"""Decoded, resized pictures kept in memory that the loader's workers share."""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

GB = 1 << 30
ASSUMED_FREE = 4 * GB  # where the system does not tell
# of a container: the present and the older kind of control groups
CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
SHARE_OF_FREE = 0.25


class SharedBytes:
    """Zeroed memory that worker processes see as one, whether they are forked or started afresh.

    A forked worker inherits an anonymous map, which needs no room in /dev/shm (64 MB in many containers); a
    started one is handed torch's shared memory.
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
            raise TypeError("memory made for forked workers cannot be handed to started ones")
        return {"_memory": self._memory, "_view": None}


class ImageCache:
    """uint8 arrays by key, each made once and kept while the budget lasts.

    Call `plan` for everything in order of importance, then `get`. What does not fit is made anew each time.

    Args:
        budget: bytes.
        beneath: another one, which is asked for what this one has no place for.
    """

    def __init__(self, budget: int, beneath: ImageCache | None = None) -> None:
        self.budget, self.used, self.beneath = int(budget), 0, beneath
        self._places: dict[Hashable, tuple[int, tuple[int, ...]]] = {}
        self._memory: SharedBytes | None = None

    def plan(self, key: Hashable, shape: tuple[int, ...]) -> bool:
        """Reserve room for an array of `shape`; whether there was any."""
        if self._memory is not None:
            raise RuntimeError("plan comes before get")
        size = 1 + int(np.prod(shape))  # a first byte says whether it is filled
        if key in self._places:
            return True
        if self.used + size > self.budget:
            return False
        self._places[key] = (self.used, tuple(shape))
        self.used += size
        return True

    def allocate(self) -> None:
        """Get the memory; before the workers start, or each would have its own."""
        if self._memory is None and self.used:
            self._memory = SharedBytes(self.used)

    def get(self, key: Hashable, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The array of a key, not to be written to, from `make` where it is not kept yet."""
        place = self._places.get(key)
        if place is None or self._memory is None:
            return make() if self.beneath is None else self.beneath.get(key, make)
        start, shape = place
        memory = self._memory.array
        kept = memory[start + 1 : start + 1 + int(np.prod(shape))].reshape(shape)
        if not memory[start]:
            made = make()
            if made.shape != shape:  # a header that lies about its size
                return made
            kept[:] = made
            memory[start] = 1  # last: two workers at the same time write the same bytes
        return kept


def cache_budget(gigabytes: float | None) -> int:
    """Bytes that may be kept: as given, else a quarter of the free memory."""
    return int(gigabytes * GB) if gigabytes is not None else int(free_memory() * SHARE_OF_FREE)


def free_memory() -> int:
    """Bytes that this process could still take, a container's limit included."""
    free = _system_free() or ASSUMED_FREE
    for limit, usage in CGROUP_FILES:
        most, used = _read_number(f"/sys/fs/cgroup/{limit}"), _read_number(f"/sys/fs/cgroup/{usage}")
        if most is not None and used is not None:
            free = min(free, max(0, most - used))
    return free


def describe_budget(gigabytes: float | None, budget: int) -> str:
    """Where a budget of `cache_budget` comes from, for the log."""
    if gigabytes is not None:
        return f"at most {budget / GB:.2f} GB"
    told = "" if _system_free() else " (how much is free cannot be told here: --cache_gb sets it)"
    return f"at most {budget / GB:.2f} GB, a quarter of free memory{told}"


def _system_free() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # neither Windows nor macOS has both
        return None


def _read_number(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return None
