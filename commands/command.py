"""Behaviour that all commands share: settings, exit codes, errors in one line, and how they are stopped."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from utils import InputError, WorkError, describe_os_error, escape_what_cannot_be_printed

CONTEXT = {
    "show_default": True,
    # both --meta_epochs and --meta-epochs
    "token_normalize_func": lambda token: token.replace("-", "_"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
# what PyTorch and OpenCV write when memory runs out, in errors that have no type of their own
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED", "nsufficient memory")


class Command(click.Command):
    """A command that ends with one line and the right exit code whatever goes wrong; only a bug shows a traceback.

    Its callback returns the exit code, or None for 0.

    Args:
        stopped: the message after Ctrl-C or SIGTERM.
        less_memory: what makes the command need less memory, for the message when memory runs out.
    """

    def __init__(self, *args: Any, stopped: str = "stopped", less_memory: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.stopped, self.less_memory = stopped, less_memory

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command and exit: 0 done, 1 failed work, 2 wrong usage, 130 interrupted."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        escape_what_cannot_be_printed()
        try:
            with _stopped_by_sigterm():
                # without standalone mode click returns the exit code (of --help, say) instead of exiting
                code = super().main(*args, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help(), err=True)
            sys.exit(error.exit_code)
        except click.NoSuchOption as error:
            fail(f"{error.format_message()}{self.hint(error.option_name)}", error.exit_code)
        except click.ClickException as error:
            fail(error.format_message(), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            fail(self.stopped, INTERRUPTED)
        except Exception as error:
            code = exit_code(error)
            if code is None:
                raise
            fail(self.stopped if code == INTERRUPTED else describe(error, self.less_memory), code)
        sys.exit(code if isinstance(code, int) else DONE)

    def hint(self, _option: str) -> str:
        """Where an option belongs that this command does not have; empty where that is not known."""
        return ""


def exit_code(error: Exception) -> int | None:
    """The exit code for an error that ended a command; None for a bug, which is to show its traceback."""
    if isinstance(error, InputError):
        return USAGE
    if isinstance(error, (WorkError, OSError)) or _is_out_of_memory(error):
        return FAILED
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        # a SIGTERM to the whole process group may reach a worker first
        return INTERRUPTED if "killed by signal: Terminated" in str(error) else FAILED
    return None


def describe(error: Exception, less_memory: str = "") -> str:
    """One line for an error that is not a bug.

    Args:
        error: what ended the command.
        less_memory: options that make the command need less memory.
    """
    if isinstance(error, (InputError, WorkError)):
        text = str(error).strip()
        if "Traceback (most recent call last)" in text:  # of a loader's worker; its last line is the message
            text = text.splitlines()[-1].removeprefix("utils.")
        return text.removeprefix("InputError: ").removeprefix("WorkError: ")
    if _is_out_of_memory(error):
        return f"out of memory; try {less_memory}" if less_memory else "out of memory"
    if isinstance(error, OSError):
        return describe_os_error(error)
    return f"a loader's worker died ({str(error).splitlines()[0]}); try fewer --num_workers"


def fail(message: str, code: int) -> NoReturn:
    """Print one line on standard error and exit."""
    # a file name may contain bytes that are not valid UTF-8; they are shown as �
    click.echo(f"Error: {click.format_filename(' '.join(message.split()))}", err=True)
    sys.exit(code)


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # without it no error is PyTorch's
    types = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, types) or any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM, as batch systems send it, ends the command like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: not a handler of Python
