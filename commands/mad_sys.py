"""`mad-sys`: test sets of weak defects."""

from __future__ import annotations

import re
from pathlib import Path

import click

from commands.command import CONTEXT, Command
from commands.parameters import AT_LEAST_1, BETWEEN_0_AND_1, FOLDER
from commands.shared import bits_option, max_pixels_option, seed_option

BETAS = (0.1, 0.3, 0.5, 0.7, 0.9)
NUMBER = re.compile(r"[+-]?[\d.,]+%?|nan|inf")  # wrong ones as well: the option's type says what is wrong with them


class SeveralValues(Command):
    """A command whose `--beta` takes all the numbers that follow it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`--beta 0.1 0.3` → `--beta 0.1 --beta 0.3`."""
        spelled, follows_beta = [], False
        for position, word in enumerate(args):
            number = bool(NUMBER.fullmatch(word))
            further = follows_beta and args[position - 1] != "--beta" and number
            spelled += ["--beta", word] if further else [word]
            follows_beta = word == "--beta" or (follows_beta and number)
        return super().parse_args(ctx, spelled)


@click.command("mad-sys", cls=SeveralValues, context_settings=CONTEXT)
@click.argument("mvtec", type=click.Path())
@click.argument("dtd", type=click.Path())
@click.argument("out", type=FOLDER)
@click.option(
    "--beta",
    "betas",
    multiple=True,
    type=BETWEEN_0_AND_1,
    default=BETAS,
    help="Transparency of the defects; several after one --beta, or one after each.",
)
@click.option(
    "-d", "--subdatasets", multiple=True, help="Class, repeatable.  [default: carpet, grid, leather, tile and wood]"
)
@seed_option
@click.option(
    "--count",
    default=None,
    type=AT_LEAST_1,
    help="Anomalous images of each class.  [default: 2.96 times its normal ones, as in MAD-sys]",
)
@bits_option
@max_pixels_option
def command(
    mvtec: str,
    dtd: str,
    out: str,
    betas: tuple[float, ...],
    subdatasets: tuple[str, ...],
    seed: int,
    count: int | None,
    bits: int | str,
    max_pixels: int,
) -> None:
    """Make test sets of weak defects: OUT/Beta_0.1/CLASS/test and so on, in the layout of MVTec AD.

    MVTEC holds a folder for each class, with good test images; DTD holds texture images at any depth, or is the word builtin.
    """
    from generation.mad_sys import make  # slow to import

    click.echo(make(Path(mvtec), dtd, Path(out), betas, subdatasets, seed, count, bits, max_pixels))
