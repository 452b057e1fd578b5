"""Finding JPEG and WebP files with missing pixels that their decoders do not report. Needs no torch.

An interrupted copy may have left zeros in place of the remaining data. libjpeg and libwebp take zeros for data: they
complete the image from them, gray or flat, and leave the rest of the data unused. The test is therefore whether the
image depends on the data up to the end: if the last bytes can be replaced without changing a pixel, the decoder had
finished before them. This never happens in an intact file, whose last byte before a marker holds at least one bit.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ZEROS = 16  # a shorter run of zero bytes is not suspicious
EXCHANGED = 16  # bytes that are replaced before a marker; fewer superfluous bytes are tolerated
LEFT_OUT = 4  # bytes at the end of a WebP; its decoder reads at most as many ahead
# if the Huffman code that consists of zeros does not end a block, then this many zero bytes hold a whole unit (at most
# 10 blocks) all of whose 63 coefficients have the same value, which no image has
IMPOSSIBLE_ZEROS = 1024
EXAMINED = 4  # stretches of a JPEG, the first and the last ones
GRAY = 128  # which libjpeg fills in where data are missing
TRUNCATED = "image file is truncated"
HOLE = "its data have a hole: zeros, where the rest of the picture should be"

# a marker; an escaped 0xff, a fill byte and a restart marker do not count
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
START, END, SCAN, TABLES, INTERVAL = 0xD8, 0xD9, 0xDA, 0xC4, 0xDD
FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
SEQUENTIAL = frozenset({0xC0, 0xC1})
JUNK = bytes(np.random.default_rng(0).integers(1, 255, 64).astype(np.uint8))  # neither zeros nor markers
# several, because in an image with few codes one of them may mean the same as the bytes that it replaces
SUBSTITUTES = (JUNK[:EXCHANGED], bytes([0xAA]) * EXCHANGED, bytes([0x55]) * EXCHANGED, JUNK[-EXCHANGED:])

Tables = dict[int, tuple[int, int]]


@dataclass(frozen=True)
class Scan:
    """The entropy-coded data of one scan of a JPEG: bytes from `start` to `end`.

    interval: units between two restart markers, 0 without any.
    zeros_end_blocks: whether in one of its tables the code that consists of zeros ends a block.
    plain: whether all of it may legitimately be zeros: single bits without a code, or a code for one value only.
    """

    start: int
    end: int
    interval: int
    zeros_end_blocks: bool
    plain: bool


@dataclass(frozen=True)
class Structure:
    """The scans of the first image in a JPEG file.

    sequential: whether the image is not progressive.
    complete: whether the scans contain all bits of every coefficient.
    """

    scans: list[Scan]
    sequential: bool
    complete: bool


# --------------------------------------------------------------------------------------------- JPEG


def check_jpeg(data: bytes, image: Image.Image) -> None:
    """Check that the data of a JPEG are exactly as long as its image needs.

    Args:
        data: the file.
        image: the decoded image.

    Raises:
        OSError: they are shorter or longer.
    """
    structure = read_structure(data)
    zeros = _zero_runs(data, structure)
    for scan, at in zeros:
        longest = data[at : at + IMPOSSIBLE_ZEROS]
        if structure.sequential and not scan.zeros_end_blocks and longest == bytes(IMPOSSIBLE_ZEROS):
            raise OSError(HOLE)
    last = np.atleast_1d(image.getpixel((image.width - 1, image.height - 1)))
    filled = bool((np.abs(last - GRAY) <= 1).all())
    # in a progressive image that ends too early, only the fine detail of the rest is missing
    if not (zeros or filled or not (structure.sequential and structure.complete)):
        return
    pixels = np.asarray(image)
    if (pixels == GRAY).all():  # missing parts look like the others
        return
    end = structure.scans[-1].end
    longer = data[:end].rstrip(b"\xff") + JUNK + data[end:]  # fill bytes before a marker do not belong to the data
    if not np.array_equal(_decode_jpeg(longer), pixels):
        raise OSError(TRUNCATED)  # what follows the data has become part of the image
    for start, end in _examined_stretches(data, zeros):
        at = max(start, end - EXCHANGED)
        changed_files = (data[:at] + other[: end - at] + data[end:] for other in SUBSTITUTES)
        if all(np.array_equal(_decode_jpeg(changed), pixels) for changed in changed_files):
            raise OSError(HOLE)


def read_structure(data: bytes) -> Structure:
    """The scans of a JPEG.

    Raises:
        OSError: it has no end marker, or restart markers are missing.
    """
    at, scans, interval, frame = 2, [], 0, (0, 0)
    tables: Tables = {}
    missing_bits: dict[tuple[int, int], int] = {}  # of each component and coefficient
    while True:
        match = MARKER.search(data, at)
        if match is None:
            raise OSError(TRUNCATED)
        marker, at = data[match.start() + 1], match.end()
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
            _update_missing_bits(missing_bits, segment, frame[0] in SEQUENTIAL)
            _check_restarts(data, scans[-1])
    if not scans:
        raise OSError(TRUNCATED)
    components = {component for component, _ in missing_bits}
    all_coefficients = len(components) >= frame[1] and len(missing_bits) == 64 * len(components)
    complete = all_coefficients and not any(missing_bits.values())
    return Structure(scans, frame[0] in SEQUENTIAL, complete)


def _tables(segment: bytes) -> Tables:
    """The Huffman tables of a segment, by class and number: the meaning of the code of zeros, and how many codes."""
    tables, at = {}, 0
    while at + 17 < len(segment) + 1:
        count = sum(segment[at + 1 : at + 17])
        if not count or at + 17 >= len(segment):
            break
        tables[segment[at]] = segment[at + 17], count
        at += 17 + count
    return tables


def _scan(segment: bytes, start: int, end: int, interval: int, tables: Tables) -> Scan:
    """The scan whose header is `segment` and whose data lie from `start` to `end`."""
    count = segment[0]
    first, last, approximation = segment[-3:] if len(segment) >= 4 + 2 * count else (0, 63, 0)
    numbers = segment[2 : 1 + 2 * count : 2]
    used = [n >> 4 for n in numbers] if first == 0 else []
    used += [0x10 | (n & 15) for n in numbers] if last > 0 else []
    # a scan without a table uses the standard one, in which the code of zeros does not end a block either
    meanings = [tables.get(number, (1, 2)) for number in used]
    ends_block = any(meaning & 15 == 0 for number, (meaning, _) in zip(used, meanings, strict=True) if number & 0x10)
    plain = (first == 0 and approximation >> 4 > 0) or all(codes == 1 for _, codes in meanings)
    return Scan(start, end, interval, ends_block, plain)


def _update_missing_bits(missing: dict[tuple[int, int], int], segment: bytes, sequential: bool) -> None:
    """Note how many bits of which coefficients are still missing after a scan, given its header segment."""
    count = segment[0]
    components = segment[1 : 1 + 2 * count : 2]
    if len(segment) < 4 + 2 * count:
        return
    first, last, low = (0, 63, 0) if sequential else (segment[-3], segment[-2], segment[-1] & 15)
    for component in components:
        for coefficient in range(first, min(last, 63) + 1):
            missing[component, coefficient] = low


def _check_restarts(data: bytes, scan: Scan) -> None:
    """Check that the numbers of the restart markers count from 0 to 7 again and again."""
    if not scan.interval:
        return
    numbers = [match[0][1] - 0xD0 for match in RESTART.finditer(data, scan.start, scan.end)]
    if numbers != [i % 8 for i in range(len(numbers))]:
        raise OSError("image file is damaged: restart markers are missing")


def _zero_runs(data: bytes, structure: Structure) -> list[tuple[Scan, int]]:
    """The first run of zero bytes in each stretch of data between two markers that has any."""
    runs = []
    for scan in (scan for scan in structure.scans if not scan.plain):
        at = data.find(bytes(ZEROS), scan.start, scan.end)
        while at >= 0:
            runs.append((scan, at))
            following = RESTART.search(data, at, scan.end)
            at = -1 if following is None else data.find(bytes(ZEROS), following.end(), scan.end)
    return runs


def _examined_stretches(data: bytes, zeros: list[tuple[Scan, int]]) -> list[tuple[int, int]]:
    """(start, end) of the stretches with zeros that are examined."""
    stretches = []
    for scan, at in (*zeros[: EXAMINED // 2], *zeros[EXAMINED // 2 :][-EXAMINED // 2 :]):
        following = RESTART.search(data, at, scan.end)
        stretches.append((scan.start, following.start() if following else scan.end))
    return stretches


def _decode_jpeg(data: bytes) -> NDArray[np.uint8]:
    with Image.OPEN["JPEG"][0](io.BytesIO(data), "") as image:
        image.load()
        return np.asarray(image)


# --------------------------------------------------------------------------------------------- WebP


def check_webp(data: bytes) -> None:
    """Check that the data of a WebP are not longer than its image needs.

    Raises:
        OSError: they are longer.
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
        return  # the file is intact: the decoder needs the bytes that were removed
    raise OSError(HOLE)


def _webp_pixels(data: bytes) -> tuple[int, int, bytes]:
    """Start and length of the data of the first image, and the type of their chunk; (0, 0, b"") if there are none."""
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return at + 8, size, kind
        at += 8 + (16 if kind == b"ANMF" else size + size % 2)  # a frame contains chunks itself
    return 0, 0, b""
