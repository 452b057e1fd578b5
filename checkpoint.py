"""What is saved, atomically; what is loaded, without ever running code from a file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from errors import InputError, WorkError
from utils import reason_of, temporary_beside

LATEST = "ckpt.pth"


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
    if path.name == LATEST or (best is not None and path == best[0]):
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
    latest, best = folder / LATEST, find_best(folder)
    paths = [latest] if training and latest.exists() else [best[0]] if best else []
    if not paths:
        return None
    config = load(paths[0]).get("config")
    return config if isinstance(config, dict) else {}


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
