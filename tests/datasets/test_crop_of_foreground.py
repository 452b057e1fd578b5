"""Foreground masks of which the crop leaves too little: found before the training."""

import re

import numpy as np
import pytest
from helpers import DATASET, NET, cli, make_mvtec
from PIL import Image

from datasets import ImageSettings, MVTecLayout, TrainDataset, open_textures
from datasets.foreground_check import check_foreground, leave_out_small
from datasets.training_set import prepare_foreground

CROPPED = ImageSettings(resize=64, imagesize=64)
WHOLE = ImageSettings(imagesize=64, keep_all=True)


@pytest.fixture
def wide(tmp_path):
    """Pictures three times as wide as high, with a foreground mask each: all of the picture."""
    data, patterns = make_mvtec(tmp_path)
    for path in data.rglob("*.png"):
        Image.open(path).resize((192, 64)).save(path)
    folder = data / "fg_mask/disc"
    folder.mkdir(parents=True)
    for sample in MVTecLayout(data).train("disc"):
        Image.new("L", (192, 64), 255).save(folder / sample.path.name)
    return data, patterns


def draw(path, box, size=(192, 64)):
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(path)


def problems(data, settings, tiled=False):
    layout = MVTecLayout(data)
    train = layout.train("disc")
    sizes = {s.path: Image.open(s.path).size for s in train}
    return check_foreground(layout.foreground("disc", train), train, sizes, "disc", settings, tiled)


def test_what_the_crop_leaves_of_every_mask_is_looked_at(wide):
    folder = wide[0] / "fg_mask/disc"
    draw(folder / "001.png", (0, 0, 40, 64))  # beside the crop
    draw(folder / "003.png", (64, 0, 65, 1))  # a pixel in the corner of what is left
    draw(folder / "004.png", (100, 40, 104, 44))  # some in its middle, which anomalies do reach
    found = problems(wide[0], CROPPED)
    assert [(p.path.name, p.kind) for p in found] == [("001.png", "empty"), ("003.png", "empty")]
    assert "resizing and crop leave nothing of the foreground mask: no synthetic anomaly fits" in found[0].what
    assert re.search(r"leave 0\.02\d% of an image of the foreground mask", found[1].what)
    assert problems(wide[0], WHOLE) == []
    assert problems(wide[0], CROPPED, tiled=True) == []


def test_a_mask_that_passes_is_trained_on(wide):
    """The smallest mask that the check lets through never ends an epoch."""
    data, patterns = wide
    draw(data / "fg_mask/disc/004.png", (100, 40, 104, 44))
    layout = MVTecLayout(data)
    train = layout.train("disc")
    dataset = TrainDataset(train, CROPPED, open_textures(patterns), (8, 8), layout.foreground("disc", train))
    for epoch in range(5):
        assert dataset[epoch, 4]["mask_s"].any()


def test_tiles_need_masks_of_the_size_of_their_pictures(wide):
    folder = wide[0] / "fg_mask/disc"
    Image.new("L", (96, 32), 255).save(folder / "002.png")
    assert problems(wide[0], CROPPED) == []
    (problem,) = problems(wide[0], CROPPED, tiled=True)
    assert (problem.path.name, problem.kind) == ("002.png", "mask_size")
    assert problem.what.endswith("; with --tile it must be as large")


def test_a_run_stops_before_it_trains_and_says_what_is_strange_about_masks(wide, tmp_path):
    data, patterns = wide
    for number in range(2):
        Image.new("L", (192, 64), 255).save(data / f"disc/ground_truth/blot/{number:03d}_mask.png")
    (data / "disc/test/blot/000.json").write_text("{}")
    draw(data / "fg_mask/disc/001.png", (0, 0, 40, 64))
    done = cli("--gpu", -1, "--results_path", tmp_path / "r", *NET, *DATASET, "--fg", 1, "mvtec", data, patterns)
    assert done.returncode == 1
    last = done.stdout.strip().splitlines()[-1]
    assert re.match(r"Error: class mvtec_disc: .*001\.png: resizing and crop leave nothing of the foreground", last)
    assert "1 annotation files (.json) are not read" in done.stdout
    assert "background not 0? (2 masks, the first is" in done.stdout
    assert not (tmp_path / "r/models").exists()


def test_masks_that_were_made_are_left_out_where_the_crop_empties_them(wide):
    data, patterns = wide
    folder = data / "fg_mask/disc"
    draw(folder / "001.png", (0, 0, 40, 64))
    layout = MVTecLayout(data)
    train = layout.train("disc")
    sizes = {s.path: Image.open(s.path).size for s in train}
    made = layout.foreground("disc", train)
    kept = leave_out_small(made, train, sizes, CROPPED)
    assert kept == [None if path.name == "001.png" else path for path in made]
    dataset = TrainDataset(train, CROPPED, open_textures(patterns), (8, 8), kept)
    assert dataset[0, 1]["mask_s"].any()
    assert dataset.foreground_of(1) is None


def test_a_foreground_counts_as_its_check_says(tmp_path):
    """Blue, with an opacity, or drawn on the stored pixels of a turned picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png", exif=exif)
    layout = MVTecLayout(make_mvtec(tmp_path)[0])
    sample = layout.train("disc")[0]
    wanted = np.zeros((64, 64), bool)
    wanted[8:24, 10:40] = True
    blue, clear = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 4), 255, np.uint8)
    blue[wanted], clear[..., 3] = (0, 0, 200), wanted * 255
    for pixels in (blue, clear, wanted.astype(np.uint8) * 7):
        Image.fromarray(pixels).save(tmp_path / "fg.png")
        assert (prepare_foreground(tmp_path / "fg.png", sample, CROPPED) == wanted).all()
    draw(tmp_path / "stored.png", (0, 0, 64, 8), (64, 32))
    turned = type(sample)(tmp_path / "a.png")
    shown = prepare_foreground(tmp_path / "stored.png", turned, ImageSettings(imagesize=(64, 32)))
    assert shown[:, 24:].all()
    assert not shown[:, :24].any()
