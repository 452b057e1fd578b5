"""Finding and reading image files.

A picture is taken by what is in the file, whatever its suffix says. Pillow decodes; OpenCV reads what Pillow cannot,
or would cut to 8 bits: 16-bit colour. Both see a picture upright, as its EXIF orientation asks for.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as Exif
from PIL.Image import Transpose
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from errors import WorkError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# of a number, by its type in a TIFF
TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
JPEG_END = b"\xff\xd9"
TAIL = 4096
# of a PNG, where EXIF data may follow the picture: at most 64 KiB by its own format
EXIF_TAIL = 1 << 16
# 16-bit colour as Pillow's decoders call it, of which they keep the upper 8 bits. RGBa, whose colour is multiplied
# by its opacity, is left to Pillow, which divides it again
DEEP_COLOUR = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16")
STRIPS = ((Exif.StripOffsets, Exif.StripByteCounts), (Exif.TileOffsets, Exif.TileByteCounts))
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)

# what is wrong with a file is said once, by the error that names it
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Header:
    """What is seen of an image without decoding it.

    size: (width, height) upright, in pixels. pixels: their kind, as `3×8 bit`. suspect: as `looks_truncated`.
    """

    size: tuple[int, int]
    pixels: str
    suspect: bool = False


# ------------------------------------------------------------------------------------------ finding


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder, sorted by name, without hidden files and folders. [] where there is no folder.

    A link to nowhere counts as a file: it shall be said that it cannot be read.
    """
    if not folder.is_dir():
        return []
    found = folder.rglob("*") if recursive else folder.iterdir()
    images = (p for p in found if p.suffix.lower() in SUFFIXES and not _is_hidden(p.relative_to(folder)))
    return sorted(p for p in images if p.is_file() or (p.is_symlink() and not p.exists()))


def list_folders(folder: Path) -> list[Path]:
    """The visible folders inside a folder, sorted by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_hidden(Path(p.name)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


# ------------------------------------------------------------------------------------------ reading


def read_rgb(path: Path) -> Image.Image:
    """An image as 8-bit RGB, upright; of several pages the first. Opacity is dropped, 16 bits become v / 257 rounded.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    with _naming(path):
        image = _decode(path.read_bytes())
        if isinstance(image, np.ndarray):
            image = Image.fromarray(to_8_bits(image))
        image.info.clear()  # a transparent colour is none here, and nobody shall turn the picture a second time
        return image.convert("RGB")


def read_mask(path: Path) -> NDArray[np.uint8]:
    """A mask as (H, W) in {0, 1}, upright: 1 where any channel is above 0, of a palette image where its colour is.

    A palette image without black in it counts by its indices, of which 0 is normal. Where the opacity differs from
    pixel to pixel, what is wholly transparent is normal. Of a folder it is the union of the masks in it.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    return read_mask_values(path)[0]


def read_mask_values(path: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """As `read_mask`, and the pixels' values (H, W) that it comes from: of colours the highest channel.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    if path.is_dir():
        return _union_of_masks(path)
    with _naming(path):
        data = path.read_bytes()
        image = _decode(data)
        opaque = isinstance(image, Image.Image) and not image.has_transparency_data
        if isinstance(image, Image.Image) and image.mode == "CMYK":
            image = image.convert("RGB")  # ink, of which there is none where a mask is white
        if isinstance(image, Image.Image) and image.mode in ("P", "PA"):
            image.info.clear()  # a transparent colour is a colour as any other
            colours, indices = np.asarray(image.convert("RGB")), np.asarray(image)
            values = colours if (colours == 0).all(2).any() else indices.reshape(*colours.shape[:2], -1)[..., 0]
        else:
            values = np.asarray(image)
        opacity = None if opaque else _opacity(data)
    if values.ndim == 3:
        values = values[..., : 1 if values.shape[2] == 2 else 3]
        marked, values = values.any(2), values.max(2)
    else:
        marked = values > 0
    if opacity is not None and opacity.shape == marked.shape:
        marked, values = _marked_by_opacity(marked, values, opacity)
    return marked.astype(np.uint8), values


def _union_of_masks(folder: Path) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    read = [read_mask_values(path) for path in list_images(folder)]
    if not read:
        raise WorkError(f"cannot read image {folder}: the folder has no mask in it")
    if len({marked.shape for marked, _ in read}) > 1:
        raise WorkError(f"cannot read image {folder}: the masks in it have different sizes")
    return np.max([marked for marked, _ in read], axis=0), np.max([values for _, values in read], axis=0)


