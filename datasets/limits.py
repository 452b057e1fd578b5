"""Limits and defaults that the command line shares with the modules that read images.

This module imports nothing, so that --help is quick.
"""

from __future__ import annotations

MAX_PIXELS = 500_000_000  # of an image, by default
FULL_BITS = 16
AUTO = "auto"
DEFAULT_OVERLAP, MOST_OVERLAP = 0.25, 0.75  # of neighbouring tiles, as a share of a tile's side
