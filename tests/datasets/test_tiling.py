"""Large images in tiles: how they are cut and merged, in training, in the test, and with predict."""

import csv

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import cli, make_textures, train_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import geometry
from datasets.base import Sample
from datasets.geometry import Blend, Geometry, Tiling
from datasets.settings import ImageSettings
from datasets.tiles import judged_settings, tiles_of
from glass import load_checkpoint
from inference import checkpoint
from inference.judge import choose_tiling
from utils import InputError

TILE, SIDE = 64, 4 * 64

# ----------------------------------------------------------------------------- cutting and putting together


@given(
    width=st.integers(8, 300), height=st.integers(8, 300), tile=st.integers(16, 90), overlap=st.floats(0, 0.75),
    resize=st.sampled_from([32, 40]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_picture_cut_and_put_together_is_the_picture(width, height, tile, overlap, resize):
    tiling = Tiling.of(Geometry(resize, 32), tile, overlap)
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(0, 256, (height, width, 1), dtype=np.uint8), 3, axis=2)
    blend, boxes = Blend(tiling, width, height), tiling.boxes(width, height)
    for box in boxes:
        cut = tiling.cut(pixels, box)
        assert cut.shape == (*tiling.box, 3)
        around = [(b - t) // 2 for b, t in zip(tiling.box, tiling.tile, strict=True)]
        inner = cut[around[0] : around[0] + tile, around[1] : around[1] + tile, 0]
        blend.add(box, inner.astype(np.float32))
    np.testing.assert_allclose(blend.finish(), pixels[..., 0], atol=0.01)
    for length, axis in ((height, 0), (width, 1)):
        starts = sorted({box[axis] for box in boxes})
        gaps = np.diff(starts)
        assert (gaps <= max(1, tile - int(np.ceil(overlap * tile)) + 1)).all()
        assert starts[0] <= 0
        assert starts[-1] + tile >= length


@given(
    box=st.tuples(st.integers(-40, 20), st.integers(-40, 20), st.integers(1, 60), st.integers(1, 60)),
    shape=st.tuples(st.integers(2, 30), st.integers(2, 30)),
)
@settings(max_examples=60, deadline=None)
def test_beyond_the_border_a_picture_is_mirrored(box, shape):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    padded = cv2.copyMakeBorder(pixels, 100, 100, 100, 100, cv2.BORDER_REFLECT_101)
    top, left, h, w = box
    expected = padded[100 + top : 100 + top + h, 100 + left : 100 + left + w]
    assert (geometry.cut_mirrored(pixels, box) == expected).all()


def test_two_tiles_meet_without_a_step():
    tiling = Tiling((64, 64), (64, 64), 0.25)
    blend = Blend(tiling, 112, 64)
    for value, box in enumerate(tiling.boxes(112, 64)):
        blend.add(box, np.full((32, 32), float(value), np.float32))
    row = blend.finish()[30]
    assert row[0] == 0
    assert row[-1] == 1
    assert np.abs(np.diff(row)).max() < 0.08


@pytest.mark.parametrize(
    ("config", "tile", "overlap", "expected"),
    [
        ({}, None, None, None),
        ({}, 100, None, (100, 0.25)),
        ({}, "auto", 0.1, (800, 0.1)),
        ({"resize": 288, "imagesize": 256}, "auto", None, (711, 0.25)),
        ({"tile": 120, "overlap": 0.5, "keep_all": True}, None, None, (120, 0.5)),
        ({"tile": 120, "overlap": 0.5, "keep_all": True}, "auto", 0.0, (120, 0.0)),
        ({"tile": 120, "overlap": 0.5, "keep_all": True}, "off", None, None),
    ],
)
def test_how_a_model_sees_large_pictures(config, tile, overlap, expected):
    made = choose_tiling({"image_size": [1200, 800], **config}, tile, overlap)
    assert (None if made is None else (made.tile[0], made.overlap)) == expected


@pytest.mark.parametrize(
    ("settings", "size", "share"),
    [
        ({}, (500, 500), 0), ({}, (100, 200), 0.5), ({}, (300, 100), 2 / 3), ({"keep_all": True}, (300, 100), 0),
        ({"resize": 400, "imagesize": 200}, (500, 500), 0.75), ({"imagesize": (100, 200)}, (400, 200), 0),
    ],
)  # fmt: skip
def test_share_that_the_crop_leaves_out(settings, size, share):
    own = Geometry(**settings)
    assert own.left_out(*size) == pytest.approx(share, abs=0.01)
    # as much as the map is laid over
    placed = own.place(np.ones(own.size, np.float32), size)
    assert (placed == 0).mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("geometry", [{"keep_all": True}, {"resize": [64, 128]}, {"resize": 80}])
def test_a_picture_of_the_trainings_size_is_one_tile_seen_as_the_whole_is(geometry):
    config = {"imagesize": [64, 128] if "keep_all" not in geometry and geometry["resize"] != 80 else 64, **geometry}
    size = (1200, 800)
    tiling = choose_tiling({**config, "image_size": list(size)}, "auto", None)
    own = Geometry.of_config(config)
    if geometry.get("resize") == 80:  # the crop leaves parts of it out
        assert tiling.tile == (640, 640)
        assert tiling.box == (800, 800)
        return
    assert tiling.boxes(*size) == [(0, 0, 800, 1200)]
    assert tiling.box == (800, 1200)
    assert own.resized_size(*size) == own.size


def test_tiles_that_cannot_be():
    for how in (("big", None), (8, None), (100, 0.9), (None, 0.2), ("off", 0.2), ("²", None)):
        with pytest.raises(InputError, match=r"--tile|--overlap"):
            choose_tiling({"image_size": [1200, 800]}, *how)
    with pytest.raises(InputError, match="give pixels"):
        choose_tiling({}, "auto", None)


def test_the_map_that_is_judged_has_the_scale_of_the_tiles_but_is_no_larger_than_memory_allows(tmp_path):
    sample, tiling = Sample(tmp_path / "a.png"), Tiling((128, 128), (128, 128))
    own = ImageSettings(imagesize=64, keep_all=True)
    assert judged_settings(own, tiling, [sample], {sample.path: (800, 600)}).size == (300, 400)
    assert judged_settings(own, tiling, [sample], {sample.path: (8000, 6000)}).size == (768, 1024)


# ----------------------------------------------------------------------------------------- from end to end


def sheet(rng, side, defect=None):
    """Woven stripes of a hand's breadth; the defect is a small spot. Picture and mask."""
    yy, xx = np.mgrid[:side, :side]
    at = rng.uniform(0, 8, 2)
    image = 110 + 40 * np.sin((xx + at[0]) * np.pi / 4) * np.sin((yy + at[1]) * np.pi / 4)
    image = image[..., None] + rng.normal(0, 4, (side, side, 3))
    mask = np.zeros((side, side), np.uint8)
    if defect is not None:
        mask = (np.hypot(yy - defect[0], xx - defect[1]) < 5).astype(np.uint8)
        image[mask > 0] = (230, 230, 60)
    return image.clip(0, 255).astype(np.uint8), mask * 255


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    """A data set of pictures four times as large as what the model sees, each defect a spot of 10 pixels."""
    root, rng = tmp_path_factory.mktemp("sheets"), np.random.default_rng(0)
    base = root / "data" / "cloth"
    for kind in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
        (base / kind).mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(base / f"train/good/{i}.png"), sheet(rng, SIDE)[0])
        cv2.imwrite(str(base / f"test/good/{i}.png"), sheet(rng, SIDE)[0])
        image, mask = sheet(rng, SIDE, rng.uniform(20, SIDE - 20, 2))
        cv2.imwrite(str(base / f"test/spot/{i}.png"), image)
        cv2.imwrite(str(base / f"ground_truth/spot/{i}_mask.png"), mask)
    make_textures(root / "textures", rng)
    return root / "data", root / "textures"


NATIVE = ("--tile", "auto", "--overlap", "0.25", "--imagesize", TILE)


def train(data, textures, results, width, net, dataset):
    """A short training; not the helpers', which resizes, as tiles must not be."""
    done = cli(
        "--gpu", -1, "--results_path", results, "net", "-b", "resnet18", "--pretrain_embed_dimension", width,
        "--target_embed_dimension", width, "--dsc_hidden", 64, "--step", 5, "--limit", 64, "--select", "last", *net,
        "dataset", "--distribution", 2, "--fg", 0, "--num_workers", 0, *dataset, "mvtec", data, textures,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def in_tiles(sheets, tmp_path_factory):
    results = tmp_path_factory.mktemp("in_tiles")
    net = ("--weights", "random", "--meta_epochs", 4, "--eval_epochs", 2, "--lr", "0.001")
    return results, train(*sheets, results, 96, net, NATIVE)


def table(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_training_and_test_in_tiles(in_tiles):
    results, printed = in_tiles
    assert "mvtec_cloth: 3 pictures in 75 tiles of 64x64 pixels, overlap 25%" in printed
    config = checkpoint.load(checkpoint.find_best(results / "models/backbone_0/mvtec_cloth")[0])["config"]
    assert (config["tile"], config["overlap"], config["image_size"]) == (TILE, 0.25, [SIDE, SIDE])
    figures = pd.read_csv(results / "results.csv").iloc[0]
    assert figures.image_auroc == 1
    assert figures.pixel_auroc > 0.9
    judged = pd.read_csv(results / "per_image.csv")
    assert len(judged) == 6
    picture = cv2.imread(str(next((results / "eval/mvtec_cloth").rglob("*spot*"))))
    assert picture.shape[0] == SIDE  # judged at the scale of the tiles


def test_tester_and_predict_agree_on_tiles(in_tiles, sheets, tmp_path):
    folder = in_tiles[0] / "models/backbone_0/mvtec_cloth"
    judged = pd.read_csv(in_tiles[0] / "per_image.csv")
    done = cli("predict", sheets[0] / "cloth/test", "--checkpoint", folder, "--out", tmp_path, "--save")
    assert done.returncode == 0, done.stdout
    rows, model = table(tmp_path), load_checkpoint(folder)
    for one in judged.itertuples():
        assert float(rows[one.path]["score"]) == pytest.approx(one.score, abs=1e-5)
        assert int(rows[one.path]["decision"]) == one.decision
    one = next(iter(sorted((sheets[0] / "cloth/test/spot").iterdir())))
    result = model.predict_image(one)
    saved = np.asarray(Image.open(tmp_path / "maps/spot" / f"{one.stem}.tiff"))
    np.testing.assert_allclose(saved, result.map, atol=1e-6)
    truth = cv2.imread(str(sheets[0] / "cloth/ground_truth/spot" / f"{one.stem}_mask.png"), 0) > 0
    assert result.map[truth].mean() > np.median(result.map)


def test_tiling_finds_what_the_whole_picture_hides(real, sheets, tmp_path):
    """A model of pictures as large as it sees them; the picture to be judged is four times as large."""
    rng = np.random.default_rng(5)
    small = tmp_path / "small" / "cloth" / "train" / "good"
    small.mkdir(parents=True)
    for i in range(24):
        cv2.imwrite(str(small / f"{i}.png"), sheet(rng, TILE)[0])
    net = ("--weights", real / "weights/resnet18_in1k_to_layer3.pth", "--meta_epochs", 8, "--lr", "0.0003")
    train(tmp_path / "small", sheets[1], tmp_path / "results", 192, net, ("--imagesize", TILE, "--resize", TILE))
    folder = tmp_path / "results/models/backbone_0/mvtec_cloth"
    tiled, whole = load_checkpoint(folder, tile="auto"), load_checkpoint(folder)
    assert tiled.tiling.tile == (TILE, TILE)
    good = [sheet(rng, SIDE)[0] for _ in range(3)]
    spots = [without_weave(rng) for _ in range(3)]
    gaps = []
    for model in (tiled, whole):
        scores = [model.predict_image(p).score for p in (*good, *spots)]
        gaps.append(min(scores[3:]) - max(scores[:3]))
    assert gaps[0] > 0.05
    assert gaps[1] < 0.02


def without_weave(rng):
    """A sheet with a spot that the weave lacks: at a quarter of the size there is no weave anywhere."""
    image = sheet(rng, SIDE)[0]
    at = rng.uniform(20, SIDE - 20, 2)
    yy, xx = np.mgrid[:SIDE, :SIDE]
    image[np.hypot(yy - at[0], xx - at[1]) < 7] = 110
    return image


def test_memory_is_bounded_by_the_tiles_at_once(in_tiles, monkeypatch):
    model = load_checkpoint(in_tiles[0] / "models/backbone_0/mvtec_cloth")
    most, score = [0], model.score

    def counted(batch):
        most[0] = max(most[0], len(batch))
        return score(batch)

    monkeypatch.setattr(model, "score", counted)
    result = model.predict_image(np.zeros((600, 900, 3), np.uint8))
    assert result.map.shape == (600, 900)
    assert most[0] <= 8


def test_seeds_of_tiles_and_pictures_stay_apart(tmp_path):
    samples = tiles_of([Sample(tmp_path / "a.png")], Tiling((64, 64), (64, 64)), {tmp_path / "a.png": (100, 64)})
    assert len({s.key for s in samples}) == len(samples) == 2
    assert samples[0].read.__self__.box == (0, 0, 64, 64)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--tile", 64), "leave --resize out"),
        (("--tile", "huge"), "is not a tile size"),
        (("--overlap", 0.5), "it needs --tile"),
    ],
)
def test_requests_that_cannot_work(sheets, tmp_path, flags, says):
    done = train_cli(*sheets, tmp_path, dataset=flags, name="mvtec")
    assert done.returncode == 2
    assert says in done.stdout.strip().splitlines()[-1]


def test_pictures_smaller_than_a_tile_are_refused_in_training(sheets, tmp_path):
    done = cli("--results_path", tmp_path, "net", "-b", "resnet18", "--weights", "random", "dataset", "--tile", 300,
               "mvtec", *sheets)  # fmt: skip
    assert done.returncode == 2
    assert "less than a tile of 300x300" in done.stdout.strip().splitlines()[-1]


def test_a_tile_trained_model_judges_a_small_picture(in_tiles):
    model = load_checkpoint(in_tiles[0] / "models/backbone_0/mvtec_cloth")
    result = model.predict_image(sheet(np.random.default_rng(2), 40)[0])
    assert result.map.shape == (40, 40)
    assert np.isfinite(result.map).all()
    assert torch.is_grad_enabled()
