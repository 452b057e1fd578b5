"""Options that several commands have."""

from __future__ import annotations

import click

from commands.parameters import AT_LEAST_1, DEVICE, SEED, BitsType
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
# attributes, for commands that declare options with click.option and for those that list click.Option
ONE_SEED = {"default": 0, "type": SEED, "help": "Seed of every random draw."}
GPU = {
    "type": DEVICE,
    "multiple": True,
    "help": "CUDA device; -1 is the CPU. Repeat it to name alternatives: the first one that exists is used.  [default: 0 if there is one, else -1]",
}
