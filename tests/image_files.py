"""Image files as bytes, including kinds that Pillow does not write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from datasets.truncation import ends_early

XMP = b'<rdf:Description tiff:Orientation="6"/>'


def png(values, colour_type, before=(), after=()):
    """A 16-bit PNG; `before`, `after`: further chunks around the pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    deep = values.dtype == np.uint16
    rows = b"".join(b"\0" + row.astype(">u2" if deep else "u1").tobytes() for row in values)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16 if deep else 8, colour_type, 0, 0, 0))]
    parts += [chunk(*added) for added in before] + [chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts + [chunk(*added) for added in after] + [chunk(b"IEND", b"")])


def tiff(values, order="<", photometric=None, extra=None, numbers=1, planar=False, orientation=1, strips=2, xmp=b""):
    """An uncompressed TIFF; its pixels follow its tags, and `xmp` follows the pixels."""
    values = np.atleast_3d(values)
    height, width, channels = values.shape
    raw = values.astype(values.dtype.newbyteorder(order))
    rows = height if planar else -(-height // strips)
    parts = [raw[..., c] for c in range(channels)] if planar else [raw[i : i + rows] for i in range(0, height, rows)]
    parts = [part.tobytes() for part in parts]
    tags = {256: (width,), 257: (height,), 258: (values.dtype.itemsize * 8,) * channels, 259: (1,)}
    tags |= {262: (photometric if photometric is not None else 2 if channels > 2 else 1,), 273: (0,) * len(parts)}
    tags |= {274: (orientation,), 277: (channels,), 278: (rows,), 279: tuple(map(len, parts)), 284: (1 + planar,)}
    if extra is not None:
        tags[338] = (extra,)
    tags[339] = (numbers,) * channels
    if xmp:  # with an orientation of its own
        tags[700] = tags.pop(274)
    end = 8 + 2 + 12 * len(tags) + 4
    first = end + sum(4 * len(v) for v in tags.values() if len(v) > 1)
    tags[273] = tuple(first + sum(map(len, parts[:i])) for i in range(len(parts)))
    if xmp:
        tags[700] = (first + sum(map(len, parts)),)
    entries, blob = b"", b""
    for tag, value in tags.items():  # all numbers as LONG
        data = struct.pack(f"{order}{len(value)}L", *value)
        entries += struct.pack(f"{order}HHL", tag, *((1, len(xmp)) if tag == 700 else (4, len(value))))
        entries += data if len(value) == 1 else struct.pack(f"{order}L", end + len(blob))
        blob += data if len(value) > 1 else b""
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}LH", 8, len(tags))
    return start + entries + bytes(4) + blob + b"".join(parts) + xmp


def encoded(image, suffix, **options):
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[suffix.lower()], **options)
    return buffer.getvalue()


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def looks_truncated(path):
    """Whether a file seems to be cut off, by its first and last bytes."""
    with path.open("rb") as file:
        return ends_early(file)