def _opacity(data: bytes) -> NDArray[np.uint8] | None:
    """The opacity (H, W) of an image upright; None where the file has none, or it is the same everywhere above 0."""
    try:
        image = _open(io.BytesIO(data))
        if image is None or not image.has_transparency_data:
            return None
        of_palette = image.mode == "P"
        image.load()  # a PNG's EXIF data may follow its pixels
        orientation = 1 if image.format == "TIFF" else _orientation(image)
        image = image.convert("RGBA")
    except (OSError, ValueError):  # what Pillow cannot decode has been read by another library
        return None
    pixels = np.asarray(_turn(image, orientation))
    opacity = pixels[..., 3]
    if opacity.min() == opacity.max() and opacity.min() > 0:
        return None
    if of_palette:  # one of its colours may be transparent for any reason: the opacity counts where no colour differs
        drawn, clear = pixels[opacity > 0, :3], pixels[opacity == 0, :3]
        if not len(drawn) or (drawn != drawn[0]).any() or (not drawn.any() and clear.any()):
            return None
    return opacity


def _marked_by_opacity(
    marked: NDArray[np.bool_], values: NDArray[Any], opacity: NDArray[np.uint8]
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """What is marked where the opacity differs, and the values that say so."""
    drawn = opacity > 0
    if not drawn.any() and (values != values.flat[0]).any():
        return marked, values  # an opacity that nobody set
    if (marked & drawn).any():
        return marked & drawn, np.where(drawn, values, 0)
    return drawn, opacity  # drawn in black, or nothing drawn


def read_orientation(path: Path) -> int:
    """The EXIF orientation of a picture, from 1 (as it lies in the file) to 8.

    Raises:
        WorkError: the header cannot be read; the message names the file.
    """
    with _naming(path), path.open("rb") as file:
        image = _open(file)
        if image is None:
            return 1
        found = image.tag_v2.get(Exif.Orientation) if image.format == "TIFF" else _orientation(image, file)
        return found if found in UPRIGHT else 1


def read_header(path: Path) -> Header:
    """Size and kind of pixels of an image, and whether it seems to be cut off.

    Raises:
        WorkError: the header cannot be read; the message names the file.
    """
    with _naming(path), path.open("rb") as file:
        image = _open(file)
        if image is None:
            tags = _tiff_tags(file)
            _refuse_deep_planes(tags)
            return Header(_tiff_size(tags), _tiff_pixels(tags), _ends_early(file))
        _refuse_unsupported(image)
        width, height = image.size
        # a TIFF is turned by Pillow, whose size counts that in
        if image.format != "TIFF" and _orientation(image, file) in SIDEWAYS:
            width, height = height, width
        return Header((width, height), _pixels(image), _ends_early(file))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image in pixels, upright, without decoding it.

    Raises:
        WorkError: the header cannot be read; the message names the file.
    """
    return read_header(path).size


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what goes wrong with a file into an error with its path."""
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        empty = not path.stat().st_size
        reason = "the file is empty" if empty else "no PNG, JPEG, BMP, TIFF or WebP, or cut off within its header"
        raise WorkError(f"cannot read image {path}: {reason}") from error
    except Exception as error:  # on a damaged file a decoder may stumble over anything
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise WorkError(f"cannot read image {path}: {reason}") from error


def _open(file: BinaryIO) -> Image.Image | None:
    """The image with its header read, None for a TIFF whose kind of pixels Pillow does not know."""
    start = file.read(4)
    file.seek(0)
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if start not in TIFF_STARTS:
            raise
        return None


def _decode(data: bytes) -> Image.Image | NDArray[Any]:
    """A picture upright: with 8 bits in its own mode, with more as (H, W) or (H, W, 3)."""
    file = io.BytesIO(data)
    image = _open(file)
    if image is None:
        return _decode_tiff(data)
    _refuse_unsupported(image)
    if image.format == "TIFF":
        _tiff_tags(io.BytesIO(data))  # raises where they are cut off
        image.info.pop("xmp", None)  # Pillow looks for an orientation there too, which other formats do not get
    kind = _raw_mode(image)
    inverted = image.mode.startswith("I;16") and _is_inverted(image)
    image.load()
    if image.format == "PNG" and data.rfind(PNG_END) < 0:
        raise OSError("image file is truncated")  # by its last bytes, of which Pillow does not need all
    if kind.startswith(DEEP_COLOUR):
        deep = _decode_with_opencv(data)
        return deep if image.format == "TIFF" else _turn(deep, _orientation(image))
    if image.format != "TIFF":
        image = _turn(image, _orientation(image))
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    return 65535 - values if inverted else values


def _refuse_unsupported(image: Image.Image) -> None:
    """What could be decoded, but not turned into the right colours."""
    if image.mode == "LAB":
        raise ValueError("colours in LAB are not supported; save it as RGB")
    if image.format == "TIFF":
        _refuse_deep_planes(image.tag_v2)


def _decode_with_opencv(data: bytes) -> NDArray[Any]:
    """(H, W) or (H, W, 3) RGB with the file's own bits; a TIFF upright, a PNG not."""
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise OSError("its kind of pixels is not supported")
    return np.ascontiguousarray(values[..., 2::-1]) if values.ndim == 3 else values


def to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """16 bits as v / 257 rounded; 8 bits as they are."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError("neither 8 nor 16 bits a channel")
    return (values / 257 + 0.5).astype(np.uint8)  # convert() would cut everything above 255 to white


def _turn(image: Image.Image | NDArray[Any], orientation: Any) -> Image.Image | NDArray[Any]:
    method = UPRIGHT.get(orientation)
    if method is None:
        return image
    if isinstance(image, Image.Image):
        return image.transpose(method)
    return np.stack([np.asarray(Image.fromarray(c).transpose(method)) for c in np.moveaxis(image, 2, 0).copy()], 2)


# ------------------------------------------------------------------------------------------ headers


def _orientation(image: Image.Image, file: BinaryIO | None = None) -> Any:
    """The EXIF orientation, 1 is upright. With `file` also that of a PNG which is not decoded yet."""
    data = image.info.get("exif")
    if data is None and file is not None and image.format == "PNG":
        data = _late_exif(_tail(file, EXIF_TAIL))
    if not data:
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        return exif.get(Exif.Orientation, 1)
    except Exception:  # whatever a damaged EXIF block raises, the picture is shown as it lies in the file
        return 1


def _late_exif(tail: bytes) -> bytes | None:
    """The EXIF data that a PNG has after its picture."""
    at = tail.rfind(b"eXIf")
    if at < 4:
        return None
    length = int.from_bytes(tail[at - 4 : at], "big")
    chunk, check = tail[at : at + 4 + length], tail[at + 4 + length : at + 8 + length]
    # compressed pixels may look like a chunk, but not with the right sum
    return chunk[4:] if check == struct.pack(">I", zlib.crc32(chunk)) else None


def _raw_mode(image: Image.Image) -> str:
    """How the decoder calls the pixels in the file, '' where it does not say."""
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def _pixels(image: Image.Image) -> str:
    if image.mode in ("P", "PA"):
        return "palette"
    if image.format == "TIFF":
        return _tiff_pixels(image.tag_v2)
    raw = _raw_mode(image)
    bits = 16 if ";16" in raw else 1 if image.mode == "1" else 8
    return f"{2 if raw.startswith('LA') else len(image.getbands())}×{bits} bit"


def _tail(file: BinaryIO, length: int) -> bytes:
    """The last bytes of a file, its place in which is kept."""
    at = file.tell()
    file.seek(max(0, os.fstat(file.fileno()).st_size - length))
    data = file.read(length)
    file.seek(at)
    return data


# --------------------------------------------------------------------------------------------- TIFF


def _tiff_tags(file: BinaryIO) -> ImageFileDirectory_v2:
    """The tags of the first page.

    Raises:
        OSError: they are not wholly in the file; Pillow alone would take what is there of them.
    """
    file.seek(0)
    start = file.read(8)
    big = start[2:4] in (b"+\0", b"\0+")
    if big:
        start += file.read(8)
    tags = ImageFileDirectory_v2(start)
    at = tags.next
    if _tags_end(file, at, "<" if start.startswith(b"II") else ">", big) > file.seek(0, os.SEEK_END):
        raise OSError("image file is truncated")
    file.seek(at)
    tags.load(file)
    return tags


def _tags_end(file: BinaryIO, at: int, order: str, big: bool) -> float:
    """Where the tags at an offset, and the values that they point to, end; infinity where that cannot be read."""
    number, entry, following = (8, 20, 8) if big else (2, 12, 4)
    file.seek(at)
    count = int.from_bytes(file.read(number), "little" if order == "<" else "big")
    block = file.read(entry * min(count, 65535))
    if not count or len(block) < entry * count:
        return math.inf
    ends = [at + number + entry * count + following]
    for _, kind, length, value in struct.iter_unpack(f"{order}{'HHQQ' if big else 'HHLL'}", block):
        bytes_ = length * TIFF_BYTES.get(kind, 1)
        if bytes_ > following:  # else the value is in the entry itself
            ends.append(value + bytes_)
    return max(ends)


def _tiff_size(tags: ImageFileDirectory_v2) -> tuple[int, int]:
    """(width, height), upright.

    Raises:
        DecompressionBombError: too many pixels, by Pillow's own measure.
    """
    width, height = tags[Exif.ImageWidth], tags[Exif.ImageLength]
    if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{width * height} pixels are more than {2 * Image.MAX_IMAGE_PIXELS}")
    return (height, width) if tags.get(Exif.Orientation) in SIDEWAYS else (width, height)


def _tiff_pixels(tags: ImageFileDirectory_v2) -> str:
    numbers = {2: " signed", 3: " float"}.get(max(tags.get(Exif.SampleFormat, (1,))), "")
    return f"{tags.get(Exif.SamplesPerPixel, 1)}×{max(tags.get(Exif.BitsPerSample, (1,)))} bit{numbers}"


def _is_inverted(image: Image.Image) -> bool:
    """Whether 0 is white. Pillow turns 8 bits round, but not 16."""
    return image.format == "TIFF" and image.tag_v2.get(Exif.PhotometricInterpretation) == 0


def _refuse_deep_planes(tags: ImageFileDirectory_v2) -> None:
    """Pillow and OpenCV both make noise of these, without an error."""
    several = tags.get(Exif.SamplesPerPixel, 1) > 1 and tags.get(Exif.PlanarConfiguration) == 2
    if several and max(tags.get(Exif.BitsPerSample, (1,))) > 8:
        raise ValueError("16-bit colour in separate planes is not supported; save it with interleaved channels")


def _decode_tiff(data: bytes) -> NDArray[Any]:
    """A TIFF that Pillow cannot open, by OpenCV, which gives the rows that are there of one that was cut off."""
    file = io.BytesIO(data)
    tags = _tiff_tags(file)
    _tiff_size(tags)
    _refuse_deep_planes(tags)
    if _tiff_ends_early(tags, len(data)):
        raise OSError("image file is truncated")
    values = _decode_with_opencv(data)
    inverted = tags.get(Exif.PhotometricInterpretation) == 0 and values.dtype == np.uint16
    return 65535 - values if inverted else values


def _tiff_ends_early(tags: ImageFileDirectory_v2, size: int) -> bool:
    """Whether a strip or tile is not, or not wholly, in the file of `size` bytes."""
    for offsets, counts in STRIPS:
        if offsets in tags:
            ends = [at + count for at, count in zip(tags[offsets], tags.get(counts, ()), strict=False)]
            return len(ends) != len(tags[offsets]) or max(ends) > size
    return True


# --------------------------------------------------------------------------------------- truncation


def looks_truncated(path: Path) -> bool:
    """Whether a file seems to be cut off, by its first and last bytes alone; only decoding it makes sure.

    Raises:
        WorkError: it cannot be opened; the message names it.
    """
    with _naming(path), path.open("rb") as file:
        return _ends_early(file)


def _ends_early(file: BinaryIO) -> bool:
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(34)
    if start.startswith(b"\x89PNG"):
        return PNG_END not in _tail(file, TAIL)
    if start.startswith(b"\xff\xd8"):
        # some writers pad with zeros or a line end. An end mark further up may be that of a thumbnail
        return not _tail(file, TAIL).rstrip(b"\0\r\n ").endswith(JPEG_END)
    if start.startswith(b"BM"):
        return _bmp_ends_early(start, size)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return int.from_bytes(start[4:8], "little") + 8 > size
    if start[:4] in TIFF_STARTS:
        try:
            return _tiff_ends_early(_tiff_tags(file), size)
        except Exception:  # tags that cannot be read are suspicion enough
            return True
    return True


def _bmp_ends_early(start: bytes, size: int) -> bool:
    if len(start) < 34:
        return True
    pixels_at, header, width, height, _, bits, compression = struct.unpack("<IIiiHHI", start[10:34])
    if header < 40:  # OS/2's, with shorter numbers
        return int.from_bytes(start[2:6], "little") > size
    row = (abs(width) * bits + 31) // 32 * 4
    compressed = compression in (1, 2)
    return pixels_at + (1 if compressed else row * abs(height)) > size or (
        compressed and int.from_bytes(start[2:6], "little") > size
    )
