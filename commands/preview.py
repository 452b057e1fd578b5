"""`preview`: what a training will make of the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from commands import dataset
from commands.command import CONTEXT, Command
from commands.parameters import FOLDER
from commands.shared import ONE_SEED
from utils import printable, setup_logging

OWN_OPTIONS = [
    click.Option(["--out"], default="preview", type=FOLDER, help="Folder of the sheets, one for each class."),
    click.Option(["--samples"], default=6, type=click.IntRange(1, 100), help="Number of rows of a sheet."),
    click.Option(["--seed"], **ONE_SEED),
]


@click.pass_context
def _preview(context: click.Context, out: str, samples: int, seed: int, **options: Any) -> None:
    """Show what a training will make of the images; options and arguments are those of the command dataset."""
    settled = dataset.settle(context, options)
    from reporting.preview import write_sheets  # slow to import

    setup_logging()
    for path in write_sheets(settled, Path(out), samples, seed):
        click.echo(printable(str(path)))


command = Command(
    "preview",
    callback=_preview,
    params=[*dataset.command.params, *OWN_OPTIONS],
    help=_preview.__doc__,
    context_settings=CONTEXT,
)
