"""The two kinds of errors; seeds, devices, logging, progress bars, printable names, and writing files."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import math
import os
import random
import secrets
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # this module must work without torch and tqdm, see CONTRIBUTING.md
    import torch

LOGGER = logging.getLogger("glass")
ROOT = Path(__file__).resolve().parent
PROGRESS_INTERVAL = 30  # seconds between lines of progress that do not go to a terminal
LONGEST_SUFFIX = 16  # bytes; a longer one is not a suffix that a library recognises
# plain words for a full disk and similar failures; the system's own words follow them in messages
NO_ROOM = {
    getattr(errno, "EDQUOT", errno.ENOSPC): "the disk quota is used up",  # not every system has quotas
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file is larger than the file system or a limit of this process (ulimit -f) allows",
}
# control characters, surrogates (a byte that is not UTF-8), line and paragraph separators
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
NONCHARACTERS = "\ufffe\uffff"  # not allowed in XML, and therefore not in Excel files
LONGEST_ROW = 120  # bytes; file names add suffixes to the name of a row, and file systems allow 255
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class InputError(ValueError):
    """The user's input cannot work; the message says what was given and what would work. Exit code 2."""


class WorkError(RuntimeError):
    """The request was valid but could not be carried out: an unreadable file, a full disk. Exit code 1."""


class _AboveBars(logging.StreamHandler):
    """A handler that writes log lines above a running progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 this is a log handler


def escape_what_cannot_be_printed() -> None:
    """Make standard output and error write `\\u2013` for a character outside their encoding instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def setup_logging() -> None:
    """Send log lines to standard error. Calling it again has no effect."""
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    if not LOGGER.handlers:
        handler = _AboveBars()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        LOGGER.addHandler(handler)


def fix_seeds(seed: int) -> None:
    """Seed every global random generator, for libraries that accept no generator."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which torch's generator on the CPU starts at `seed`; its previous state is restored afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the generators of all devices
        yield


def choose_device(gpus: tuple[int, ...]) -> torch.device:
    """The first of the requested devices that this machine has. A CUDA device becomes the current one of the process.

    Args:
        gpus: CUDA ordinals in order of preference, −1 for the CPU; if empty, the first CUDA device, else the CPU.

    Raises:
        InputError: this machine has none of them.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for gpu in gpus or (0, -1):
        if gpu == -1:
            return torch.device("cpu")
        if gpu < count:
            # otherwise operations without a device, such as pinning memory, would create a context on the first one
            torch.cuda.set_device(gpu)
            return torch.device("cuda", gpu)
    available = f"this machine has CUDA devices 0 to {count - 1}" if count else "this machine has no CUDA device"
    raise InputError(f"--gpu {', '.join(map(str, gpus))}: {available}; -1 is the CPU")


def choose_precision(requested: str, device: torch.device) -> str:
    """The precision to use, `fp32` or `bf16`; a warning if the device does not support a requested `bf16`.

    Args:
        requested: `fp32`, `bf16`, or `auto`, which is bf16 on CUDA with compute capability 8.0 or higher, else fp32.
        device: of the computation.
    """
    if requested == "fp32":
        return requested
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        supported, reason = major >= 8, f"compute capability {major}.{minor}, it needs 8.0 or higher"
    else:
        # this operator only exists in builds with oneDNN
        check = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        supported, reason = bool(check and check()), "the processor or this build of torch lacks it"
    if requested == "bf16" and not supported:
        LOGGER.warning("--precision bf16: %s does not support bfloat16 (%s); continuing in fp32", device, reason)
    return "bf16" if supported and (requested == "bf16" or device.type == "cuda") else "fp32"


class _LogProgress:
    """Logs a line of progress from time to time, where tqdm is not installed."""

    def __init__(self, total: int, unit: str, disable: bool) -> None:
        self._total, self._unit, self._done = total, unit, 0
        self._started = time.monotonic()
        self._logged = math.inf if disable else self._started

    def update(self, count: int) -> None:
        """Count further items that are done."""
        self._done += count
        now = time.monotonic()
        if now - self._logged >= PROGRESS_INTERVAL and self._done:
            left = (now - self._started) / self._done * (self._total - self._done)
            LOGGER.info("%d of %d %s, %d s left", self._done, self._total, self._unit, round(left))
            self._logged = now

    def __enter__(self) -> _LogProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def progress_bar(
    total: int | None, unit: str, description: str = "", initial: int = 0, leave: bool = True, disable: bool = False
) -> Any:
    """A progress bar of tqdm; without tqdm, a context with `update` that logs lines of progress.

    Args:
        total: number of items; None if it is unknown.
        unit: of an item.
        description: text before the bar.
        initial: number of items that are already done.
        leave: whether the bar stays on the screen at its end.
        disable: show nothing.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        return _LogProgress(total or 0, unit, disable)
    return tqdm(
        total=total, initial=initial, unit=unit, desc=description or None, leave=leave, disable=disable,
        dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else PROGRESS_INTERVAL,
    )  # fmt: skip


def refuse_former_command(name: str) -> int:
    """Name the command that took the place of a module, in one line on standard error; returns the exit code."""
    sys.stderr.write(f"Error: this module is no command; use python main.py {name}\n")
    return 2


def evenly_chosen(count: int, most: int) -> list[int]:
    """Indices of at most `most` of `count` items, ascending and evenly spaced, the first and the last among them."""
    chosen = min(count, most)
    if chosen < 2:
        return list(range(chosen))
    step = (count - 1) / (chosen - 1)
    return [*(int(i * step) for i in range(chosen - 1)), count - 1]


def cores() -> int:
    """The number of cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # neither Windows nor macOS has it
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def printable(text: str, further: str = "") -> str:
    """The text with only such characters as any table, log or file format accepts.

    Bytes of a file name that are not UTF-8, control characters and the characters of `further` become percent escapes
    of their bytes: `caf%E9`. All other text stays as it is.
    """
    return "".join(_escaped(c) if _is_unprintable(c) or c in further else c for c in text)


