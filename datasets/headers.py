"""What the header of an image file tells without decoding its pixels. Needs no torch."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as Exif

from datasets import tiff
from datasets.listing import has_heif
from datasets.truncation import ends_early, read_tail

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM")
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
EXIF_TAIL = 1 << 16  # bytes; EXIF data of at most 64 KiB may follow the pixels of a PNG

# problems of a file are reported once, by the error that names the file
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Header:
    """What is known of an image without decoding it.

    Attributes:
        size: (width, height) upright, in pixels.
        pixels: the kind of pixels, such as `3×8 bit`.
        suspect: whether the file seems to be cut off.
        pages: how many images the file holds, of which the first is read.
    """

    size: tuple[int, int]
    pixels: str
    suspect: bool = False
    pages: int = 1


def parse_header(file: BinaryIO, max_pixels: int) -> Header:
    """The header of an open image file.

    Raises:
        UnidentifiedImageError, OSError, ValueError: it cannot be read, or states more than `max_pixels` pixels.
    """
    image = open_image(file, max_pixels)
    if image is not None:
        refuse_unsupported(image)
    if is_tiff(file):
        return _parse_tiff_header(file, max_pixels)
    width, height = image.size
    if exif_orientation(image, file) in SIDEWAYS:
        width, height = height, width
    return Header((width, height), _describe_pixels(image), ends_early(file), count_frames(image))


def open_image(file: BinaryIO, max_pixels: int) -> Image.Image | None:
    """The image with its header read; None for a TIFF whose kind of pixels Pillow does not know.

    Unlike `Image.open` it applies a limit of its own and leaves Pillow's, which is global to the process, alone.

    Raises:
        UnidentifiedImageError: the file has none of the known formats.
        ValueError: the image has more than `max_pixels` pixels.
    """
    Image.preinit()
    start = file.read(32)
    for factory, accept in _formats():
        if not accept(start):
            continue
        file.seek(0)
        try:
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # as in Pillow's own loop: try the next format
            continue
        refuse_large(*image.size, max_pixels)
        return image
    file.seek(0)
    if start[:4] in tiff.STARTS:
        return None
    raise UnidentifiedImageError("none of the known formats")


def _formats() -> Iterator[tuple[Any, Any]]:
    """For each format the function that opens a file, and the one that tells from its first bytes whether it may."""
    if any(name not in Image.OPEN for name in FORMATS):
        Image.init()
    for name in FORMATS:
        yield Image.OPEN[name]
    if has_heif():
        import pillow_heif  # optional

        yield pillow_heif.HeifImageFile, pillow_heif.is_supported


def refuse_large(width: int, height: int, max_pixels: int) -> None:
    """Limit the size of an image.

    Raises:
        ValueError: it has more than `max_pixels` pixels.
    """
    if width * height > max_pixels:
        raise ValueError(
            f"it has {width}x{height}, that is {width * height} pixels, more than --max_pixels {max_pixels}; give "
            f"--max_pixels {width * height} if that is intended"
        )


def refuse_unsupported(image: Image.Image) -> None:
    """Refuse what could be decoded, but not converted to the right colours.

    Raises:
        ValueError: the image is in the LAB colour space.
    """
    if image.mode == "LAB":
        raise ValueError("colours in LAB are not supported; save it as RGB")


def is_tiff(file: BinaryIO) -> bool:
    """Whether a file begins as a TIFF does."""
    file.seek(0)
    return file.read(4) in tiff.STARTS


def _parse_tiff_header(file: BinaryIO, max_pixels: int) -> Header:
    with tiff.open_page(file) as page:
        width, height = tiff.stored_size(page)
        refuse_large(width, height, max_pixels)
        size = (height, width) if tiff.orientation(page) in SIDEWAYS else (width, height)
        suspect = tiff.ends_early(page, file.seek(0, os.SEEK_END))
        return Header(size, tiff.describe_pixels(page), suspect, tiff.count_pages(page))


def count_frames(image: Image.Image) -> int:
    """How many images the file holds; smaller copies that a camera appends to a JPEG do not count."""
    return getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1


def exif_orientation(image: Image.Image, file: BinaryIO | None = None) -> Any:
    """The EXIF orientation, 1 is upright; not necessarily a valid one.

    Args:
        image: opened or decoded.
        file: its file, with which EXIF data behind the pixels of a PNG that is not decoded yet are found too.
    """
    data = image.info.get("exif")
    if data is None and file is not None and image.format == "PNG":
        data = _exif_behind_pixels(read_tail(file, EXIF_TAIL))
    if not data:
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        return exif.get(Exif.Orientation, 1)
    except Exception:  # whatever a damaged EXIF block raises, the image is then taken as it is stored
        return 1


def _exif_behind_pixels(tail: bytes) -> bytes | None:
    """The EXIF data at the end of a PNG file."""
    at = tail.rfind(b"eXIf")
    if at < 4:
        return None
    length = int.from_bytes(tail[at - 4 : at], "big")
    chunk, checksum = tail[at : at + 4 + length], tail[at + 4 + length : at + 8 + length]
    # compressed pixels may look like a chunk, but not with the right checksum
    return chunk[4:] if checksum == struct.pack(">I", zlib.crc32(chunk)) else None


def raw_mode(image: Image.Image) -> str:
    """Pillow's name for the pixels as they are stored in the file, "" where its decoder has none."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def _describe_pixels(image: Image.Image) -> str:
    if image.mode in ("P", "PA"):
        return "palette"
    raw = raw_mode(image)
    deep = ";16" in raw or image.mode.startswith("I") or (image.format == "PPM" and _ppm_white(image) > 255)
    bits = 16 if deep else 1 if image.mode == "1" else 8
    return f"{2 if raw.startswith('LA') else len(image.getbands())}×{bits} bit"


def _ppm_white(image: Image.Image) -> int:
    """The value of white in a PPM, 255 where it needs no scaling."""
    args = image.tile[0].args
    return args[1] if isinstance(args, tuple) and len(args) == 2 else 255
