"""Finding and reading image files.

A picture is taken by what is in the file, whatever its suffix says. Pillow decodes; of what Pillow cannot read, or
would cut to 8 bits, OpenCV reads PNG and tifffile TIFF. All see a picture upright, as its EXIF orientation asks for.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as Exif
from PIL.Image import Transpose

from datasets import damage, tiff
from datasets.limits import FULL_BITS, MAX_PIXELS
from utils import InputError, WorkError

SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".j2k", ".pgm", ".ppm", ".pnm",
    ".pbm",
})  # fmt: skip
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM")
# files that lie beside pictures everywhere and are none
BESIDE_PICTURES = frozenset({"readme", "license", "licence", "thumbs", "desktop"})

DARK_BELOW = 1 << 14  # of 16 bits: a picture that stays below may be of a camera with fewer
JPEG_IN_TIFF = 7
CLIPPED, PAGES, DARK = (
    "glass_clipped",
    "glass_pages",
    "glass_dark",
)  # in the `info` of a picture: what is to be said of its file
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
JPEG_END = b"\xff\xd9"
TAIL = 4096
# of a PNG, where EXIF data may follow the picture: at most 64 KiB by its own format
EXIF_TAIL = 1 << 16
# 16-bit colour as Pillow's decoders call it, of which they keep the upper 8 bits. RGBa, whose colour is multiplied
# by its opacity, is left to Pillow, which divides it again
DEEP_COLOUR = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16")
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
class ReadOptions:
    """How pictures are read.

    bits: depth in use of pictures with more than 8 bits a channel that do not say it themselves, 8 to 16: white is
    2^bits − 1. max_pixels: a picture with more is refused, as its header may be made up to fill the memory.
    """

    bits: int = FULL_BITS
    max_pixels: int = MAX_PIXELS


DEFAULT = ReadOptions()


@dataclass(frozen=True)
class Header:
    """What is seen of an image without decoding it.

    size: (width, height) upright, in pixels. pixels: their kind, as `3×8 bit`. suspect: as `looks_truncated`.
    pages: pictures in the file, of which the first is read.
    """

    size: tuple[int, int]
    pixels: str
    suspect: bool = False
    pages: int = 1


@dataclass
class Listing:
    """What was found in a folder.

    images: the image files, sorted by name. other_files: those that are no images. closed: folders that may not be
    entered.
    """

    images: list[Path] = field(default_factory=list)
    other_files: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)

    @property
    def others(self) -> Counter[str]:
        """How many files are no images, by suffix."""
        return Counter(path.suffix.lower() for path in self.other_files)

    def describe(self, named: Iterable[Path] = ()) -> str:
        """What was not taken, "" where all was; without the files that are `named` elsewhere."""
        parts, named = [], set(named)
        others = Counter(path.suffix.lower() for path in self.other_files if path not in named)
        if others:
            counts = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in others.most_common())
            parts.append(f"files not taken: {counts}")
            if any(suffix in HEIF_SUFFIXES for suffix in others):
                parts.append("HEIC is read where pillow-heif is installed (pip install pillow-heif)")
        if self.closed:
            more = f" and {len(self.closed) - 1} more" if len(self.closed) > 1 else ""
            parts.append(f"folders that may not be entered: {self.closed[0]}{more}")
        return "; ".join(parts)


# ------------------------------------------------------------------------------------------ finding


def list_images(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder, sorted by name, without hidden files and folders. [] where there is no folder.

    A link to nowhere counts as a file: it shall be said that it cannot be read.
    """
    return look_through(folder, recursive).images


