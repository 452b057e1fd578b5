"""A watched folder: each new file is judged once it is complete, once, whatever happens to the process.

A file is entered in the journal of the store in the transaction that records its result; then its result is written
beside it, or it is moved, and the entry is done. After a start the entries that are not done are carried out again,
which is the same whether it happens once or twice.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.listing import image_suffixes
from inference.predict import PIXELS_AHEAD
from serving.journal import BROKEN, Entry, File
from serving.recipes import DECISIONS
from serving.refusal import Refusal
from serving.uploads import Upload, clean_name
from serving.work import Ready, Work
from utils import LOGGER, InputError, WorkError, printable, write_atomically, write_text

SETTLED = 0.5  # seconds without a change after which a file is tried
PATIENCE = 5.0  # seconds without a change after which a file that cannot be read is broken
RESCAN = 2.0  # seconds between looks at a folder, since no system reports every change, least of all a network share
CHANGE_PAUSE = 100  # milliseconds in which changes are gathered
UNDECIDED = "judged"  # folder of pictures without a decision


@dataclass(frozen=True)
class Folder:
    """A folder to be watched.

    Attributes:
        recipe: that judges.
        path: absolute, without links.
        move: whether judged files are moved into folders beside it, instead of getting a JSON file beside them.
    """

    recipe: str
    path: Path
    move: bool

    @classmethod
    def of(cls, text: str, recipes: Sequence[str], move: bool) -> Folder:
        """From `DIR` or `NAME=DIR`.

        Raises:
            InputError: there is no such folder or recipe, or several recipes and no name.
        """
        name, separator, folder = text.partition("=")
        if not separator or (name not in recipes and Path(text).is_dir()):
            if len(recipes) != 1:
                raise InputError(
                    f"--watch {text}: {len(recipes)} recipes are served; say which one judges, --watch NAME=DIR, with "
                    f"NAME one of {', '.join(recipes)}"
                )
            name, folder = recipes[0], text
        if name not in recipes:
            raise InputError(f"--watch {text}: no recipe {name}; there are: {', '.join(recipes)}")
        path = Path(folder)
        if not path.is_dir():
            raise InputError(f"--watch {folder}: no such folder; make it first")
        path = path.resolve()
        if move and path.parent == path:
            raise InputError(f"--watch {folder}: nothing lies beside it, where --move could move files")
        return cls(name, path, move)

    def files(self) -> Iterator[File]:
        """The picture files at any depth, without hidden ones, links, and folders behind links."""
        folders = [self.path]
        while folders:
            try:
                entries = sorted(os.scandir(folders.pop()), key=lambda entry: entry.name)
            except OSError as error:
                LOGGER.warning("watch: %s", error)
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.is_symlink():
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif Path(entry.name).suffix.lower() in image_suffixes():
                    file = self._file(entry)
                    if file is not None:
                        yield file

    def _file(self, entry: os.DirEntry[str]) -> File | None:
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:  # it has just gone
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        path = Path(entry.path).relative_to(self.path).as_posix()
        return File(str(self.path), path, status.st_size, status.st_mtime_ns)

    def read(self, file: File, most: int) -> bytes:
        """The content of a file.

        Raises:
            Refusal: it is larger than `most` bytes, is a link, lies behind one, or has changed.
            OSError: it cannot be read.
        """
        path = self.path / file.path
        if path.parent.resolve() != path.parent:  # a folder was replaced by a link
            raise Refusal(422, "it lies behind a link")
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as opened:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (file.size, file.modified):
                raise Refusal(422, "it has changed")
            if status.st_size > most:
                raise Refusal(413, f"it has more than {most / 1e6:g} MB, which --max_mb allows")
            return opened.read(file.size + 1)


class Watcher:
    """A thread that judges what arrives in a folder.

    Args:
        folder: to be watched.
        work: judges.
        batch_size: most pictures that are judged together.
        poll: whether the folder is looked through instead of asking the system for changes, which says nothing of
            files that other machines write to a network share.
    """

    def __init__(self, folder: Folder, work: Work, batch_size: int, poll: bool) -> None:
        self._folder, self._work, self._batch_size, self._poll = folder, work, batch_size, poll
        self._seen: dict[str, tuple[File, float]] = {}  # path → the file and since when it has not changed
        self._done: set[File] = set()  # that stay where they are
        self._looked = False
        self._stop, self._changed = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._run, name="watch", daemon=True)]
        if not poll:
            self._threads.append(threading.Thread(target=self._listen, name="changes", daemon=True))

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End after the batch under way."""
        self._stop.set()
        self._changed.set()
        for thread in self._threads:
            thread.join()

    def _listen(self) -> None:
        """Wake the other thread when the system reports a change."""
        from watchfiles import watch  # an extra

        try:
            for _ in watch(
                self._folder.path, stop_event=self._stop, step=CHANGE_PAUSE, debounce=CHANGE_PAUSE,
                rust_timeout=500, yield_on_timeout=False, raise_interrupt=False, ignore_permission_denied=True,
            ):  # fmt: skip
                self._changed.set()
        except (OSError, RuntimeError) as error:  # too many watches, say; the looks at the folder go on
            LOGGER.warning("watch %s: %s; looking through it instead", self._folder.path, error)

    def _run(self) -> None:
        finished = False
        while not self._stop.is_set():
            try:
                if not finished:
                    self._finish_earlier()
                    finished = True
                waiting = self._look()
            except (WorkError, OSError) as error:  # a full disk, say: it is tried again
                LOGGER.error("watch %s: %s", self._folder.path, error)
                waiting = False
            except Exception:  # the thread has to live on
                LOGGER.exception("watch %s", self._folder.path)
                waiting = False
            self._changed.wait(SETTLED / 2 if waiting else RESCAN)
            self._changed.clear()

    def _finish_earlier(self) -> None:
        """Carry out what the journal says of files that were judged before the process ended."""
        for entry in self._work.store.journal.unfinished(str(self._folder.path)):
            self._carry_out(entry)

    def _look(self) -> bool:
        """Look through the folder and judge what is complete; returns whether a file is not complete yet."""
        now, present = time.monotonic(), {}
        for file in self._folder.files():
            before = self._seen.get(file.path)
            present[file.path] = before if before is not None and before[0] == file else (file, now)
        gone = self._seen.keys() - present.keys()
        self._done -= {self._seen[path][0] for path in gone}
        first, self._seen = not self._looked, present
        self._looked = True
        if gone or first:
            self._work.store.journal.forget(str(self._folder.path), set(present))
        settled = [file for file, since in present.values() if now - since >= SETTLED and file not in self._done]
        for batch in self._batches([file for file in settled if not self._is_known(file)]):
            if self._stop.is_set():
                return False
            self._judge(batch)
        return any(file not in self._done for file, _ in present.values())

    def _is_known(self, file: File) -> bool:
        """Whether a file that is there is in the journal, and done with by now."""
        entry = self._work.store.journal.find(file)
        if entry is None:
            return False
        if entry.done and self._folder.move:  # that one was moved: this is another file of the same name and time
            self._work.store.journal.remove(file)
            return False
        self._finish(entry)
        return True

    def _finish(self, entry: Entry) -> None:
        if not entry.done:
            self._carry_out(entry)
        if not self._folder.move:
            self._done.add(entry.file)

    def _batches(self, files: Sequence[File]) -> Iterator[list[tuple[File, Ready]]]:
        """Files that can be read, with their pictures, a few at a time; the others are dealt with."""
        batch: list[tuple[File, Ready]] = []
        for file in files:
            if self._stop.is_set():
                return
            ready = self._read(file)
            if ready is not None:
                batch.append((file, ready))
            if len(batch) == self._batch_size or sum(item.pixels for _, item in batch) > PIXELS_AHEAD / 4:
                yield batch
                batch = []
        if batch:
            yield batch

    def _read(self, file: File) -> Ready | None:
        """The picture of a file; None if there is none, which is noted once it is clear that there will be none."""
        name = clean_name(file.path)
        try:
            content = self._folder.read(file, self._work.limits.body)
            return self._work.prepare(self._folder.recipe, Upload(name, content), bounded=False)
        except Refusal as error:
            if error.status == 503:
                return None
            line = error.line
        except FileNotFoundError:
            return None
        except OSError as error:
            line = error.strerror or str(error)
        if time.monotonic() - self._seen[file.path][1] < PATIENCE:
            return None  # somebody may still be writing it
        self._enter_broken(file, line)
        return None

    def _enter_broken(self, file: File, line: str) -> None:
        LOGGER.warning("watch: %s cannot be judged: %s", printable(file.path), line)
        self._work.numbers.count("watched_broken")
        self._work.store.journal.enter(file, BROKEN, {"name": clean_name(file.path), "error": line})
        self._finish_new(file)

    def _judge(self, batch: Sequence[tuple[File, Ready]]) -> None:
        futures = [self._work.submit(self._folder.recipe, ready, wait=True) for _, ready in batch]
        for (file, ready), future in zip(batch, futures, strict=True):
            try:
                judgement = future.result()
            except WorkError as error:
                self._enter_broken(file, str(error))
                continue
            self._work.record(self._folder.recipe, ready, judgement, "watch", file)
            self._finish_new(file)

    def _finish_new(self, file: File) -> None:
        entry = self._work.store.journal.find(file)
        if entry is not None:
            self._finish(entry)

    def _carry_out(self, entry: Entry) -> None:
        """Write the result beside the file, or move the file, and note that it is done.

        Raises:
            WorkError, OSError: it cannot be written or moved; it stays in the journal.
        """
        path = self._folder.path / entry.file.path
        if not self._folder.move:
            # beside a.png, which may have a neighbour a.jpg
            write_text(path.with_name(f"{path.name}.json"), json.dumps(entry.result, indent=1) + "\n")
        elif _is_still(path, entry.file):
            _move(path, self._target(entry))
        self._work.store.journal.finish(entry.file)

    def _target(self, entry: Entry) -> Path:
        name = entry.decision if entry.decision in (*DECISIONS, BROKEN) else UNDECIDED
        return self._folder.path.parent / name / entry.file.path


def _is_still(path: Path, file: File) -> bool:
    """Whether a file is the one that was judged: not moved already, nor replaced by another."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (file.size, file.modified)


def _move(path: Path, target: Path) -> None:
    """Move a file, under another name if there is one of that name; a process that dies in the middle loses nothing.

    Carried out again after that, it leaves one file as well.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    found, number = target, 2
    while os.path.lexists(found) and not _is_copy(path, found):
        found, number = target.with_name(f"{target.stem}_{number}{target.suffix}"), number + 1
    if not os.path.lexists(found):
        try:
            os.link(path, found, follow_symlinks=False)
        except OSError:  # another file system, or one without such links
            write_atomically(found, lambda temporary: shutil.copy2(path, temporary, follow_symlinks=False))
    os.unlink(path)


def _is_copy(path: Path, other: Path) -> bool:
    """Whether a file is the same as another one, or a copy with its time."""
    if other.is_symlink() or not other.is_file():
        return False
    same_time = path.stat().st_mtime_ns == other.stat().st_mtime_ns
    return os.path.samefile(path, other) or (same_time and filecmp.cmp(path, other, shallow=False))
