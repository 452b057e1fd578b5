"""Writing checkpoints, atomically and often enough that a killed training loses little."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from inference import checkpoint
from utils import WorkError, reason_of, temporary_beside, write_text

SAVE_EVERY = 30.0  # seconds of training that a killed process loses at most; one epoch if that takes longer


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: `path` is the old file or the new one, never half of one.

    Raises:
        WorkError: it cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            _serialise(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        raise WorkError(f"cannot write {path}: {reason_of(error)}") from error


class _ErrorKeepingFile:
    """A file that keeps the error of a failed write, which torch replaces with one of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write to the file, and keep an error."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()


def _serialise(state: dict[str, Any], file: BinaryIO) -> None:
    error_keeping = _ErrorKeepingFile(file)
    try:
        torch.save(state, error_keeping)
    except Exception as error:
        raise (error_keeping.error or error) from None


def save_latest(state: dict[str, Any], folder: Path) -> None:
    """Write the state of a training, and its plain values beside it.

    Raises:
        WorkError: as for `save`.
    """
    path = folder / checkpoint.LATEST
    save(state, path)
    plain = {
        "checkpoint": checkpoint.fingerprint(path),
        **{key: state[key] for key in checkpoint.PLAIN if key in state},
    }
    write_text(folder / checkpoint.RECORD, json.dumps(plain) + "\n")


class Saver:
    """Writes the state of a training about every `SAVE_EVERY` seconds; in between, it keeps a copy in memory.

    Args:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written, self._put = -math.inf, math.nan  # times of the last write and of the last `put`
        self._waiting: tuple[dict[str, Any], dict[str, Any] | None] | None = None

    def put(self, latest: dict[str, Any], best: dict[str, Any] | None = None) -> None:
        """Write the state at the end of an epoch, or keep a copy of it until a write is due.

        Args:
            latest: everything that is needed to resume; its `record` names the epoch of `best`.
            best: the checkpoint to keep, if this epoch is the best so far.

        Raises:
            WorkError: as for `save`.
        """
        now = time.monotonic()
        # the next call comes one epoch later; the length of an epoch is known from the second call on
        epoch = 0.0 if math.isnan(self._put) else now - self._put
        due, self._put = now - self._written + epoch >= SAVE_EVERY, now
        if best is None and self._waiting is not None:
            best = self._waiting[1]
        elif not due:
            best = _copied(best)
        if due:
            self._write(latest, best)
        else:
            self._waiting = _copied(latest), best

    def flush(self) -> None:
        """Write the state that is waiting in memory, if there is one.

        Raises:
            WorkError: as for `save`.
        """
        if self._waiting is not None:
            self._write(*self._waiting)

    def _write(self, latest: dict[str, Any], best: dict[str, Any] | None) -> None:
        chosen = latest["record"]["best"]
        if best is not None:
            save(best, checkpoint.best_path(self.folder, chosen["epoch"]))
        save_latest(latest, self.folder)
        self._waiting, self._written = None, time.monotonic()
        # older best checkpoints are removed last: a run that is killed before still has the one that its record names
        remove_other_bests(self.folder, chosen["epoch"] if chosen else None)


def _copied(value: Any) -> Any:
    """A copy of the value with copies of all tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps the attributes of a state dict
        copied.update((key, _copied(item)) for key, item in value.items())
        return copied
    return [_copied(item) for item in value] if isinstance(value, list) else value


def keep_latest(folder: Path) -> tuple[Path, int] | None:
    """Keep the latest state as the chosen checkpoint, if a training ended before it had one.

    Returns:
        The chosen checkpoint and its epoch; None if there was nothing to do.

    Raises:
        WorkError: as for `save` and `checkpoint.load`.
    """
    if not checkpoint.without_choice(checkpoint.read_latest(folder), checkpoint.find_best(folder)):
        return None
    state = checkpoint.load(folder / checkpoint.LATEST)
    epoch = checkpoint.epochs_of(state) - 1
    kept = {key: state[key] for key in state if key not in ("optimisers", "random_state", "record")}
    save(kept, checkpoint.best_path(folder, epoch))
    remove_other_bests(folder, epoch)
    return checkpoint.best_path(folder, epoch), epoch


def remove_other_bests(folder: Path, keep: int | None) -> None:
    """Remove all chosen checkpoints except that of epoch `keep`, and files that a killed run left half-written."""
    half_written = (*folder.glob("ckpt*.tmp"), *folder.glob(".????????.pth"))
    for path in (*folder.glob("ckpt_best_*.pth"), *half_written):
        if keep is None or path != checkpoint.best_path(folder, keep):
            path.unlink(missing_ok=True)