def look_through(folder: Path, recursive: bool = False) -> Listing:
    """All visible files of a folder; with `recursive` at any depth, through links too, each folder once.

    Raises:
        InputError: the folder itself may not be entered.
    """
    listing = Listing()
    if not folder.is_dir():
        return listing
    above = {_identity(parent) for parent in folder.resolve().parents}
    folders, links, seen, behind_link = [folder], [], {_identity(folder)}, False
    while folders or links:
        # a folder is found at its own place, where it has one, before any link to it is followed
        behind_link = behind_link or not folders
        inside = folders.pop() if folders else links.pop(0)
        if inside != folder:
            identity = _identity(inside)
            if behind_link and (identity in seen or identity in above):
                continue
            seen.add(identity)
        try:
            entries = [entry for entry in os.scandir(inside) if not entry.name.startswith(".")]
        except OSError as error:
            if inside == folder:
                raise InputError(f"{folder} may not be entered: {error.strerror}") from error
            listing.closed.append(inside)
            continue
        for entry in entries:
            path = inside / entry.name
            if not _is_folder(entry):
                _sort_in(listing, path, entry)
            elif recursive and entry.is_symlink():
                links.append(path)
            elif recursive:
                folders.append(path)
        links.sort()
    listing.images.sort()
    listing.other_files.sort()
    listing.closed.sort()
    return listing


def list_folders(folder: Path) -> list[Path]:
    """The visible folders inside a folder that may be entered, sorted by name."""
    return [path for path in _folders(folder) if _may_enter(path)]


def closed_folders(folder: Path) -> list[Path]:
    """The visible folders inside a folder that may not be entered, sorted by name."""
    return [path for path in _folders(folder) if not _may_enter(path)]


def suffixes() -> frozenset[str]:
    """What names of image files end with, in small letters."""
    return SUFFIXES | HEIF_SUFFIXES if _has_heif() else SUFFIXES


def what_else(folder: Path) -> str:
    """What a folder without images holds instead at any depth, as the end of a message."""
    found = look_through(folder, recursive=True).describe() if folder.is_dir() else ""
    return f" ({found})" if found else ""


@functools.cache
def _has_heif() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not _is_hidden(Path(p.name)) and _is_folder(p))


