"""Recipes and their versions in a store: a checkpoint, two thresholds, and what is known about both."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inference.thresholds import normalise
from utils import InputError, write_atomically

if TYPE_CHECKING:
    from serving.store import Store

GOOD, UNSURE, DEFECTIVE = "good", "unsure", "defective"
DECISIONS = (GOOD, UNSURE, DEFECTIVE)
Origin = Literal["first", "threshold", "retrained"]


@dataclass(frozen=True)
class Version:
    """A version of a recipe; it never changes, apart from `active` and `figures`.

    Attributes:
        recipe: its name, the class name of the training.
        number: counted from 1 for each recipe.
        checkpoint: path relative to the store.
        digest: SHA-256 of the checkpoint; versions with one digest give the same scores.
        unsure: image score above which a picture is no longer good; None for a model without thresholds.
        defective: image score above which a picture is defective, at least `unsure`.
        created: seconds since 1970.
        origin: `first` was given on the command line, `threshold` has thresholds of its own, `retrained` weights.
        figures: plain values about it, such as `reference` (`serving.reference`) or the metrics of a training.
        active: whether pictures are judged with it.
    """

    recipe: str
    number: int
    checkpoint: str
    digest: str
    unsure: float | None
    defective: float | None
    created: float
    origin: Origin
    figures: dict[str, Any]
    active: bool

    def decide(self, score: float) -> str | None:
        """`good`, `unsure` or `defective`; None without thresholds."""
        if self.unsure is None or self.defective is None:
            return None
        return DEFECTIVE if score > self.defective else UNSURE if score > self.unsure else GOOD

    def normalise(self, score: float) -> float | None:
        """The score rescaled to [0, 1] so that the threshold `defective` is at 0.5; None without thresholds."""
        return None if self.defective is None else float(normalise(score, self.defective))


class Recipes:
    """The recipes of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def names(self) -> list[str]:
        """The names of all recipes, sorted."""
        return [row["name"] for row in self._store.rows("SELECT name FROM recipes ORDER BY name")]

    def versions(self, recipe: str) -> list[Version]:
        """All versions of a recipe, the newest first."""
        query = "SELECT * FROM versions WHERE recipe = ? ORDER BY number DESC"
        return [_version(row) for row in self._store.rows(query, (recipe,))]

    def version(self, recipe: str, number: int) -> Version:
        """One version.

        Raises:
            InputError: there is none of this number.
        """
        rows = self._store.rows("SELECT * FROM versions WHERE recipe = ? AND number = ?", (recipe, number))
        if not rows:
            raise InputError(f"recipe {recipe} has no version {number}")
        return _version(rows[0])

    def active(self, recipe: str) -> Version:
        """The version that pictures are judged with.

        Raises:
            InputError: there is no such recipe.
        """
        rows = self._store.rows("SELECT * FROM versions WHERE recipe = ? AND active", (recipe,))
        if not rows:
            raise InputError(f"no recipe {recipe!r}; there are: {', '.join(self.names()) or 'none'}")
        return _version(rows[0])

    def add(
        self, recipe: str, checkpoint: Path, unsure: float | None, defective: float | None, origin: Origin,
        figures: dict[str, Any] | None = None, activate: bool = True,
    ) -> Version:  # fmt: skip
        """Copy a checkpoint into the store as a new version.

        Args:
            recipe: its name; a new one is created.
            checkpoint: the file, anywhere.
            unsure, defective: image scores, `unsure` ≤ `defective`; None for a model without thresholds.
            origin: why the version was made.
            figures: plain values about it.
            activate: whether pictures are judged with it from now on.

        Raises:
            InputError: a threshold is not in [0, 1], or they are in the wrong order.
            WorkError: the checkpoint cannot be copied.
        """
        digest = digest_of(checkpoint)
        stored = Path("models") / f"{digest}.pth"  # versions that only differ in their thresholds share it
        target = self._store.folder / stored
        if not target.exists():
            write_atomically(target, lambda temporary: shutil.copyfile(checkpoint, temporary))
        return self._insert(recipe, stored.as_posix(), digest, unsure, defective, origin, figures or {}, activate)

    def set_thresholds(self, recipe: str, unsure: float, defective: float) -> Version:
        """A new active version with the checkpoint of the active one and other thresholds.

        Raises:
            InputError: there is no such recipe; a threshold is not in [0, 1], or they are in the wrong order.
        """
        with self._store.transaction():
            now = self.active(recipe)
            return self._insert(
                recipe, now.checkpoint, now.digest, unsure, defective, "threshold", now.figures, activate=True
            )

    def activate(self, recipe: str, number: int) -> Version:
        """Judge with this version from now on.

        Raises:
            InputError: there is no such version.
        """
        with self._store.transaction() as connection:
            self.version(recipe, number)
            self._switch(connection, recipe, number)
            values = (recipe, number, time.time())
            connection.execute("INSERT INTO activations (recipe, number, time) VALUES (?, ?, ?)", values)
            return self.version(recipe, number)

    def undo(self, recipe: str) -> Version:
        """Make the version active again that was active before this one; repeated, the one before that.

        Raises:
            InputError: there is no such recipe, or no earlier version.
        """
        with self._store.transaction() as connection:
            self.active(recipe)
            query = "SELECT id, number FROM activations WHERE recipe = ? ORDER BY id DESC LIMIT 2"
            latest = self._store.rows(query, (recipe,))
            if len(latest) < 2:
                raise InputError(f"recipe {recipe}: nothing to undo, this is the version that it began with")
            connection.execute("DELETE FROM activations WHERE id = ?", (latest[0]["id"],))
            self._switch(connection, recipe, latest[1]["number"])
            return self.active(recipe)

    def set_figures(self, recipe: str, number: int, figures: dict[str, Any]) -> None:
        """Replace the figures of a version."""
        with self._store.transaction() as connection:
            values = (json.dumps(figures, allow_nan=False), recipe, number)
            connection.execute("UPDATE versions SET figures = ? WHERE recipe = ? AND number = ?", values)

    def checkpoint(self, version: Version) -> Path:
        """The file of a version's checkpoint."""
        return self._store.folder / version.checkpoint

    def _switch(self, connection: sqlite3.Connection, recipe: str, number: int) -> None:
        connection.execute("UPDATE versions SET active = 0 WHERE recipe = ? AND active", (recipe,))
        connection.execute("UPDATE versions SET active = 1 WHERE recipe = ? AND number = ?", (recipe, number))

    def _insert(
        self, recipe: str, checkpoint: str, digest: str, unsure: float | None, defective: float | None,
        origin: Origin, figures: dict[str, Any], activate: bool,
    ) -> Version:  # fmt: skip
        check_thresholds(unsure, defective)
        now = time.time()
        with self._store.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO recipes (name, created) VALUES (?, ?)", (recipe, now))
            latest = self._store.rows("SELECT max(number) FROM versions WHERE recipe = ?", (recipe,))[0][0]
            number = (latest or 0) + 1
            connection.execute(
                "INSERT INTO versions (recipe, number, checkpoint, digest, unsure, defective, created, origin, figures)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (recipe, number, checkpoint, digest, unsure, defective, now, origin,
                 json.dumps(figures, allow_nan=False)),
            )  # fmt: skip
            return self.activate(recipe, number) if activate else self.version(recipe, number)


def check_thresholds(unsure: float | None, defective: float | None) -> None:
    """Check a pair of thresholds.

    Raises:
        InputError: only one is given, one is not in [0, 1], or they are in the wrong order.
    """
    if unsure is None and defective is None:
        return
    if unsure is None or defective is None:
        raise InputError("give both thresholds, unsure and defective, or neither")
    for name, value in (("unsure", unsure), ("defective", defective)):
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise InputError(f"threshold {name} {value:g}: must be an image score from 0 to 1")
    if unsure > defective:
        raise InputError(f"threshold unsure {unsure:g} is above defective {defective:g}; it must be at most as high")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _version(row: sqlite3.Row) -> Version:
    values = dict(row)
    return Version(**values | {"figures": json.loads(values["figures"]), "active": bool(values["active"])})
