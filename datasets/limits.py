"""Limits and words that the command line shares with what reads images. Imports nothing, so that --help is quick."""

from __future__ import annotations

MAX_PIXELS = 500_000_000  # of an image, unless an option says otherwise
FULL_BITS = 16
AUTO = "auto"
DEFAULT_OVERLAP, MOST_OVERLAP = 0.25, 0.75  # of neighbouring tiles, as a share of a tile's side
