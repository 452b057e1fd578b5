"""JPEG and WebP files with zeros, or nothing, in place of some data, and intact files that look like them."""

import io
import itertools

import numpy as np
import pytest
from image_files import looks_truncated
from PIL import Image

from datasets.check import check_pictures
from datasets.damage import read_structure
from datasets.files import read_header, read_rgb
from datasets.tiff import open_page
from utils import WorkError

RNG = np.random.default_rng(0)
Y, X = np.mgrid[:96, :112]
PART = np.where((np.hypot(Y - 48, X - 56) < 34)[..., None], (150, 140, 120), 60)
NOISY = (PART + RNG.normal(0, 6, PART.shape)).clip(0, 255).astype(np.uint8)
FLAT = {value: np.full((96, 112, 3), value, np.uint8) for value in (0, 1, 127, 128, 129, 255)}
HALF = {value: np.concatenate([NOISY[:48], FLAT[value][:48]]) for value in (0, 128, 255)}
PLAIN = PART.astype(np.uint8)


def encoded(pixels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def span(data):
    """Where the entropy-coded data of all scans begin and end."""
    scans = read_structure(data).scans
    return scans[0].start, scans[-1].end


def damaged(data):
    """What is left of a JPEG by a copy that broke off, with and without the end mark."""
    start, end = span(data)
    half, quarter = (start + end) // 2, (end - start) // 4
    yield "zeros to the end", data[:half] + bytes(len(data) - half)
    yield "zeros up to the end mark", data[:half] + bytes(end - half) + data[end:]
    yield "a hole", data[:half] + bytes(quarter) + data[half + quarter :]
    yield "an end mark too early", data[:half].rstrip(b"\xff") + b"\xff\xd9"


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 95}, {"quality": 60}, {"quality": 95, "optimize": True}, {"quality": 90, "progressive": True},
        {"quality": 95, "restart_marker_rows": 1}, {"quality": 80, "subsampling": 0},
        {"quality": 75, "optimize": True, "restart_marker_blocks": 5},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("gray", [False, True])
def test_a_jpeg_with_a_hole_is_not_read(tmp_path, options, gray):
    path = tmp_path / "image.jpg"
    whole = encoded(NOISY[..., 0] if gray else NOISY, "JPEG", **options)
    path.write_bytes(whole)
    assert np.asarray(read_rgb(path)).shape == (96, 112, 3)
    for name, data in damaged(whole):
        path.write_bytes(data)
        with pytest.raises(WorkError, match=r"cannot read image .*image\.jpg: .*(truncated|hole|damaged)"):
            read_rgb(path)
        (problem,) = check_pictures([path], full="all")
        assert problem.kind == "unreadable", name


def test_an_end_mark_in_a_thumbnail_is_not_that_of_the_picture(tmp_path):
    whole = encoded(NOISY, "JPEG", quality=95)
    thumbnail = b"Exif\0\0" + encoded(NOISY[::8, ::8], "JPEG")
    whole = whole[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + whole[2:]
    path = tmp_path / "image.jpg"
    path.write_bytes(whole)
    read_rgb(path)
    start, end = span(whole)
    path.write_bytes(whole[: (start + end) // 2] + bytes(len(whole) - (start + end) // 2))
    assert looks_truncated(path)
    with pytest.raises(WorkError, match="truncated"):
        read_rgb(path)


@pytest.mark.parametrize("options", [{"quality": 0}, {"quality": 90}, {"lossless": True}], ids=str)
def test_a_webp_with_a_hole_is_not_read(tmp_path, options):
    path = tmp_path / "image.webp"
    whole = encoded(NOISY, "WEBP", **options)
    path.write_bytes(whole)
    read_rgb(path)
    assert not looks_truncated(path)
    for data in (whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2), whole[:-200] + bytes(200)):
        path.write_bytes(data)
        assert looks_truncated(path)
        (problem,) = check_pictures([path])
        assert problem.kind == "unreadable"
    extended = encoded(NOISY, "WEBP", exif=b"Exif\0\0" + bytes(60), **options)  # zeros elsewhere than in the pixels
    path.write_bytes(extended)
    assert read_rgb(path).size == (112, 96)


def test_sound_pictures_with_zeros_in_their_data_are_read(tmp_path):
    """Flat pictures, and Huffman tables of their own, are zeros over hundreds of bytes."""
    pictures, seen = {**FLAT, **{f"half {k}": v for k, v in HALF.items()}, "plain": PLAIN, "noisy": NOISY}, 0
    path = tmp_path / "image"
    for pixels, quality, optimize, progressive in itertools.product(
        pictures.values(), (5, 75, 100), (False, True), (False, True)
    ):
        options = {"quality": quality, "optimize": optimize, "progressive": progressive}
        for gray, restart in ((False, 0), (True, 1)):
            data = encoded(pixels[..., 0] if gray else pixels, "JPEG", restart_marker_rows=restart, **options)
            seen += bytes(16) in data[slice(*span(data))]
            path.write_bytes(data)
            assert read_rgb(path).size == (112, 96)
    for pixels, lossless, quality in itertools.product(pictures.values(), (False, True), (0, 100)):
        path.write_bytes(encoded(pixels, "WEBP", quality=quality, lossless=lossless, method=0))
        assert read_rgb(path).size == (112, 96)
    assert seen > 20


def test_what_follows_a_jpeg_does_not_matter(tmp_path):
    path, whole = tmp_path / "image.jpg", encoded(NOISY, "JPEG")
    second = encoded(HALF[0], "JPEG")
    for more in (bytes(5000), b"\xff\xff" * 9, second, second[: len(second) // 2], b"SEFT" + bytes(300) + b"\x01"):
        path.write_bytes(whole + more)
        assert (np.asarray(read_rgb(path)) == np.asarray(Image.open(io.BytesIO(whole)))).all()
    Image.fromarray(NOISY).save(path, "MPO", save_all=True, append_images=[Image.fromarray(PLAIN)])
    assert read_rgb(path).size == (112, 96)
    assert read_header(path).pages == 1


def test_a_strip_of_jpeg_in_a_tiff_without_its_end(tmp_path):
    path = tmp_path / "image.tif"
    path.write_bytes(encoded(NOISY, "TIFF", compression="jpeg", quality=95))
    read_rgb(path)
    data = path.read_bytes()
    with path.open("rb") as file, open_page(file) as page:
        end = page.dataoffsets[-1] + page.databytecounts[-1]
    path.write_bytes(data[: end - 40] + bytes(40) + data[end:])
    with pytest.raises(WorkError, match="truncated"):
        read_rgb(path)
