"""Which image files a prediction run judges: files, folders, glob patterns and lists of paths."""

from __future__ import annotations

import codecs
import glob
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.listing import describe_other_files, scan_folder
from utils import LOGGER, InputError

SAVED = ("overlays", "maps", "masks")  # folders of saved images, in the output folder


@dataclass(frozen=True)
class InputImage:
    """An image file to judge.

    Attributes:
        path: of the file.
        relative: its path relative to the input it was found in; the names of its saved files derive from it.
    """

    path: Path
    relative: str


def find_pictures(inputs: Sequence[str], listed_paths: Iterable[str] = (), out: Path | None = None) -> list[InputImage]:
    """Find the image files that the inputs stand for; each file is returned once.

    A path from a list is accepted even if the file does not exist, because it may have been deleted in the meantime. It
    becomes a row with an error.

    Args:
        inputs: files, folders (searched at any depth), patterns with * ? [ ], or `-` for `listed_paths`.
        listed_paths: paths that the input `-` stands for.
        out: output folder; images that an earlier run saved in it are skipped.

    Raises:
        InputError: an input matches no image, or no input matches any.
    """
    images: dict[str, InputImage] = {}
    saved_folders = tuple(os.path.abspath(out / name) + os.sep for name in SAVED) if out else ()
    for argument in inputs:
        pairs = [(Path(p), Path(p).name) for p in listed_paths if p] if argument == "-" else _resolve(argument)
        for path, relative in pairs:
            absolute = os.path.abspath(path)
            if not absolute.startswith(saved_folders):
                images.setdefault(absolute, InputImage(path, relative))
    if not images:
        raise InputError("no image is given; give files, folders, patterns, or - with a list on standard input")
    return list(images.values())


def _resolve(argument: str) -> list[tuple[Path, str]]:
    """The image files that one input stands for, each with its path relative to the input folder."""
    path = Path(argument)
    if os.path.isdir(argument):
        listing = scan_folder(path, recursive=True)
        inside = [(p, p.relative_to(path).as_posix()) for p in listing.images]
        if not inside:
            raise InputError(
                f"{path}: the folder holds no image of a supported format, at any depth{describe_other_files(path)}"
            )
        if ignored := listing.describe():
            LOGGER.info("%s: %s", path, ignored)
        return inside
    if os.path.isfile(argument):
        return [(path, path.name)]
    matches = [Path(p) for p in sorted(glob.glob(argument, recursive=True)) if os.path.isfile(p)]
    if not matches:
        raise InputError(f"{argument}: no such file or folder, and no file name matches it as a pattern")
    return [(p, p.name) for p in matches]


# ---------------------------------------------------------------------------------- lists of paths


def paths_from_stdin() -> list[str]:
    """Read a list of paths from standard input; see `parse_path_list`.

    Raises:
        InputError: standard input is closed.
    """
    if sys.stdin is None:
        raise InputError("- reads a list of paths from standard input, which is closed; give files or folders")
    # read bytes: in text mode, a carriage return inside a file name would end the line
    return parse_path_list(sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else os.fsencode(sys.stdin.read()))


def parse_path_list(content: bytes) -> list[str]:
    """Split a list of paths as other programs write it. File names need not be valid text.

    The encoding is UTF-8, or UTF-16 as PowerShell writes it. If the list contains a NUL, paths are separated by NULs
    (`find -print0`) and may contain line ends. Otherwise there is one path per line, with Unix or Windows line ends,
    and surrounding quotes and blanks are removed unless a file with exactly that name exists.
    """
    text = _decode(content)
    if "\0" in text:
        return [path for path in text.split("\0") if path and path != "\n"]
    return [_unquote(line) for line in text.split("\n") if line.strip()]


def _decode(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return content.decode("utf-32", "replace")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    for encoding, high_bytes in (("utf-16-le", content[1::2]), ("utf-16-be", content[::2])):
        # UTF-16 without a byte order mark: the high byte of most characters is 0
        if high_bytes.count(0) > len(high_bytes) / 2:
            text = content.decode(encoding, "replace")
            # one-character names separated by NULs look the same, but decode to neither a line end nor a dot
            if "\n" in text or "." in text:
                return text
    return os.fsdecode(content.removeprefix(codecs.BOM_UTF8))


def _unquote(line: str) -> str:
    """The path on a line: the line itself if such a file exists, otherwise the line without quotes and blanks."""
    candidates = [line, line.removesuffix("\r")]
    bare = line.strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'":
        inside = bare[1:-1]
        # CSV doubles a quote inside quotes; `ls --quoting-style=c` puts a backslash before it
        candidates += [inside, inside.replace(bare[0] * 2, bare[0]), re.sub(r"\\(.)", r"\1", inside)]
        fallback = inside
    else:
        fallback = line.removesuffix("\r")
        candidates.append(bare)
    return next((path for path in candidates if os.path.lexists(path)), fallback)
