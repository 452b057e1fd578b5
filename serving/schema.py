"""The tables of a store, and how an older store becomes one of this version."""

from __future__ import annotations

# Entry i turns a store of version i into one of version i + 1; entries are only ever appended.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE recipes (name TEXT PRIMARY KEY, created REAL NOT NULL)",
        """CREATE TABLE versions (
            recipe TEXT NOT NULL REFERENCES recipes(name),
            number INTEGER NOT NULL CHECK (number > 0),
            checkpoint TEXT NOT NULL,
            digest TEXT NOT NULL,
            unsure REAL,
            defective REAL,
            created REAL NOT NULL,
            origin TEXT NOT NULL CHECK (origin IN ('first', 'threshold', 'retrained')),
            figures TEXT NOT NULL,
            active INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY (recipe, number))""",
        "CREATE UNIQUE INDEX one_active ON versions(recipe) WHERE active",
        # which version was made active when; undoing removes the latest entry
        """CREATE TABLE activations (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            recipe TEXT NOT NULL,
            number INTEGER NOT NULL,
            time REAL NOT NULL,
            FOREIGN KEY (recipe, number) REFERENCES versions(recipe, number))""",
        """CREATE TABLE pictures (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            recipe TEXT NOT NULL,
            version INTEGER NOT NULL,
            sha256 TEXT NOT NULL,
            name TEXT NOT NULL,
            received REAL NOT NULL,
            source TEXT NOT NULL CHECK (source IN ('http', 'watch', 'page')),
            file TEXT NOT NULL UNIQUE,
            width INTEGER NOT NULL,
            height INTEGER NOT NULL,
            score REAL NOT NULL,
            normalised REAL,
            decision TEXT CHECK (decision IN ('good', 'unsure', 'defective')),
            milliseconds REAL NOT NULL,
            regions TEXT NOT NULL,
            brightness REAL NOT NULL,
            contrast REAL NOT NULL,
            sharpness REAL NOT NULL,
            FOREIGN KEY (recipe, version) REFERENCES versions(recipe, number))""",
        "CREATE INDEX pictures_by_recipe ON pictures(recipe, id)",
        "CREATE INDEX pictures_by_score ON pictures(recipe, score, id)",
        # every mark that was ever set; the latest of a picture counts, and a null takes the mark away
        """CREATE TABLE marks (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            action INTEGER NOT NULL,
            picture INTEGER NOT NULL REFERENCES pictures(id) ON DELETE CASCADE,
            mark TEXT CHECK (mark IN ('good', 'defective')),
            mask TEXT,
            time REAL NOT NULL)""",
        "CREATE INDEX marks_by_picture ON marks(picture, id)",
        # files of watched folders: judged, then (done = 1) with the result beside it or moved
        """CREATE TABLE watched (
            folder TEXT NOT NULL,
            path TEXT NOT NULL,
            size INTEGER NOT NULL,
            modified INTEGER NOT NULL,
            decision TEXT NOT NULL,
            result TEXT NOT NULL,
            target TEXT,
            done INTEGER NOT NULL DEFAULT 0,
            time REAL NOT NULL,
            PRIMARY KEY (folder, path, size, modified))""",
        "CREATE INDEX watched_open ON watched(folder) WHERE NOT done",
        # what a webhook has not accepted yet
        """CREATE TABLE outbox (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            body TEXT NOT NULL,
            tries INTEGER NOT NULL DEFAULT 0,
            due REAL NOT NULL)""",
    ),
)
SCHEMA = len(MIGRATIONS)
