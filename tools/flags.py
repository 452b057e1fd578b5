"""The README's tables of all options, from the commands themselves: `python -m tools.flags` writes them anew."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

import click

import main
from datasets import check, foreground
from generation import demo, mad_sys
from reporting import compare, preview
from tools import ROOT, script

README = ROOT / "README.md"
BEGIN, END = "<!-- options: written by python -m tools.flags -->", "<!-- end of options -->"
COMMANDS = (
    ("main.py", main.main),
    ("net", main.net),
    ("dataset", main.dataset),
    ("predict", main.predict_command),
)
# those beside main.py, by what is typed after `python`
FURTHER = (
    ("-m datasets.check", check.main.params),
    ("-m datasets.preview", preview.OWN_OPTIONS),  # besides those of dataset
    ("-m datasets.foreground", foreground.main.params),
    ("-m datasets.mad_sys", mad_sys.main.params),
    ("-m datasets.demo", demo.command.params),
    ("-m report", compare.main.params),
)
STATED = re.compile(r"\s*\[default: (.*)\]$")


def table() -> str:
    """All options of main.py as one Markdown table, and those of the other commands as a second one."""
    exporter, runner = script("pth2onnx"), script("ort")
    own = [(name, command.params) for name, command in COMMANDS]
    beside = [*FURTHER, ("onnx/pth2onnx.py", exporter.main.params)]
    between = "The commands beside it; `datasets.preview` takes the options of `dataset` too:"
    return "\n".join(
        [
            *_head("command"), *_rows(own), "", between, "",
            *_head("python"), *_rows(beside), *_parsed("onnx/ort.py", runner._parser()),
        ]
    )  # fmt: skip


def _head(first: str) -> list[str]:
    return [f"| {first} | option | default | meaning |", "|---|---|---|---|"]


def _rows(commands: Sequence[tuple[str, Sequence[click.Parameter]]]) -> list[str]:
    return [
        "| " + " | ".join((name, _spelling(option), *_default_and_meaning(option))) + " |"
        for name, options in commands
        for option in options
        if isinstance(option, click.Option) and option.name != "help"
    ]


def _parsed(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Rows of a command that has to do without click."""
    lines = []
    for option in parser._actions:
        if option.option_strings and option.dest != "help":
            values = "" if option.nargs == 0 else " " + _values(option)
            default = "no" if option.default is False else "–" if option.default is None else option.default
            meaning = option.help.replace(" (default: %(default)s)", "")
            lines.append(f"| {name} | `{option.option_strings[0]}`{values} | {default} | {meaning} |")
    return lines


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
    context = click.Context(main.main)
    return (kind.get_metavar(option, context) or kind.name.upper()).replace("|", "\\|")


def _range(kind: click.IntRange | click.FloatRange) -> str:
    low = "" if kind.min is None else f"{kind.min:g}{'<' if kind.min_open else '≤'}"
    high = "" if kind.max is None else f"{'<' if kind.max_open else '≤'}{kind.max:g}"
    if kind.min is not None and kind.max == 2**32 - 1:
        high = ""
    return f"{low}x{high}" if low or high else "x"


def _default_and_meaning(option: click.Option) -> tuple[str, str]:
    text = (option.help or "").replace("|", "\\|")
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


def renewed(text: str) -> str:
    """A README with the table as it is now.

    Raises:
        ValueError: it has no place for the table.
    """
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:begin]}\n{table()}\n{text[end:]}"


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
