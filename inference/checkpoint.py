"""Reading checkpoints without executing code from a file; training/saving.py writes them."""

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

from datasets.roi import RegionOfInterest
from networks.weights import not_finite, unreadable
from utils import InputError, WorkError

LATEST = "ckpt.pth"  # the state of a training, from which it can be resumed
RECORD = "record.json"  # beside LATEST: a copy of its plain values
PLAIN = ("config", "record", "metrics", "thresholds")


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project or of the published code.

    Raises:
        InputError: no such file.
        WorkError: it is damaged, not a GLASS checkpoint, or contains NaN or infinity.
    """
    try:
        return _read(path, device)
    except WorkError as error:
        raise WorkError(f"{error}{_remedy(path)}") from error


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint {path}") from error
    except Exception as error:  # a foreign or damaged file raises errors of pickle, zip or tensors
        if _has_other_format(path):
            raise WorkError(f"{path} is not a checkpoint: torch.save did not write it") from error
        raise WorkError(f"{path} is not a checkpoint that can be read safely: {unreadable(error)}") from error
    if not isinstance(state, dict) or not isinstance(state.get("discriminator"), dict):
        raise WorkError(f"{path} is not a GLASS checkpoint: it holds no discriminator")
    for part in ("discriminator", "pre_projection", "backbone"):
        names = not_finite(state[part]) if isinstance(state.get(part), dict) else []
        if names:
            raise WorkError(
                f"{path} holds weights that are not finite ({part}: {names[0]}): its training diverged, or the file is "
                "damaged; train again, with a smaller --lr if the training diverged"
            )
    return state


def _remedy(path: Path) -> str:
    """What the user can do about an unreadable checkpoint in the folder of a class; "" elsewhere."""
    best, folder = find_best(path.parent), path.parent
    if path.name == LATEST and best is not None and _is_sound(best[0]):
        return (
            f"; {best[0].name} beside it is intact: --test test tests it, delete {path} to keep that model as it is, "
            f"or delete {folder} to train again"
        )
    in_use = path.name == LATEST or (best is not None and path == best[0])
    if in_use and path.name != LATEST and (folder / LATEST).exists() and _is_sound(folder / LATEST):
        return f"; {LATEST} beside it is intact: delete {path} to use its epoch, or delete {folder} to train again"
    if in_use:
        return f"; delete {folder} to train again"
    return ""


def _is_sound(path: Path) -> bool:
    try:
        return bool(_read(path, "cpu"))
    except (InputError, WorkError):
        return False


def config_of(folder: Path, training: bool = True) -> dict[str, Any] | None:
    """The settings that the checkpoints in the folder of a class were trained with; None if there is no checkpoint.

    Args:
        folder: of the class.
        training: read the checkpoint that a training would resume from, if there is one; else the chosen one.

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
    """The plain values of a checkpoint (`PLAIN`), without reading its tensors.

    Raises:
        InputError: no such file.
        WorkError: it is damaged, or not a GLASS checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a file of torch's old format cannot be mapped; for other files `load` says what is wrong
        state = load(path)
    if not isinstance(state, dict) or not isinstance(state.get("discriminator"), dict):
        state = load(path)
    return {key: state[key] for key in PLAIN if key in state}


def verify(path: Path) -> None:
    """Read a whole checkpoint and check the checksums in it, which torch ignores.

    Raises:
        WorkError: it is damaged, or not a GLASS checkpoint.
    """
    load(path)
    if not zipfile.is_zipfile(path):  # torch's old format has no checksums
        return
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise WorkError(f"{path} is damaged: {error}{_remedy(path)}") from error
    if part is not None:
        raise WorkError(f"{path} is damaged: the checksum of {part} is wrong{_remedy(path)}")


def _has_other_format(path: Path) -> bool:
    """Whether the file begins neither like an archive nor like a pickle."""
    try:
        with path.open("rb") as file:
            start = file.read(2)
            return start != b"PK" and start[:1] != b"\x80"
    except OSError:
        return False


def read_latest(folder: Path) -> dict[str, Any] | None:
    """The plain values of a training's state, from the record beside it if that belongs to this very state.

    Tuples of the state may be lists here.

    Returns:
        `config`, `record` and so on; None if there is no `LATEST`.

    Raises:
        WorkError: it is damaged, or not a GLASS checkpoint.
    """
    path = folder / LATEST
    if not path.exists():
        return None
    try:
        plain = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if plain.pop("checkpoint") == fingerprint(path):
            return plain
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        pass  # an earlier version wrote no record, or a process was killed between the state and its record
    return read_plain(path)


def fingerprint(path: Path) -> str:
    """A digest of the content of a checkpoint without reading it: an archive lists its parts and their checksums."""
    with zipfile.ZipFile(path) as archive:
        parts = [(part.filename, part.file_size, part.CRC) for part in archive.infolist()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def find_chosen(folder: Path) -> tuple[Path, int] | None:
    """The checkpoint that a class is tested with, and its epoch; None if nothing was trained.

    It is the chosen checkpoint, or the latest state of a training that ended before it had one. With `select` `last` it
    is the latest epoch that was saved, in either of the two.
    """
    best = find_best(folder)
    try:
        latest = read_latest(folder)
    except WorkError:  # a damaged state is reported when a training would resume from it
        if best is None:
            raise
        return best
    return (folder / LATEST, epochs_of(latest) - 1) if without_choice(latest, best) else best


def without_choice(latest: Mapping[str, Any] | None, best: tuple[Path, int] | None) -> bool:
    """Whether epochs were trained but none is kept as the chosen one; with `select` `last`, whether not the last is."""
    done = epochs_of(latest)
    if not done:
        return False
    selects_last = latest.get("config", {}).get("select") == "last"
    return best is None or (selects_last and best[1] < done - 1)


def epochs_of(state: Mapping[str, Any] | None) -> int:
    """The number of epochs that a training has done; 0 if there is no training, or only weights."""
    record = state.get("record") if state else None
    return record.get("epoch", 0) if isinstance(record, dict) else 0


def best_path(folder: Path, epoch: int) -> Path:
    """The path of the chosen checkpoint of an epoch, which counts from 0."""
    return folder / f"ckpt_best_{epoch}.pth"


def find_best(folder: Path) -> tuple[Path, int] | None:
    """The chosen checkpoint in the folder of a class and its epoch; the latest epoch if a crash left two."""
    candidates = []
    for path in folder.glob("ckpt_best_*.pth"):
        if match := re.fullmatch(r"ckpt_best_(\d+)\.pth", path.name):
            candidates.append((int(match[1]), path))
    return (max(candidates)[1], max(candidates)[0]) if candidates else None


def memory_of(path: Path, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The memory of patches in a checkpoint.

    Raises:
        WorkError: there is none, or it is damaged.
    """
    memory = state.get("memory")
    parts = {"patches": 2, "owners": 1, "pictures": 1, "statistics": 1, "typical": 0}  # and their numbers of dimensions
    sound = isinstance(memory, dict) and all(
        isinstance(memory.get(name), torch.Tensor) and memory[name].ndim == ndim for name, ndim in parts.items()
    )
    if not sound or not_finite({name: memory[name].float() for name in ("patches", "statistics")}):
        raise WorkError(
            f"{path} lacks the memory of patches that it was trained with (--memory), or holds a damaged one"
        )
    return memory


