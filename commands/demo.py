"""`demo`: pictures to try everything with."""

from __future__ import annotations

from pathlib import Path

import click

from commands.command import CONTEXT, Command
from commands.shared import seed_option


@click.command("demo", cls=Command, context_settings=CONTEXT)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@seed_option
def command(folder: Path, seed: int) -> None:
    """Make two classes to try everything with, wall and plate, in DIR; demo data that is there already is kept."""
    from generation.demo import make  # slow to import

    make(folder, seed)
    click.echo(folder)
