"""Errors, seeds, device, logging, paths."""

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

if TYPE_CHECKING:  # what runs an exported graph has neither torch nor tqdm
    import torch

LOGGER = logging.getLogger("glass")
ROOT = Path(__file__).resolve().parent
SAY_EVERY = 30  # seconds
LONGEST_SUFFIX = 16  # bytes; what is longer is no suffix that a library goes by
# what a full disk and its like are called; the system's own words, which follow, are less plain
NO_ROOM = {
    getattr(errno, "EDQUOT", errno.ENOSPC): "the disk quota is used up",  # not every system has quotas
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file is larger than the file system or a limit of this process (ulimit -f) allows",
}
# control characters, surrogates (a byte that is not UTF-8), line and paragraph separators
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})
NONCHARACTERS = "\ufffe\uffff"  # not allowed in XML, and so not in Excel files
LONGEST_ROW = 120  # bytes; files named after a row get further endings, and file systems allow 255
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class InputError(ValueError):
    """What the user gave cannot work; its message says what was given and what would do. Exit code 2."""


class WorkError(RuntimeError):
    """The request was right but could not be carried out: an unreadable file, a full disk. Exit code 1."""


class _AboveBars(logging.StreamHandler):
    """Writes log lines above a running progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 a log handler


def escape_what_cannot_be_printed() -> None:
    """Standard output and error write `\\u2013` for a character that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def setup_logging() -> None:
    """Log lines go to standard error, once however often this is called."""
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    if not LOGGER.handlers:
        handler = _AboveBars()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        LOGGER.addHandler(handler)


def fix_seeds(seed: int) -> None:
    """Seed every global generator, for the libraries that offer no other way."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch draws from `seed` on the CPU inside; the global state is as before afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the generators of all devices
        yield


def choose_device(gpus: tuple[int, ...]) -> torch.device:
    """The first of the wished devices that this machine has; −1 is the CPU.

    Args:
        gpus: CUDA ordinals in order of preference; none means CUDA if there is one, else the CPU. A CUDA device that is
            chosen is the process's current one from then on.

    Raises:
        InputError: none of them is here.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for gpu in gpus or (0, -1):
        if gpu == -1:
            return torch.device("cpu")
        if gpu < count:
            # or what names no device, such as pinned memory, would make a context on the first one
            torch.cuda.set_device(gpu)
            return torch.device("cuda", gpu)
    here = f"this machine has CUDA devices 0 to {count - 1}" if count else "this machine has no CUDA device"
    raise InputError(f"--gpu {', '.join(map(str, gpus))}: {here}; -1 is the CPU")


def choose_precision(wished: str, device: torch.device) -> str:
    """fp32 or bf16; `auto` is bf16 on CUDA of compute capability 8.0 or more, else fp32. What lacks is said."""
    if wished == "fp32":
        return wished
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        there, what = major >= 8, f"compute capability {major}.{minor}, 8.0 or more has it"
    else:
        # an operator that only builds with oneDNN have
        asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        there, what = bool(asked and asked()), "a processor without it"
    if wished == "bf16" and not there:
        LOGGER.warning("--precision bf16: %s has no bfloat16 (%s); going on in fp32", device, what)
    return "bf16" if there and (wished == "bf16" or device.type == "cuda") else "fp32"


