"""Options that several commands have."""

from __future__ import annotations

import click

from commands.parameters import AT_LEAST_1, SEED, BitsType
from datasets.limits import AUTO, MAX_PIXELS

classes_option = click.option(
    "-d", "--subdatasets", multiple=True, help="Class, repeatable.  [default: all classes of the data set]"
)
bits_option = click.option(
    "--bits",
    default=AUTO,
    type=BitsType(),
    help="Bits used in 16-bit files: with 12 of them, 4095 is white; auto: found from the class's training images.",
)
max_pixels_option = click.option(
    "--max_pixels",
    default=MAX_PIXELS,
    type=AT_LEAST_1,
    help="Refuse an image with more pixels, which would fill the memory.",
)
seed_option = click.option("--seed", default=0, type=SEED, help="Seed of every random draw.")
