"""Marks: what somebody who looked at pictures said of them, with masks of defects if they were drawn."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils import InputError, write_bytes

if TYPE_CHECKING:
    from serving.store import Store

MARKS = ("good", "defective")


class Marks:
    """The marks of a store. The latest mark of a picture counts; undoing brings back the one before."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, pictures: Sequence[int], mark: str | None, mask: bytes | None = None) -> int:
        """Mark pictures, in one action that can be undone as a whole.

        Args:
            pictures: their ids.
            mark: `good` or `defective`; None takes the mark away.
            mask: of the defect, a PNG file of the picture's size with 255 where it is; only for one defective picture.

        Returns:
            The number of the action.

        Raises:
            InputError: there is no such picture or mark, or the mask does not go with it.
            WorkError: it cannot be written.
        """
        if mark is not None and mark not in MARKS:
            raise InputError(f"mark {mark!r}: possible are {', '.join(MARKS)}, and null to take the mark away")
        if mask is not None and (mark != "defective" or len(pictures) != 1):
            raise InputError("a mask belongs to one picture that is marked defective")
        file = None
        if mask is not None:
            file = f"masks/{pictures[0]}-{secrets.token_hex(8)}.png"
            write_bytes(self._store.folder / file, mask)
        with self._store.transaction() as connection:
            for number in pictures:
                self._store.pictures.get(number)
            action = 1 + (self._store.rows("SELECT max(action) FROM marks")[0][0] or 0)
            now = time.time()
            connection.executemany(
                "INSERT INTO marks (action, picture, mark, mask, time) VALUES (?, ?, ?, ?, ?)",
                [(action, number, mark, file, now) for number in dict.fromkeys(pictures)],
            )
        return action

    def undo(self, recipe: str) -> list[int]:
        """Undo the latest action on pictures of a recipe; returns the ids of its pictures.

        Raises:
            InputError: there is none.
        """
        with self._store.transaction() as connection:
            query = "SELECT max(action) FROM marks JOIN pictures p ON p.id = picture WHERE p.recipe = ?"
            action = self._store.rows(query, (recipe,))[0][0]
            if action is None:
                raise InputError(f"recipe {recipe}: no mark to undo")
            rows = self._store.rows("SELECT picture FROM marks WHERE action = ? ORDER BY picture", (action,))
            connection.execute("DELETE FROM marks WHERE action = ?", (action,))
        return [row["picture"] for row in rows]
