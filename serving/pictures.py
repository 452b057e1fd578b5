"""The pictures of a store: what was judged, and the files as they were received."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils import InputError, write_bytes

if TYPE_CHECKING:
    from serving.store import Store

Source = Literal["http", "watch", "page"]
ORDERS = {  # name → what is compared with the cursor, and which way
    "newest": ("p.id", "DESC"),
    "oldest": ("p.id", "ASC"),
    "highest": ("p.score", "DESC"),
    "lowest": ("p.score", "ASC"),
}
# the latest mark of a picture, whose row a mark of null hides
_CURRENT = """FROM pictures p
    LEFT JOIN marks m ON m.id = (SELECT max(id) FROM marks WHERE picture = p.id)"""
_COLUMNS = "p.*, m.mark, CASE WHEN m.mark IS NULL THEN NULL ELSE m.mask END AS mask, m.time AS marked"


@dataclass(frozen=True)
class Judged:
    """What is known of a picture after it was judged.

    Attributes:
        recipe, version: that judged it.
        sha256: of the file.
        name: that the sender gave it; for people, never a path of this machine.
        received: seconds since 1970.
        source: `http`, `watch` or `page`.
        width, height: in pixels, upright.
        score: image score in [0, 1].
        normalised: the score with the threshold at 0.5; None without thresholds.
        decision: `good`, `unsure` or `defective`; None without thresholds.
        milliseconds: that judging took.
        regions: connected regions above the pixel threshold: `box` [x, y, width, height], `area` and `centre` [x, y]
            in pixels of the picture, `highest` value of the map.
        brightness, contrast, sharpness: see `serving.appearance`.
    """

    recipe: str
    version: int
    sha256: str
    name: str
    received: float
    source: Source
    width: int
    height: int
    score: float
    normalised: float | None
    decision: str | None
    milliseconds: float
    regions: list[dict[str, Any]]
    brightness: float
    contrast: float
    sharpness: float


@dataclass(frozen=True)
class Picture(Judged):
    """A picture in the store.

    Attributes:
        id: its number, never used again.
        file: path relative to the store.
        mark: `good` or `defective`, as somebody marked it; None without a mark.
        mask: path of the mask that was drawn with it, relative to the store, or None.
        marked: when, in seconds since 1970, or None.
    """

    id: int
    file: str
    mark: str | None
    mask: str | None
    marked: float | None


@dataclass(frozen=True)
class Filter:
    """Which pictures are meant; None does not restrict.

    Attributes:
        recipe: by name.
        mark: `good`, `defective`, `any` (marked) or `none` (not marked).
        decision: that was made when the picture was judged.
        source: `http`, `watch` or `page`.
        digest: of the checkpoint that gave the score.
        after: an id; only later pictures.
    """

    recipe: str | None = None
    mark: str | None = None
    decision: str | None = None
    source: str | None = None
    digest: str | None = None
    after: int | None = None

    def where(self) -> tuple[list[str], list[Any]]:
        """Conditions and their values."""
        conditions, values = [], []
        for column in ("recipe", "decision", "source"):
            if getattr(self, column) is not None:
                conditions.append(f"p.{column} = ?")
                values.append(getattr(self, column))
        if self.mark in ("any", "none"):
            conditions.append(f"m.mark IS {'NOT ' if self.mark == 'any' else ''}NULL")
        elif self.mark is not None:
            conditions.append("m.mark = ?")
            values.append(self.mark)
        if self.digest is not None:
            conditions.append("(SELECT digest FROM versions v WHERE v.recipe = p.recipe AND v.number = p.version) = ?")
            values.append(self.digest)
        if self.after is not None:
            conditions.append("p.id > ?")
            values.append(self.after)
        return conditions, values


class Pictures:
    """The pictures of a store, at most `keep` without a mark."""

    def __init__(self, store: Store, keep: int) -> None:
        self._store, self._keep = store, keep

    def add(self, judged: Judged, content: bytes, suffix: str) -> int:
        """Keep a picture; `let_go` keeps their number within the bound.

        Args:
            judged: what is known of it.
            content: the file as it was received.
            suffix: of the file, with its dot, as its content says.

        Returns:
            Its id.

        Raises:
            WorkError: it cannot be written; then nothing is kept.
        """
        name = secrets.token_hex(16)
        file = f"pictures/{name[:2]}/{name}{suffix}"
        path = self._store.folder / file
        write_bytes(path, content)
        columns = [field.name for field in fields(Judged)]
        values = [getattr(judged, column) for column in columns]
        values[columns.index("regions")] = json.dumps(judged.regions, allow_nan=False)
        query = f"INSERT INTO pictures ({', '.join(columns)}, file) VALUES ({', '.join('?' * len(columns))}, ?)"
        try:
            with self._store.transaction() as connection:
                added = connection.execute(query, (*values, file)).lastrowid
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        return int(added or 0)

    def get(self, number: int) -> Picture:
        """A picture by its id.

        Raises:
            InputError: there is none, or no longer.
        """
        rows = self._store.rows(f"SELECT {_COLUMNS} {_CURRENT} WHERE p.id = ?", (number,))
        if not rows:
            raise InputError(f"no picture {number} in the store")
        return _picture(rows[0])

    def page(
        self, chosen: Filter, order: str = "newest", cursor: str | None = None, limit: int = 50
    ) -> tuple[list[Picture], str | None]:
        """Some pictures, and the cursor that continues after them, None at the end.

        Args:
            chosen: which pictures.
            order: a key of `ORDERS`.
            cursor: of the page before.
            limit: most pictures.

        Raises:
            InputError: there is no such order, or the cursor is not one of this order.
        """
        if order not in ORDERS:
            raise InputError(f"order {order!r}: possible are {', '.join(ORDERS)}")
        column, direction = ORDERS[order]
        conditions, values = chosen.where()
        if cursor is not None:
            conditions.append(f"({column}, p.id) {'<' if direction == 'DESC' else '>'} (?, ?)")
            values += _parse_cursor(cursor)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        query = f"SELECT {_COLUMNS} {_CURRENT} {where} ORDER BY {column} {direction}, p.id {direction} LIMIT ?"
        found = [_picture(row) for row in self._store.rows(query, (*values, limit + 1))]
        following = None
        if len(found) > limit:
            found = found[:limit]
            last = found[-1]
            following = f"{last.id if column == 'p.id' else last.score!r}:{last.id}"
        return found, following

    def iterate(self, chosen: Filter) -> Iterator[Picture]:
        """All of these pictures, the oldest first."""
        cursor = None
        while True:
            found, cursor = self.page(chosen, "oldest", cursor, 500)
            yield from found
            if cursor is None:
                return

    def values(self, chosen: Filter, columns: Sequence[str], last: int) -> dict[str, list[Any]]:
        """Columns of the latest pictures as lists, the newest first.

        Args:
            chosen: which pictures.
            columns: names of attributes of `Picture`.
            last: most pictures.
        """
        allowed = {field.name for field in fields(Judged)} | {"id"}
        if not set(columns) <= allowed:
            raise InputError(f"columns {', '.join(columns)}: possible are {', '.join(sorted(allowed))}")
        conditions, values = chosen.where()
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        listed = ", ".join(f"p.{column}" for column in columns)
        rows = self._store.rows(f"SELECT {listed} {_CURRENT} {where} ORDER BY p.id DESC LIMIT ?", (*values, last))
        return {column: [row[i] for row in rows] for i, column in enumerate(columns)}

    def count(self, chosen: Filter) -> int:
        """The number of pictures."""
        conditions, values = chosen.where()
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        return int(self._store.rows(f"SELECT count(*) {_CURRENT} {where}", tuple(values))[0][0])

    def path(self, picture: Picture) -> Path:
        """The file of a picture as it was received."""
        return self._store.folder / picture.file

    def let_go(self) -> None:
        """Delete the oldest pictures without a mark beyond the bound: the rows, then the files.

        Not to be called within a transaction, whose end may bring the rows back, but not the files.
        """
        latest = "SELECT max(id) FROM marks WHERE picture = m.picture"
        marked = f"SELECT count(*) FROM marks m WHERE mark IS NOT NULL AND id = ({latest})"
        with self._store.transaction() as connection:
            total = self._store.rows("SELECT count(*) FROM pictures")[0][0]
            surplus = total - self._store.rows(marked)[0][0] - self._keep if total > self._keep else 0
            if surplus <= 0:
                return
            oldest = f"SELECT p.id, p.file {_CURRENT} WHERE m.mark IS NULL ORDER BY p.id LIMIT ?"
            rows = self._store.rows(oldest, (surplus,))
            files = [row["file"] for row in rows]
            for row in rows:  # masks of marks that were taken away go with their picture
                masks = "SELECT mask FROM marks WHERE picture = ? AND mask IS NOT NULL"
                files += [mask["mask"] for mask in self._store.rows(masks, (row["id"],))]
            connection.executemany("DELETE FROM pictures WHERE id = ?", [(row["id"],) for row in rows])
        for file in files:
            with suppress(OSError):
                (self._store.folder / file).unlink()


def _parse_cursor(cursor: str) -> tuple[float, int]:
    value, _, number = cursor.partition(":")
    try:
        return float(value), int(number)
    except ValueError as error:
        raise InputError(f"cursor {cursor!r} is not one that a page ended with") from error


def _picture(row: sqlite3.Row) -> Picture:
    values = dict(row)
    return Picture(**values | {"regions": json.loads(values["regions"])})
