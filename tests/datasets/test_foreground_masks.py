"""The files of foreground masks: made once, for the right image, and by the command."""

import json
import re

import numpy as np
import pytest
from drawn_parts import parts, texture
from helpers import cli, make_mvtec
from PIL import Image

from datasets import MVTecLayout, Sample
from datasets.files import read_rgb
from datasets.foreground import Foreground
from datasets.foreground_masks import RECORD, SHEET, TEST_SHEET, make_masks
from datasets.listing import list_images
from datasets.masks import read_mask
from utils import LOGGER, InputError, WorkError


@pytest.fixture
def samples(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(parts("bright", 6)[0]):
        image.save(folder / f"{number}.png")
    return [Sample(path) for path in list_images(folder)]


def stamps(paths):
    return [path.stat().st_mtime_ns for path in paths]


def test_masks_are_made_once(samples, tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(LOGGER, "info", lambda text, *values: lines.append(text % values))
    paths = make_masks(samples, tmp_path / "masks", show_progress=False)
    assert [path.name for path in paths] == [f"{number}.png" for number in range(6)]
    for path, truth in zip(paths, parts("bright", 6)[1], strict=True):
        values = np.asarray(Image.open(path))
        assert set(np.unique(values)) == {0, 255}
        assert (values[truth] == 255).all()
    before = stamps(paths)
    monkeypatch.setattr(Foreground, "fit", None)  # a second look at the images would fail
    assert make_masks(samples, tmp_path / "masks", show_progress=False) == paths
    assert stamps(paths) == before
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {RECORD, *(path.name for path in paths)}
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert re.search(r"an object on 3\d% of an image .*they keep 3\d\.\d % of an image", lines[0])


def test_only_what_is_missing_or_stale_is_made_anew(samples, tmp_path):
    paths = make_masks(samples, tmp_path / "masks", show_progress=False)
    before = stamps(paths)
    paths[0].unlink()
    parts("bright", 1, seed=9)[0][0].resize((120, 100)).save(samples[2].path)
    make_masks(samples, tmp_path / "masks", show_progress=False)
    assert [i for i, (old, new) in enumerate(zip(before, stamps(paths), strict=True)) if old != new] == [0, 2]
    assert read_mask(paths[2]).shape == (100, 120)


@pytest.mark.parametrize("text", ["", '{"version": 1, "images": {"0.png": 3}}'])
def test_a_record_that_is_broken_or_old_makes_all_anew(samples, tmp_path, text):
    paths = make_masks(samples, tmp_path / "masks", show_progress=False)
    record = tmp_path / "masks" / RECORD
    good, before = record.read_text(), stamps(paths)
    record.write_text(text or good.replace('"version": 1', '"version": 0'))
    make_masks(samples, tmp_path / "masks", show_progress=False)
    assert all(old != new for old, new in zip(before, stamps(paths), strict=True))
    assert record.read_text() == good


def test_a_verdict_turned_round_makes_all_anew(samples, tmp_path):
    make_masks(samples, tmp_path / "masks", show_progress=False)
    rng = np.random.default_rng(0)
    for sample in samples[1:]:
        texture("vignette", rng).save(sample.path)
    paths = make_masks(samples, tmp_path / "masks", show_progress=False)
    assert json.loads((tmp_path / "masks" / RECORD).read_text())["fills_image"]
    assert all(read_mask(path).all() for path in paths)


def test_an_interrupted_run_keeps_what_it_made(samples, tmp_path, monkeypatch):
    find, calls = Foreground.mask, []

    def interrupted(self, image):
        calls.append(image)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return find(self, image)

    monkeypatch.setattr(Foreground, "mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_masks(samples, tmp_path / "masks", show_progress=False)
    make_masks(samples, tmp_path / "masks", show_progress=False)
    assert len(calls) == 4 + 3


def test_images_of_one_stem_get_masks_of_their_own(tmp_path):
    names = ["a/1.png", "a/1.bmp", "b/1.png", "b/2.png", "b/contact_sheet.png"]
    images, masks = parts("bright", len(names))
    for name, image in zip(names, images, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.save(tmp_path / name)
    paths = make_masks([Sample(tmp_path / name) for name in names], tmp_path / "masks", show_progress=False)
    assert [p.name for p in paths] == ["a_1.png", "a_1_2.png", "b_1.png", "2.png", "b_contact_sheet.png"]
    for path, truth in zip(paths, masks, strict=True):
        assert read_mask(path)[truth].all()


def test_a_mask_lies_like_the_image_that_is_seen(tmp_path):
    images, _ = parts("border", 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, image in enumerate(images):
        image.resize((160, 120)).save(tmp_path / f"{number}.png", exif=exif)
    samples = [Sample(path) for path in list_images(tmp_path)]
    paths = make_masks(samples, tmp_path / "masks", show_progress=False)
    seen = read_rgb(samples[0].path)
    mask = read_mask(paths[0]) > 0
    assert mask.shape == (seen.height, seen.width)
    lightness = np.asarray(seen.convert("L"))
    assert mask[lightness > 100].all()
    assert lightness[~mask].mean() < 80


def test_requests_that_cannot_work_name_the_reason(samples, tmp_path):
    with pytest.raises(InputError, match="no image to make one for"):
        make_masks([], tmp_path / "masks")
    gone = Sample(tmp_path / "gone.png")
    with pytest.raises(WorkError, match=re.escape(str(gone.path))):
        make_masks([*samples, gone], tmp_path / "masks")
    samples[3].path.write_bytes(b"no picture")
    with pytest.raises(WorkError, match=re.escape(str(samples[3].path))):
        make_masks(samples, tmp_path / "masks")
    (tmp_path / "masks" / "1.png").mkdir(parents=True)
    with pytest.raises(WorkError, match=r"cannot write .*1\.png"):
        make_masks(samples[:3], tmp_path / "masks", show_progress=False)


# ------------------------------------------------------------------------------------- command line


def test_the_command_makes_masks_and_sheets_where_a_training_finds_them(tmp_path):
    data, _ = make_mvtec(tmp_path, classes=("disc", "plate"))
    done = cli("foreground", "mvtec", data, "-d", "disc", "--out", data / "fg_mask", "--test")
    assert done.returncode == 0
    layout, folder = MVTecLayout(data), data / "fg_mask" / "disc"
    found = layout.foreground("disc", layout.train("disc"))
    assert [path.name for path in found] == [f"{number:03d}.png" for number in range(6)]
    assert not (data / "fg_mask" / "plate").exists()
    for name in (SHEET, TEST_SHEET):
        height, width, _ = np.asarray(Image.open(folder / name)).shape
        assert (height, width) > (200, 200)
    share = float(re.search(r"disc: ([\d.]+)% of the defect pixels of 3 test images", done.stdout)[1])
    left_out = float(re.search(r"([\d.]+)% of an image is left out", done.stdout)[1])
    assert share > 99
    assert 40 < left_out < 65


def test_the_command_takes_all_classes_and_says_where_nothing_can_be_measured(tmp_path):
    data, _ = make_mvtec(tmp_path, classes=("disc", "plate"), defective=0)
    done = cli("foreground", "mvtec", data, "--out", tmp_path / "out", "--test")
    assert done.returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"disc", "plate"}
    assert done.stdout.count("no test image has a mask to measure by") == 2


def test_the_command_fails_with_one_line(tiny, tmp_path):
    done = cli("foreground", "mvtec", tiny[0], "-d", "disk", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout.startswith("Error: unknown class 'disk'")
    assert done.stdout.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_names_the_data_sets(tiny, tmp_path):
    done = cli("foreground", "mvtecc", tiny[0], "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "unknown data set 'mvtecc'; possible: mvtec, visa" in done.stdout
