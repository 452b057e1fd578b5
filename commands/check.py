"""`check`: what is wrong with a data set."""

from __future__ import annotations

import click

from commands.command import CONTEXT, DONE, FAILED, Command
from commands.shared import bits_option, classes_option, max_pixels_option


@click.command("check", cls=Command, context_settings=CONTEXT)
@classes_option
@bits_option
@max_pixels_option
@click.argument("name")
@click.argument("data_path", type=click.Path())
@click.argument("aug_path", type=click.Path(), required=False)
def command(
    name: str, data_path: str, aug_path: str | None, subdatasets: tuple[str, ...], bits: int | str, max_pixels: int
) -> int:
    """Read every image and mask of a data set and list what is wrong with them.

    NAME, DATA_PATH and AUG_PATH are those of the command dataset. The exit code is 1 if there is any problem.
    """
    from datasets.check_report import check_dataset  # slow to import

    report = check_dataset(name, data_path, aug_path, subdatasets, bits, max_pixels)
    for line in report.lines():
        click.echo(click.format_filename(line))  # a file name need not be text
    return FAILED if report.problems else DONE