class _Bar:
    """A line of progress now and then, where there is no tqdm."""

    def __init__(self, total: int, unit: str, disable: bool) -> None:
        self._total, self._unit, self._done = total, unit, 0
        self._begun = time.monotonic()
        self._said = math.inf if disable else self._begun

    def update(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        now = time.monotonic()
        if now - self._said >= SAY_EVERY and self._done:
            left = (now - self._begun) / self._done * (self._total - self._done)
            LOGGER.info("%d of %d %s, %d s left", self._done, self._total, self._unit, round(left))
            self._said = now

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def progress_bar(total: int, unit: str, description: str = "", leave: bool = True, disable: bool = False) -> Any:
    """A progress bar of tqdm, or log lines where tqdm is not installed: has `update` and is a context manager.

    Args:
        total: how many steps there are.
        unit: what a step is.
        description: what is being done, in front of the bar.
        leave: whether the bar stays on the screen at its end.
        disable: show nothing.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        return _Bar(total, unit, disable)
    return tqdm(
        total=total, unit=unit, desc=description or None, leave=leave, disable=disable, dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else SAY_EVERY,
    )  # fmt: skip


def evenly_chosen(count: int, most: int) -> list[int]:
    """Indices of at most `most` of `count` items, ascending and evenly spaced, the first and the last among them."""
    chosen = min(count, most)
    if chosen < 2:
        return list(range(chosen))
    step = (count - 1) / (chosen - 1)
    return [*(int(i * step) for i in range(chosen - 1)), count - 1]


def cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # neither Windows nor macOS has it
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def printable(text: str, further: str = "") -> str:
    """The text in characters that any table, log or file format takes.

    What is not text in a file name (bytes that are not UTF-8, control characters), and the characters of `further`,
    become percent escapes of their bytes: `caf%E9`. All other text stays as it is.
    """
    return "".join(_escaped(c) if _is_unprintable(c) or c in further else c for c in text)


def _is_unprintable(character: str) -> bool:
    return unicodedata.category(character) in UNPRINTABLE or character in NONCHARACTERS


def _escaped(character: str) -> str:
    is_byte = "\udc80" <= character <= "\udcff"  # how Python keeps a byte of a file name that is not text
    return "".join(
        f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
    )


def row_name(dataset: str, name: str) -> str:
    """What tables, folders and checkpoints call a class: `<dataset>_<class>`, printable and without a slash.

    A name that had to be escaped is cut where it became too long for a file, and told from others by a digest.
    """
    row = f"{dataset}_{name}"
    escaped = printable(row, "/")
    if escaped == row or len(escaped.encode()) <= LONGEST_ROW:
        return escaped
    return f"{escaped[: LONGEST_ROW // 4]}-{hashlib.sha256(row.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def write_text(path: Path, text: str) -> None:
    """Write a small file beside, then rename.

    Raises:
        WorkError: it cannot be written.
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def make_folder(path: Path, given: str) -> Path:
    """The folder, made where it is not there.

    Raises:
        InputError: it cannot be made; `given` says what named it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{given} {path} cannot be made: {reason_of(error)}; give another") from error
    return path


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """No other process gets past this with the same folder, until this one is through or gone, however it ends.

    Raises:
        InputError: one is past it.
        WorkError: nothing can be written there.
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
            # of this process alone: a loader's worker that outlives it for a moment holds nothing
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(
                f"--results_path {folder} is in use by another run; wait for its end, or give another"
            ) from error
        except OSError:  # a file system without locks
            pass
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def reason_of(error: BaseException) -> str:
    """Why something could not be written or read, in a few words and without its path.

    Libraries turn a full disk into errors of their own; then the first cause that the system gave is told.
    """
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, OSError) and one.errno in NO_ROOM:
            return f"{NO_ROOM[one.errno]} ({os.strerror(one.errno)})"
        one = one.__cause__ or one.__context__
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def describe_os_error(error: OSError) -> str:
    """One line for an error of the system that nobody expected: the file, where it is known, and the reason."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return ": ".join((" -> ".join(names), reason_of(error))) if names else reason_of(error)


def no_room(error: BaseException) -> bool:
    """Whether an error says that nothing more can be written to the file system, and not that one file cannot."""
    cause = error.__cause__ or error
    everywhere = {*NO_ROOM, errno.EIO, errno.ENXIO, errno.ENODEV, errno.EMFILE, errno.ENFILE} - {errno.EFBIG}
    return isinstance(cause, OSError) and cause.errno in everywhere


def temporary_beside(path: Path) -> Path:
    """A hidden name in the same folder and with the same suffix, for a file that is to be renamed to `path`.

    However long the final name is, this one is short: a file system that takes the one takes the other.
    """
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= LONGEST_SUFFIX else ""
    # not the process's number: other containers and hosts that write to the same place may have the same
    return path.with_name(f".{secrets.token_hex(4)}{suffix}")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file beside, then rename.

    Raises:
        WorkError: it cannot be written.
    """
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write(temporary_path)` make a file with the same suffix, then rename it to `path`.

    Raises:
        WorkError: it cannot be written.
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
