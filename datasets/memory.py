"""How much memory this process may still take, within the limits of its control groups."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ASSUMED_FREE = 4 << 30  # bytes, where the system does not report it


class GroupFiles(NamedTuple):
    """Where a version of control groups keeps its figures.

    limits: files that hold a limit in bytes; above memory.high the kernel slows processes down.
    usage: the file that holds the memory in use, in bytes.
    page_cache: entries of memory.stat that are page cache of files; in version 1 those that include child groups.
    """

    limits: Sequence[str]
    usage: str
    page_cache: Sequence[str]


VERSION_2 = GroupFiles(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))
VERSION_1 = GroupFiles(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process could still take, within the limits of the control groups it belongs to.

    Args:
        root: of the file system that /proc and /sys are read from.
    """
    left = [_left_in_group(group, files) for groups, files in _control_groups(root) for group in groups]
    return min([system_free(root) or ASSUMED_FREE, *(amount for amount in left if amount is not None)])


def system_free(root: Path = Path("/")) -> int | None:
    """Bytes of memory that the system reports as available; None if it reports nothing."""
    available = _read_entries(root / "proc/meminfo", ("MemAvailable:",))
    if available:
        return available[0] * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # neither Windows nor macOS has both
        return None


def _left_in_group(group: Path, files: GroupFiles) -> int | None:
    """Bytes left below the limit of one control group, given its folder; None if it has no limit.

    Page cache of files counts as free, active or not: the kernel drops both kinds before it refuses memory to a
    process, and MemAvailable counts both. A tmpfs is not part of it, as its content can only be swapped out.
    """
    limits = [limit for limit in (_read_number(group / name) for name in files.limits) if limit is not None]
    used = _read_number(group / files.usage)
    if not limits or used is None:
        return None
    droppable = sum(_read_entries(group / "memory.stat", files.page_cache))
    return max(0, min(limits) - max(0, used - droppable))


def _control_groups(root: Path) -> Iterator[tuple[list[Path], GroupFiles]]:
    """For each kind of hierarchy the groups that limit this process, its own and those above it."""
    group_paths = {}  # of this process, by controller; "" stands for version 2
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            group_paths[controller] = path
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(" ", 2), "", ""][:3]
        if kind == "cgroup2":
            path, files = group_paths.get(""), VERSION_2
        elif kind == "cgroup" and "memory" in options.split(","):
            path, files = group_paths.get("memory"), VERSION_1
        else:
            continue
        mounted, mount_point = [*fields.split(" "), *[""] * 5][3:5]
        mount = root / _unescape(mount_point).lstrip("/")
        yield _with_parents(mount, _below(path or "/", _unescape(mounted))), files


def _below(group: str, mounted: str) -> str:
    """The path of a group below the mounted part of its hierarchy; "", the mount itself, if it lies elsewhere."""
    if mounted != "/" and not f"{group}/".startswith(f"{mounted}/"):
        return ""
    below = group[len(mounted.rstrip("/")) :].strip("/")
    return "" if ".." in below.split("/") else below  # a group above the root of this process's namespace


def _with_parents(mount: Path, below: str) -> list[Path]:
    """The folder of a group, and those of all groups above it, up to the mount point of the hierarchy."""
    parts = [part for part in below.split("/") if part]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _unescape(path: str) -> str:
    """A path of mountinfo, in which blanks are octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _read_entries(path: Path, names: Sequence[str]) -> list[int]:
    """The values of some entries in a file of lines `name value`."""
    pairs = [line.split() for line in _lines(path)]
    return [int(pair[1]) for pair in pairs if len(pair) > 1 and pair[0] in names]


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such file, or "max"
        return None