def _may_enter(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
            return os.access(folder, os.X_OK)
    except OSError:
        return False


def _is_folder(path: Path | os.DirEntry) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link into a folder that may not be entered
        return False


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return (-1, hash(path))
    return status.st_dev, status.st_ino


def _sort_in(listing: Listing, path: Path, entry: os.DirEntry) -> None:
    """Note a file as an image or as something else."""
    if path.suffix.lower() in suffixes():
        try:
            taken = entry.is_file() or (entry.is_symlink() and not path.exists())
        except OSError:  # it cannot be looked at; reading it says why
            taken = True
        if taken:
            listing.images.append(path)
    elif path.stem.lower() not in BESIDE_PICTURES:
        listing.other_files.append(path)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


# ------------------------------------------------------------------------------------------ reading


def read_rgb(path: Path, reading: ReadOptions = DEFAULT) -> Image.Image:
    """An image as 8-bit RGB, upright; of several pages the first. Opacity is dropped.

    More than 8 bits become v · 255 / (2^bits − 1) rounded, of 16 bits that is v / 257. `info` of the image says whether
    it was brighter than that (CLIPPED), and how many pages the file has (PAGES), where there are several.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    with _naming(path):
        image, top, pages = _decode_fully(path.read_bytes(), reading.max_pixels)
        said: dict[str, Any] = {} if pages == 1 else {PAGES: pages}
        if isinstance(image, np.ndarray):
            image = as_image(image, reading.bits) if top is None else Image.fromarray(_scaled(image, top))
            said |= image.info
        image.info.clear()  # a transparent colour is none here, and nobody shall turn the picture a second time
        image = image.convert("RGB")
        image.info |= said
        return image


def read_peak(path: Path, reading: ReadOptions = DEFAULT) -> int | None:
    """The largest number in an image of more than 8 bits a channel; None where the file says itself what white is.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    with _naming(path):
        image, top, _ = _decode_fully(path.read_bytes(), reading.max_pixels)
        return int(image.max()) if isinstance(image, np.ndarray) and image.dtype != np.uint8 and top is None else None


def read_mask(path: Path, reading: ReadOptions = DEFAULT) -> NDArray[np.uint8]:
    """A mask as (H, W) in {0, 1}, upright: 1 where any channel is above 0, of a palette image where its colour is.

    A palette image without black in it counts by its indices, of which 0 is normal. Where the opacity differs from
    pixel to pixel, what is wholly transparent is normal. Of a folder it is the union of the masks in it.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    return read_mask_values(path, reading)[0]


def read_mask_values(path: Path, reading: ReadOptions = DEFAULT) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """As `read_mask`, and the pixels' values (H, W) that it comes from: of colours the highest channel.

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    if path.is_dir():
        return _union_of_masks(path, reading)
    with _naming(path):
        data = path.read_bytes()
        image = _decode(data, reading.max_pixels)
        opaque = isinstance(image, Image.Image) and not image.has_transparency_data
        if isinstance(image, Image.Image) and image.mode == "CMYK":
            image = image.convert("RGB")  # ink, of which there is none where a mask is white
        if isinstance(image, Image.Image) and image.mode in ("P", "PA"):
            image.info.clear()  # a transparent colour is a colour as any other
            colours, indices = np.asarray(image.convert("RGB")), np.asarray(image)
            values = colours if (colours == 0).all(2).any() else indices.reshape(*colours.shape[:2], -1)[..., 0]
        else:
            values = np.asarray(image)
        opacity = None if opaque else _opacity(data, reading.max_pixels)
    if values.ndim == 3:
        values = values[..., : 1 if values.shape[2] == 2 else 3]
        marked, values = values.any(2), values.max(2)
    else:
        marked = values > 0
    if opacity is not None and opacity.shape == marked.shape:
        marked, values = _marked_by_opacity(marked, values, opacity)
    return marked.astype(np.uint8), values


def _union_of_masks(folder: Path, reading: ReadOptions) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    read = [read_mask_values(path, reading) for path in list_images(folder)]
    if not read:
        raise WorkError(f"cannot read image {folder}: the folder has no mask in it")
    if len({marked.shape for marked, _ in read}) > 1:
        raise WorkError(f"cannot read image {folder}: the masks in it have different sizes")
    return np.max([marked for marked, _ in read], axis=0), np.max([values for _, values in read], axis=0)


def _opacity(data: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """The opacity (H, W) of an image upright; None where the file has none, or it is the same everywhere above 0."""
    try:
        image = _open(io.BytesIO(data), max_pixels)
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


def read_orientation(path: Path, reading: ReadOptions = DEFAULT) -> int:
    """The EXIF orientation of a picture, from 1 (as it lies in the file) to 8.

    Raises:
        WorkError: the header cannot be read; the message names the file.
    """
    with _naming(path), path.open("rb") as file:
        image = _open(file, reading.max_pixels)
        if file_is_tiff(file):
            with tiff.open_page(file) as page:
                found = tiff.orientation(page)
        else:
            found = _orientation(image, file)
        return found if found in UPRIGHT else 1


def read_header(path: Path, reading: ReadOptions = DEFAULT) -> Header:
    """Size and kind of pixels of an image, and whether it seems to be cut off.

    Raises:
        WorkError: the header cannot be read, or tells of too many pixels; the message names the file.
    """
    with _naming(path), path.open("rb") as file:
        image = _open(file, reading.max_pixels)
        if image is not None:
            _refuse_unsupported(image)
        if file_is_tiff(file):
            return _tiff_header(file, reading.max_pixels)
        width, height = image.size
        if _orientation(image, file) in SIDEWAYS:
            width, height = height, width
        return Header((width, height), _pixels(image), _ends_early(file), _count_frames(image))


def file_is_tiff(file: BinaryIO) -> bool:
    """Whether a file begins as a TIFF does."""
    file.seek(0)
    return file.read(4) in tiff.STARTS


def _tiff_header(file: BinaryIO, max_pixels: int) -> Header:
    with tiff.open_page(file) as page:
        width, height = tiff.stored_size(page)
        _refuse_large(width, height, max_pixels)
        size = (height, width) if tiff.orientation(page) in SIDEWAYS else (width, height)
        early = tiff.ends_early(page, file.seek(0, os.SEEK_END))
        return Header(size, tiff.describe_pixels(page), early, tiff.count_pages(page))


def image_size(path: Path, reading: ReadOptions = DEFAULT) -> tuple[int, int]:
    """(width, height) of an image in pixels, upright, without decoding it.

    Raises:
        WorkError: the header cannot be read; the message names the file.
    """
    return read_header(path, reading).size


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what goes wrong with a file into an error with its path."""
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise WorkError(f"cannot read image {path}: {_what_it_is(path)}") from error
    except Exception as error:  # on a damaged file a decoder may stumble over anything
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise WorkError(f"cannot read image {path}: {reason}") from error


def _what_it_is(path: Path) -> str:
    """Why a file is not known for an image."""
    with path.open("rb") as file:
        start = file.read(12)
    if not start:
        return "the file is empty"
    if start[4:8] == b"ftyp":
        needed = "HEIC is read where pillow-heif is installed (pip install pillow-heif)"
        return "a HEIC that pillow-heif does not know, or cut off within its header" if _has_heif() else needed
    return "no picture of a kind that is read, or cut off within its header"


def _open(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> Image.Image | None:
    """The image with its header read, None for a TIFF whose kind of pixels Pillow does not know.

    Unlike `Image.open` it has a limit of its own, and leaves Pillow's, which belongs to the whole process, alone.

    Raises:
        UnidentifiedImageError: none of the formats.
        ValueError: more pixels than the limit.
    """
    Image.preinit()
    start = file.read(32)
    for factory, accept in _formats():
        if not accept(start):
            continue
        file.seek(0)
        try:
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # as Pillow's own loop: another may know it
            continue
        _refuse_large(*image.size, max_pixels)
        return image
    file.seek(0)
    if start[:4] in tiff.STARTS:
        return None
    raise UnidentifiedImageError("none of the formats known")


def _formats() -> Iterator[tuple[Any, Any]]:
    """What opens a file, and what tells from its first bytes whether it may."""
    if any(name not in Image.OPEN for name in FORMATS):
        Image.init()
    for name in FORMATS:
        yield Image.OPEN[name]
    if _has_heif():
        import pillow_heif

        yield pillow_heif.HeifImageFile, pillow_heif.is_supported


def _refuse_large(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(
            f"it has {width}x{height}, that is {width * height} pixels, more than --max_pixels {max_pixels}; give "
            f"--max_pixels {width * height} if that is meant"
        )


def _decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image | NDArray[Any]:
    """A picture upright: with 8 bits in its own mode, with more as (H, W) or (H, W, 3)."""
    return _decode_fully(data, max_pixels)[0]


Decoded = tuple[Image.Image | NDArray[Any], int | None, int]


def _decode_fully(data: bytes, max_pixels: int) -> Decoded:
    """As `_decode`; with it the number that is white where the file says so itself, and how many pages it has."""
    file = io.BytesIO(data)
    image = _open(file, max_pixels)
    if image is not None:
        _refuse_unsupported(image)
    if file_is_tiff(file):
        return _decode_tiff(image, data, max_pixels)
    if image.format == "PPM" and image.tile[0].codec_name == "ppm":
        return *_decode_ppm(image, data), 1
    kind, top, pages = _raw_mode(image), _white(image, data), _count_frames(image)
    image.load()
    if image.format in ("PNG", "JPEG2000") and _ends_early(file):
        raise OSError("image file is truncated")  # by its last bytes, of which Pillow does not need all
    if image.format in ("JPEG", "MPO"):
        damage.check_jpeg(data, image)
    elif image.format == "WEBP":
        damage.check_webp(data)
    if kind.startswith(DEEP_COLOUR):
        return _turn(_decode_png(data), _orientation(image)), None, pages
    image = _turn(image, _orientation(image))
    return (np.asarray(image) if image.mode.startswith(("I", "F")) else image), top, pages


def _decode_tiff(image: Image.Image | None, data: bytes, max_pixels: int) -> Decoded:
    """As `_decode_fully`, by Pillow where it has opened the file and reads its pixels as they are."""
    with tiff.open_page(io.BytesIO(data)) as page:
        _refuse_large(*tiff.stored_size(page), max_pixels)
        pages = tiff.count_pages(page)
        if image is None or tiff.needs_tifffile(page):
            values, depth = tiff.decode(page, len(data)), tiff.depth(page)
            if values.dtype == bool:
                values = values.astype(np.uint8) * 255
            if values.ndim == 3:
                values = values[..., :3] if values.shape[2] > 2 else values[..., 0]
            top = (1 << depth) - 1 if 8 < depth < FULL_BITS else None
            return _turn(np.ascontiguousarray(values), tiff.orientation(page)), top, pages
        if page.compression == JPEG_IN_TIFF:
            for at, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                damage.read_structure(data[at : at + count])  # raises where one has no end
    image.info.pop("xmp", None)  # Pillow looks for an orientation there too, which other formats do not get
    image.load()
    return image, None, pages


def _decode_ppm(image: Image.Image, data: bytes) -> tuple[Image.Image | NDArray[Any], int | None]:
    """A PGM or PPM whose largest number is not 255: Pillow goes through its numbers one by one, and cuts colour."""
    top, bands = image.tile[0].args[1], len(image.getbands())
    values = np.frombuffer(data, ">u2" if top > 255 else "u1", offset=image.tile[0].offset)
    count = image.width * image.height * bands
    if len(values) < count:
        raise OSError("image file is truncated")
    values = values[:count].reshape(image.height, image.width, *([bands] if bands > 1 else []))
    return values.astype(np.uint16), None if top == (1 << FULL_BITS) - 1 else top


def _white(image: Image.Image, data: bytes) -> int | None:
    """The number that is white, where the decoder has stretched the numbers by what the file says of itself."""
    full = (1 << FULL_BITS) - 1
    if image.format == "PPM" and image.tile[0].codec_name == "ppm_plain":
        return None if image.tile[0].args[1] == full else full
    if image.format == "JPEG2000":
        size = data.find(b"\xff\x4f\xff\x51")  # its segment tells the bits of the first channel
        bits = (data[size + 42] & 0x7F) + 1 if 0 <= size < len(data) - 42 else FULL_BITS
        return None if bits == FULL_BITS else full
    return None


def _count_frames(image: Image.Image) -> int:
    """Pictures in the file; those that a camera puts behind a JPEG, smaller ones, do not count."""
    return getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1


def _refuse_unsupported(image: Image.Image) -> None:
    """What could be decoded, but not turned into the right colours."""
    if image.mode == "LAB":
        raise ValueError("colours in LAB are not supported; save it as RGB")


def _decode_png(data: bytes) -> NDArray[Any]:
    """A PNG with 16-bit colour, (H, W) or (H, W, 3) RGB with the file's own bits, not turned upright."""
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise OSError("OpenCV, which reads 16-bit colour, refuses it") from error
    if values is None:
        raise OSError("its kind of pixels is not supported")
    return np.ascontiguousarray(values[..., 2::-1]) if values.ndim == 3 else values


def to_8_bits(values: NDArray[Any], bits: int = FULL_BITS) -> NDArray[np.uint8]:
    """More than 8 bits as v · 255 / (2^bits − 1) rounded, which is v / 257 of 16 bits; 8 bits as they are."""
    return values if values.dtype == np.uint8 else _scaled(values, (1 << bits) - 1)


def as_image(values: NDArray[Any], bits: int) -> Image.Image:
    """Pixels of any depth as an 8-bit image; its `info` says if they are brighter than `bits` tell, or all dark."""
    image = Image.fromarray(to_8_bits(values, bits))
    if values.dtype != np.uint8 and values.max() >> bits:
        image.info[CLIPPED] = int(values.max())
    elif values.dtype != np.uint8 and bits == FULL_BITS and values.max() < DARK_BELOW:
        image.info[DARK] = int(values.max())
    return image


def _scaled(values: NDArray[Any], top: int) -> NDArray[np.uint8]:
    if values.dtype.kind not in "ui" or values.min() < 0 or values.max() > 65535:
        raise ValueError("neither 8 nor 16 bits a channel")
    if top == (1 << FULL_BITS) - 1:
        return (values / 257 + 0.5).astype(np.uint8)  # convert() would cut everything above 255 to white
    return (np.minimum(values, top) * (255 / top) + 0.5).astype(np.uint8)


def _turn(image: Image.Image | NDArray[Any], orientation: Any) -> Image.Image | NDArray[Any]:
    method = UPRIGHT.get(orientation)
    if method is None:
        return image
    if isinstance(image, Image.Image):
        return image.transpose(method)
    turned = image.swapaxes(0, 1) if orientation in SIDEWAYS else image
    # where the stored picture's first row and column lie, by the EXIF standard
    return np.ascontiguousarray(
        turned[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]
    )


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
    raw = _raw_mode(image)
    deep = ";16" in raw or image.mode.startswith("I") or (image.format == "PPM" and _largest(image) > 255)
    bits = 16 if deep else 1 if image.mode == "1" else 8
    return f"{2 if raw.startswith('LA') else len(image.getbands())}×{bits} bit"


def _largest(image: Image.Image) -> int:
    """The number that is white in a PPM, 255 where it needs no scaling."""
    args = image.tile[0].args
    return args[1] if isinstance(args, tuple) and len(args) == 2 else 255


def _tail(file: BinaryIO, length: int) -> bytes:
    """The last bytes of a file, its place in which is kept."""
    at = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) - length))
    data = file.read(length)
    file.seek(at)
    return data