def roi_of(path: Path, state: Mapping[str, Any]) -> RegionOfInterest | None:
    """The region of interest in a checkpoint; None if everything is inspected.

    Raises:
        WorkError: it is damaged.
    """
    saved = state.get("roi")
    if saved is None:
        return None
    try:
        return RegionOfInterest.of_bits(saved["mask"].cpu().numpy(), saved["size"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkError(f"{path} holds a damaged region of interest: {error}") from error


def load_parts(
    path: Path, state: Mapping[str, Any], discriminator: nn.Module, projection: nn.Module | None,
    backbone: nn.Module | None,
) -> None:  # fmt: skip
    """Load the weights of a checkpoint into the parts of a model.

    Args:
        path: of the checkpoint, for messages.
        state: its content.
        discriminator, projection: D and A; None for a model without A.
        backbone: the network of a model that trains it; None for a frozen one.

    Raises:
        WorkError: the checkpoint belongs to a model of another shape.
    """
    if state.get("backbone") and backbone is None:
        raise WorkError(f"{path} holds a trained backbone; give --train_backbone to use it")
    parts = {"discriminator": discriminator, "pre_projection": projection}
    if backbone is not None:
        parts["backbone"] = backbone
    for key, module in parts.items():
        if (module is None) != (not state.get(key)):
            has, expects = ("no", "one") if module is not None else ("a", "none")
            raise WorkError(f"{path} holds {has} {key}, but the given settings need {expects} (see --pre_proj)")
        if module is not None:
            try:
                module.load_state_dict(state[key])
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise WorkError(f"{path} was made with other settings: {key}: {reason[:300]}") from error
