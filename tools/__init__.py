"""Programs that make files of the project; run them from its root. Using the project does not need them."""

from __future__ import annotations

from pathlib import Path

from commands.scripts import script

__all__ = ["ROOT", "script"]

ROOT = Path(__file__).resolve().parent.parent