# --------------------------------------------------------------------------------------- truncation


def looks_truncated(path: Path) -> bool:
    """Whether a file seems to be cut off, by its first and last bytes alone; only decoding it makes sure.

    Raises:
        WorkError: it cannot be opened; the message names it.
    """
    with _naming(path), path.open("rb") as file:
        return _ends_early(file)


def _ends_early(file: BinaryIO) -> bool:
    size = file.seek(0, os.SEEK_END)
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
        return int.from_bytes(start[4:8], "little") + 8 > size or not _tail(file, 16).strip(b"\0")
    if start[:4] in tiff.STARTS:
        try:
            with tiff.open_page(file) as page:
                return tiff.ends_early(page, size)
        except Exception:  # tags that cannot be read are suspicion enough
            return True
    if start[4:8] == b"ftyp":
        return _boxes_end_early(file, size)
    if start[4:8] == b"jP  " or start.startswith(b"\xff\x4f\xff\x51"):
        return not _tail(file, TAIL).rstrip(b"\0\r\n ").endswith(JPEG_END)
    return not (start[:1] == b"P" and start[1:2] in b"123456f" and start[2:3].isspace())  # Pillow reads all of a PPM


def _boxes_end_early(file: BinaryIO, size: int) -> bool:
    """Whether the boxes of a HEIC, each of which tells its length, end beyond the file."""
    at = 0
    while at < size:
        file.seek(at)
        length = int.from_bytes(file.read(8)[:4], "big")
        length = int.from_bytes(file.read(8), "big") if length == 1 else length
        if length < 8:  # 0: up to the end of the file
            return length != 0
        at += length
    return at > size


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
