"""Finding JPEG and WebP files whose pixels are not all there, although their decoders say nothing. Needs no torch.

A copy that broke off may have left zeros in place of what was to follow. libjpeg and libwebp take zeros for data: they
complete the picture from them, gray or flat, and leave the rest of the data unused. So what tells is whether the
picture depends on the data up to the end: where the last bytes may be exchanged without changing a pixel, the decoder
was finished before them. A sound file never has that, since the last byte before a marker holds at least one bit.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# a shorter run of zero bytes is no reason to look closer
ZEROS = 16
# as many bytes are exchanged; fewer that are superfluous before a marker are forgiven
EXCHANGED = 16
LEFT_OUT = 4  # bytes of a WebP; its decoder reads as many ahead at most
# the Huffman code of zeros alone is no end of a block: as many zero bytes hold a whole unit (10 blocks at most) each
# of whose 63 coefficients has the same value, which no picture has
IMPOSSIBLE_ZEROS = 1024
LOOKED_CLOSER = 4  # places in a JPEG, the first and last ones
GRAY = 128  # what libjpeg fills in where data are missing
TRUNCATED = "image file is truncated"
HOLE = "its data have a hole: zeros, where the rest of the picture should be"

# the next marker, of which an escaped 0xff, a fill byte and a restart marker are none
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
START, END, SCAN, TABLES, INTERVAL = 0xD8, 0xD9, 0xDA, 0xC4, 0xDD
FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
SEQUENTIAL = frozenset({0xC0, 0xC1})
JUNK = bytes(np.random.default_rng(0).integers(1, 255, 64).astype(np.uint8))  # neither zeros nor markers
# of a picture with few codes, one of these may mean the same as what it stands in for
SUBSTITUTES = (JUNK[:EXCHANGED], bytes([0xAA]) * EXCHANGED, bytes([0x55]) * EXCHANGED, JUNK[-EXCHANGED:])

Tables = dict[int, tuple[int, int]]


@dataclass(frozen=True)
class Scan:
    """The entropy-coded data of one scan of a JPEG: bytes from `start` to `end`.

    interval: units between two restart markers, 0 without any. zeros_end_blocks: whether in one of its tables the code
    of zeros alone ends a block. plain: whether all of it may well be zeros: single bits without a code, or a code for
    one value alone.
    """

    start: int
    end: int
    interval: int
    zeros_end_blocks: bool
    plain: bool


@dataclass(frozen=True)
class Structure:
    """The scans of a JPEG's first picture. complete: whether they bring every coefficient in all its bits."""

    scans: list[Scan]
    sequential: bool
    complete: bool


# --------------------------------------------------------------------------------------------- JPEG


def check_jpeg(data: bytes, image: Image.Image) -> None:
    """Whether the data of a JPEG are as long as the picture needs, and no longer.

    Args:
        data: the file.
        image: it decoded.

    Raises:
        OSError: they are not.
    """
    found = read_structure(data)
    zeros = _zero_runs(data, found)
    for scan, at in zeros:
        longest = data[at : at + IMPOSSIBLE_ZEROS]
        if found.sequential and not scan.zeros_end_blocks and longest == bytes(IMPOSSIBLE_ZEROS):
            raise OSError(HOLE)
    last = np.atleast_1d(image.getpixel((image.width - 1, image.height - 1)))
    filled = bool((np.abs(last - GRAY) <= 1).all())
    # where a progressive picture ends too early, only its fine detail is missing in the rest
    if not (zeros or filled or not (found.sequential and found.complete)):
        return
    pixels = np.asarray(image)
    if (pixels == GRAY).all():  # whatever of it is missing looks like what is there
        return
    end = found.scans[-1].end
    longer = data[:end].rstrip(b"\xff") + JUNK + data[end:]  # fill bytes before a marker are none of the data
    if not np.array_equal(_decode_jpeg(longer), pixels):
        raise OSError(TRUNCATED)  # what follows the data has become a part of the picture
    for start, end in _closer(data, zeros):
        at = max(start, end - EXCHANGED)
        changed = (data[:at] + other[: end - at] + data[end:] for other in SUBSTITUTES)
        if all(np.array_equal(_decode_jpeg(one), pixels) for one in changed):
            raise OSError(HOLE)


def read_structure(data: bytes) -> Structure:
    """The scans of a JPEG.

    Raises:
        OSError: it ends without an end mark, or restart markers are missing in it.
    """
    at, scans, interval, frame = 2, [], 0, (0, 0)
    tables: Tables = {}
    bits: dict[tuple[int, int], int] = {}  # of each coefficient of each component, how many are left to come
    while True:
        found = MARKER.search(data, at)
        if found is None:
            raise OSError(TRUNCATED)
        marker, at = data[found.start() + 1], found.end()
        if marker == END:
            break
        if marker in (START, 0x01):
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        segment, at = data[at + 2 : at + length], at + max(2, length)
        if marker == TABLES:
            tables |= _tables(segment)
        elif marker == INTERVAL:
            interval = int.from_bytes(segment[:2], "big")
        elif marker in FRAMES and len(segment) > 5:
            frame = marker, segment[5]
        elif marker == SCAN and segment:
            following = MARKER.search(data, at)
            if following is None:
                raise OSError(TRUNCATED)
            scans.append(_scan(segment, at, following.start(), interval, tables))
            _note_bits(bits, segment, frame[0] in SEQUENTIAL)
            _check_restarts(data, scans[-1])
    if not scans:
        raise OSError(TRUNCATED)
    components = {component for component, _ in bits}
    complete = len(components) >= frame[1] and not any(bits.values()) and len(bits) == 64 * len(components)
    return Structure(scans, frame[0] in SEQUENTIAL, complete)


