"""Checkpoints are written atomically, and often enough that a killed training loses little."""

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

SAVE_EVERY = 30.0  # seconds of training, or one epoch where it takes longer: what a killed process loses at most


def save(state: dict[str, Any], path: Path) -> None:
    """Write beside, then rename: whoever reads `path` finds the old file or the new one, never half of one.

    Raises:
        WorkError: the disk is full, or the folder cannot be written to.
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


class _Remembering:
    """A file that keeps the error of a failed write, which torch replaces by one of its own about positions."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """As the file's."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """As the file's."""
        self._file.flush()


def _serialise(state: dict[str, Any], file: BinaryIO) -> None:
    remembering = _Remembering(file)
    try:
        torch.save(state, remembering)
    except Exception as error:
        raise (remembering.error or error) from None


def save_latest(state: dict[str, Any], folder: Path) -> None:
    """Write a training's state, and its record beside.

    Raises:
        WorkError: as `save`.
    """
    path = folder / checkpoint.LATEST
    save(state, path)
    small = {
        "checkpoint": checkpoint.fingerprint(path),
        **{key: state[key] for key in checkpoint.PLAIN if key in state},
    }
    write_text(folder / checkpoint.RECORD, json.dumps(small) + "\n")


class Saver:
    """Writes a training's state so often that `SAVE_EVERY` seconds are at stake; what is not due waits in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written, self._put = -math.inf, math.nan
        self._waiting: tuple[dict[str, Any], dict[str, Any] | None] | None = None

    def put(self, latest: dict[str, Any], best: dict[str, Any] | None = None) -> None:
        """Write the state at the end of an epoch, or keep a copy of it until that is due.

        Args:
            latest: everything that a resume needs; its `record` names the epoch of `best`.
            best: the checkpoint to be kept, where this epoch is the best so far.

        Raises:
            WorkError: as `save`.
        """
        now = time.monotonic()
        # the next chance comes an epoch later; before the second one, its length is not known
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
        """Write what waits.

        Raises:
            WorkError: as `save`.
        """
        if self._waiting is not None:
            self._write(*self._waiting)

    def _write(self, latest: dict[str, Any], best: dict[str, Any] | None) -> None:
        chosen = latest["record"]["best"]
        if best is not None:
            save(best, checkpoint.best_path(self.folder, chosen["epoch"]))
        save_latest(latest, self.folder)
        self._waiting, self._written = None, time.monotonic()
        # the older best goes last: a run killed before this line still has the one its record names
        remove_other_bests(self.folder, chosen["epoch"] if chosen else None)


def _copied(value: Any) -> Any:
    """The same with tensors of its own, in the computer's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        made = copy.copy(value)  # a state dict has its version beside its keys
        made.update((key, _copied(one)) for key, one in value.items())
        return made
    return [_copied(one) for one in value] if isinstance(value, list) else value


def keep_latest(folder: Path) -> tuple[Path, int] | None:
    """Make a chosen checkpoint of the latest state, where a training ended before it had one.

    Returns:
        It and its epoch; None where there was nothing to be done.

    Raises:
        WorkError: as `save` and `checkpoint.load`.
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
    """Remove every chosen checkpoint but that of epoch `keep`, and what a killed run left half-written."""
    half_written = (*folder.glob("ckpt*.tmp"), *folder.glob(".????????.pth"))
    for path in (*folder.glob("ckpt_best_*.pth"), *half_written):
        if keep is None or path != checkpoint.best_path(folder, keep):
            path.unlink(missing_ok=True)
