"""TIFF files through tifffile: what Pillow cannot read, or would cut to 8 bits. Needs no torch."""

from __future__ import annotations

import io
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from utils import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tifffile

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 274
SIGNED, FLOAT = 2, 3  # of the tag SampleFormat
MINISWHITE, PALETTE = 0, 3  # of the tag PhotometricInterpretation
TRUNCATED = "image file is truncated"

# tifffile logs problems of a file, which are reported once, by the error that names the file
logging.getLogger("tifffile").addHandler(logging.NullHandler())
logging.getLogger("tifffile").propagate = False


@contextmanager
def open_page(file: BinaryIO) -> Iterator[tifffile.TiffPage]:
    """The first page of a TIFF.

    Raises:
        OSError: the file ends before the tags, or before the values that they point to.
        InputError: tifffile is not installed.
    """
    try:
        import tifffile  # TIFF alone needs it
    except ImportError as error:
        raise InputError("reading TIFF needs tifffile: pip install tifffile imagecodecs") from error
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        tiff = tifffile.TiffFile(file)
        page = tiff.pages.first
    except Exception as error:  # it may raise anything on tags that are cut off
        raise OSError(TRUNCATED) from error
    with tiff:
        layout = tiff.tiff
        file.seek(page.offset)
        count = int.from_bytes(file.read(layout.tagnosize), "little" if layout.byteorder == "<" else "big")
        ends = [page.offset + layout.tagnosize + count * layout.tagsize + layout.offsetsize]
        ends += [tag.valueoffset + tag.valuebytecount for tag in page.tags]
        # tifffile leaves out the tags that it could not read
        if len(page.tags) < count or max(ends) > size:
            raise OSError(TRUNCATED)
        yield page


def ends_early(page: tifffile.TiffPage, size: int) -> bool:
    """Whether a strip or tile is missing, or ends beyond the file of `size` bytes."""
    offsets, counts = page.dataoffsets, page.databytecounts
    if not offsets or len(offsets) != len(counts):
        return True
    return max(at + count for at, count in zip(offsets, counts, strict=True)) > size


def stored_size(page: tifffile.TiffPage) -> tuple[int, int]:
    """(width, height) as stored, not turned upright."""
    return page.imagewidth, page.imagelength


def orientation(page: tifffile.TiffPage) -> int:
    """The EXIF orientation, 1 is upright."""
    return page.tags.valueof(ORIENTATION, 1)


def depth(page: tifffile.TiffPage) -> int:
    """Bits a channel, the largest number if they differ."""
    return int(np.max(page.bitspersample))


def describe_pixels(page: tifffile.TiffPage) -> str:
    """The kind of pixels, such as `3×16 bit`."""
    if page.photometric == PALETTE:
        return "palette"
    kind = {SIGNED: " signed", FLOAT: " float"}.get(int(np.max(page.sampleformat)), "")
    return f"{page.samplesperpixel}×{depth(page)} bit{kind}"


def count_pages(page: tifffile.TiffPage) -> int:
    """How many pages are images of their own, not reduced copies of another."""
    try:
        return max(1, sum(not other.is_reduced for other in page.parent.pages))
    except Exception:  # the other pages may be damaged, but only the first is read
        return 1


def needs_tifffile(page: tifffile.TiffPage) -> bool:
    """Whether Pillow would cut the pixels to 8 bits, garble them, or misread signed numbers."""
    return depth(page) > 8 or page.imagedepth > 1 or bool(np.max(page.sampleformat) != 1)


def decode(page: tifffile.TiffPage, size: int) -> NDArray[Any]:
    """The stored pixels (H, W) or (H, W, C), not turned upright, with the file's own values and 0 for black.

    Args:
        size: of the file in bytes.

    Raises:
        OSError: it is cut off, damaged, or of an unsupported kind.
        ValueError: it has signed 8-bit numbers, or is a volume.
    """
    if page.sampleformat == SIGNED and depth(page) == 8:
        raise ValueError(
            "its pixels are signed 8-bit numbers, which is not supported; save it as unsigned 8 or 16 bits"
        )
    if page.imagedepth > 1:
        raise ValueError("a volume is not supported; save it as an image")
    if ends_early(page, size):
        raise OSError(TRUNCATED)
    try:
        values = page.asarray()
    except (MemoryError, KeyboardInterrupt):
        raise
    except ImportError as error:
        raise OSError("its compression needs imagecodecs: pip install imagecodecs") from error
    except Exception as error:
        needed = "imagecodecs" in str(error)
        reason = "its compression needs imagecodecs: pip install imagecodecs" if needed else "its data are damaged"
        raise OSError(reason) from error
    if values.ndim == 3 and page.samplesperpixel > 1 and page.planarconfig == 2:
        values = np.moveaxis(values, 0, 2)
    if page.photometric == MINISWHITE and values.dtype.kind == "u":
        values = ((1 << depth(page)) - 1) - values
    return values
