"""What every command does alike: exit codes, errors in one line, being stopped."""

import os
import signal
import time

import click
import pytest

from commands.command import Command
from utils import InputError, WorkError

IN_A_WORKER = """Caught WorkError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "base.py", line 1, in load
utils.WorkError: a.png: cannot be read"""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("two\nlines"), 2, "Error: two lines"),
        (WorkError("no"), 1, "Error: no"),
        (WorkError(IN_A_WORKER), 1, "Error: a.png: cannot be read"),
        (OSError(28, "No space left on device"), 1, "Error: the disk is full (No space left on device)"),
        (MemoryError(), 1, "Error: out of memory"),
        (KeyboardInterrupt(), 130, "Error: stopped"),
        (click.UsageError("so not"), 2, "Error: so not"),
        (None, 0, ""),
        (3, 3, ""),
    ],
)
@pytest.mark.parametrize("returned", [True, False])
def test_exit_codes_of_a_command(capsys, error, code, line, returned):
    @click.command(cls=Command)
    def command():
        if isinstance(error, int):
            if returned:
                return error
            click.get_current_context().exit(error)
        if error is not None:
            raise error

    with pytest.raises(SystemExit) as ended:
        command([])
    assert ended.value.code == code
    assert capsys.readouterr().err.strip() == line


def test_a_bug_keeps_its_traceback():
    @click.command(cls=Command)
    def command():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        command([])


def test_what_needs_less_memory_is_named_where_it_is_known(capsys):
    @click.command(cls=Command, less_memory="a smaller --batch_size")
    def command():
        raise MemoryError

    with pytest.raises(SystemExit):
        command([])
    assert capsys.readouterr().err == "Error: out of memory; try a smaller --batch_size\n"


def test_sigterm_ends_a_command_as_an_interruption_does(capsys):
    @click.command(cls=Command, stopped="stopped; go on with --continue")
    def command():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        command([])
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip() == "Error: stopped; go on with --continue"
    assert signal.getsignal(signal.SIGTERM) is before
