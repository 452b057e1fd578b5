"""What the commands share: those of main.py, and `python -m datasets.check` and its like."""

from __future__ import annotations

import math
import sys
from typing import Any, NoReturn

import click

from datasets.files import FULL_BITS, MAX_PIXELS
from datasets.geometry import AUTO
from utils import InputError, WorkError, describe_os_error, escape_what_cannot_be_printed

CONTEXT = {
    "show_default": True,
    # both --meta_epochs and --meta-epochs
    "token_normalize_func": lambda token: token.replace("-", "_"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}
INTERRUPTED = 130


class Finite(click.FloatRange):
    """A range that nan and infinity do not slip through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As FloatRange, for finite numbers."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class BitsType(click.ParamType):
    """`auto`, or a number from 8 to 16."""

    name = "bits"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What --help shows."""
        return "auto|8≤x≤16"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """A number, or the word."""
        if str(value) == AUTO:
            return AUTO
        if not (str(value).isascii() and str(value).isdigit() and 8 <= int(value) <= FULL_BITS):
            self.fail(f"{value!r} is no depth; possible: {AUTO}, or bits from 8 to {FULL_BITS}", param, ctx)
        return int(value)


bits_option = click.option(
    "--bits",
    default=AUTO,
    type=BitsType(),
    help="Bits in use of 16-bit files, of 12 white is 4095; auto: found over the class's training images.",
)
max_pixels_option = click.option(
    "--max_pixels",
    default=MAX_PIXELS,
    type=click.IntRange(min=1),
    help="A picture with more pixels is refused, as it would fill the memory.",
)


def run_command(command: click.Command) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed work, 2 usage, 130 interrupted; errors as one line, as in main.py.

    A command says its own exit code by `click.get_current_context().exit(code)`.
    """
    escape_what_cannot_be_printed()
    try:
        # click gives the exit code back here instead of exiting
        code = command.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("stopped", INTERRUPTED)
    except InputError as error:
        _fail(str(error), 2)
    except MemoryError:
        _fail("out of memory", 1)
    except WorkError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(describe_os_error(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    # a file name need not be text; what is not, is shown as �
    click.echo(f"Error: {click.format_filename(' '.join(message.split()))}", err=True)
    sys.exit(code)