def _tables(segment: bytes) -> Tables:
    """The Huffman tables of a segment, by class and number: what the code of zeros alone means, and how many codes."""
    found, at = {}, 0
    while at + 17 < len(segment) + 1:
        count = sum(segment[at + 1 : at + 17])
        if not count or at + 17 >= len(segment):
            break
        found[segment[at]] = segment[at + 17], count
        at += 17 + count
    return found


def _scan(segment: bytes, start: int, end: int, interval: int, tables: Tables) -> Scan:
    count = segment[0]
    first, last, approximation = segment[-3:] if len(segment) >= 4 + 2 * count else (0, 63, 0)
    numbers = segment[2 : 1 + 2 * count : 2]
    used = [n >> 4 for n in numbers] if first == 0 else []
    used += [0x10 | (n & 15) for n in numbers] if last > 0 else []
    # without a table of its own a scan has the standard's, in which zeros alone are no end of a block either
    meanings = [tables.get(number, (1, 2)) for number in used]
    ends_block = any(meaning & 15 == 0 for number, (meaning, _) in zip(used, meanings, strict=True) if number & 0x10)
    plain = (first == 0 and approximation >> 4 > 0) or all(codes == 1 for _, codes in meanings)
    return Scan(start, end, interval, ends_block, plain)


def _note_bits(bits: dict[tuple[int, int], int], segment: bytes, sequential: bool) -> None:
    count = segment[0]
    components = segment[1 : 1 + 2 * count : 2]
    if len(segment) < 4 + 2 * count:
        return
    first, last, low = (0, 63, 0) if sequential else (segment[-3], segment[-2], segment[-1] & 15)
    for component in components:
        for coefficient in range(first, min(last, 63) + 1):
            bits[component, coefficient] = low


def _check_restarts(data: bytes, scan: Scan) -> None:
    """Their numbers go round from 0 to 7, whatever part of the picture is between them."""
    if not scan.interval:
        return
    numbers = [found[0][1] - 0xD0 for found in RESTART.finditer(data, scan.start, scan.end)]
    if numbers != [i % 8 for i in range(len(numbers))]:
        raise OSError("image file is damaged: restart markers are missing")


def _zero_runs(data: bytes, structure: Structure) -> list[tuple[Scan, int]]:
    """The first run of zero bytes in each stretch of data between two markers, where there is any."""
    found = []
    for scan in (scan for scan in structure.scans if not scan.plain):
        at = data.find(bytes(ZEROS), scan.start, scan.end)
        while at >= 0:
            found.append((scan, at))
            following = RESTART.search(data, at, scan.end)
            at = -1 if following is None else data.find(bytes(ZEROS), following.end(), scan.end)
    return found


def _closer(data: bytes, zeros: list[tuple[Scan, int]]) -> list[tuple[int, int]]:
    """(start, end) of some of the stretches that zeros are in."""
    places = []
    for scan, at in (*zeros[: LOOKED_CLOSER // 2], *zeros[LOOKED_CLOSER // 2 :][-LOOKED_CLOSER // 2 :]):
        following = RESTART.search(data, at, scan.end)
        places.append((scan.start, following.start() if following else scan.end))
    return places


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    with Image.OPEN["JPEG"][0](io.BytesIO(data), "") as image:
        image.load()
        return np.asarray(image)


# --------------------------------------------------------------------------------------------- WebP


def check_webp(data: bytes) -> None:
    """Whether the data of a WebP are no longer than its picture needs.

    Raises:
        OSError: they are.
    """
    start, size, kind = _webp_pixels(data)
    pixels = data[start : start + size]
    if bytes(ZEROS) not in pixels or len(pixels) <= 2 * ZEROS:
        return
    shorter = pixels[:-LEFT_OUT]
    chunk = kind + struct.pack("<I", len(shorter)) + shorter + bytes(len(shorter) % 2)
    try:
        with Image.OPEN["WEBP"][0](
            io.BytesIO(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk), ""
        ) as image:
            image.load()
    except (OSError, ValueError, SyntaxError):
        return  # as it should be: the decoder needs what is missing now
    raise OSError(HOLE)


def _webp_pixels(data: bytes) -> tuple[int, int, bytes]:
    """Where the data of the first picture begin, their length, and the kind of their chunk; (0, 0, b"") of none."""
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return at + 8, size, kind
        at += 8 + (16 if kind == b"ANMF" else size + size % 2)  # a frame has chunks of its own inside
    return 0, 0, b""
