"""From the bytes of an image file to its pixels, upright and with the file's own bit depth. Needs no torch.

The format is found from the content, whatever the suffix. Pillow decodes; what Pillow cannot read, or would cut to 8
bits, is decoded by OpenCV (PNG) or tifffile (TIFF).
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Transpose

from datasets import damage, tiff
from datasets.headers import (
    SIDEWAYS,
    count_frames,
    exif_orientation,
    is_tiff,
    open_image,
    raw_mode,
    refuse_large,
    refuse_unsupported,
)
from datasets.limits import FULL_BITS
from datasets.truncation import ends_early

FULL_WHITE = (1 << FULL_BITS) - 1
JPEG_IN_TIFF = 7
# Pillow's names for 16-bit colour of which its decoders keep the upper 8 bits only. RGBa, whose colour is multiplied
# by its opacity, is left to Pillow, which divides it again
DEEP_COLOUR = ("RGB;16", "RGBA;16", "RGBX;16", "LA;16")
# by EXIF orientation, what turns the stored pixels upright
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


class Decoded(NamedTuple):
    """A decoded image, upright.

    pixels: with 8 bits a channel an image in its own mode, with more (H, W) or (H, W, 3).
    white: the value of white, where the file itself states one other than that of the full 16 bits.
    pages: how many images the file holds, of which this is the first.
    """

    pixels: Image.Image | NDArray[Any]
    white: int | None
    pages: int


def decode(data: bytes, max_pixels: int) -> Decoded:
    """Decode an image file.

    Args:
        data: the whole file.
        max_pixels: an image with more pixels is refused.

    Raises:
        UnidentifiedImageError, OSError, ValueError: it cannot be decoded.
    """
    file = io.BytesIO(data)
    image = open_image(file, max_pixels)
    if image is not None:
        refuse_unsupported(image)
    if is_tiff(file):
        return _decode_tiff(image, data, max_pixels)
    if image.format == "PPM" and image.tile[0].codec_name == "ppm":
        return _decode_ppm(image, data)
    stored, white, pages = raw_mode(image), _stated_white(image, data), count_frames(image)
    image.load()
    if image.format in ("PNG", "JPEG2000") and ends_early(file):
        raise OSError("image file is truncated")  # Pillow does not need the last bytes
    if image.format in ("JPEG", "MPO"):
        damage.check_jpeg(data, image)
    elif image.format == "WEBP":
        damage.check_webp(data)
    if stored.startswith(DEEP_COLOUR):
        return Decoded(turn_upright(_decode_deep_png(data), exif_orientation(image)), None, pages)
    image = turn_upright(image, exif_orientation(image))
    return Decoded(np.asarray(image) if image.mode.startswith(("I", "F")) else image, white, pages)


def _decode_tiff(image: Image.Image | None, data: bytes, max_pixels: int) -> Decoded:
    """Decode a TIFF, by Pillow where it has opened the file (`image`) and does not change the pixels."""
    with tiff.open_page(io.BytesIO(data)) as page:
        refuse_large(*tiff.stored_size(page), max_pixels)
        pages = tiff.count_pages(page)
        if image is None or tiff.needs_tifffile(page):
            values, depth = tiff.decode(page, len(data)), tiff.depth(page)
            if values.dtype == bool:
                values = values.astype(np.uint8) * 255
            if values.ndim == 3:
                values = values[..., :3] if values.shape[2] > 2 else values[..., 0]
            white = (1 << depth) - 1 if 8 < depth < FULL_BITS else None
            return Decoded(turn_upright(np.ascontiguousarray(values), tiff.orientation(page)), white, pages)
        if page.compression == JPEG_IN_TIFF:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                damage.read_structure(data[offset : offset + count])  # raises where one has no end
    image.info.pop("xmp", None)  # Pillow looks for an orientation there too, but not in other formats
    image.load()
    return Decoded(image, None, pages)


def _decode_ppm(image: Image.Image, data: bytes) -> Decoded:
    """Decode a binary PGM or PPM whose white is not 255: Pillow converts value by value, and cuts colour to 8 bits."""
    white, bands = image.tile[0].args[1], len(image.getbands())
    values = np.frombuffer(data, ">u2" if white > 255 else "u1", offset=image.tile[0].offset)
    count = image.width * image.height * bands
    if len(values) < count:
        raise OSError("image file is truncated")
    values = values[:count].reshape(image.height, image.width, *([bands] if bands > 1 else []))
    return Decoded(values.astype(np.uint16), None if white == FULL_WHITE else white, 1)


def _stated_white(image: Image.Image, data: bytes) -> int | None:
    """The value of white, where Pillow's decoder stretches the values to 16 bits by what the file states."""
    if image.format == "PPM" and image.tile[0].codec_name == "ppm_plain":
        return None if image.tile[0].args[1] == FULL_WHITE else FULL_WHITE
    if image.format == "JPEG2000":
        size = data.find(b"\xff\x4f\xff\x51")  # this segment states the bits of the first channel
        bits = (data[size + 42] & 0x7F) + 1 if 0 <= size < len(data) - 42 else FULL_BITS
        return None if bits == FULL_BITS else FULL_WHITE
    return None


def _decode_deep_png(data: bytes) -> NDArray[Any]:
    """A PNG with 16-bit colour, (H, W) or (H, W, 3) RGB with the file's own bits, not turned upright."""
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise OSError("OpenCV, which reads 16-bit colour, refuses it") from error
    if values is None:
        raise OSError("its kind of pixels is not supported")
    return np.ascontiguousarray(values[..., 2::-1]) if values.ndim == 3 else values


def turn_upright(image: Image.Image | NDArray[Any], orientation: Any) -> Image.Image | NDArray[Any]:
    """The stored pixels turned by an EXIF orientation; unchanged where that is not a valid one."""
    method = UPRIGHT.get(orientation)
    if method is None:
        return image
    if isinstance(image, Image.Image):
        return image.transpose(method)
    turned = image.swapaxes(0, 1) if orientation in SIDEWAYS else image
    # the EXIF standard says where the first stored row and column are shown
    return np.ascontiguousarray(
        turned[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]
    )


def decode_opacity(data: bytes, max_pixels: int) -> NDArray[np.uint8] | None:
    """The opacity (H, W) of an image, upright; None where it says nothing: none at all, or the same above 0 everywhere.

    In a palette image single colours may be transparent for any reason: there the opacity counts only where all
    visible pixels have one colour.
    """
    try:
        image = open_image(io.BytesIO(data), max_pixels)
        if image is None or not image.has_transparency_data:
            return None
        has_palette = image.mode == "P"
        image.load()  # the EXIF data of a PNG may follow its pixels
        orientation = 1 if image.format == "TIFF" else exif_orientation(image)
        image = image.convert("RGBA")
    except (OSError, ValueError):  # an image that another library decodes
        return None
    pixels = np.asarray(turn_upright(image, orientation))
    opacity = pixels[..., 3]
    if opacity.min() == opacity.max() and opacity.min() > 0:
        return None
    if has_palette:
        visible, hidden = pixels[opacity > 0, :3], pixels[opacity == 0, :3]
        if not len(visible) or (visible != visible[0]).any() or (not visible.any() and hidden.any()):
            return None
    return opacity
