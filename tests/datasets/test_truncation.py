"""Image files that are cut off."""

import cv2
import numpy as np
import pytest
from image_files import XMP, encoded, exif_of, looks_truncated, png, tiff
from PIL import Image

from datasets.files import read_rgb
from datasets.masks import read_mask
from utils import WorkError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (90, 80, 3)).astype(np.uint8))
NOISE_16 = Image.fromarray(RNG.integers(0, 65536, (90, 80)).astype(np.uint16))
NOISE_48 = RNG.integers(0, 65536, (90, 80, 3)).astype(np.uint16)

WHOLE = {
    "png": lambda: encoded(NOISE, ".png"),
    "gray16.png": lambda: encoded(NOISE_16, ".png"),
    "colour16.png": lambda: png(NOISE_48, 2),
    "jpg": lambda: encoded(NOISE, ".jpg"),
    "progressive.jpg": lambda: encoded(NOISE, ".jpg", progressive=True, exif=exif_of(6)),
    "bmp": lambda: encoded(NOISE, ".bmp"),
    "tif": lambda: encoded(NOISE, ".tif"),
    "lzw.tif": lambda: encoded(NOISE, ".tif", compression="tiff_lzw"),
    "colour16.tif": lambda: tiff(NOISE_48),
    "opencv16.tif": lambda: cv2.imencode(".tif", NOISE_48)[1].tobytes(),
    "opencv8.tif": lambda: tiff(np.asarray(NOISE)[..., :2], extra=0, strips=9),
    "planes.tif": lambda: tiff(np.asarray(NOISE)[..., :2], extra=0, planar=True),
    "tags_last.tif": lambda: tiff(np.asarray(NOISE), xmp=XMP),
    "webp": lambda: encoded(NOISE, ".webp"),
    "lossless.webp": lambda: encoded(NOISE, ".webp", lossless=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_off_anywhere_is_suspected_and_never_read(put, name):
    whole = WHOLE[name]()
    path = put(whole, f"image.{name}")
    assert not looks_truncated(path)
    read_rgb(path)
    ends = {*range(1, 30), *(len(whole) * i // 20 for i in range(1, 20)), *(len(whole) - i for i in range(1, 30))}
    for end in sorted(ends):
        path.write_bytes(whole[:end])
        assert looks_truncated(path), end
        for read in (read_rgb, read_mask):
            with pytest.raises(WorkError, match=rf"cannot read image .*image\.{name}: ."):
                read(path)


@pytest.mark.parametrize("name", ["png", "jpg", "webp", "opencv16.tif"])
def test_a_file_whose_second_half_was_never_written(put, name):
    whole = WHOLE[name]()
    path = put(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2), name)
    if name != "webp":  # its size is as declared
        assert looks_truncated(path)
    if name in ("png", "opencv16.tif"):
        with pytest.raises(WorkError):
            read_rgb(path)


@pytest.mark.parametrize(
    ("name", "more"), [("png", b"\0" * 100), ("jpg", b"\0" * 100), ("jpg", b"\r\n"), ("bmp", b"\0\0")]
)
def test_padding_is_not_truncation(put, name, more):
    path = put(WHOLE[name]() + more, name)
    assert not looks_truncated(path)
    assert read_rgb(path).size == (80, 90)
