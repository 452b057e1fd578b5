"""Masks as tools write them: which pixels count, how they lie on their images, and which remarks are made."""

import shutil

import numpy as np
import pytest
from helpers import cli, make_mvtec
from PIL import Image

import metrics
from datasets import FolderLayout, ImageSettings, MVTecLayout, TestDataset
from datasets.base import Sample
from datasets.check import full_check, quick_check
from datasets.defects import Defects, list_defects
from datasets.masks import examine, read_mask, read_mask_of
from datasets.preloading import read_all
from datasets.truth import PackedMasks
from metrics import NO_PIXEL_LEFT
from training.evaluation import why_nan
from utils import WorkError

SMALL = ImageSettings(resize=64, imagesize=64)
MASK = np.zeros((64, 64), np.uint8)
MASK[20:30, 25:37] = 255
SIX = Image.Exif()
SIX[0x0112] = 6


@pytest.fixture
def data(tmp_path):
    return make_mvtec(tmp_path)[0]


def notes_of(data, name="mvtec"):
    done = cli("check", name, data)
    return [line.removeprefix("note: ") for line in done.stdout.splitlines() if line.startswith("note: ")]


def mask_of(data, number=0):
    return data / "disc/ground_truth/blot" / f"{number:03d}_mask.png"


# ------------------------------------------------------------------------------------------ opacity


def layer(colour, opacity):
    shown = np.broadcast_to(np.asarray(colour, np.uint8), (64, 64))
    return Image.fromarray(np.dstack([shown, shown, shown, opacity]))


def colours(drawn, around):
    return np.where(MASK > 0, drawn, around).astype(np.uint8)


