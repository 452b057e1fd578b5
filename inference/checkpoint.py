"""What is saved, atomically; what is loaded, without ever running code from a file."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from utils import InputError, WorkError, reason_of, temporary_beside, write_text

LATEST = "ckpt.pth"
RECORD = "record.json"  # beside LATEST: the part of it that is plain values
PLAIN = ("config", "record", "metrics", "thresholds")
SAVE_EVERY = 30.0  # seconds of training, or the epoch under way where it is longer: what a killed process loses at most


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


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project or of the published code.

    Raises:
        InputError: no such file.
        WorkError: it is damaged, not a GLASS checkpoint, or holds NaN or infinity.
    """
    try:
        return _read(path, device)
    except WorkError as error:
        raise WorkError(f"{error}{_way_out(path)}") from error


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint {path}") from error
    except Exception as error:  # unpickling, zip and tensor errors of a foreign or damaged file
        if _begins_otherwise(path):
            raise WorkError(f"{path} is not a checkpoint: it is no file of torch.save") from error
        raise WorkError(f"{path} is not a checkpoint that can be read safely: {unreadable(error)}") from error
    if not isinstance(state, dict) or not isinstance(state.get("discriminator"), dict):
        raise WorkError(f"{path} is not a GLASS checkpoint: it holds no discriminator")
    for part in ("discriminator", "pre_projection", "backbone"):
        names = not_finite(state[part]) if isinstance(state.get(part), dict) else []
        if names:
            raise WorkError(
                f"{path} holds weights that are not finite ({part}: {names[0]}): its training diverged, or the file is "
                "damaged; train anew, with a smaller --lr if it was the training"
            )
    return state


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; values other than floating-point tensors are passed over."""
    floats = {name: x for name, x in tensors.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    if not floats:
        return []
    # types of 8 bits do not know `isfinite`; one wait for the device, not one for each tensor
    finite = torch.stack([(x if x.itemsize > 1 else x.float()).isfinite().all() for x in floats.values()])
    return [name for name, fine in zip(floats, finite.tolist(), strict=True) if not fine]


def _way_out(path: Path) -> str:
    """What to do about a checkpoint that cannot be read, where it lies in a class's folder."""
    best, folder = find_best(path.parent), path.parent
    if path.name == LATEST and best is not None and _is_sound(best[0]):
        return (
            f"; {best[0].name} beside it is sound: --test test tests it, delete {path} to keep that model as it is, or "
            f"delete {folder} to train anew"
        )
    of_training = path.name == LATEST or (best is not None and path == best[0])
    if of_training and path.name != LATEST and (folder / LATEST).exists() and _is_sound(folder / LATEST):
        return f"; {LATEST} beside it is sound: delete {path} to take its epoch, or delete {folder} to train anew"
    if of_training:
        return f"; delete {folder} to train anew"
    return ""


def _is_sound(path: Path) -> bool:
    try:
        return bool(_read(path, "cpu"))
    except (InputError, WorkError):
        return False


def config_of(folder: Path, training: bool = True) -> dict[str, Any] | None:
    """The settings that the checkpoints in a class's folder were trained with; None where there is no checkpoint.

    Args:
        folder: of the class.
        training: read the checkpoint that a training goes on with, if there is one; else the chosen one.

    Raises:
        WorkError: the checkpoint is damaged.
    """
    state, best = read_latest(folder) if training else None, find_best(folder)
    if state is None:
        if best is None:
            return None
        state = read_plain(best[0])
    config = state.get("config")
    return config if isinstance(config, dict) else {}


