"""Reading checkpoints, without ever running code from a file; training/saving.py writes them."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from networks.weights import not_finite, unreadable
from utils import InputError, WorkError

LATEST = "ckpt.pth"  # the state of a training, from which it can go on
RECORD = "record.json"  # beside LATEST: the part of it that is plain values
PLAIN = ("config", "record", "metrics", "thresholds")


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
        if small.pop("checkpoint") == fingerprint(path):
            return small
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        pass  # no record beside, as before there were any, or one of another state: a process was killed in between
    return read_plain(path)


def fingerprint(path: Path) -> str:
    """Of what a checkpoint holds, without reading it: an archive ends with a list of its parts and their checksums."""
    with zipfile.ZipFile(path) as archive:
        parts = [(part.filename, part.file_size, part.CRC) for part in archive.infolist()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


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
    return (folder / LATEST, epochs_of(latest) - 1) if without_choice(latest, best) else best


def without_choice(latest: Mapping[str, Any] | None, best: tuple[Path, int] | None) -> bool:
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


def load_parts(
    path: Path, state: Mapping[str, Any], discriminator: nn.Module, projection: nn.Module | None,
    backbone: nn.Module | None,
) -> None:  # fmt: skip
    """Load the weights of a checkpoint into the parts of a model.

    Args:
        path: of the checkpoint, for messages.
        state: its content.
        discriminator, projection: D and A; None for a model without A.
        backbone: the network of a model that trains it; None of one that does not.

    Raises:
        WorkError: the checkpoint is of a model of another shape.
    """
    if state.get("backbone") and backbone is None:
        raise WorkError(f"{path} holds a trained backbone; give --train_backbone to use it")
    parts = {"discriminator": discriminator, "pre_projection": projection}
    if backbone is not None:
        parts["backbone"] = backbone
    for key, module in parts.items():
        if (module is None) != (not state.get(key)):
            has, wants = ("no ", "one") if module is not None else ("a ", "none")
            raise WorkError(f"{path} holds {has}{key}, the given settings want {wants} (see --pre_proj)")
        if module is not None:
            try:
                module.load_state_dict(state[key])
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise WorkError(f"{path} was made with other settings: {key}: {reason[:300]}") from error