OPACITY = {
    "white": layer(255, MASK),
    "black": layer(0, MASK),
    "half opaque": layer(255, MASK // 2),
    "red on transparent white": Image.fromarray(np.dstack([MASK * 0 + 255, 255 - MASK, 255 - MASK, MASK])),
    "white on black, a clear border": layer(colours(255, 0), np.pad(np.full((60, 60), 255, np.uint8), 2)),
    "opacity that nobody set": layer(colours(255, 0), MASK * 0),
    "gray": Image.merge("LA", [Image.fromarray(MASK * 0 + 255), Image.fromarray(MASK)]),
}


@pytest.mark.parametrize("kind", OPACITY)
def test_what_is_transparent_is_no_defect(tmp_path, kind):
    for suffix in (".png", ".tif"):
        path = tmp_path / f"mask{suffix}"
        OPACITY[kind].save(path)
        assert (read_mask(path) == (MASK > 0)).all(), suffix


def test_opacity_of_a_turned_mask_of_a_palette_and_of_nothing_drawn(tmp_path):
    wide = layer(255, MASK).crop((0, 0, 64, 40))
    wide.save(tmp_path / "turned.png", exif=SIX)
    assert (read_mask(tmp_path / "turned.png") == np.rot90(MASK[:40] > 0, -1)).all()
    few = Image.fromarray((MASK > 0).astype(np.uint8), "P")
    few.putpalette([255, 255, 255, 255, 255, 255])
    few.save(tmp_path / "palette.png", transparency=bytes([0, 255]))
    assert (read_mask(tmp_path / "palette.png") == (MASK > 0)).all()
    layer(255, MASK * 0).save(tmp_path / "nothing.png")
    assert not read_mask(tmp_path / "nothing.png").any()


# ------------------------------------------------------------------------------------------ remarks


def remarks_on(data, image):
    image.save(mask_of(data))
    return examine(mask_of(data), data / "disc/test/blot/000.png")[1]


SUSPICIOUS = {
    "inverted": (Image.fromarray(255 - MASK), ["covers"], "marks more than half of its image"),
    "background": (
        Image.fromarray(MASK // 255 + 1),
        ["covers"],
        "is it inverted, or the value of its background not 0",
    ),
    "red": (Image.fromarray(np.dstack([MASK * 0 + 255, 255 - MASK, 255 - MASK])), ["covers"], "more than half"),
    "soft": (
        Image.fromarray(np.minimum(MASK, np.arange(64, dtype=np.uint8)[:, None] * 8)),
        ["levels"],
        "meaning is unclear",
    ),
    "empty": (Image.fromarray(MASK * 0), ["empty"], "marks no pixel, though"),
}


@pytest.mark.parametrize("kind", SUSPICIOUS)
def test_suspicious_masks_are_reported_by_the_check_and_when_read(data, kind):
    image, remarks, text = SUSPICIOUS[kind]
    assert remarks_on(data, image) == remarks
    (note,) = notes_of(data)
    assert text in note
    assert str(mask_of(data)) in note
    found = {}
    read_all([TestDataset(MVTecLayout(data).test("disc"), SMALL)], 0, "disc", found)
    assert found == {0: remarks}


@pytest.mark.parametrize("how", ["png", "gray", "jpeg"])
def test_a_copy_of_the_picture_is_no_mask(data, tmp_path, how):
    picture = Image.open(data / "disc/test/blot/000.png")
    if how == "jpeg":
        picture.save(tmp_path / "a.jpg", quality=92)
        picture = Image.open(tmp_path / "a.jpg")
    assert remarks_on(data, picture.convert("L") if how == "gray" else picture) == ["copy"]


@pytest.mark.parametrize(
    "values", [MASK, MASK // 255, (MASK // 255) * 7, np.where(MASK > 0, np.arange(64) % 3 + 1, 0), MASK > 0]
)
def test_plain_masks_and_numbered_kinds_are_not_strange(data, values):
    assert remarks_on(data, Image.fromarray(values if values.dtype == bool else values.astype(np.uint8))) == []
    assert notes_of(data) == []


# -------------------------------------------------------------------------------- which file is one


@pytest.mark.parametrize("end", ["_mask", "_GT", "_label"])
@pytest.mark.parametrize("layout", [MVTecLayout, FolderLayout])
def test_a_mask_beside_its_picture_is_no_picture(data, layout, end):
    blot, good = data / "disc/test/blot", data / "disc/train/good"
    for number in range(3):
        mask_of(data, number).rename(blot / f"{number:03d}{end}.png")
    Image.fromarray(MASK * 0).save(good / f"001{end}.png")
    Image.fromarray(MASK).save(good / f"002{end}.png")
    found = layout(data)
    test = [sample for sample in found.test("disc") if sample.is_anomaly]
    assert [s.path.name for s in test] == ["000.png", "001.png", "002.png"]
    assert [s.mask.name for s in test] == [f"00{i}{end}.png" for i in range(3)]
    assert len(found.train("disc")) == 6
    notes = notes_of(data)
    assert any("5 files are masks of the images beside them by their names" in note for note in notes)
    assert [note for note in notes if "counts as good" in note] == [
        f"{good / f'002{end}.png'}: marks pixels, though its image counts as good"
    ]


def test_a_mask_beside_its_picture_in_flat_folders(tmp_path):
    for name in ("cap/0", "cap/1", "cap/1_mask", "cap/front_label", "lid/good/0", "lid/bad/0", "lid/bad/0_mask"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 9).save(tmp_path / f"{name}.png")
    layout = FolderLayout(tmp_path)
    # what has no picture to belong to is a picture
    assert [s.path.stem for s in layout.train("cap")] == ["0", "1", "front_label"]
    assert [(s.path.stem, s.mask.stem) for s in layout.test("lid") if s.is_anomaly] == [("0", "0_mask")]
    known = list_defects(tmp_path / "lid/bad")
    assert [(path.stem, mask.stem) for path, mask in known] == [("0", "0_mask")]


@pytest.mark.parametrize("folder", ["Masks", "Ground_Truth", "gt"])
def test_a_folder_of_masks_in_any_letter_case_is_no_kind_of_defect(tmp_path, folder):
    for name in ("good/0", "bad/0", f"{folder}/bad/0"):
        (tmp_path / "cap" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 9).save(tmp_path / "cap" / f"{name}.png")
    (sample,) = FolderLayout(tmp_path).test("cap")
    assert (sample.kind, sample.mask.parent.parent.name) == ("bad", folder)


def test_a_folder_of_masks_is_their_union(data, tmp_path):
    half = MASK.copy()
    half[:, :30] = 0
    several = mask_of(data).with_name("000")
    several.mkdir()
    mask_of(data).unlink()
    for number, one in enumerate((half, MASK - half)):
        Image.fromarray(one // 255 * (number + 1)).save(several / f"{number:03d}.png")
    layout = MVTecLayout(data)
    sample = layout.test("disc")[0]
    assert sample.mask == several
    assert layout.unused_masks("disc") == []
    assert (TestDataset([sample], SMALL)[0]["mask_gt"][0].numpy() == (MASK > 0)).all()
    train, test = layout.train("disc"), layout.test("disc")
    assert quick_check("disc", train, test)[0] == full_check("disc", train, test)[0] == []
    assert notes_of(data) == []
    Image.fromarray(MASK[:60]).save(several / "002.png")
    (problem,) = quick_check("disc", train, test)[0]
    assert (problem.path, problem.what) == (several, "cannot be read: the masks in it have different sizes")
    with pytest.raises(WorkError, match=r"000: the masks in it have different sizes"):
        read_mask(several)


def test_a_folder_of_masks_of_a_known_defect(tmp_path):
    for name in ("scratch/3", "masks/scratch/3/0", "masks/scratch/3/1", "masks/scratch/9"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(MASK).save(tmp_path / f"{name}.png")
    assert list_defects(tmp_path) == [(tmp_path / "scratch/3.png", tmp_path / "masks/scratch/3")]


def test_annotations_that_are_no_pictures_are_named(data):
    blot = data / "disc/test/blot"
    for path in (blot / "000.json", blot / "001.txt", mask_of(data).with_suffix(".npy"), data / "disc/readme.txt"):
        path.write_bytes(b"x")
    (note,) = (note for note in notes_of(data) if "annotation" in note)
    assert note.startswith("3 annotation files (.json, .npy, .txt) are not read, the first is ")
    (data / "disc/defects_config.json").write_text("{}")
    assert note in notes_of(data)


def test_images_where_nobody_looks_are_named(data):
    for place in ("validation/good", "train/bad", "test"):
        (data / "disc" / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "disc/test/good/000.png", data / "disc" / place / "x.png")
    unused = [note for note in notes_of(data) if note.endswith("are not used")]
    assert unused == [f"the images in {data / 'disc' / p} are not used" for p in ("validation", "test", "train/bad")]


# --------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_mask_drawn_on_stored_pixels_is_turned_where_that_is_sure(data, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture, stored = data / "disc/test/blot/000.png", MASK[:40]
    Image.open(picture).crop((0, 0, 64, 40)).save(picture, exif=exif)
    Image.fromarray(stored).save(mask_of(data))
    sideways = orientation >= 5
    Image.fromarray(stored).save(data / "own.png", exif=exif)
    marked, remarks = examine(mask_of(data), picture)
    assert remarks == ["turned" if sideways else "unsure"]
    assert (marked == (read_mask(data / "own.png") if sideways else stored > 0)).all()
    samples = MVTecLayout(data).test("disc")
    assert quick_check("disc", [], samples)[0] == full_check("disc", [], samples)[0] == []
    (note,) = notes_of(data)
    assert ("turned with its image" if sideways else "its size does not tell") in note
    # known defects and foreground masks follow the same rule, the latter at any scale
    masks = Defects([(picture, mask_of(data))], ImageSettings(resize=32, imagesize=32))._masks
    assert masks[0].any()
    half = Image.fromarray(stored).resize((32, 20), Image.Resampling.NEAREST)
    half.save(data / "half.png")
    assert read_mask_of(data / "half.png", picture, scaled=True).shape == ((32, 20) if sideways else (20, 32))


def test_a_mask_drawn_on_the_picture_as_shown_stays(data):
    picture = data / "disc/test/blot/000.png"
    Image.open(picture).crop((0, 0, 64, 40)).save(picture, exif=SIX)
    Image.fromarray(MASK[:, :40]).save(mask_of(data))
    marked, remarks = examine(mask_of(data), picture)
    assert remarks == []
    assert (marked == (MASK[:, :40] > 0)).all()


# ---------------------------------------------------------------------------- defects that vanish


def test_a_defect_with_no_pixel_left_is_unknown_and_reported(data):
    """One cropped away, one between the pixels that the nearest neighbour takes, one that was never drawn."""
    wide, fine = np.zeros((64, 192), np.uint8), np.zeros((640, 640), np.uint8)
    wide[:, :20], fine[3, 1] = 255, 255
    for number, mask in enumerate((wide, fine, MASK * 0)):
        Image.fromarray(mask).save(mask_of(data, number))
        Image.new("RGB", mask.shape[::-1]).save(data / f"disc/test/blot/{number:03d}.png")
    dataset = TestDataset(MVTecLayout(data).test("disc"), SMALL)
    items = [dataset[i] for i in range(6)]
    assert [item["mask_gt"].unique().tolist() for item in items] == [[NO_PIXEL_LEFT]] * 3 + [[0]] * 3
    assert [item["is_anomaly"] for item in items] == [True] * 3 + [False] * 3
    found = {}
    read_all([dataset], 0, "disc", found)
    assert found == {0: ["lost"], 1: ["lost"], 2: ["empty"]}
    packed = PackedMasks(6, (64, 64))
    for i, item in enumerate(items):
        packed[i] = item["mask_gt"][0].numpy()
    assert [int(mask[0, 0]) for mask in packed] == [NO_PIXEL_LEFT] * 3 + [0] * 3
    (reason,) = why_nan({"image_auroc": 1.0, "pixel_auroc": float("nan")}, packed)
    assert reason.endswith("; of 3 masks no anomalous pixel is left after resizing and crop")
    notes = notes_of(data)
    assert any("keeps no pixel after resizing and crop" in note and "(1 masks" in note for note in notes)


def test_pixels_of_such_an_image_count_in_the_published_metric_alone():
    rng = np.random.default_rng(0)
    maps = rng.random((3, 64, 64), np.float32)
    known = np.stack([MASK > 0, MASK * 0, MASK * 0]).astype(np.int8)
    lost = known.copy()
    lost[2] = NO_PIXEL_LEFT
    assert metrics.pixel_metrics(maps, lost) == metrics.pixel_metrics(maps[:2], known[:2])
    assert metrics.pixel_metrics(maps, lost) != metrics.pixel_metrics(maps, known)
    assert metrics.compute_pro_published(lost, maps) == metrics.compute_pro_published(known, maps)
    lost[2] = -1
    assert metrics.compute_pro_published(lost, maps) != metrics.compute_pro_published(known, maps)


def test_a_good_image_is_normal_whatever_mask_it_is_given(data):
    Image.fromarray(MASK * 0).save(mask_of(data))
    good = Sample(data / "disc/test/good/000.png", mask=mask_of(data))
    assert TestDataset([good], SMALL)[0]["mask_gt"].unique().tolist() == [0]
