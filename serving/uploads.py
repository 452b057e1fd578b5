"""What arrives in a request: bodies of bounded size, and the pictures in them."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import anyio
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from datasets.files import ReadOptions, decode_rgb, why_unidentified
from datasets.headers import open_image, parse_header
from inference.loading import SMALLEST
from serving.refusal import Refusal
from utils import printable

MOST_FILES = 32  # in a request
SLOWEST = 60.0  # seconds that a body may take
LONGEST_NAME = 200  # characters
BUSY = "as much as can be judged is under way; try again in a moment"
KINDS = {  # Pillow's name of a format → suffix of its files, media type
    "PNG": (".png", "image/png"),
    "JPEG": (".jpg", "image/jpeg"),
    "MPO": (".jpg", "image/jpeg"),
    "BMP": (".bmp", "image/bmp"),
    "TIFF": (".tif", "image/tiff"),
    "WEBP": (".webp", "image/webp"),
    "JPEG2000": (".jp2", "image/jp2"),
    "PPM": (".ppm", "image/x-portable-anymap"),
    "HEIF": (".heic", "image/heic"),
}
MEDIA_TYPES = dict(KINDS.values())


@dataclass(frozen=True)
class Upload:
    """A file that was received.

    Attributes:
        name: that the sender gave it, printable and without a folder; nothing on this machine is named after it.
        content: of the file.
    """

    name: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Of the content, as hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Limits:
    """What a request may hold.

    Attributes:
        body: bytes.
        pixels: of a picture.
    """

    body: int
    pixels: int


class Admission:
    """How much may be under way at once, so that memory is bounded whatever arrives. Used on the event loop only.

    Args:
        requests: most requests with pictures.
        size: most bytes of their bodies together.
    """

    def __init__(self, requests: int, size: int) -> None:
        self._requests, self._bytes = requests, size

    @asynccontextmanager
    async def admit(self, request: Request, limit: int) -> AsyncIterator[None]:
        """A context for a request with a body of at most `limit` bytes.

        Raises:
            Refusal: 503 if too much is under way.
        """
        stated = request.headers.get("content-length", "")
        size = min(int(stated), limit) if stated.isascii() and stated.isdigit() else limit
        if self._requests < 1 or self._bytes < size:
            raise Refusal(503, BUSY, retry_after=1)
        self._requests, self._bytes = self._requests - 1, self._bytes - size
        try:
            yield
        finally:
            self._requests, self._bytes = self._requests + 1, self._bytes + size


async def read_body(request: Request) -> bytes:
    """The body of a request, whose size `serving.guard` bounds.

    Raises:
        Refusal: 413 if it is too long, 408 if it takes too long.
    """
    parts: list[bytes] = []
    with _in_time():
        async for part in request.stream():
            parts.append(part)
    return b"".join(parts)


async def read_uploads(request: Request, name: str) -> list[Upload]:
    """The files of a request: those of a form (multipart), or else the body as one file.

    Args:
        request: whose body was not read yet.
        name: of the file, if the body is one.

    Raises:
        Refusal: 413, 408, or 400 if the form is not one, or holds no file.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        return [Upload(clean_name(name), await read_body(request))]
    try:
        with _in_time():
            form = await request.form(max_files=MOST_FILES, max_fields=MOST_FILES)
    except HTTPException as error:
        raise Refusal(400, f"the form cannot be read: {error.detail}") from error
    try:
        files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not files:
            raise Refusal(400, "the form holds no file; send one with curl -F picture=@FILE")
        return [Upload(clean_name(file.filename or ""), await file.read()) for file in files]
    finally:
        await form.close()


def clean_name(name: str) -> str:
    """The name of a file as it may be shown: without folders, printable, not too long."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return printable(last)[:LONGEST_NAME] or "picture"


@contextmanager
def _in_time() -> Iterator[None]:
    """A context that refuses a body that takes too long, 408."""
    try:
        with anyio.fail_after(SLOWEST):
            yield
    except TimeoutError as error:
        raise Refusal(408, f"the body took longer than {SLOWEST:g} seconds; send it faster") from error


# --------------------------------------------------------------------------------------------- pictures


def kind_of(content: bytes) -> str:
    """The suffix of a file, with its dot, from its content.

    Raises:
        Refusal: 415 if it is not a picture.
    """
    try:
        image = open_image(io.BytesIO(content), sys.maxsize)
    except UnidentifiedImageError as error:
        raise Refusal(415, f"not a picture: {why_unidentified(content[:12])}") from error
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise _unreadable(error) from error
    return KINDS.get("TIFF" if image is None else str(image.format), (".bin", ""))[0]


def check_size(content: bytes, most: int) -> int:
    """The number of pixels that the header of a picture states, before it is decoded.

    Raises:
        Refusal: 413 if there are more than `most`, 422 if the header cannot be read or a side is too short.
    """
    try:
        width, height = parse_header(io.BytesIO(content), sys.maxsize).size
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise _unreadable(error) from error
    if width * height > most:
        raise Refusal(413, f"the picture has {width}x{height} = {width * height} pixels, more than --max_pixels {most}")
    if min(width, height) < SMALLEST:
        raise Refusal(422, f"the picture has {width}x{height} pixels; each side needs at least {SMALLEST}")
    return width * height


def decode(content: bytes, bits: int, most: int) -> Image.Image:
    """A picture as 8-bit RGB, upright.

    Args:
        content: of the file.
        bits: of 16-bit pictures, see `datasets.files.ReadOptions`.
        most: pixels.

    Raises:
        Refusal: 422 if it is damaged.
    """
    try:
        return decode_rgb(content, ReadOptions(bits, most))
    except MemoryError as error:
        raise Refusal(503, "out of memory; try again later, or a smaller picture", retry_after=5) from error
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> Refusal:
    return Refusal(422, f"the picture cannot be read: {printable(str(error) or type(error).__name__)}")
