"""Layouts, preprocessing, augmentation and the loaders' randomness."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from helpers import make_mvtec, make_visa, noise_image, shaped, train_set
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import datasets
from datasets import (
    EpochSampler,
    FolderLayout,
    ImageSettings,
    MVTecLayout,
    Sample,
    TestDataset,
    TrainDataset,
    VisALayout,
    augment,
)
from datasets.files import read_rgb
from datasets.listing import list_images
from datasets.masks import read_mask
from datasets.textures import list_textures, open_textures
from utils import InputError, WorkError

SMALL = ImageSettings(resize=64, imagesize=64)


def transform(settings, image, rng=None):
    """RGB image → normalised (3, H, W), as in a test set; with `rng` augmented as in a training set."""
    image = settings.resized(image)
    return settings.finish(image if rng is None else settings.augmented(image, rng))


def transform_texture(settings, texture, rng):
    """Texture → normalised (3, H, W), as in a training set."""
    return settings.finish(settings.augmented_texture(settings.resized(texture), rng))


# ----------------------------------------------------------------------------------------- layouts


def test_mvtec_layout(tiny):
    layout = MVTecLayout(tiny[0])
    assert layout.classes() == ["disc", "plate"]
    assert len(layout.train("disc")) == 6
    test = layout.test("disc")
    assert [s.kind for s in test] == ["blot"] * 3 + ["good"] * 3
    assert [s.mask.name if s.mask else None for s in test] == ["000_mask.png", "001_mask.png", "002_mask.png"] + [
        None
    ] * 3


def test_folder_layout_takes_plain_good_and_train(tmp_path):
    plain = FolderLayout(shaped(tmp_path / "a", "plain"))
    assert plain.classes() == ["disc"]
    assert len(plain.train("disc")) == 6
    assert plain.test("disc") == plain.held_out("disc") == []  # nothing to tell them from: all are for training
    good = FolderLayout(shaped(tmp_path / "b", "good"), test_share=0.4)
    assert good.classes() == ["disc"]
    kinds = [s.kind for s in good.test("disc")]
    assert kinds.count("blot") == 3
    assert all(s.mask for s in good.test("disc") if s.is_anomaly)
    assert kinds.count("good") == len(good.held_out("disc")) > 0
    assert kinds.count("good") + len(good.train("disc")) == 6
    assert not {s.path for s in good.train("disc")} & {s.path for s in good.test("disc")}
    given = FolderLayout(shaped(tmp_path / "c", "train"))
    assert (len(given.train("disc")), len(given.test("disc")), given.held_out("disc")) == (6, 6, [])
    missing = FolderLayout(shaped(tmp_path / "d", "train", good_test=False))
    assert len(missing.train("disc")) + len(missing.held_out("disc")) == 6
    assert [s.mask for s in missing.test("disc") if s.is_anomaly] == [None] * 3  # not known, not normal


def test_good_images_held_out_stay_what_they_are(tmp_path):
    """More images, or another place of the folder, move none from the training to the test."""
    own = shaped(tmp_path / "a", "good")
    held = [{s.path.name for s in FolderLayout(own, seed, 0.4).held_out("disc")} for seed in range(8)]
    assert len({frozenset(h) for h in held}) > 1
    assert all(0 < len(h) < 6 for h in held)
    for i in range(10, 14):
        noise_image(40, 40, i).save(own / "disc" / "good" / f"{i:03d}.png")
    own = own.rename(tmp_path / "elsewhere")
    for seed, before in enumerate(held):
        now = {s.path.name for s in FolderLayout(own, seed, 0.4).held_out("disc")}
        old = {name for name in now if int(name[:3]) < 10}
        assert old <= before
        assert before - old == set() or len(before) == 1  # a lone one was taken since none was drawn


def test_folder_layout_says_what_is_possible(tmp_path):
    (tmp_path / "disc" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match=r"class disc: no good image in .*train/good, good, or images"):
        FolderLayout(tmp_path).train("disc")


@pytest.mark.parametrize("place", ["disc/ground_truth/blot", "ground_truth/disc/blot", "ground_truth/blot"])
def test_masks_are_paired_by_name_in_three_places(tmp_path, place):
    data, _ = make_mvtec(tmp_path)
    original = data / "disc" / "ground_truth"
    masks = [(p.name, p.read_bytes()) for p in sorted((original / "blot").iterdir())]
    (original / "blot").rename(tmp_path / "away")
    original.rmdir()
    (data / place).mkdir(parents=True)
    # one is missing, one has the bare name: pairing by position would give the wrong mask
    (data / place / "001_mask.png").write_bytes(masks[1][1])
    (data / place / "002.png").write_bytes(masks[2][1])
    layout = MVTecLayout(data)
    assert layout.classes() == ["disc"]
    assert [s.mask.name if s.mask else None for s in layout.test("disc")[:3]] == [None, "001_mask.png", "002.png"]
    batch = TestDataset(layout.test("disc"), SMALL)
    assert (batch[0]["mask_gt"] == -1).all()
    assert batch[1]["mask_gt"].unique().tolist() == [0, 1]
    assert batch[3]["mask_gt"].unique().tolist() == [0]


def test_visa_layout(tmp_path):
    layout = VisALayout(make_visa(tmp_path))
    assert layout.classes() == ["candle"]
    assert len(layout.train("candle")) == 2
    test = layout.test("candle")
    assert [s.is_anomaly for s in test] == [False, False, True]
    item = TestDataset(test, ImageSettings(resize=32, imagesize=32))[2]
    assert item["mask_gt"].unique().tolist() == [0, 1]
    (tmp_path / "candle/Data/Masks/Anomaly/0.png").unlink()
    with pytest.raises(InputError, match=r"1cls\.csv names .*0\.png, which is not there"):
        VisALayout(tmp_path).test("candle")


def test_every_name_has_a_layout():
    assert set(datasets.DATASETS) == {"mvtec", "visa", "mpdd", "wfdd", "custom", "folder"}


def test_bad_folders_say_what_is_possible(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        MVTecLayout(tmp_path / "nothing")
    with pytest.raises(InputError, match="no class folder"):
        MVTecLayout(tmp_path).choose([])
    with pytest.raises(InputError, match=r"1cls\.csv is not in it"):
        VisALayout(tmp_path)
    data, _ = make_mvtec(tmp_path)
    with pytest.raises(InputError, match=r"unknown class 'disk'; .* has disc"):
        MVTecLayout(data).choose(["disk"])
    with pytest.raises(InputError, match="no picture in it"):
        (tmp_path / "empty").mkdir()
        list_textures(tmp_path / "empty")


def test_files(tmp_path):
    for name in ("b.PNG", "a.jpg", ".hidden.png", "note.txt", "c.tif"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.tif"]
    with pytest.raises(WorkError, match=r"cannot read image .*a\.jpg"):
        read_rgb(tmp_path / "a.jpg")
    deep = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.asarray(read_rgb(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 1, 255]
    opaque = np.zeros((3, 4, 2), np.uint8)
    opaque[..., 1], opaque[1, 1, 0] = 255, 1
    Image.fromarray(opaque, "LA").save(tmp_path / "la.png")
    assert read_mask(tmp_path / "la.png").sum() == 1
    Image.new("L", (4, 3), 7).save(tmp_path / "gray.png")
    assert np.asarray(read_rgb(tmp_path / "gray.png")).shape == (3, 4, 3)
    rgba = np.zeros((3, 4, 4), np.uint8)
    rgba[..., 3], rgba[1, 2, 1] = 255, 9
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").sum() == 1


# ----------------------------------------------------------------------------------- preprocessing


def test_preprocessing_is_torchvisions():
    image = noise_image(90, 70)
    published = T.Compose([
        T.Resize(64), T.CenterCrop(48), T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    ])  # fmt: skip
    assert torch.equal(transform(ImageSettings(resize=64, imagesize=48), image), published(image))


def test_toothbrush_and_wood_are_resized_larger(tiny):
    layout = MVTecLayout(tiny[0])
    settings = ImageSettings(resize=288, imagesize=288)
    assert settings.for_class(layout, "wood").resize == 329
    assert ImageSettings(resize=160, imagesize=160).for_class(layout, "toothbrush").resize == 183
    assert settings.for_class(layout, "bottle").resize == 288


def test_mask_follows_the_image():
    image, mask = np.zeros((70, 90, 3), np.uint8), np.zeros((70, 90), np.uint8)
    image[20:50, 30:60], mask[20:50, 30:60] = 255, 1
    settings = ImageSettings(resize=64, imagesize=48)
    bright = transform(settings, Image.fromarray(image))[0] > 0
    assert (bright.numpy() != settings.transform_mask(mask)).mean() < 0.05
    foreground = settings.transform_foreground(Image.fromarray(mask * 255).convert("RGB"))
    assert foreground.dtype == bool
    assert not (settings.transform_mask(mask).astype(bool) & ~foreground).any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resize": 64, "imagesize": 100}, "--imagesize 100 is larger than --resize 64"),
        ({"resize": (64, 90), "imagesize": 80}, "--imagesize 80 is larger than --resize 64x90"),
        ({"resize": 64, "imagesize": (48, 80)}, "--imagesize 48x80 is larger than --resize 64"),
        ({"resize": 70, "imagesize": 64, "keep_all": True}, "--resize 70 contradicts it"),
    ],
)
def test_sizes_that_contradict_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        ImageSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "resize"),
    [
        ({}, 288),
        ({"imagesize": 64}, 288),
        ({"imagesize": 320}, 320),
        ({"imagesize": (64, 96)}, (64, 96)),
        ({"imagesize": 64, "keep_all": True}, 64),
    ],
)
def test_resize_by_default(settings, resize):
    assert ImageSettings(**settings).resize == resize


@given(
    size=st.tuples(st.integers(20, 120), st.integers(20, 120)),
    imagesize=st.one_of(st.integers(16, 70), st.tuples(st.integers(16, 70), st.integers(16, 70))),
    more=st.integers(0, 20),
    keep_all=st.booleans(),
)
def test_any_size_fits_and_everything_follows_the_image(size, imagesize, more, keep_all):
    """Image, mask, foreground and texture of any shape come out at the size asked for, without a padded border."""
    resize = None if keep_all else int(np.max(imagesize)) + more
    settings = ImageSettings(resize=resize, imagesize=imagesize, keep_all=keep_all)
    expected = settings.size
    assert expected == ((imagesize, imagesize) if isinstance(imagesize, int) else imagesize)
    white = Image.new("RGB", size, (255, 255, 255))
    image = transform(settings, white)
    assert image.shape == (3, *expected)
    assert image.std(dim=(1, 2)).max() < 1e-6  # black would be a border beyond the image
    assert transform_texture(settings, white, np.random.default_rng(0)).shape == (3, *expected)
    mask = np.ones(size[::-1], np.uint8)
    assert settings.transform_mask(mask).shape == expected
    assert settings.transform_mask(mask).all()
    assert settings.transform_foreground(white).shape == expected
    assert settings.straight(white).shape == (*expected, 3)


def test_keep_all_keeps_all():
    """A mark at each end of a long image, which the square crop cuts off."""
    long = np.zeros((64, 256, 3), np.uint8)
    long[:, :8], long[:, -8:] = 255, 255
    whole = transform(ImageSettings(imagesize=64, keep_all=True), Image.fromarray(long))
    assert (whole[0, 32, [0, -1]] > 1).all()
    assert not (transform(SMALL, Image.fromarray(long)) > 0).any()


def test_a_pair_is_height_and_width():
    image = noise_image(90, 70)
    published = T.Compose([
        T.Resize((64, 96)), T.CenterCrop((48, 80)), T.ToTensor(),
        T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    ])  # fmt: skip
    assert torch.equal(transform(ImageSettings(resize=(64, 96), imagesize=(48, 80)), image), published(image))


@pytest.mark.parametrize(
    "option", ["rotate_degrees", "translate", "scale", "brightness", "contrast", "saturation", "gray", "hflip", "vflip"]
)
def test_every_random_augmentation_does_something(option):
    value = 30 if option == "rotate_degrees" else 0.9
    settings = ImageSettings(resize=64, imagesize=64, **{option: value})
    image = noise_image(64, 64)
    plain = transform(SMALL, image)
    drawn = [transform(settings, image, np.random.default_rng(i)) for i in range(8)]
    assert settings.randomly_augmented
    assert any(not torch.equal(one, plain) for one in drawn)
    assert torch.equal(transform(settings, image), plain)  # never in testing
    assert torch.equal(transform(settings, image, np.random.default_rng(3)), drawn[3])


@pytest.mark.parametrize("index", range(9))
def test_every_texture_operation_keeps_size_and_kind(index):
    image = noise_image(50, 40)
    out = augment.TEXTURE_OPERATIONS[index](image, np.random.default_rng(0))
    assert out.size == image.size
    assert out.mode == "RGB"
    assert np.asarray(out).tolist() != np.asarray(image).tolist()


def test_texture_is_cropped_after_its_operations():
    """A rotation after the crop would leave black corners where the wide picture has content."""
    settings = ImageSettings(resize=64, imagesize=32)
    white = Image.new("RGB", (200, 200), (255, 255, 255))
    for seed in range(30):
        out = transform_texture(settings, white, np.random.default_rng(seed))
        assert out.std() < 1.2  # one colour, up to the channels' normalisation


# ------------------------------------------------------------------------------------ training set


def test_training_item(tmp_path):
    item = train_set(tmp_path)[0, 0]
    assert item["image"].shape == item["aug"].shape == (3, 64, 64)
    assert item["mask_s"].shape == (8, 8)
    changed = (item["image"] != item["aug"]).any(0)
    pooled = torch.nn.functional.adaptive_max_pool2d(changed.float()[None], 8)[0]
    assert changed.any()
    assert not (pooled.bool() & ~item["mask_s"].bool()).any()


def test_item_depends_on_seed_epoch_and_index_alone(tmp_path):
    first, second = train_set(tmp_path / "a", seed=4), train_set(tmp_path / "b", seed=4)
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(first[3, 2]["aug"], second[3, 2]["aug"])
    assert not torch.equal(first[3, 2]["aug"], first[4, 2]["aug"])
    assert not torch.equal(first[3, 2]["aug"], train_set(tmp_path / "c", seed=5)[3, 2]["aug"])


def test_loader_gives_the_same_whatever_its_workers(tmp_path):
    data = train_set(tmp_path)
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(len(data), 7)
        sampler.set_epoch(2)
        loader = datasets.make_loader(data, 4, workers, sampler)
        batches.append(list(loader))
    for a, b in zip(*batches, strict=True):
        assert a["image_path"] == b["image_path"]
        assert torch.equal(a["aug"], b["aug"])


def test_sampler_shuffles_by_epoch_and_stops_at_its_count():
    sampler = EpochSampler(50, 3, count=20)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert len(first) == len(sampler) == 20
    assert len({i for _, i in first}) == 20
    assert {e for e, _ in second} == {1}
    assert [i for _, i in first] != [i for _, i in second]
    assert [i for _, i in EpochSampler(5, 0, shuffle=False)] == [0, 1, 2, 3, 4]


def test_foreground_masks(tmp_path):
    data, _ = make_mvtec(tmp_path)
    layout = MVTecLayout(data)
    samples = layout.train("disc")
    assert layout.foreground("disc", samples) is None
    left = np.zeros((64, 64), np.uint8)
    left[:, :32] = 255
    (data / "fg_mask" / "disc").mkdir(parents=True)
    for sample in samples[1:]:
        Image.fromarray(left).save(data / "fg_mask" / "disc" / sample.path.name)
    with pytest.raises(InputError, match=r"fg_mask/disc holds foreground masks, but not 000\.png.*--fg 0"):
        layout.foreground("disc", samples)
    Image.fromarray(left).save(data / "fg_mask" / "disc" / samples[0].path.name)
    masks = layout.foreground("disc", samples)
    dataset = TrainDataset(samples, SMALL, open_textures(tmp_path / "textures"), (8, 8), masks)
    for i in range(6):
        item = dataset[0, i]
        assert torch.equal(item["image"][:, :, 33:], item["aug"][:, :, 33:])
    assert layout.classes() == ["disc"]


def test_truncated_image_is_named(tmp_path):
    data, textures = make_mvtec(tmp_path)
    broken = data / "disc" / "train" / "good" / "002.png"
    broken.write_bytes(broken.read_bytes()[:200])
    dataset = TrainDataset([Sample(broken)], SMALL, open_textures(textures), (8, 8))
    with pytest.raises(WorkError, match=r"cannot read image .*002\.png"):
        dataset[0, 0]


def test_excel_files_hold_the_published_rows():
    import pandas as pd

    folder = Path(datasets.__file__).parent / "excel"
    rows = pd.concat(pd.read_excel(path) for path in folder.glob("*_distribution.xlsx"))
    flags = {row.Class: (row.Distribution, row.Foreground) for row in rows.itertuples()}
    assert len(flags) == 37
    assert flags["mvtec_bottle"] == (1, 1)
    assert flags["visa_candle"] == (0, 0)
    assert flags["wfdd_grey_cloth"] == (0, 0)
