"""`report`: several runs side by side, or the report of one run written again."""

from __future__ import annotations

from pathlib import Path

import click

from commands.command import CONTEXT, Command
from utils import printable


@click.command("report", cls=Command, context_settings=CONTEXT)
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    default=None,
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML file of the comparison.  [default: comparison.html; of a single run its report.html]",
)
def command(results: tuple[Path, ...], out: Path | None) -> None:
    """Compare runs, the folders RESULTS, with the first of them; of a single run, write its report again."""
    from reporting.compare import compare  # slow to import

    text, written = compare(results, out)
    click.echo(text)
    click.echo(printable(f"written: {written}"))
