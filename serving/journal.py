"""What must survive the end of the process: files of watched folders that are judged, and messages not yet sent."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.store import Store

BROKEN = "broken"  # in place of a decision


@dataclass(frozen=True)
class File:
    """A file in a watched folder; with another size or time it is another file.

    Attributes:
        folder: that is watched, absolute.
        path: in the folder, with slashes.
        size: bytes.
        modified: nanoseconds since 1970.
    """

    folder: str
    path: str
    size: int
    modified: int


@dataclass(frozen=True)
class Entry:
    """What became of a file.

    Attributes:
        file: that was judged.
        decision: `good`, `unsure` or `defective`; `BROKEN` if it cannot be read; "" without thresholds.
        result: what is written beside it.
        done: whether the result is written and the file moved.
    """

    file: File
    decision: str
    result: dict[str, Any]
    done: bool


class Journal:
    """The files of watched folders: each is entered when it is judged, and done when its result is in place."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def enter(self, file: File, decision: str, result: dict[str, Any]) -> None:
        """Enter a file that was judged."""
        with self._store.transaction() as connection:
            connection.execute(
                "INSERT INTO watched (folder, path, size, modified, decision, result, time)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*_key(file), decision, json.dumps(result, allow_nan=False), time.time()),
            )

    def finish(self, file: File) -> None:
        """Note that the result of a file is in place."""
        with self._store.transaction() as connection:
            where = "folder = ? AND path = ? AND size = ? AND modified = ?"
            connection.execute(f"UPDATE watched SET done = 1 WHERE {where}", _key(file))

    def find(self, file: File) -> Entry | None:
        """What became of a file; None if it was not judged yet."""
        query = "SELECT * FROM watched WHERE folder = ? AND path = ? AND size = ? AND modified = ?"
        rows = self._store.rows(query, _key(file))
        return _entry(rows[0]) if rows else None

    def unfinished(self, folder: str) -> list[Entry]:
        """The files of a folder that were judged, but whose result may not be in place."""
        query = "SELECT * FROM watched WHERE folder = ? AND NOT done ORDER BY time"
        return [_entry(row) for row in self._store.rows(query, (folder,))]

    def remove(self, file: File) -> None:
        """Forget one file."""
        with self._store.transaction() as connection:
            where = "folder = ? AND path = ? AND size = ? AND modified = ?"
            connection.execute(f"DELETE FROM watched WHERE {where}", _key(file))

    def forget(self, folder: str, present: set[str]) -> None:
        """Forget finished files that are no longer in the folder.

        Args:
            folder: that is watched.
            present: paths of the files in it.
        """
        with self._store.transaction() as connection:
            rows = self._store.rows("SELECT path FROM watched WHERE folder = ? AND done", (folder,))
            gone = [(folder, row["path"]) for row in rows if row["path"] not in present]
            connection.executemany("DELETE FROM watched WHERE folder = ? AND path = ? AND done", gone)


@dataclass(frozen=True)
class Message:
    """A message that a webhook has not accepted yet.

    Attributes:
        id: its number, never used again.
        body: JSON.
        tries: how often it was sent.
    """

    id: int
    body: str
    tries: int


class Outbox:
    """The messages for a webhook, in order, at most `bound`."""

    bound = 10_000

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, body: dict[str, Any]) -> int:
        """Add a message; returns how many old ones had to go because the outbox was full."""
        with self._store.transaction() as connection:
            values = (json.dumps(body, allow_nan=False), time.time())
            connection.execute("INSERT INTO outbox (body, due) VALUES (?, ?)", values)
            surplus = len(self) - self.bound
            if surplus > 0:
                oldest = "SELECT id FROM outbox ORDER BY id LIMIT ?"
                connection.execute(f"DELETE FROM outbox WHERE id IN ({oldest})", (surplus,))
        return max(0, surplus)

    def due(self, now: float) -> Message | None:
        """The oldest message whose time has come."""
        rows = self._store.rows("SELECT * FROM outbox WHERE due <= ? ORDER BY id LIMIT 1", (now,))
        return Message(rows[0]["id"], rows[0]["body"], rows[0]["tries"]) if rows else None

    def next_due(self) -> float | None:
        """When the next message is due, in seconds since 1970; None if there is none."""
        return self._store.rows("SELECT min(due) FROM outbox")[0][0]

    def retry(self, message: Message, due: float) -> None:
        """Keep a message that was not accepted for another time."""
        with self._store.transaction() as connection:
            connection.execute("UPDATE outbox SET tries = tries + 1, due = ? WHERE id = ?", (due, message.id))

    def remove(self, message: Message) -> None:
        """Remove a message that was accepted, or given up."""
        with self._store.transaction() as connection:
            connection.execute("DELETE FROM outbox WHERE id = ?", (message.id,))

    def __len__(self) -> int:
        return int(self._store.rows("SELECT count(*) FROM outbox")[0][0])


def _key(file: File) -> tuple[str, str, int, int]:
    return file.folder, file.path, file.size, file.modified


def _entry(row: sqlite3.Row) -> Entry:
    file = File(row["folder"], row["path"], row["size"], row["modified"])
    return Entry(file, row["decision"], json.loads(row["result"]), bool(row["done"]))
