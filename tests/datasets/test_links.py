"""Which files are listed: through links, beside folders that may not be entered, by suffix; and reports on others."""

import os
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from helpers import cli
from PIL import Image

from datasets import DATASETS, files, listing
from datasets.defects import list_defects
from datasets.files import read_header, read_rgb
from datasets.listing import closed_folders, list_folders, list_images, scan_folder
from datasets.masks import read_mask
from datasets.textures import list_textures
from inference.predict import find_pictures
from utils import InputError, WorkError

GRAY = np.random.default_rng(0).integers(0, 256, (14, 18)).astype(np.uint8)


def save(path, pixels=GRAY, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def names(folder, **options):
    return [p.relative_to(folder).as_posix() for p in list_images(folder, **options)]


@pytest.fixture
def closed(monkeypatch):
    """Makes folders that may not be entered; the tests may run as root, whom nothing stops."""
    shut = set()
    scan = os.scandir

    def scandir(path="."):
        if str(path) in shut:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(listing.os, "scandir", scandir)

    def close(folder):
        folder.mkdir(parents=True)
        shut.add(str(folder))
        return folder

    return close


# -------------------------------------------------------------------------------------------- links


def test_links_to_folders_are_followed_each_folder_once(tmp_path):
    store, day = tmp_path / "store", tmp_path / "day"
    save(store / "a" / "1.png")
    save(day / "own" / "2.png")
    (day / "linked").symlink_to(store)
    (day / "again").symlink_to(day / "own")  # is found at its own place
    (day / "twice").symlink_to(store / "a")
    (day / "own" / "circle").symlink_to(day)
    (store / "above").symlink_to(tmp_path)  # would bring everything once more
    (store / "a" / "back").symlink_to(store)
    (day / ".hidden").symlink_to(store)
    (day / "gone").symlink_to(tmp_path / "nothing")
    assert names(day, recursive=True) == ["linked/a/1.png", "own/2.png"]
    assert [p.relative for p in find_pictures([str(day)])] == ["linked/a/1.png", "own/2.png"]
    assert len(list_textures(day)) == len(list_defects(day)) == 2
    (tmp_path / "link").symlink_to(day)
    assert len(list_images(tmp_path / "link", recursive=True)) == 2


def test_folders_that_may_not_be_entered_are_left_out_and_named(tmp_path, closed, log):
    save(tmp_path / "d" / "cap" / "train" / "good" / "0.png")
    shut = closed(tmp_path / "d" / "lost+found")
    inner = closed(tmp_path / "d" / "cap" / "train" / "good" / "lost+found")
    assert [p.name for p in list_folders(tmp_path / "d")] == ["cap"]
    assert closed_folders(tmp_path / "d") == [shut]
    for name in ("mvtec", "folder"):
        log.clear()
        layout = DATASETS[name](tmp_path / "d")
        assert layout.choose([]) == layout.choose(["cap"]) == ["cap"]
        assert f"{shut} may not be entered" in log.text
        assert len(layout.train("cap")) == 1
    listing = scan_folder(tmp_path / "d" / "cap", recursive=True)
    assert listing.closed == [inner]
    assert str(inner) in listing.describe()
    for take in (list_textures, list_defects, lambda folder: find_pictures([str(folder)])):
        log.clear()
        assert len(take(tmp_path / "d")) == 1
        assert "may not be entered" in log.text
    with pytest.raises(InputError, match="may not be entered"):
        list_images(shut)


# ----------------------------------------------------------------------------------------- suffixes


def test_files_that_are_not_taken_are_counted(tmp_path, log, monkeypatch):
    monkeypatch.setattr(listing, "has_heif", lambda: False)
    good = tmp_path / "d" / "cap" / "good"
    save(good / "0.png")
    for name in ("a.HEIC", "b.heic", "c.gif", "d", "Thumbs.db", "README.txt", ".hidden.npy"):
        (good / name).write_bytes(b"x")
    said = "files not taken: 2 .heic, 1 .gif, 1 without a suffix; HEIC is read where pillow-heif is installed"
    assert said in scan_folder(good).describe()
    result = cli("check", "folder", tmp_path / "d", good)
    assert f"note: cap: {said}" in result.stdout
    assert f"note: textures: {said}" in result.stdout
    for take in (list_textures, list_defects, lambda folder: find_pictures([str(folder)])):
        log.clear()
        take(good)
        assert said in log.text
    (good / "0.png").unlink()
    plain = tmp_path / "plain" / "cap"
    plain.mkdir(parents=True)
    for name in ("a.HEIC", "b.heic"):
        (plain / name).write_bytes(b"x")
    for take in (
        list_textures, list_defects, lambda folder: find_pictures([str(folder)]),
        lambda _: DATASETS["folder"](plain.parent).choose([]), lambda _: DATASETS["folder"](tmp_path / "d").train("cap"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"2 \.heic.*pip install pillow-heif"):
            take(good)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jfif", {"format": "JPEG", "quality": 100}), ("a.JPE", {"format": "JPEG", "quality": 100}),
        ("a.jp2", {"format": "JPEG2000"}), ("a.j2k", {"format": "JPEG2000"}), ("a.pgm", {"format": "PPM"}),
        ("a.heic", {"format": "HEIF", "quality": 95}),
    ],
)  # fmt: skip
def test_further_formats_are_read_and_never_half(tmp_path, name, options):
    if name.endswith("heic"):
        pillow_heif = pytest.importorskip("pillow_heif")
        path = tmp_path / name
        smooth = Image.fromarray(GRAY).resize((90, 70), Image.Resampling.BILINEAR).convert("RGB")
        pillow_heif.from_pillow(smooth).save(path, quality=95)
        wanted = np.asarray(smooth)
    else:
        path, wanted = save(tmp_path / name, **options), GRAY[..., None]
    assert list_images(tmp_path) == [path]
    assert np.abs(np.asarray(read_rgb(path)).astype(int) - wanted).max() <= (12 if "quality" in options else 0)
    assert read_header(path).size == wanted.shape[1::-1]
    assert not read_header(path).suspect
    whole = path.read_bytes()
    for end in {len(whole) - 1, len(whole) - 2, len(whole) // 2, 20, 3}:
        path.write_bytes(whole[:end])
        with pytest.raises(WorkError, match=f"cannot read image .*{name}: ."):
            read_rgb(path)


def test_pnm_is_read_with_its_own_white(tmp_path):
    values = np.array([[0, 100, 1023], [512, 1, 1022]], np.uint16)
    wanted = np.floor(values * (255 / 1023) + 0.5)
    for name, data in {
        "deep.pgm": b"P5 3 2 1023\n" + values.astype(">u2").tobytes(),
        "deep.ppm": b"P6 3 2 1023\n" + np.repeat(values[..., None], 3, 2).astype(">u2").tobytes(),
        "plain.pnm": b"P2 3 2 1023\n" + " ".join(map(str, values.ravel())).encode(),
    }.items():
        (tmp_path / name).write_bytes(data)
        for bits in (16, 12):  # what the file says counts
            read = np.asarray(read_rgb(tmp_path / name, files.ReadOptions(bits)))
            assert (np.abs(read[..., 0] - wanted) <= (name == "plain.pnm")).all()
        assert (read_mask(tmp_path / name) == (values > 0)).all()
        (tmp_path / name).write_bytes(data[: -5 if name == "plain.pnm" else -1])
        with pytest.raises(WorkError):
            read_rgb(tmp_path / name)
    (tmp_path / "low.pgm").write_bytes(b"P5 2 1 15\n" + bytes([15, 3]))
    assert np.asarray(read_rgb(tmp_path / "low.pgm"))[0, :, 0].tolist() == [255, 51]


# --------------------------------------------------------------------------------------------- TIFF


def test_pages_are_counted_and_reported(tmp_path):
    good = tmp_path / "d" / "cap" / "good"
    page = Image.fromarray(GRAY)
    save(good / "0.tif", save_all=True, append_images=[page, page])
    assert read_header(good / "0.tif").pages == 3
    result = cli("check", "folder", tmp_path / "d")
    assert "note: cap: 1 files have several pages, such as" in result.stdout
    assert read_rgb(good / "0.tif").info == {files.PAGES: 3}
    assert read_rgb(save(tmp_path / "one.tif")).info == {}


def test_kinds_of_tiff_that_are_not_supported_say_so_in_one_line(tmp_path, capfd):
    import tifffile

    wrong = {
        "signed.tif": (GRAY.astype(np.int8), "signed 8-bit"),
        "half.tif": (GRAY.astype(np.float16), "neither 8 nor 16 bits"),
        "double.tif": (GRAY.astype(np.float64), "neither 8 nor 16 bits"),
        "wide.tif": (GRAY.astype(np.uint32) << 20, "neither 8 nor 16 bits"),
        "complex.tif": (GRAY.astype(np.complex64), "neither 8 nor 16 bits|not supported"),
        "volume.tif": (np.stack([GRAY] * 3), "."),
    }
    for name, (values, said) in wrong.items():
        options = {"volumetric": True, "tile": (16, 16, 16)} if name == "volume.tif" else {}
        tifffile.imwrite(tmp_path / name, values, photometric="minisblack", **options)
        with pytest.raises(WorkError, match=said) as caught:
            read_rgb(tmp_path / name)
        assert "\n" not in str(caught.value)
    for compression in ("lzw", "zlib", "packbits", "zstd"):
        deep = np.stack([GRAY, GRAY, 255 - GRAY], 2).astype(np.uint16) * 257
        path = tmp_path / f"{compression}.tif"
        tifffile.imwrite(path, deep, photometric="rgb", compression=compression, predictor=compression == "zlib")
        assert (np.asarray(read_rgb(path)) == deep // 257).all()
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        with suppress(WorkError):
            read_rgb(path)
    captured = capfd.readouterr()
    assert not captured.out + captured.err  # neither OpenCV nor tifffile says anything by itself


def test_12_bits_packed_in_a_tiff_have_their_own_white(tmp_path):
    values = np.array([[0, 1, 4095, 2048], [4094, 16, 100, 3000]], np.uint16)
    packed = b"".join(int(f"{a:03x}{b:03x}", 16).to_bytes(3, "big") for a, b in values.reshape(-1, 2).tolist())
    tags = {256: 4, 257: 2, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 2, 279: len(packed)}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + packed)
    assert read_header(tmp_path / "a.tif").pixels == "1×12 bit"
    assert (np.asarray(read_rgb(tmp_path / "a.tif"))[..., 0] == np.floor(values * (255 / 4095) + 0.5)).all()
    assert (read_mask(tmp_path / "a.tif") == (values > 0)).all()


# ------------------------------------------------------------------------------------ many pixels


def test_the_limit_of_pixels_is_the_users(tmp_path):
    large = 15000 * 14000
    header = struct.pack(">IIBBBBB", 15000, 14000, 8, 0, 0, 0, 0)
    good = tmp_path / "d" / "cap" / "good"
    data = bytearray(save(good / "0.png").read_bytes())
    data[16:29] = header  # a picture that says it is larger than it is
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (good / "1.png").write_bytes(data)
    assert read_header(good / "1.png").size == (15000, 14000)  # more than Pillow would open
    with pytest.raises(WorkError, match=f"15000x14000, that is {large} pixels.* give --max_pixels {large}"):
        read_header(good / "1.png", files.ReadOptions(max_pixels=large - 1))
    result = cli("check", "folder", tmp_path / "d", "--max_pixels", 100)
    assert result.returncode == 1
    assert "18x14, that is 252 pixels, more than --max_pixels 100" in result.stdout
