"""Seeds, device, logging, paths."""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import InputError, WorkError

if TYPE_CHECKING:  # what runs an exported graph has neither torch nor tqdm
    import torch

LOGGER = logging.getLogger("glass")
ROOT = Path(__file__).resolve().parent
SAY_EVERY = 30  # seconds
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _AboveBars(logging.StreamHandler):
    """Writes log lines above a running progress bar instead of into it."""

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 a log handler


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

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._done = total, unit, 0
        self._begun = self._said = time.monotonic()

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


def progress_bar(total: int, unit: str) -> Any:
    """A bar of tqdm, or lines in its place where it is not installed: has `update` and is a context."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _Bar(total, unit)
    return tqdm(total=total, unit=unit, dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else SAY_EVERY)


def cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # neither Windows nor macOS has it
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


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
        raise InputError(f"{given} {path} cannot be made: {error.strerror}; give another") from error
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
        raise WorkError(f"cannot write {path}: {error}") from error
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


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write(temporary_path)` make a file with the same suffix, then rename it to `path`.

    Raises:
        WorkError: it cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WorkError(f"cannot write {path}: {error}") from error
