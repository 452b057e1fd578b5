"""Which files a class is trained on, by name and content, so that other files are noticed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from utils import WorkError, cores, printable, write_text

FILE = "data.json"  # beside the checkpoints
TRAIN, TEST, FOREGROUND = "train", "test", "foreground"
WHOLE = 32 << 20  # bytes up to which a file is read whole; of a larger one blocks from head to tail are read
BLOCKS, BLOCK = 128, 64 << 10
AT_ONCE = 1 << 20
THREADS = min(8, cores())


def fingerprint(path: Path) -> str:
    """Of a file's content: equal content gives equal fingerprints.

    Raises:
        WorkError: the file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            if size <= WHOLE:
                while block := file.read(AT_ONCE):
                    digest.update(block)
            else:
                for i in range(BLOCKS):
                    file.seek((size - BLOCK) * i // (BLOCKS - 1))
                    digest.update(file.read(BLOCK))
    except OSError as error:
        raise WorkError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Inventory:
    """The files of a class.

    Attributes:
        root: the data path; what lies in it may move as a whole.
        files: part (`train`, `test` for good images kept out of the training, `foreground`) and fingerprint of each
            file, by its path below `root`.
    """

    root: str
    files: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, root: Path, parts: Mapping[str, Sequence[Path]], known: dict[Path, str]) -> Inventory:
        """Read what is not read yet.

        Args:
            root: the data path.
            parts: files of each part.
            known: fingerprints by path; grows by what is read.

        Raises:
            WorkError: a file cannot be read.
        """
        unread = list(dict.fromkeys(path for paths in parts.values() for path in paths if path not in known))
        with ThreadPoolExecutor(THREADS) as pool:
            known.update(zip(unread, pool.map(fingerprint, unread), strict=True))
        files = {below(path, root): (part, known[path]) for part, paths in parts.items() for path in paths}
        return cls(str(root.absolute()), files)

    @property
    def digest(self) -> str:
        """What tells one set of files from another, wherever it lies."""
        lines = sorted(f"{name}\0{part}\0{content}" for name, (part, content) in self.files.items())
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def images(self) -> int:
        """How many images there are, foreground masks not counted."""
        return sum(part != FOREGROUND for part, _ in self.files.values())

    def only(self, paths: Collection[Path]) -> Inventory:
        """The part of it that these files are."""
        names = {below(path, Path(self.root)) for path in paths}
        return Inventory(self.root, {name: of for name, of in self.files.items() if name in names})

    def differences(self, later: Inventory) -> str:
        """How many images, then masks, were added, removed and changed since, with an example of each."""
        found = []
        for what, are_masks in (("", False), ("foreground masks: ", True)):
            here, there = self._names(are_masks), later._names(are_masks)
            changed = {name for name in here & there if self.files[name] != later.files[name]}
            kinds = (("added", there - here), ("removed", here - there), ("changed", changed))
            some = [f"{len(names)} {kind} (such as {printable(min(names))})" for kind, names in kinds if names]
            found += [what + ", ".join(some)] if some else []
        return ", ".join(found)

    def _names(self, are_masks: bool) -> set[str]:
        return {name for name, (part, _) in self.files.items() if (part == FOREGROUND) == are_masks}

    def save(self, folder: Path) -> None:
        """Write `data.json` into a folder, where it does not hold the same already."""
        if load(folder, self.digest) is None:
            # ASCII: a name that is not text becomes an escape
            write_text(folder / FILE, json.dumps({"data_path": self.root, "files": self.files}, indent=0) + "\n")


def load(folder: Path, digest: str) -> Inventory | None:
    """The inventory in a folder's `data.json`; None where there is none with this digest."""
    try:
        kept = json.loads((folder / FILE).read_text(encoding="ascii"))
        found = Inventory(str(kept["data_path"]), {name: (part, of) for name, (part, of) in kept["files"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # lost or damaged: it only names what differs
        return None
    return found if found.digest == digest else None


def below(path: Path, root: Path) -> str:
    """What an inventory calls a file: its path below the data path."""
    path, root = path.absolute(), root.absolute()
    return Path(os.path.relpath(path, root)).as_posix()
