"""How many bits of 16-bit files are in use: cameras of 10, 12 or 14 bits store their values without scaling them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from datasets.base import Sample
from datasets.files import ReadOptions, read_header, read_peak
from datasets.headers import Header
from datasets.limits import AUTO, FULL_BITS
from utils import LOGGER, WorkError, cores

DEPTHS = (8, 10, 12, 14, FULL_BITS)
# share of the brightest value of all images: one that stays below is likely of another depth, not merely darker
MUCH_DARKER = 1 / 3
THREADS = min(8, cores())


@dataclass(frozen=True)
class Depth:
    """The bit depth in use.

    Attributes:
        bits: 8 to 16.
        lines: how it was found, for the log.
        warnings: which images do not fit it.
    """

    bits: int
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def is_deep(header: Header) -> bool:
    """Whether an image has more than 8 bits a channel."""
    match = re.search(r"×(\d+) bit", header.pixels)
    return match is not None and int(match[1]) > 8


def bits_of(peak: int) -> int:
    """The smallest depth that a value fits into."""
    return next((bits for bits in DEPTHS if peak < 1 << bits), FULL_BITS)


def read_peaks(paths: Iterable[Path], reading: ReadOptions) -> dict[Path, int]:
    """The brightest value of each image that does not state its white itself; unreadable images are left out."""

    def peak(path: Path) -> int | None:
        try:
            return read_peak(path, reading)
        except WorkError:  # reported by the check of the data set
            return None

    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(THREADS) as pool:
        return {
            path: value for path, value in zip(distinct, pool.map(peak, distinct), strict=True) if value is not None
        }


def find_depth(
    given: int | str, deciding: Sequence[Path], others: Sequence[Path], headers: Mapping[Path, Header],
    reading: ReadOptions,
) -> Depth:  # fmt: skip
    """The depth of a class, or of a folder of textures.

    Args:
        given: 8 to 16, or `auto`.
        deciding: images that `auto` is decided by, those of the training set.
        others: images that are only compared with it, those of the test set.
        headers: of the images that can be read.
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
                 f"{brightest}), white is {(1 << bits) - 1}; --bits sets another depth",)  # fmt: skip
    compared = peaks | read_peaks((path for path in others if path in deep), reading)
    return Depth(bits, lines, tuple(_warnings(bits, peaks, compared, [p for p in deciding if p in headers], deep)))


def _warnings(
    bits: int, peaks: Mapping[Path, int], compared: Mapping[Path, int], deciding: Sequence[Path], deep: set[Path]
) -> Iterable[str]:
    """What does not fit a depth; the arguments are those of `find_depth`, with the brightest values found."""
    brighter = [path for path, peak in compared.items() if peak >> bits]
    if brighter:
        yield (
            f"{len(brighter)} pictures are brighter than {bits} bits allow, such as {brighter[0]} (value "
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
        first = darker[0]
        yield (
            f"pictures of mixed depth? {len(darker)} of {len(peaks)} use {bits_of(peaks[first])} bits or less, such as "
            f"{first} (brightest value {peaks[first]}), others {bits_of(brightest)}; they look dark beside them"
        )
    shallow = [path for path in deciding if path not in deep]
    if peaks and shallow:
        yield f"{len(shallow)} pictures have 8 bits a channel, such as {shallow[0]}, {len(peaks)} others have more"


def read_as_found(name: str, given: int | str, samples: Sequence[Sample], reading: ReadOptions) -> ReadOptions:
    """How the training images of a class are read, with the given or detected depth, which is logged.

    Args:
        name: of the class, for the log.
        given: 8 to 16, or `auto`.
    """
    paths = [sample.path for sample in samples]
    headers = {}
    for path in paths:
        with suppress(WorkError):  # reported when the image itself is read
            headers[path] = read_header(path, reading)
    depth = find_depth(given, paths, [], headers, reading)
    log_depth(name, depth)
    return replace(reading, bits=depth.bits)


def log_depth(name: str, depth: Depth) -> None:
    """Log how the depth of a class was found, and what does not fit it."""
    for line in depth.lines:
        LOGGER.info("%s: %s", name, line)
    for line in depth.warnings:
        LOGGER.warning("%s: %s", name, line)
