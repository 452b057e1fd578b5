"""What the commands beside main.py share: `python -m datasets.check` and its like."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from errors import InputError, WorkError

CONTEXT = {
    "show_default": True,
    # both --skip_bad and --skip-bad
    "token_normalize_func": lambda token: token.replace("-", "_"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}
INTERRUPTED = 130


def run_command(command: click.Command) -> NoReturn:
    """Run a command and exit: 0 done, 1 failed work, 2 usage, 130 interrupted; errors as one line, as in main.py.

    A command says its own exit code by `click.get_current_context().exit(code)`.
    """
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
    except (WorkError, OSError) as error:
        _fail(str(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    # a file name need not be text; what is not, is shown as �
    click.echo(f"Error: {click.format_filename(' '.join(message.split()))}", err=True)
    sys.exit(code)
