"""Which files a class is trained on, by name and content, so that changes are noticed."""

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
WHOLE = 32 << 20  # bytes; a larger file is not read whole, but in blocks spread over it
BLOCKS, BLOCK = 128, 64 << 10
CHUNK = 1 << 20  # bytes that are read at once
THREADS = min(8, cores())


def fingerprint(path: Path) -> str:
    """The fingerprint of a file: equal content gives equal fingerprints.

    Raises:
        WorkError: the file cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(str(size).encode())
            if size <= WHOLE:
                while block := file.read(CHUNK):
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
        root: the data path, which may be moved as a whole.
        files: for each file, by its path below `root`, the part that it belongs to (`train`, `test` for good images
            that are held out of the training, `foreground`) and its fingerprint.
    """

    root: str
    files: Mapping[str, tuple[str, str]]

    @classmethod
    def of(cls, root: Path, parts: Mapping[str, Sequence[Path]], known: dict[Path, str]) -> Inventory:
        """The inventory of the files of a class, which are read unless their fingerprint is known.

        Args:
            root: the data path.
            parts: the files of each part.
            known: fingerprints by path, to which those of the files read are added.

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
        """Identifies the set of files, wherever the data path lies."""
        lines = sorted(f"{name}\0{part}\0{content}" for name, (part, content) in self.files.items())
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:32]

    @property
    def images(self) -> int:
        """How many images there are, without foreground masks."""
        return sum(part != FOREGROUND for part, _ in self.files.values())

    def only(self, paths: Collection[Path]) -> Inventory:
        """The inventory of these files alone."""
        names = {below(path, Path(self.root)) for path in paths}
        return Inventory(self.root, {name: entry for name, entry in self.files.items() if name in names})

    def differences(self, later: Inventory) -> str:
        """How many images, then masks, were added, removed and changed in `later`, with an example of each."""
        differences = []
        for prefix, are_masks in (("", False), ("foreground masks: ", True)):
            before, after = self._names(are_masks), later._names(are_masks)
            changed = {name for name in before & after if self.files[name] != later.files[name]}
            kinds = (("added", after - before), ("removed", before - after), ("changed", changed))
            counts = [f"{len(names)} {kind} (such as {printable(min(names))})" for kind, names in kinds if names]
            differences += [prefix + ", ".join(counts)] if counts else []
        return ", ".join(differences)

    def _names(self, are_masks: bool) -> set[str]:
        return {name for name, (part, _) in self.files.items() if (part == FOREGROUND) == are_masks}

    def save(self, folder: Path) -> None:
        """Write `data.json` into a folder, unless it has the same content already."""
        if load(folder, self.digest) is None:
            # ASCII: bytes of a name that are not text are escaped
            write_text(folder / FILE, json.dumps({"data_path": self.root, "files": self.files}, indent=0) + "\n")


def load(folder: Path, digest: str) -> Inventory | None:
    """The inventory in a folder's `data.json`; None if there is none with this digest."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="ascii"))
        files = {name: (part, digest_of_file) for name, (part, digest_of_file) in content["files"].items()}
        inventory = Inventory(str(content["data_path"]), files)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # lost or damaged; it is only needed to name what differs
        return None
    return inventory if inventory.digest == digest else None


def below(path: Path, root: Path) -> str:
    """The name of a file in an inventory: its path relative to the data path."""
    path, root = path.absolute(), root.absolute()
    return Path(os.path.relpath(path, root)).as_posix()
