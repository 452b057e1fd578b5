"""Whether an image file seems to be cut off, by its first and last bytes alone. Needs no torch.

Only decoding a file makes sure; see `datasets.damage` for damage that the decoders themselves do not report.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from datasets import tiff

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
JPEG_END = b"\xff\xd9"
PADDING = b"\0\r\n "  # which some writers put behind the end mark
TAIL = 4096  # bytes


def ends_early(file: BinaryIO) -> bool:
    """Whether a file seems to be cut off, or is not of a known image format."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(34)
    if start.startswith(b"\x89PNG"):
        return PNG_END not in read_tail(file, TAIL)
    if start.startswith(b"\xff\xd8") or start[4:8] == b"jP  " or start.startswith(b"\xff\x4f\xff\x51"):
        # JPEG and JPEG 2000. An end mark further up may be that of a thumbnail
        return not read_tail(file, TAIL).rstrip(PADDING).endswith(JPEG_END)
    if start.startswith(b"BM"):
        return _bmp_ends_early(start, size)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return int.from_bytes(start[4:8], "little") + 8 > size or not read_tail(file, 16).strip(b"\0")
    if start[:4] in tiff.STARTS:
        return _tiff_ends_early(file, size)
    if start[4:8] == b"ftyp":
        return _boxes_end_early(file, size)
    is_ppm = start[:1] == b"P" and start[1:2] in b"123456f" and start[2:3].isspace()
    return not is_ppm  # Pillow itself reports a PPM that is cut off


def read_tail(file: BinaryIO, length: int) -> bytes:
    """The last bytes of a file, whose position is kept."""
    position = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) - length))
    data = file.read(length)
    file.seek(position)
    return data


def _tiff_ends_early(file: BinaryIO, size: int) -> bool:
    try:
        with tiff.open_page(file) as page:
            return tiff.ends_early(page, size)
    except Exception:  # tags that cannot be read are suspicious enough
        return True


def _boxes_end_early(file: BinaryIO, size: int) -> bool:
    """Whether the boxes of a HEIC file, each of which states its length, end beyond the file."""
    position = 0
    while position < size:
        file.seek(position)
        length = int.from_bytes(file.read(8)[:4], "big")
        length = int.from_bytes(file.read(8), "big") if length == 1 else length
        if length < 8:  # 0 means up to the end of the file
            return length != 0
        position += length
    return position > size


def _bmp_ends_early(start: bytes, size: int) -> bool:
    """Whether the pixels of a BMP file end beyond the file; `start` is its first 34 bytes."""
    if len(start) < 34:
        return True
    pixels_at, header, width, height, _, bits, compression = struct.unpack("<IIiiHHI", start[10:34])
    stated_size = int.from_bytes(start[2:6], "little")
    if header < 40:  # OS/2's header, whose fields are shorter
        return stated_size > size
    if compression in (1, 2):
        return pixels_at + 1 > size or stated_size > size
    row = (abs(width) * bits + 31) // 32 * 4
    return pixels_at + row * abs(height) > size
