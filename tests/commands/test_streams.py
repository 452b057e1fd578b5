"""Commands on terminals that cannot show every character."""

import io
import sys

import click
import pytest

from commands.command import Command

NAME = "\u2013 \u00b1 \u2192 caf\udce9"  # a dash, a sign, an arrow, and a byte that is not UTF-8


@click.command(cls=Command)
def _lines():
    click.echo(NAME)


@click.command(cls=Command)
def _lines_and_an_error():
    click.echo(NAME)
    raise click.UsageError(NAME)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("command", [_lines, _lines_and_an_error])
def test_no_character_ends_a_command(monkeypatch, encoding, command):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit):
            command([])
        out.flush()
        err.flush()
    assert b"caf" in out.buffer.getvalue()


def test_a_program_without_output_streams_runs_commands(monkeypatch):
    with monkeypatch.context() as patch:  # as under pythonw, or with both streams closed
        patch.setattr(sys, "stdout", None)
        patch.setattr(sys, "stderr", None)
        with pytest.raises(SystemExit) as ended:
            _lines([])
    assert ended.value.code == 0
