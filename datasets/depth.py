"""How many bits of 16-bit files are in use: a camera of 10, 12 or 14 bits stores its numbers as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.files import Header, ReadOptions, read_header, read_peak
from datasets.limits import AUTO, FULL_BITS
from utils import LOGGER, WorkError, cores

if TYPE_CHECKING:
    from datasets.base import Sample

DEPTHS = (8, 10, 12, 14, FULL_BITS)
# of the brightest value of all: a picture that stays below it is likely of another depth, not merely darker
MUCH_DARKER = 1 / 3
THREADS = min(8, cores())


@dataclass(frozen=True)
class Depth:
    """The depth in use, and what is to be said of it.

    bits: 8 to 16. lines: of how it was found. warnings: what does not fit.
    """

    bits: int
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def is_deep(header: Header) -> bool:
    """Whether an image has more than 8 bits a channel."""
    found = re.search(r"×(\d+) bit", header.pixels)
    return found is not None and int(found[1]) > 8


def bits_of(peak: int) -> int:
    """The least depth that a value fits into."""
    return next((bits for bits in DEPTHS if peak < 1 << bits), FULL_BITS)


def read_peaks(paths: Iterable[Path], reading: ReadOptions) -> dict[Path, int]:
    """The brightest value of each picture that does not say itself what white is; unreadable ones are left out."""

    def peak(path: Path) -> int | None:
        try:
            return read_peak(path, reading)
        except WorkError:  # told of where pictures are checked
            return None

    listed = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(THREADS) as pool:
        return {path: value for path, value in zip(listed, pool.map(peak, listed), strict=True) if value is not None}


def find_depth(
    given: int | str, deciding: Sequence[Path], others: Sequence[Path], headers: Mapping[Path, Header],
    reading: ReadOptions,
) -> Depth:  # fmt: skip
    """The depth of a class, or of a folder of textures.

    Args:
        given: 8 to 16, or `auto`.
        deciding: pictures that `auto` goes by, those of the training.
        others: pictures that are only compared with it, those of the test.
        headers: of the pictures that can be read.
        reading: how they are read.
    """
    deep = {path for path, header in headers.items() if is_deep(header)}
    peaks = read_peaks((path for path in deciding if path in deep), reading)
    if given != AUTO:
        bits, lines = int(given), ()
    elif not peaks:
        bits, lines = reading.bits, ()
    else:
        brightest = max(peaks.values())
        bits = bits_of(brightest)
        lines = (f"{len(peaks)} files with more than 8 bits a channel: {bits} bits are in use (brightest value "
                 f"{brightest}), white is {(1 << bits) - 1}; --bits tells another depth",)  # fmt: skip
    compared = peaks | read_peaks((path for path in others if path in deep), reading)
    return Depth(bits, lines, tuple(_complaints(bits, peaks, compared, [p for p in deciding if p in headers], deep)))


def _complaints(
    bits: int, peaks: Mapping[Path, int], compared: Mapping[Path, int], deciding: Sequence[Path], deep: set[Path]
) -> Iterable[str]:
    brighter = [path for path, peak in compared.items() if peak >> bits]
    if brighter:
        yield (
            f"{len(brighter)} pictures are brighter than {bits} bits tell, as {brighter[0]} (value "
            f"{compared[brighter[0]]}); they are clipped. --bits {bits_of(max(compared.values()))} holds them all"
        )
    highest = max(compared.values(), default=0)
    if bits == FULL_BITS and highest and bits_of(highest) < FULL_BITS:
        yield (
            f"{len(compared)} pictures have more than 8 bits a channel and are read as 16 bits, but none goes beyond "
            f"{bits_of(highest)} (brightest value {highest}): they look dark; --bits {bits_of(highest)} brightens them"
        )
    brightest = max(peaks.values(), default=0)
    darker = [path for path, peak in peaks.items() if peak < brightest * MUCH_DARKER and bits_of(peak) < bits]
    if darker:
        yield (
            f"pictures of mixed depth? {len(darker)} of {len(peaks)} use {bits_of(peaks[darker[0]])} bits or less, as "
            f"{darker[0]} (brightest value {peaks[darker[0]]}), others {bits_of(brightest)}; they look dark beside them"
        )
    shallow = [path for path in deciding if path not in deep]
    if peaks and shallow:
        yield f"{len(shallow)} pictures have 8 bits a channel, as {shallow[0]}, {len(peaks)} others have more"


def read_as_found(name: str, given: int | str, samples: Sequence[Sample], reading: ReadOptions) -> ReadOptions:
    """How the training images of a class are read, with the depth given or found, which is logged.

    Args:
        name: of the class, for the log.
        given: 8 to 16, or `auto`.
    """
    paths = [sample.path for sample in samples]
    headers = {}
    for path in paths:
        with suppress(WorkError):  # told of where it is read
            headers[path] = read_header(path, reading)
    depth = find_depth(given, paths, [], headers, reading)
    log_depth(name, depth)
    return replace(reading, bits=depth.bits)


def log_depth(name: str, depth: Depth) -> None:
    """Say what was found of a class."""
    for line in depth.lines:
        LOGGER.info("%s: %s", name, line)
    for line in depth.warnings:
        LOGGER.warning("%s: %s", name, line)
