"""The store: one folder with what was judged, marked and decided; SQLite in WAL mode, and files.

    store/store.sqlite3     the tables of `serving.schema`
    store/models/           checkpoints of all versions
    store/pictures/         the pictures as they were received
    store/masks/            masks drawn by hand

Several processes may use one store at the same time; only one of them serves (`utils.one_at_a_time`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from serving.journal import Journal, Outbox
from serving.marks import Marks
from serving.pictures import Pictures
from serving.recipes import Recipes
from serving.schema import MIGRATIONS, SCHEMA
from utils import WorkError, make_folder, reason_of

DATABASE = "store.sqlite3"
MODELS, PICTURES, MASKS = "models", "pictures", "masks"
PATIENCE = 20.0  # seconds to wait for another process that writes
LEFTOVER = 3600.0  # seconds; a file that no row names and that is older was left by a process that died


class Store:
    """An open store. All methods may be called from any thread.

    Attributes:
        folder: of the store.
        recipes: recipes and their versions, see `serving.recipes.Recipes`.
        pictures: what was judged, see `serving.pictures.Pictures`.
        marks: what somebody said of pictures, see `serving.marks.Marks`.
        journal: files of watched folders, see `serving.journal.Journal`.
        outbox: messages for a webhook, see `serving.journal.Outbox`.

    Args:
        folder: is created if it does not exist.
        keep: number of pictures without a mark that are kept; the oldest ones go first.

    Raises:
        InputError: the folder cannot be created.
        WorkError: the database is damaged, something else, or of a newer version of this program.
    """

    def __init__(self, folder: Path, keep: int = 10_000) -> None:
        self.folder = make_folder(Path(folder), "--store")
        for name in (MODELS, PICTURES, MASKS):
            make_folder(self.folder / name, "--store")
        self._lock, self._depth = threading.RLock(), 0
        self._connection = _open(self.folder / DATABASE)
        self.recipes = Recipes(self)
        self.pictures = Pictures(self, keep)
        self.marks = Marks(self)
        self.journal = Journal(self)
        self.outbox = Outbox(self)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A context whose changes are all kept or, after an error, all dropped. Contexts may be nested.

        Raises:
            WorkError: the database cannot be read or written.
        """
        with self._lock:
            outermost = self._depth == 0
            try:
                if outermost:
                    self._connection.execute("BEGIN IMMEDIATE")
                self._depth += 1
                try:
                    yield self._connection
                finally:
                    self._depth -= 1
                if outermost:
                    self._connection.execute("COMMIT")
            except BaseException as error:
                if outermost and self._connection.in_transaction:
                    with suppress(sqlite3.Error):
                        self._connection.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise WorkError(f"the store {self.folder} cannot be written: {error}") from error
                raise

    def rows(self, query: str, values: tuple[Any, ...] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query.

        Raises:
            WorkError: the database cannot be read.
        """
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise WorkError(f"the store {self.folder} cannot be read: {error}") from error

    def sweep(self) -> int:
        """Delete files of pictures and masks that a process that died has left; returns how many."""
        known = {row[0] for row in self.rows("SELECT file FROM pictures")}
        known |= {row[0] for row in self.rows("SELECT mask FROM marks WHERE mask IS NOT NULL")}
        count = 0
        for path in [p for name in (PICTURES, MASKS) for p in (self.folder / name).rglob("*") if p.is_file()]:
            with suppress(OSError):
                is_old = time.time() - path.stat().st_mtime > LEFTOVER
                if is_old and path.relative_to(self.folder).as_posix() not in known:
                    path.unlink()
                    count += 1
        return count

    def close(self) -> None:
        """Close the database; the store cannot be used afterwards."""
        with self._lock:
            self._connection.close()


def _open(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if found > SCHEMA:
            connection.close()
            raise WorkError(
                f"{path} was written by a newer version of this program (schema {found}, this one knows {SCHEMA}); "
                "use that version, or give another --store"
            )
        connection.execute("PRAGMA journal_mode=WAL")
        # what was committed survives the end of the process; a power failure may take the last moments with it
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        _migrate(connection)
    except (sqlite3.Error, OSError) as error:
        raise WorkError(f"{path} is not a store that can be used: {reason_of(error)}; give another --store") from error
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to this version; a process that starts at the same time waits here."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        if not found and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise sqlite3.DatabaseError("it is a database of another program")
        for statements in MIGRATIONS[found:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
