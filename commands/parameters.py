"""Types of option values: ranges, sizes, tiles, bit depths."""

from __future__ import annotations

import math
from typing import Any

import click

from datasets.limits import AUTO, FULL_BITS, MOST_OVERLAP

SMALLEST_SIDE = 16  # pixels of an image or a tile


class Finite(click.FloatRange):
    """A range that nan and infinity do not pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As FloatRange, for finite numbers."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class SizeType(click.ParamType):
    """`288` or `256x512` (height x width), each side at least 16."""

    name = "size"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The placeholder for the value in --help."""
        return "N|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        """A number, or a pair (H, W)."""
        if not isinstance(value, str):
            return value
        sides = value.lower().split("x")
        if len(sides) > 2 or not all(_is_number(side, SMALLEST_SIDE) for side in sides):
            self.fail(
                f"{value!r} is not a size; possible: 288, or 256x512 (height x width), at least 16 each", param, ctx
            )
        return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


class TileType(click.ParamType):
    """A length in pixels, or one of some words."""

    name = "tile"

    def __init__(self, *words: str) -> None:
        self.words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The placeholder for the value in --help."""
        return "|".join(("PIXELS", *self.words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """A number of at least 16, or a word."""
        if str(value) in self.words:
            return str(value)
        if not _is_number(str(value), SMALLEST_SIDE):
            words = ", ".join(self.words)
            self.fail(
                f"{value!r} is not a tile size; possible: a number of pixels, at least 16, or {words}", param, ctx
            )
        return int(value)


class BitsType(click.ParamType):
    """`auto`, or a number from 8 to 16."""

    name = "bits"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """The placeholder for the value in --help."""
        return "auto|8≤x≤16"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """A number, or the word."""
        if str(value) == AUTO:
            return AUTO
        if not (_is_number(str(value), 8) and int(value) <= FULL_BITS):
            self.fail(f"{value!r} is not a bit depth; possible: {AUTO}, or bits from 8 to {FULL_BITS}", param, ctx)
        return int(value)


def _is_number(text: str, least: int) -> bool:
    return text.isascii() and text.isdigit() and int(text) >= least


AT_LEAST_0, AT_LEAST_1 = click.IntRange(min=0), click.IntRange(min=1)
DEVICE = click.IntRange(min=-1)
SEED = click.IntRange(0, 2**32 - 1)
SHARE = Finite(0, 1)
SHARE_BELOW_1 = Finite(0, 1, max_open=True)
BETWEEN_0_AND_1 = Finite(0, 1, min_open=True, max_open=True)
NOT_NEGATIVE = Finite(min=0)
OVERLAP = Finite(0, MOST_OVERLAP)
SWITCH = click.IntRange(0, 1)
FOLDER = click.Path(file_okay=False)
