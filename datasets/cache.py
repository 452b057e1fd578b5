"""Decoded, resized pictures kept in memory that the loader's workers share."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

GB = 1 << 30
ASSUMED_FREE = 4 * GB  # where the system does not tell
SHARE_OF_FREE = 0.25
# of a control group: the files of its limits and its usage, and the entries of memory.stat that are page cache of
# files, in version 1 those that include the groups below. Above memory.high the kernel slows processes down
VERSION_2 = ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")
VERSION_1 = ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")


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


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process could still take, within the limits of the control groups it is in.

    Args:
        root: of the file system that /proc and /sys are read from.
    """
    left = [_left(group, *of) for groups, of in _control_groups(root) for group in groups]
    return min([_system_free(root) or ASSUMED_FREE, *(one for one in left if one is not None)])


def _left(group: Path, limits: Sequence[str], usage: str, page_cache: Sequence[str]) -> int | None:
    """Bytes left below the limit of one control group; None where it has none.

    Page cache of files counts as free, active or not: the kernel drops both kinds before a process is refused memory,
    and MemAvailable counts both. What lies in a tmpfs is not among them, as it can only be swapped out.

    Args:
        group: its folder.
        limits, usage: names of the files in it that hold the limits and what is used, in bytes.
        page_cache: entries of its `memory.stat` that are page cache of files.
    """
    most = [one for one in (_read_number(group / name) for name in limits) if one is not None]
    used = _read_number(group / usage)
    if not most or used is None:
        return None
    return max(0, min(most) - max(0, used - sum(_read_entries(group / "memory.stat", page_cache))))


def _control_groups(root: Path) -> Iterator[tuple[list[Path], tuple[Sequence[str], str, Sequence[str]]]]:
    """The groups that limit this process, its own and those above it, in each kind of hierarchy; how to read them."""
    own = {}  # path of this process's group in the hierarchy, "" is version 2
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            own[controller] = path
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(" ", 2), "", ""][:3]
        if kind == "cgroup2":
            path, of = own.get(""), VERSION_2
        elif kind == "cgroup" and "memory" in options.split(","):
            path, of = own.get("memory"), VERSION_1
        else:
            continue
        inside, mounted = [*fields.split(" "), *[""] * 5][3:5]
        yield _upwards(root / _unescaped(mounted).lstrip("/"), _below(path or "/", _unescaped(inside))), of


def _below(group: str, mounted: str) -> str:
    """The path of a group below what is mounted of its hierarchy; the mount itself where it lies elsewhere."""
    if mounted != "/" and not f"{group}/".startswith(f"{mounted}/"):
        return ""
    below = group[len(mounted.rstrip("/")) :].strip("/")
    return "" if ".." in below.split("/") else below  # a group above the root of this process's namespace


def _upwards(mount: Path, below: str) -> list[Path]:
    """The folder of a group, and those of all groups above it, up to where the hierarchy is mounted."""
    parts = [part for part in below.split("/") if part]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _unescaped(path: str) -> str:
    """A path of mountinfo, where blanks are octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def describe_budget(gigabytes: float | None, budget: int) -> str:
    """Where a budget of `cache_budget` comes from, for the log."""
    if gigabytes is not None:
        return f"at most {budget / GB:.2f} GB"
    told = "" if _system_free() else " (how much is free cannot be told here: --cache_gb sets it)"
    return f"at most {budget / GB:.2f} GB, a quarter of free memory{told}"


def _system_free(root: Path = Path("/")) -> int | None:
    available = _read_entries(root / "proc/meminfo", ("MemAvailable:",))
    if available:
        return available[0] * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # neither Windows nor macOS has both
        return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _read_entries(path: Path, names: Sequence[str]) -> list[int]:
    """The numbers of some entries in a file of lines `name number`."""
    pairs = [line.split() for line in _lines(path)]
    return [int(pair[1]) for pair in pairs if len(pair) > 1 and pair[0] in names]


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return None
