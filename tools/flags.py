"""docs/options.md, the tables of all options, from the commands themselves: `python -m tools.flags` writes it."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator, Sequence

import click

from commands import dataset, preview
from main import main
from tools import ROOT, script

TARGET = ROOT / "docs" / "options.md"
TITLE = """# Options of every command

Written by `python -m tools.flags` from the commands themselves: change the option, not this file. `--help` of a command shows
the same. An option may be spelled with `-` or `_` (`--meta-epochs`). Options of a training stand before `net`; another
command that has one of them takes it before its name as well (`python main.py --gpu -1 predict …`).

Exit codes: 0 done, 1 the work failed, 2 wrong usage, 130 interrupted. What `check` and `predict` mean by 1 is said below."""
STATED = re.compile(r"\s*\[default: (.*)\]$")
HEAD = ("| option | default | meaning |", "|---|---|---|")


def document() -> str:
    """The whole file, a heading and a table for each command."""
    sections = [TITLE, *_of_program()]
    sections += [part for name in main.list_commands(None) for part in _of_command(name)]
    sections += [*_of_exporter(), *_of_runner()]
    return "\n\n".join(sections) + "\n"


def _of_program() -> Iterator[str]:
    yield "## Options of a training"
    yield "Before `net` and `dataset`: `python main.py [OPTIONS] net [OPTIONS] dataset [OPTIONS] NAME DATA_PATH AUG_PATH`"
    yield _table(main.params)


def _of_command(name: str) -> Iterator[str]:
    command = main.get_command(None, name)
    yield f"## {name}"
    yield f"`python main.py {' '.join((name, *command.collect_usage_pieces(click.Context(command))))}`"
    yield _plain(inspect.cleandoc(command.help))
    if command is preview.command:
        yield f"Besides the options of `{dataset.command.name}`:"
        yield _table(preview.OWN_OPTIONS)
    else:
        yield _table(command.params)


def _of_exporter() -> Iterator[str]:
    exporter = script("pth2onnx").main
    yield "## onnx/pth2onnx.py"
    yield f"`python onnx/pth2onnx.py {' '.join(exporter.collect_usage_pieces(click.Context(exporter)))}`"
    yield _plain(inspect.cleandoc(exporter.help))
    yield _table(exporter.params)


def _of_runner() -> Iterator[str]:
    """The one command that has to do without click."""
    parser = script("ort")._parser()
    yield "## onnx/ort.py"
    yield "`python onnx/ort.py [OPTIONS] MODEL INPUT...`"
    yield "Judge images with an exported graph; needs no PyTorch. Prints and writes what `predict` does."
    yield "\n".join((*HEAD, *_rows_of_parser(parser)))


def _table(parameters: Sequence[click.Parameter]) -> str:
    options = [option for option in parameters if isinstance(option, click.Option) and option.name != "help"]
    rows = [f"| {_spelling(option)} | {' | '.join(_default_and_meaning(option))} |" for option in options]
    return "\n".join((*HEAD, *rows))


def _rows_of_parser(parser: argparse.ArgumentParser) -> Iterator[str]:
    for option in parser._actions:
        if option.option_strings and option.dest != "help":
            values = "" if option.nargs == 0 else " " + _values(option)
            default = "no" if option.default is False else "–" if option.default is None else option.default
            meaning = _plain(option.help).replace(" (default: %(default)s)", "")
            yield f"| `{option.option_strings[0]}`{values} | {default} | {meaning} |"


def _values(option: argparse.Action) -> str:
    if option.choices:
        return "\\|".join(option.choices)
    return option.metavar.replace("|", "\\|")


def _spelling(option: click.Option) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        return f"`{names}`, `{', '.join(option.secondary_opts)}`"
    if option.is_flag:
        return f"`{names}`"
    kind = option.type
    values = "\\|".join(kind.choices) if isinstance(kind, click.Choice) else _metavar(option)
    return f"`{names}` {values}"


def _metavar(option: click.Option) -> str:
    kind = option.type
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        return _range(kind)
    return (kind.get_metavar(option, click.Context(main)) or kind.name.upper()).replace("|", "\\|")


def _range(kind: click.IntRange | click.FloatRange) -> str:
    low = "" if kind.min is None else f"{kind.min:g}{'<' if kind.min_open else '≤'}"
    high = "" if kind.max is None else f"{'<' if kind.max_open else '≤'}{kind.max:g}"
    if kind.min is not None and kind.max == 2**32 - 1:
        high = ""
    return f"{low}x{high}" if low or high else "x"


def _plain(text: str) -> str:
    """Text in which <E> is no HTML tag."""
    return text.replace("<", "\\<")


def _default_and_meaning(option: click.Option) -> tuple[str, str]:
    text = _plain(option.help or "").replace("|", "\\|")
    stated = STATED.search(text)
    if stated:
        return stated[1], STATED.sub("", text)
    default = option.default
    if option.secondary_opts:
        default = (option.opts if default else option.secondary_opts)[0]
    if isinstance(default, (list, tuple)):
        default = " ".join(map(str, default))
    missing = default is None or default == "" or not isinstance(default, (str, int, float, bool))
    return ("required" if option.required else "–") if missing else str(default), text


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