def _is_unprintable(character: str) -> bool:
    return unicodedata.category(character) in UNPRINTABLE or character in NONCHARACTERS


def _escaped(character: str) -> str:
    is_byte = "\udc80" <= character <= "\udcff"  # how Python represents a byte of a file name that is not UTF-8
    return "".join(
        f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    )


def row_name(dataset: str, name: str) -> str:
    """The name of a class in tables, folders and checkpoints: `<dataset>_<class>`, printable and without a slash.

    An escaped name that is too long for a file is shortened and made unique with a digest.
    """
    row = f"{dataset}_{name}"
    escaped = printable(row, "/")
    if escaped == row or len(escaped.encode()) <= LONGEST_ROW:
        return escaped
    return f"{escaped[: LONGEST_ROW // 4]}-{hashlib.sha256(row.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically.

    Raises:
        WorkError: it cannot be written.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def make_folder(path: Path, option: str) -> Path:
    """Create the folder if it does not exist.

    Args:
        path: of the folder.
        option: the option that named it, for messages.

    Returns:
        The path.

    Raises:
        InputError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {path} cannot be created: {reason_of(error)}; give another") from error
    return path


@contextmanager
def one_at_a_time(folder: Path, option: str = "--results_path") -> Iterator[None]:
    """A context that only one process at a time can enter for a folder. A process that dies leaves it.

    Args:
        folder: which exists.
        option: that named it, for messages.

    Raises:
        InputError: another process is in it.
        WorkError: the folder cannot be written to.
    """
    try:
        import fcntl
    except ImportError:  # not a Unix
        yield
        return
    path = folder / ".running"
    try:
        handle = path.open("a")
    except OSError as error:
        raise WorkError(f"cannot write {path}: {reason_of(error)}") from error
    with handle:
        try:
            # lockf, since its locks belong to this process alone: a worker that outlives it for a moment holds none
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(
                f"{option} {folder} is in use by another run; wait until it ends, or give another folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def reason_of(error: BaseException) -> str:
    """Why a file could not be written or read, in a few words and without its path.

    Libraries raise errors of their own for a full disk, so the causes of the error are searched as well.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            return f"{NO_ROOM[cause.errno]} ({os.strerror(cause.errno)})"
        cause = cause.__cause__ or cause.__context__
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def describe_os_error(error: OSError) -> str:
    """One line about an unexpected error of the system: the file, if it is known, and the reason."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return ": ".join((" -> ".join(names), reason_of(error))) if names else reason_of(error)


def no_room(error: BaseException) -> bool:
    """Whether an error means that no file at all can be written to the file system, not only this one."""
    cause = error.__cause__ or error
    everywhere = {*NO_ROOM, errno.EIO, errno.ENXIO, errno.ENODEV, errno.EMFILE, errno.ENFILE} - {errno.EFBIG}
    return isinstance(cause, OSError) and cause.errno in everywhere


def temporary_beside(path: Path) -> Path:
    """A hidden name in the same folder with the same suffix, for a file that will be renamed to `path`.

    It is short even if the final name is long, so that it is never too long for the file system.
    """
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= LONGEST_SUFFIX else ""
    # not the process id: a process in another container or on another host that writes here may have the same one
    return path.with_name(f".{secrets.token_hex(4)}{suffix}")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file atomically.

    Raises:
        WorkError: it cannot be written.
    """
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write(temporary_path)` write a file in the same folder, then rename it to `path`.

    Args:
        path: of the file; its folder is created if necessary.
        write: writes the file whose path it is given, which has the suffix of `path`.

    Raises:
        WorkError: the file cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise WorkError(f"cannot write {path}: {reason_of(error)}") from error