def read_plain(path: Path) -> dict[str, Any]:
    """What a checkpoint says in plain values; its tensors stay on the disk.

    Raises:
        InputError: no such file.
        WorkError: it is damaged, or not a GLASS checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a file of the format before archives cannot be mapped; what is wrong with others, `load` says
        state = load(path)
    if not isinstance(state, dict) or not isinstance(state.get("discriminator"), dict):
        state = load(path)
    return {key: state[key] for key in PLAIN if key in state}


def verify(path: Path) -> None:
    """Read all of a checkpoint and compare it with the checksums in it, at which torch does not look.

    Raises:
        WorkError: it is damaged, or not a GLASS checkpoint.
    """
    load(path)
    if not zipfile.is_zipfile(path):  # of the format before archives, which has no checksums
        return
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise WorkError(f"{path} is damaged: {error}{_way_out(path)}") from error
    if part is not None:
        raise WorkError(f"{path} is damaged: the checksum of {part} does not fit{_way_out(path)}")


def _begins_otherwise(path: Path) -> bool:
    """Than an archive or a pickle does."""
    try:
        with path.open("rb") as file:
            first = file.read(2)
            return first != b"PK" and first[:1] != b"\x80"
    except OSError:
        return False


def unreadable(error: Exception) -> str:
    """Why torch could not read a file, without its advice to read it unsafely."""
    if "nsupported" in str(error):  # "Unsupported global", "Unsupported operand": an object other than tensors
        return "it holds more than tensors and plain values"
    return f"damaged, or of another kind ({type(error).__name__})"


# ------------------------------------------------------------------------------- a training's folder


def save_latest(state: dict[str, Any], folder: Path) -> None:
    """Write a training's state, and its record beside.

    Raises:
        WorkError: as `save`.
    """
    path = folder / LATEST
    save(state, path)
    small = {"checkpoint": _fingerprint(path), **{key: state[key] for key in PLAIN if key in state}}
    write_text(folder / RECORD, json.dumps(small) + "\n")


def read_latest(folder: Path) -> dict[str, Any] | None:
    """The plain values of a training's state, from the record beside it where that is of this very state.

    Lists may stand where the state has tuples.

    Returns:
        `config`, `record` and so on; None where there is no `LATEST`.

    Raises:
        WorkError: it is damaged, or not a GLASS checkpoint.
    """
    path = folder / LATEST
    if not path.exists():
        return None
    try:
        small = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if small.pop("checkpoint") == _fingerprint(path):
            return small
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        pass  # no record beside, as before there were any, or one of another state: a process was killed in between
    return read_plain(path)


def _fingerprint(path: Path) -> str:
    """Of what a checkpoint holds, without reading it: an archive ends with a list of its parts and their checksums."""
    with zipfile.ZipFile(path) as archive:
        parts = [(part.filename, part.file_size, part.CRC) for part in archive.infolist()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


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
            save(best, best_path(self.folder, chosen["epoch"]))
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


def find_chosen(folder: Path) -> tuple[Path, int] | None:
    """What a class is to be tested with, and its epoch: the chosen checkpoint, or the latest state of a training that
    ended before it had one; None where nothing was trained.

    With `select` `last` it is the latest epoch that was saved, wherever that is.
    """
    best = find_best(folder)
    try:
        latest = read_latest(folder)
    except WorkError:  # a damaged state is said where it is to be gone on with
        if best is None:
            raise
        return best
    return (folder / LATEST, epochs_of(latest) - 1) if _without_choice(latest, best) else best


def keep_latest(folder: Path) -> tuple[Path, int] | None:
    """Make a chosen checkpoint of the latest state, where a training ended before it had one.

    Returns:
        It and its epoch; None where there was nothing to be done.

    Raises:
        WorkError: as `save` and `load`.
    """
    if not _without_choice(read_latest(folder), find_best(folder)):
        return None
    state = load(folder / LATEST)
    epoch = epochs_of(state) - 1
    kept = {key: state[key] for key in state if key not in ("optimisers", "random_state", "record")}
    save(kept, best_path(folder, epoch))
    remove_other_bests(folder, epoch)
    return best_path(folder, epoch), epoch


def _without_choice(latest: Mapping[str, Any] | None, best: tuple[Path, int] | None) -> bool:
    """Whether a training has done epochs, but none of them is kept, or with `select` `last` an earlier one."""
    done = epochs_of(latest)
    if not done:
        return False
    selects_last = latest.get("config", {}).get("select") == "last"
    return best is None or (selects_last and best[1] < done - 1)


def epochs_of(state: Mapping[str, Any] | None) -> int:
    """How many epochs a training has done; 0 where there is none, or weights alone."""
    record = state.get("record") if state else None
    return record.get("epoch", 0) if isinstance(record, dict) else 0


def best_path(folder: Path, epoch: int) -> Path:
    """Where the chosen checkpoint of an epoch (from 0) lies."""
    return folder / f"ckpt_best_{epoch}.pth"


def find_best(folder: Path) -> tuple[Path, int] | None:
    """The chosen checkpoint in a class's folder and its epoch; the newest epoch if a crash left two."""
    found = []
    for path in folder.glob("ckpt_best_*.pth"):
        if match := re.fullmatch(r"ckpt_best_(\d+)\.pth", path.name):
            found.append((int(match[1]), path))
    return (max(found)[1], max(found)[0]) if found else None


def remove_other_bests(folder: Path, keep: int | None) -> None:
    """Remove every chosen checkpoint but that of epoch `keep`, and what a killed run left half-written."""
    half_written = (*folder.glob("ckpt*.tmp"), *folder.glob(".????????.pth"))
    for path in (*folder.glob("ckpt_best_*.pth"), *half_written):
        if keep is None or path != best_path(folder, keep):
            path.unlink(missing_ok=True)
