"""The README's table of all options, from the command line itself: `python -m tools.flags` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

import click

import main

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- options: written by python -m tools.flags -->", "<!-- end of options -->"
COMMANDS = (
    ("main.py", main.main),
    ("net", main.net),
    ("dataset", main.dataset),
    ("predict", main.predict_command),
)
STATED = re.compile(r"\s*\[default: (.*)\]$")


def table() -> str:
    """All options of all commands as one Markdown table."""
    lines = ["| command | option | default | meaning |", "|---|---|---|---|"]
    for name, command in COMMANDS:
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "help":
                lines.append("| " + " | ".join((name, _spelling(option), *_default_and_meaning(option))) + " |")
    return "\n".join(lines)


def _spelling(option: click.Option) -> str:
    names = ", ".join(sorted(option.opts, key=len))
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
