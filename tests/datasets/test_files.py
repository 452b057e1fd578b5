"""Image files: every format, kind of pixels and orientation."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
from helpers import ROOT
from image_files import XMP, encoded, exif_of, looks_truncated, png, tiff
from PIL import Image, ImageOps

from datasets.files import ReadOptions, image_size, read_header, read_rgb
from datasets.headers import Header
from datasets.masks import read_mask
from utils import WorkError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (7, 5)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (7, 5, 4)).astype(np.uint8)
DEEP = RNG.integers(0, 65536, (7, 5, 4)).astype(np.uint16)
# 16 bits that differ between cutting and rounding, and at both ends
DEEP[0, :, 0] = (0, 128, 129, 255, 65535)
COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")


def to_8_bits(values):
    return np.floor(values / 257 + 0.5).astype(np.uint8)


def as_rgb(gray):
    return np.repeat(gray[..., None], 3, 2)


def pixels(path):
    image = read_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


# ------------------------------------------------------------------------------- formats and modes


def one_of(mode):
    """A picture of a mode and what it shows as RGB, made without converting it."""
    if mode == "1":
        return Image.fromarray(GRAY > 127), as_rgb(np.where(GRAY > 127, 255, 0).astype(np.uint8))
    if mode == "L":
        return Image.fromarray(GRAY), as_rgb(GRAY)
    if mode == "LA":
        return Image.merge("LA", [Image.fromarray(COLOUR[..., 0]), Image.fromarray(GRAY)]), as_rgb(COLOUR[..., 0])
    if mode in ("P", "PA"):
        indices, palette = GRAY % 9, COLOUR[:3, :3, :3].reshape(9, 3)
        image = Image.fromarray(indices, "L")
        image.putpalette(palette.tobytes())
        if mode == "PA":
            image = Image.merge("PA", [Image.fromarray(indices), Image.fromarray(GRAY)])
            image.putpalette(palette.tobytes())
        return image, palette[indices]
    if mode == "CMYK":
        ink, black = COLOUR[..., :3].astype(int), 64
        image = Image.merge(
            "CMYK", [Image.fromarray(c.astype(np.uint8)) for c in (*np.moveaxis(ink, 2, 0), ink[..., 0] * 0 + black)]
        )
        return image, (255 - ink) * (255 - black) / 255
    if mode.startswith("I"):
        deep = DEEP[..., 0]
        array = deep.astype({"I;16": "<u2", "I;16B": ">u2", "I": "i4"}[mode])
        return Image.fromarray(array), as_rgb(to_8_bits(deep))
    image = COLOUR[..., : len(mode)]
    return Image.fromarray(np.ascontiguousarray(image)), image[..., :3]


CHANNELS = {
    "1": "1×1 bit", "L": "1×8 bit", "LA": "2×8 bit", "P": "palette", "PA": "palette", "RGB": "3×8 bit",
    "RGBA": "4×8 bit", "CMYK": "4×8 bit", "I;16": "1×16 bit", "I;16B": "1×16 bit", "I": "1×16 bit",
}  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((".png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")),
        *((".bmp", mode) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *((".TIFF", mode) for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "I")),
        *((".webp", mode) for mode in ("RGB", "RGBA")),
        *((".JPG", mode) for mode in ("L", "RGB", "CMYK")),
    ],
)
def test_every_format_and_mode(put, suffix, mode):
    image, wanted = one_of(mode)
    assert image.mode == mode
    options = {".webp": {"lossless": True, "exact": True}, ".JPG": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    if (suffix, mode) == (".JPG", "L"):
        options.pop("subsampling")
    path = put(encoded(image, suffix, **options), f"image{suffix}")
    off = np.abs(pixels(path).astype(int) - wanted)
    assert off.max() <= {".JPG": 4}.get(suffix, 1 if mode == "CMYK" else 0)
    header = read_header(path)
    assert header.size == image_size(path) == (5, 7)
    if (suffix, mode) == (".TIFF", "I"):
        assert header.pixels == "1×32 bit signed"
    elif (suffix, mode) == (".bmp", "RGBA"):
        assert header.pixels == "3×8 bit"  # its fourth byte counts for nothing
    elif suffix != ".webp":  # its own affair
        assert header.pixels == CHANNELS[mode]
    assert not header.suspect
    assert not looks_truncated(path)


def test_more_than_16_bits_and_floats_are_refused(put):
    for values in (np.full((4, 4), 70000, np.int32), np.full((4, 4), -1, np.int32), np.full((4, 4), 0.5, np.float32)):
        with pytest.raises(WorkError, match=r"cannot read image .*image\.tif: neither 8 nor 16 bits a channel"):
            read_rgb(put(encoded(Image.fromarray(values), ".tif"), "image.tif"))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_compressed_tiff(put, mode, compression):
    image, wanted = one_of(mode)
    assert (pixels(put(encoded(image, ".tif", compression=compression), "image.tif")) == wanted).all()


@pytest.mark.parametrize("transparency", [3, bytes(range(9))])
def test_palette_with_transparency(put, transparency, recwarn):
    image, wanted = one_of("P")
    path = put(encoded(image, ".png", transparency=transparency))
    assert (pixels(path) == wanted).all()
    assert (read_mask(path) == (np.asarray(image) > 0)).all()  # indices, of which 0 is normal
    assert not recwarn.list


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png(put, colour_type, channels):
    values = DEEP[..., :channels]
    path = put(png(values, colour_type))
    shown = values[..., [0, 0, 0]] if channels < 3 else values[..., :3]
    assert (pixels(path) == to_8_bits(shown)).all()
    assert read_header(path).pixels == f"{channels}×16 bit"


def test_16_bit_png_with_a_transparent_colour(put):
    assert (pixels(put(png(DEEP[..., :3], 2, [(b"tRNS", bytes(6))]))) == to_8_bits(DEEP[..., :3])).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_tiff(put, channels, order):
    values = DEEP[..., :channels]
    path = put(tiff(values, order, extra=2 if channels == 4 else None), "image.tif")
    shown = values[..., [0, 0, 0]] if channels == 1 else values[..., :3]
    assert (pixels(path) == to_8_bits(shown)).all()
    assert read_header(path) == Header((5, 7), f"{channels}×16 bit", suspect=False)


@pytest.mark.parametrize("compression", [1, 5, 8])
def test_16_bit_tiff_of_opencv(put, compression):
    data = cv2.imencode(".tif", DEEP[..., 2::-1], [cv2.IMWRITE_TIFF_COMPRESSION, compression])[1].tobytes()
    path = put(data, "image.tif")
    assert (pixels(path) == to_8_bits(DEEP[..., :3])).all()
    assert not looks_truncated(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_where_0_is_white(put, order):
    """Pillow turns 8 bits round, leaves 16 as they are and cannot open them in one byte order."""
    for values in (GRAY, DEEP[..., 0]):
        top = np.iinfo(values.dtype).max
        path = put(tiff(values, order, photometric=0), "image.tif")
        shown = top - values if values.dtype == np.uint8 else to_8_bits(top - values)
        assert (pixels(path) == as_rgb(shown)).all()
        assert (read_mask(path) == (values < top)).all()
        assert image_size(path) == (5, 7)


def test_tiff_that_only_opencv_reads(put):
    planes = put(tiff(np.stack([GRAY, 255 - GRAY], 2), extra=0, planar=True), "planes.tif")
    assert (pixels(planes) == as_rgb(GRAY)).all()
    path = put(tiff(np.stack([GRAY, 255 - GRAY], 2), extra=0), "image.tif")
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(path)
    assert (pixels(path) == as_rgb(GRAY)).all()
    assert read_header(path).size == (5, 7)
    assert read_header(path).pixels == "2×8 bit"
    signed = (DEEP[..., :3] // 2).astype(np.int16)
    assert (pixels(put(tiff(signed, numbers=2), "signed.tif")) == to_8_bits(signed)).all()
    for values, numbers in ((DEEP[..., :3].astype(np.float32), 3), (DEEP[..., :3].astype(np.uint32) * 2, 1)):
        with pytest.raises(WorkError, match="neither 8 nor 16 bits a channel"):
            read_rgb(put(tiff(values, numbers=numbers), "other.tif"))


def test_planes(put):
    assert (pixels(put(tiff(COLOUR[..., :3], planar=True), "image.tif")) == COLOUR[..., :3]).all()
    deep = put(tiff(DEEP[..., :3], planar=True), "deep.tif")
    assert (pixels(deep) == to_8_bits(DEEP[..., :3])).all()
    assert (read_mask(deep) == DEEP[..., :3].any(2)).all()
    assert read_header(deep) == Header((5, 7), "3×16 bit")


def test_lab_is_refused(put):
    path = put(encoded(Image.new("LAB", (5, 7)), ".tif"), "image.tif")
    for read in (read_rgb, read_header):
        with pytest.raises(WorkError, match=r"image\.tif: colours in LAB are not supported"):
            read(path)


def test_first_page_of_several(put):
    pages = [Image.fromarray(COLOUR[..., :3].copy()), Image.new("L", (20, 10))]
    path = put(encoded(pages[0], ".tif", save_all=True, append_images=pages[1:]), "image.tif")
    assert (pixels(path) == COLOUR[..., :3]).all()
    assert image_size(path) == (5, 7)


def test_content_counts_not_the_suffix(put):
    assert (pixels(put(encoded(Image.fromarray(GRAY), ".png"), "image.jpg")) == as_rgb(GRAY)).all()


# -------------------------------------------------------------------------------------- orientation

SHOWN = {  # by the EXIF standard
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def turned(kind, orientation):
    """The bytes of a picture and what it shows without being turned."""
    exif = exif_of(orientation)
    chunk = (b"eXIf", exif.removeprefix(b"Exif\0\0"))
    shown = COLOUR[..., :3]
    if kind == "tif":
        return tiff(shown, orientation=orientation), shown
    if kind == "tif16":
        return tiff(DEEP[..., :3], ">", orientation=orientation), to_8_bits(DEEP[..., :3])
    if kind == "tifgray16":
        return tiff(DEEP[..., 0], orientation=orientation), as_rgb(to_8_bits(DEEP[..., 0]))
    if kind == "tifopencv":
        return tiff(np.stack([GRAY, GRAY], 2), extra=0, orientation=orientation), as_rgb(GRAY)
    if kind == "png16":
        return png(DEEP[..., :3], 2, [chunk]), to_8_bits(DEEP[..., :3])
    if kind == "pnggray16":
        return png(DEEP[..., :1], 0, [chunk]), as_rgb(to_8_bits(DEEP[..., 0]))
    if kind == "pnglate":
        return png(shown, 2, after=[chunk]), shown
    image = Image.fromarray(shown.copy())
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(kind, {})
    return encoded(image, f".{kind}", exif=exif, **options), shown


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind", ["jpg", "png", "webp", "tif", "pnglate", "png16", "pnggray16", "tif16", "tifgray16", "tifopencv"]
)
def test_orientation(put, kind, orientation):
    data, shown = turned(kind, orientation)
    path = put(data, f"image.{kind[:3]}")
    wanted = SHOWN[orientation](shown)
    image = read_rgb(path)
    assert np.abs(np.asarray(image).astype(int) - wanted).max() <= (6 if kind == "jpg" else 0)
    assert image_size(path) == wanted.shape[1::-1]
    assert np.array_equal(ImageOps.exif_transpose(image), image)  # nobody can turn it a second time
    if kind != "jpg":
        assert (read_mask(path) == SHOWN[orientation](mask_of(kind))).all()


def mask_of(kind):
    if kind in ("png16", "tif16"):
        return DEEP[..., :3].any(2)
    if kind in ("pnggray16", "tifgray16"):
        return DEEP[..., 0] > 0
    return GRAY > 0 if kind == "tifopencv" else COLOUR[..., :3].any(2)


def test_an_orientation_elsewhere_than_in_exif_does_not_count(put):
    """Viewers do not look there, Pillow does, and the header alone would not say so."""
    path = put(tiff(COLOUR[..., :3], xmp=XMP), "image.tif")
    assert (pixels(path) == COLOUR[..., :3]).all()
    assert image_size(path) == (5, 7)


def test_damaged_exif_leaves_a_picture_as_it_lies(put):
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", exif_of(6)[:12], exif_of(77)):
        path = put(encoded(Image.fromarray(GRAY), ".png", exif=exif))
        assert (pixels(path) == as_rgb(GRAY)).all()
        assert image_size(path) == (5, 7)
    wrong_sum = png(COLOUR[..., :3], 2, after=[(b"eXIf", exif_of(6)[6:])])
    at = wrong_sum.rfind(b"eXIf") + 4 + len(exif_of(6)[6:])
    path = put(wrong_sum[:at] + bytes(4) + wrong_sum[at + 4 :])
    assert image_size(path) == (5, 7)


# -------------------------------------------------------------------------------------------- masks


def test_masks_of_every_depth(put):
    mask = (RNG.random((7, 5)) < 0.4).astype(np.uint8)
    for value in (1, 255):
        assert (read_mask(put(encoded(Image.fromarray(mask * value), ".png"))) == mask).all()
    assert (read_mask(put(encoded(Image.fromarray(mask > 0), ".png"))) == mask).all()
    deep = mask.astype(np.uint16)  # 1 of 65,535 is still a defect
    assert (read_mask(put(png(deep[..., None], 0))) == mask).all()
    assert (read_mask(put(png(np.stack([deep * 0, deep, deep * 0], 2), 2))) == mask).all()
    opaque = np.full_like(deep, 65535)
    assert (read_mask(put(png(np.stack([deep, deep, deep, opaque], 2), 6))) == mask).all()
    assert (read_mask(put(tiff(deep), "mask.tif")) == mask).all()
    for mode in ("LA", "RGBA"):
        channels = [mask * 0] * (len(mode) - 2) + [mask, mask * 0 + 255]
        image = Image.merge(mode, [Image.fromarray(c) for c in channels])
        assert (read_mask(put(encoded(image, ".png"))) == mask).all()
    ink = Image.fromarray(as_rgb(mask * 255)).convert("CMYK")
    assert (read_mask(put(encoded(ink, ".tif"), "ink.tif")) == mask).all()


def test_what_is_no_image_says_why(put, tmp_path):
    with pytest.raises(WorkError, match=r"empty\.png: the file is empty"):
        read_rgb(put(b"", "empty.png"))
    for read in (read_rgb, read_mask, image_size):
        with pytest.raises(WorkError, match=r"text\.jpg: not an image of a supported format"):
            read(put(b"<html>not found</html>", "text.jpg"))
        with pytest.raises(WorkError, match=r"cannot read image .*gone\.png: No such file"):
            read(tmp_path / "gone.png")
    assert looks_truncated(tmp_path / "text.jpg")
    assert looks_truncated(tmp_path / "empty.png")


def test_a_picture_of_too_many_pixels(put, monkeypatch):
    unusual = tiff(np.stack([GRAY, GRAY], 2), extra=0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)  # Pillow's own limit does not count
    for path in (put(encoded(Image.fromarray(GRAY), ".png"), "image.png"), put(unusual, "image.tif")):
        assert read_rgb(path).size == image_size(path) == (5, 7)
        for read in (read_rgb, image_size, read_mask):
            with pytest.raises(WorkError, match=r"cannot read image .*image\.(png|tif): .*35 pixels.*--max_pixels 35"):
                read(path, ReadOptions(max_pixels=34))
            assert read(path, ReadOptions(max_pixels=35)) is not None
    assert Image.MAX_IMAGE_PIXELS == 3


def test_a_large_picture_and_a_cut_off_one_give_no_warning(put):
    large = put(encoded(Image.new("1", (10_000, 9_000)), ".png"), "large.png")
    cut = put(tiff(GRAY)[:60], "cut.tif")
    script = (
        "import sys; from pathlib import Path; from datasets.files import image_size\n"
        "for path in sys.argv[1:]:\n"
        "    try: print(image_size(Path(path)))\n"
        "    except RuntimeError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script, large, cut],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith(f"(10000, 9000)\ncannot read image {cut}: ")
    assert "PIL" not in done.stderr
