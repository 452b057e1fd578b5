"""Foreground masks: they keep the whole object, leave out ground, and are made once."""

import json
import re

import cv2
import numpy as np
import pytest
from helpers import cli, make_mvtec
from PIL import Image

from datasets import MVTecLayout, Sample
from datasets.files import read_rgb
from datasets.foreground import Foreground
from datasets.foreground_masks import RECORD, SHEET, TEST_SHEET, fit_samples, make_masks
from datasets.listing import list_images
from datasets.masks import read_mask
from utils import LOGGER, InputError, WorkError

SIZE = 200


def grain(rng, shape, sigma=2.0, strength=30):
    """Texture of one lightness on the whole: (H, W, 1)."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), sigma)
    return strength * (noise / noise.std())[..., None]


def disc(rng, height=SIZE, width=SIZE, radius=0.33, jitter=0.03):
    yy, xx = np.mgrid[:height, :width]
    cy, cx = (side * (0.5 + rng.uniform(-jitter, jitter)) for side in (height, width))
    return np.hypot(yy - cy, xx - cx) < radius * min(height, width)


def part(kind, rng):
    """One image and where the object is in it."""
    yy, xx = np.mgrid[:SIZE, :SIZE] / SIZE
    mask, ground, paint = disc(rng), 60.0, np.array([150.0, 130, 100])
    if kind == "dark":
        ground, paint = 220.0, np.array([70.0, 70, 75])
    elif kind == "border":
        mask = (np.abs(yy - 0.5) < 0.2) & (xx < 0.7 + rng.uniform(-0.05, 0.05))
    elif kind == "through":
        mask = np.abs(xx - 0.5 + rng.uniform(-0.02, 0.02)) < 0.2
    elif kind == "thin":
        turn = rng.uniform(0, np.pi)
        along = (xx - 0.5) * np.cos(turn) + (yy - 0.5) * np.sin(turn)
        across = (xx - 0.5) * np.sin(turn) - (yy - 0.5) * np.cos(turn)
        mask = (np.abs(across) < 0.008) & (np.abs(along) < 0.4)
    elif kind == "several":
        places = [
            (y + rng.uniform(-0.04, 0.04), x + rng.uniform(-0.04, 0.04)) for y in (0.27, 0.72) for x in (0.27, 0.72)
        ]
        mask = np.any([np.hypot(yy - y, xx - x) < 0.13 for y, x in places], 0)
    elif kind == "sizes":
        mask = disc(rng, *rng.integers(90, 400, 2))
    image = rng.normal(ground, 5, (*mask.shape, 1)) + rng.normal(0, 1.5, (*mask.shape, 3))
    if kind == "shaded":
        image += 60 * xx[..., None]
    elif kind == "rough ground":
        image, paint = 120 + grain(rng, mask.shape) * np.ones(3), np.array([120.0, 120, 120])
    image[mask] = paint + rng.normal(0, 4, (mask.sum(), 1))
    if kind == "rough object":
        image[mask] = 60 + grain(rng, mask.shape)[mask]
    picture = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    return picture.convert("L").convert("RGB") if kind == "gray" else picture, mask


def parts(kind, count=6, seed=0):
    rng = np.random.default_rng(seed)
    images, masks = zip(*(part(kind, rng) for _ in range(count)), strict=True)
    return list(images), list(masks)


def texture(kind, rng):
    """One image without any ground."""
    image = 130 + rng.normal(0, 10, (SIZE, SIZE, 3))
    if kind == "coarse":
        image += grain(rng, (SIZE, SIZE), 8, 40)
    elif kind == "striped":
        image += 50 * (np.sin(np.arange(SIZE) / 5 + rng.uniform(0, 6)) > 0)[:, None]
    elif kind == "flat":
        image[:] = 128
    elif kind == "vignette":
        yy, xx = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
        image -= 35 * (yy**2 + xx**2)[..., None]
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


KINDS = [
    "bright", "dark", "gray", "shaded", "rough ground", "rough object", "border", "through", "thin", "several", "sizes"
]  # fmt: skip


# ---------------------------------------------------------------------------------------- one class


@pytest.mark.parametrize("kind", KINDS)
def test_the_object_is_kept_and_the_ground_left_out(kind):
    fitted = Foreground.fit(parts(kind)[0])
    assert not fitted.fills_image, fitted.reason
    assert fitted.reason.startswith("an object on ")
    for image, truth in zip(*parts(kind, seed=1), strict=True):  # not those it was fitted to
        mask = fitted.mask(image)
        assert mask.dtype == np.bool_
        assert mask.shape == (image.height, image.width)
        assert mask[truth].mean() > 0.99
        assert mask[~truth].mean() < 0.2


@pytest.mark.parametrize("kind", ["fine", "coarse", "striped", "flat", "vignette"])
def test_a_texture_fills_the_image(kind):
    rng = np.random.default_rng(0)
    fitted = Foreground.fit(texture(kind, rng) for _ in range(8))
    assert fitted.fills_image, fitted.reason
    assert fitted.reason.startswith("fills the image: ")
    assert "\n" not in fitted.reason
    assert fitted.mask(parts("bright", 1)[0][0]).all()


def painted(rng, box, shift=95.0):
    """Noise with another lightness in a box (y0, y1, x0, x1)."""
    image = rng.normal(60, 5, (SIZE, SIZE, 3))
    y0, y1, x0, x1 = box
    image[y0:y1, x0:x1] += shift
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def test_an_object_that_leaves_hardly_any_ground_fills_the_image():
    rng = np.random.default_rng(0)
    fitted = Foreground.fit(painted(rng, (8, SIZE - 8, 8, SIZE - 8)) for _ in range(6))
    assert fitted.fills_image
    assert "would be left out" in fitted.reason


def test_specks_are_no_object():
    rng = np.random.default_rng(0)
    images = [rng.normal(60, 3, (SIZE, SIZE, 3)) for _ in range(6)]
    for image in images:
        image[30:170:14, 30:170:14] += 150
    fitted = Foreground.fit(Image.fromarray(image.clip(0, 255).astype(np.uint8)) for image in images)
    assert fitted.fills_image
    assert "nothing stands out" in fitted.reason


def test_holes_are_filled_and_the_rim_has_a_margin():
    rng = np.random.default_rng(0)
    images, outer = [], disc(rng, jitter=0)
    for _ in range(5):
        image = rng.normal(60, 5, (SIZE, SIZE, 3))
        image[outer & ~disc(rng, radius=0.15, jitter=0)] += 100
        images.append(Image.fromarray(image.clip(0, 255).astype(np.uint8)))
    mask = Foreground.fit(images).mask(images[0])
    rim = cv2.dilate(outer.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert mask[rim].all()


def test_what_is_object_in_most_images_is_so_where_a_part_of_it_is_not_found():
    rng = np.random.default_rng(0)
    fitted = Foreground.fit([painted(rng, (60, 140, 60, 140)) for _ in range(6)])
    mask = fitted.mask(painted(rng, (60, 140, 60, 110)))  # more than half of the usual area
    assert mask[60:140, 60:140].all()
    assert mask.mean() < 0.25


def test_an_object_that_is_not_found_may_be_wherever_it_sometimes_is():
    rng = np.random.default_rng(0)
    boxes = [(60, 140, 20, 90), (60, 140, 110, 180)]
    fitted = Foreground.fit([painted(rng, boxes[number % 2]) for number in range(6)])
    mask = fitted.mask(painted(rng, boxes[0], 0))
    assert mask[60:140, 20:90].all()
    assert mask[60:140, 110:180].all()
    assert mask.mean() < 0.5


def test_an_object_that_is_not_found_and_has_no_usual_place_may_be_anywhere():
    rng = np.random.default_rng(0)
    corners = [(20 + 60 * row, 20 + 60 * column) for row in range(3) for column in range(3)]
    images = [painted(rng, (y, y + 40, x, x + 40)) for y, x in corners]
    fitted = Foreground.fit(images)
    assert not fitted.fills_image
    assert fitted.mask(images[0]).mean() < 0.1
    assert fitted.mask(Image.new("RGB", (SIZE, SIZE), (60, 60, 60))).all()


def test_no_mask_is_empty_where_most_images_show_no_object():
    rng = np.random.default_rng(0)
    images = [painted(rng, (40, 90, 40, 90), 95 * (number < 2)) for number in range(12)]
    fitted = Foreground.fit(images)
    assert not fitted.fills_image
    assert all(fitted.mask(image).any() for image in images)


def test_a_ground_never_seen_is_not_taken_for_one():
    fitted = Foreground.fit(parts("bright")[0])
    green = Image.new("RGB", (SIZE, SIZE), (20, 160, 40))
    green.paste((150, 130, 100), (60, 60, 140, 140))
    assert fitted.mask(green).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (700, 2), (31, 17), (1200, 900)])
def test_images_of_any_size_get_a_mask_of_that_size(size):
    fitted = Foreground.fit(parts("bright", 4)[0])
    image = parts("bright", 1)[0][0].resize(size)
    mask = fitted.mask(image)
    assert mask.shape == size[::-1]
    assert mask.any()
    assert Foreground.fit([image]).mask(image).shape == size[::-1]


def test_many_images_are_looked_at_evenly_and_twice_alike():
    rng = np.random.default_rng(0)
    images = [texture("fine", rng).resize((20, 20)) for _ in range(90)]
    looked_at = int(re.search(r"(\d+) images looked at", Foreground.fit(iter(images)).reason)[1])
    assert 40 <= looked_at < 80
    images, _ = parts("several")
    one, other = Foreground.fit(images), Foreground.fit(images)
    assert one.reason == other.reason
    assert np.array_equal(one.mask(images[3]), other.mask(images[3]))


def test_nothing_is_learnt_from_no_image():
    with pytest.raises(InputError, match="good images, and there is none"):
        Foreground.fit([])


# -------------------------------------------------------------------------------------------- files


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


def test_what_cannot_be_done_is_said(samples, tmp_path):
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


# ---------------------------------------------------------------------------------------- real data


@pytest.mark.real
def test_bottles_are_kept_whole(real):
    layout = MVTecLayout(real / "data" / "mvtec")
    fitted = fit_samples(layout.train("bottle"))
    assert not fitted.fills_image
    inside, defects, left_out = 0, 0, []
    for sample in layout.test("bottle"):
        mask = fitted.mask(read_rgb(sample.path))
        left_out.append(1 - mask.mean())
        if sample.mask is not None:
            truth = read_mask(sample.mask) > 0
            inside, defects = inside + (truth & mask).sum(), defects + truth.sum()
    assert len(left_out) == 83
    # 0.9999, 0.316 and 0.307 when this was written
    assert inside / defects >= 0.995
    assert np.mean(left_out) >= 0.3
    assert min(left_out) >= 0.3


@pytest.mark.real
def test_tiles_and_textures_fill_the_image(real):
    fitted = fit_samples(MVTecLayout(real / "data" / "tile").train("magnetic_tile"))
    assert fitted.fills_image, fitted.reason
    pictures = list_images(real / "data" / "dtd" / "images", recursive=True)[::40]
    assert len(pictures) == 10
    for number, path in enumerate(pictures):
        rng, picture = np.random.default_rng(number), read_rgb(path)
        side = min(picture.size) // 2
        corners = [(rng.integers(picture.width - side), rng.integers(picture.height - side)) for _ in range(20)]
        fitted = Foreground.fit(picture.crop((x, y, x + side, y + side)) for x, y in corners)
        assert fitted.fills_image, (path, fitted.reason)
