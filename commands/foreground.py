"""`foreground`: masks of where the object lies in each training image."""

from __future__ import annotations

from pathlib import Path

import click

from commands.command import CONTEXT, Command
from commands.parameters import FOLDER
from commands.shared import bits_option, classes_option, max_pixels_option
from utils import setup_logging


@click.command("foreground", cls=Command, context_settings=CONTEXT)
@classes_option
@click.option("--out", required=True, type=FOLDER, help="Folder that gets a folder for each class.")
@click.option(
    "--test",
    is_flag=True,
    help="Make masks of the test images too, and measure how much of their defects lies inside.  [default: no]",
)
@bits_option
@max_pixels_option
@click.argument("name")
@click.argument("data_path", type=click.Path())
def command(
    name: str, data_path: str, subdatasets: tuple[str, ...], out: str, test: bool, bits: int | str, max_pixels: int
) -> None:
    """Make foreground masks of the training images, and a contact sheet to look at.

    NAME and DATA_PATH are those of the command dataset. With --out DATA_PATH/fg_mask a training finds the masks there.
    """
    from datasets.foreground_report import write_masks  # slow to import

    setup_logging()
    for line in write_masks(name, data_path, Path(out), subdatasets, test, bits, max_pixels):
        click.echo(line)
