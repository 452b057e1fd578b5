"""The program: which of its commands is meant, the chain of `net` and `dataset`, and --help."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

# How long PyTorch's threads on a CPU spin while they wait for each other: less than libgomp's default, for the sake of
# other programs on the same cores (benchmarks/spinning.py measures it). libgomp reads it when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import click

from commands import train
from commands.command import CONTEXT, USAGE, Command, fail

CHAIN = ("net", "dataset")
HELP = """GLASS: train on good images of a product, then find and outline defects.

\b
Train and test:
  python main.py [OPTIONS] net [OPTIONS] dataset [OPTIONS] NAME DATA_PATH AUG_PATH
Everything else:
  python main.py COMMAND [OPTIONS] ARGUMENTS
Options of one command:
  python main.py COMMAND --help

The options at the end are those of a training. A command that has one of them takes it before its name as well."""


class Entry(NamedTuple):
    """A line of the table of commands: the module that holds `command`, and what --help says of it."""

    module: str
    summary: str


class Program(Command, click.Group):
    """All commands, each imported when it is used.

    `net` and `dataset` form a chain, in which options must stand before arguments and a command ends where the next one
    begins. Any other command stands alone, and its options and arguments may be mixed.
    """

    def __init__(self, table: Mapping[str, Entry]) -> None:
        super().__init__(
            "main.py",
            chain=True,
            params=list(train.OPTIONS),
            result_callback=train.train,
            help=HELP,
            context_settings=CONTEXT,
            subcommand_metavar="COMMAND ...",
            stopped="stopped; the same command goes on where it was",
            less_memory="--feature_cache off, or a smaller --batch_size, --imagesize or --cache_gb",
        )
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        return self._load(cmd_name) if cmd_name in self._table else None

    def _load(self, name: str) -> Command:
        return import_module(self._table[name].module).command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, then the options."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self._table.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The next command of the chain."""
        name = args[0]
        if name in self._table and name not in CHAIN:
            ctx.fail(f"{name} stands alone: python main.py {name} --help shows how; only net and dataset form a chain")
        if name not in self._table and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}; possible: {', '.join(self._table)}")
        return super().resolve_command(ctx, args)

    def main(self, args: Any = None, prog_name: str | None = None, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the chain, or the command that stands alone."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            name, count = self._find(words)
        except click.UsageError as error:
            if not standalone_mode:
                raise
            fail(error.format_message(), USAGE)
        if name is None:
            return super().main(words, prog_name=prog_name, standalone_mode=standalone_mode, **extra)
        # options before the name come first, so that those after it win, as within one command
        words = [*words[:count], *words[count + 1 :]]
        prog_name = f"{prog_name or self.name} {name}"
        return self._load(name).main(words, prog_name=prog_name, standalone_mode=standalone_mode, **extra)

    def _find(self, words: list[str]) -> tuple[str | None, int]:
        """The command that stands alone, and how many words are before its name; (None, 0) for the chain.

        Raises:
            click.UsageError: an option before the name belongs to a training and not to this command.
        """
        for name in dict.fromkeys(word for word in words if word in self._table and word not in CHAIN):
            command = self._load(name)
            # only the declaration of an option tells whether the word after it is its value
            options = _by_name(self.params) | _by_name(command.params)
            parsed = _parse_before(words, list({id(option): option for option in options.values()}.values()))
            if parsed is None or parsed[1][:1] != [name]:
                continue
            used, rest = parsed
            known = {option.name for option in command.params} | {"help"}
            for option in options.values():
                if option.name in used and option.name not in known:
                    raise click.UsageError(
                        f"{option.opts[0]} is not an option of {name}; python main.py {name} --help lists those it has"
                    )
            return name, len(words) - len(rest)
        return None, 0

    def hint(self, option: str) -> str:
        """Where an option belongs that was given in the wrong place."""
        option = option.replace("-", "_").replace("__", "--", 1)
        if option in _by_name(self.params):
            return f" {option} comes before net and dataset."
        for names in (CHAIN, [name for name in self._table if name not in CHAIN]):
            owners = [name for name in names if option in _by_name(self._load(name).params)]
            if owners:
                return f" {option} belongs to {', '.join(owners)}."
        return ""


def _by_name(parameters: list[click.Parameter]) -> dict[str, click.Option]:
    return {name: option for option in parameters if isinstance(option, click.Option) for name in option.opts}


def _parse_before(words: list[str], options: list[click.Option]) -> tuple[dict[str, Any], list[str]] | None:
    """The options at the beginning and the words after them; None if there is a mistake among the options."""
    settings = {**CONTEXT, "allow_interspersed_args": False}
    parser = click.Command("main.py", params=options, context_settings=settings)
    try:
        used, rest, _ = parser.make_parser(click.Context(parser, **settings)).parse_args(list(words))
    except click.UsageError:
        return None  # the chain's parser reports it
    return used, rest
