"""A region of interest (--roi): what is outside counts nowhere, from the training to an exported graph."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import cli, export_onnx, train_cli, train_set
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import zoom
from sklearn.metrics import roc_auc_score
from small import small_batch, small_glass

from common import RescaleSegmentor
from datasets.roi import RegionOfInterest, read_roi
from datasets.settings import ImageSettings
from datasets.truth import PackedMasks
from glass import load_checkpoint
from inference import checkpoint
from inference.inspected import Inspected, draw_locations
from tools import script
from training import calibration, remembering
from utils import InputError, WorkError

SIDE = 64


def left_half():
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, : SIDE // 2] = 255
    return mask


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    path = tmp_path_factory.mktemp("roi") / "left.png"
    Image.fromarray(left_half()).save(path)
    return path


@pytest.fixture(scope="module", params=[(), ("--memory", 100)], ids=["plain", "memory"])
def run(request, tiny, png, tmp_path_factory):
    """Results of a training with --roi."""
    results = tmp_path_factory.mktemp("with_roi")
    done = train_cli(*tiny, results, net=request.param, dataset=("-d", "disc", "--roi", png))
    assert done.returncode == 0, done.stdout
    return results


@pytest.fixture(scope="module")
def folder(run):
    return run / "models/backbone_0/custom_disc"


def pictures(tiny):
    return sorted((tiny[0] / "disc/test").rglob("*.png"))


def test_test_library_and_command_agree_and_ignore_what_is_outside(run, folder, tiny, tmp_path):
    model, rows = load_checkpoint(folder), pd.read_csv(run / "per_image.csv")
    inside = left_half() > 0
    for row in rows.itertuples():
        result = model.predict_image(row.path)
        assert result.score == pytest.approx(row.score, abs=1e-5)
        assert (result.map[~inside] == 0).all()
        assert (result.map[inside] > 0).all()
        scores = model.scorer.score_images(model.prepare(Image.open(row.path).convert("RGB"))[None])[0].numpy()
        assert result.score == pytest.approx(scores[:, :4].max(), abs=1e-6)  # 8 x 8 patches
    done = cli("predict", *pictures(tiny), "--checkpoint", folder, "--out", tmp_path)
    assert done.returncode == 0, done.stdout
    with (tmp_path / "predictions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert float(row["score"]) == pytest.approx(model.predict_image(row["path"]).score, abs=1e-5)


def test_pixel_metrics_are_those_of_the_pixels_inside(run, folder, tiny):
    model, inside, values, truth = load_checkpoint(folder), left_half() > 0, [], []
    for path in pictures(tiny):
        mask = tiny[0] / "disc/ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        marked = np.asarray(Image.open(mask).convert("L")) > 0 if mask.is_file() else np.zeros((SIDE, SIDE), bool)
        values.append(model.predict_image(path).map[inside])
        truth.append(marked[inside])
    assert 0 < np.mean(truth) < 1
    expected = roc_auc_score(np.concatenate(truth), np.concatenate(values))
    assert pd.read_csv(run / "results.csv").pixel_auroc[0] == pytest.approx(expected, abs=1e-5)


def test_a_defect_outside_makes_no_defective_image(tiny, tmp_path):
    corner = np.zeros((SIDE, SIDE), np.uint8)
    corner[:24, :24] = 255
    masks = [np.asarray(Image.open(path).convert("L")) for path in (tiny[0] / "disc/ground_truth").rglob("*.png")]
    inside = sum(bool(mask[:24, :24].any()) for mask in masks)
    outside = len(masks) - inside
    assert outside  # otherwise nothing is tested
    Image.fromarray(corner).save(tmp_path / "corner.png")
    done = train_cli(
        *tiny, tmp_path / "r", net=("--meta_epochs", 1), dataset=("-d", "disc", "--roi", tmp_path / "corner.png")
    )
    assert done.returncode == 0, done.stdout
    assert pd.read_csv(tmp_path / "r/per_image.csv").label.sum() == inside
    assert f"{outside} test images have their defect outside the region of interest" in done.stdout


def test_thresholds_come_from_inside(folder, tiny):
    """The thresholds are the highest values of the training images, without their own patches in a memory."""
    model = load_checkpoint(folder)
    if model.config["memory"]:
        pytest.skip("a patch of the image itself does not count there")
    results = model.predict_images(sorted((tiny[0] / "disc/train/good").iterdir()))
    assert model.thresholds.image == pytest.approx(max(result.score for result in results), abs=1e-5)
    assert model.thresholds.pixel == pytest.approx(max(result.map.max() for result in results), abs=1e-5)


def test_a_test_alone_needs_no_file(run, tiny):
    before = pd.read_csv(run / "results.csv")
    memory = ("--memory", 100) if load_checkpoint(run / "models/backbone_0/custom_disc").config["memory"] else ()
    done = train_cli(*tiny, run, main=("--test", "test"), net=memory, dataset=("-d", "disc"))
    assert done.returncode == 0, done.stdout
    after = pd.read_csv(run / "results.csv")
    for name in ("image_auroc", "pixel_auroc", "pixel_ap", "pixel_pro"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-9)


def test_the_graph_and_the_bundle_keep_the_region(folder, tiny, tmp_path):
    model, ort = load_checkpoint(folder), script("ort")
    assert export_onnx(folder, "--out", tmp_path / "m.onnx").returncode == 0
    assert cli("bundle", folder, "--out", tmp_path / "m.zip").returncode == 0
    for name in ("m.onnx", "m.zip"):
        judge = ort.GraphJudge(tmp_path / name)
        assert judge.identity() == model.identity()
        for path in pictures(tiny):
            ours, theirs = judge.predict_image(path), model.predict_image(path)
            assert ours.score == pytest.approx(theirs.score, abs=1e-3)
            assert (ours.map[:, SIDE // 2 :] == 0).all()
            np.testing.assert_allclose(ours.map, theirs.map, atol=5e-3)
        with pytest.raises(WorkError, match="drawn on 64x64 pixels, but the image has 80x64"):
            judge.predict_image(np.zeros((64, 80, 3), np.uint8))
        with pytest.raises(InputError, match="--tile: the model was trained with --roi"):
            ort.GraphJudge(tmp_path / name, tile=32)


def test_other_sizes_are_scaled_and_other_proportions_refused(folder, tmp_path):
    model = load_checkpoint(folder)
    result = model.predict_image(np.full((128, 128, 3), 90, np.uint8))
    assert result.map.shape == (128, 128)
    assert (result.map[:, 64:] == 0).all()
    assert (result.map[:, :64] > 0).all()
    Image.new("RGB", (80, 64)).save(tmp_path / "wide.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "fine.png")
    done = cli("predict", tmp_path, "--checkpoint", folder, "--out", tmp_path / "o")
    assert done.returncode == 1
    rows = {row["path"]: row for row in csv.DictReader((tmp_path / "o/predictions.csv").open(newline=""))}
    assert "give images of the same proportions" in rows[str(tmp_path / "wide.png")]["error"]
    assert rows[str(tmp_path / "fine.png")]["score"]
    done = cli("predict", tmp_path, "--checkpoint", folder, "--out", tmp_path / "o2", "--tile", 32)
    assert done.returncode == 2
    assert "leave --tile out" in done.stdout


def test_another_region_does_not_continue_a_training(run, folder, tiny, png, tmp_path):
    Image.fromarray(255 - left_half()).save(tmp_path / "right.png")
    memory = ("--memory", 100) if load_checkpoint(folder).config["memory"] else ()
    for mode in ("ckpt", "test"):
        for roi in ((), ("--roi", tmp_path / "right.png")):
            if mode == "test" and not roi:
                continue
            done = train_cli(*tiny, run, main=("--test", mode), net=memory, dataset=("-d", "disc", *roi))
            assert done.returncode == 2, done.stdout
            assert "roi" in done.stdout.splitlines()[-1]
            assert len(done.stdout.splitlines()[-1]) < 1000


def test_a_damaged_region_in_a_checkpoint_is_refused(folder, tmp_path):
    state = torch.load(checkpoint.find_best(folder)[0], weights_only=True)
    for roi in (
        {"size": [64, 64], "mask": torch.zeros(512, dtype=torch.uint8)},
        {"size": [9, 9]},
        3,
        {"size": [10**9, 9], "mask": torch.ones(9)},
    ):
        torch.save({**state, "roi": roi}, tmp_path / "ckpt_best_0.pth")
        with pytest.raises(WorkError, match="holds a damaged region of interest"):
            load_checkpoint(tmp_path / "ckpt_best_0.pth")


@pytest.mark.parametrize("roi", [3, {}, {"size": [64, 64], "mask": "?"}, {"size": [64, 64], "mask": "eJwDAAAAAAE="}])
def test_a_damaged_region_in_a_graph_is_refused(roi):
    with pytest.raises(WorkError, match=r"a\.onnx holds a damaged region of interest"):
        script("ort")._roi_of("a.onnx", {"roi": roi})


# --------------------------------------------------------------------------------------- the parts


def inspected_of(mask, grid=(8, 8), size=(32, 32)):
    settings = ImageSettings(resize=size[0], imagesize=size[0])
    return Inspected(RegionOfInterest(mask), settings, RescaleSegmentor("cpu", size), grid)


MASKS = (
    st.integers(0, 2**32 - 1)
    .map(lambda seed: zoom(np.random.default_rng(seed).random((4, 4)), 8, order=1) > 0.5)
    .filter(lambda mask: mask.sum() > 200)
)


@given(MASKS, st.integers(0, 1000))
def test_patches_outside_have_no_influence_and_constants_stay(mask, seed):
    inspected, segmentor = inspected_of(mask), RescaleSegmentor("cpu", (32, 32))
    scores = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(seed))
    touched = mask.reshape(8, 4, 8, 4).any((1, 3))
    assert (inspected.patches.numpy() > 0).tolist() == touched.tolist()
    assert inspected.locations.tolist() == np.flatnonzero(touched).tolist()
    other = torch.where(torch.from_numpy(touched), scores, torch.rand(()) * 9)
    maps = [inspected.maps(segmentor(inspected.scores(x))) for x in (scores, other)]
    torch.testing.assert_close(*maps)
    assert (maps[0].numpy()[:, ~mask] == 0).all()
    constant = inspected.maps(segmentor(inspected.scores(torch.full((1, 8, 8), 0.7))))[0].numpy()
    np.testing.assert_allclose(constant[mask], 0.7, rtol=1e-4)


def test_a_whole_region_changes_no_map():
    inspected, segmentor = inspected_of(np.ones((32, 32), bool)), RescaleSegmentor("cpu", (32, 32))
    scores = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inspected.maps(segmentor(inspected.scores(scores))), segmentor(scores))


def test_a_region_that_the_crop_leaves_out_is_refused():
    mask = np.zeros((64, 200), bool)
    mask[:, :20] = True
    with pytest.raises(InputError, match="the model sees 0 of 64 patches, but it needs 2"):
        inspected_of(mask)


def test_a_step_does_not_depend_on_what_is_outside():
    """Other features outside give the same losses and radii; other features inside do not."""
    figures = []
    for column in (None, 7, 0):
        model = small_glass(ascent_share=0.5, local_share=0.75)
        mask = np.zeros((32, 32), bool)
        mask[:, :16] = True
        model.features.inspected = inspected_of(mask, model.grid)
        image, aug, masks = small_batch(model)
        with torch.no_grad():
            features = model._embed(image)[0]
        if column is not None:
            features.unflatten(0, (2, *model.grid))[:, :, column] += 5
        figures.append(model.train_step(image, aug, masks, features))
    for name, value in figures[0].items():
        assert value == figures[1][name], name
    assert figures[0]["loss"] != figures[2]["loss"]


def test_locations_are_drawn_inside():
    model = small_glass()
    mask = np.zeros((32, 32), bool)
    mask[:, :16] = True
    model.features.inspected = inspected_of(mask, model.grid)
    locations = model.features.inspected.locations.tolist()
    for share, count in ((1, len(locations)), (0.25, len(locations) // 4)):
        drawn = draw_locations(model.features, share, torch.Generator().manual_seed(0))
        assert len(drawn) == count
        assert set(drawn.tolist()) <= set(locations)
    model.features.inspected = None
    assert draw_locations(model.features, 1, torch.Generator()) is None


def test_the_memory_holds_patches_of_the_region_alone():
    model = small_glass(memory=20)
    mask = np.zeros((32, 32), bool)
    mask[:, :16] = True
    model.features.inspected = inspected_of(mask, model.grid)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    class Loader(list):
        dataset = images

    patches, owners, _ = remembering.draw_patches(model, Loader([{"image": images, "index": torch.arange(4)}]), 20)
    features = model.features.embed_alone(images).unflatten(0, (4, *model.grid))
    inside = {tuple(row.tolist()) for row in features[:, :, :4].flatten(0, 2)}
    assert len(inside) == 4 * 8 * 4  # no two patches are alike
    assert {tuple(row.tolist()) for row in patches} <= inside
    assert len(patches) == len(owners) == 20


def test_no_anomaly_is_drawn_outside(tmp_path):
    roi = np.zeros((64, 64), bool)
    roi[10:30, 5:40] = True
    data = train_set(tmp_path, roi=roi)
    for epoch in range(10):
        mask = data.anomaly(np.random.default_rng(epoch), 0)[1]
        assert mask.any()
        assert not (mask & ~roi).any()
    corner = np.zeros((64, 64), bool)
    corner[20:64, 20:64] = True
    data._object_on = lambda index: corner
    assert (data.foreground_of(0) == (corner & roi)).all()
    data._object_on = lambda index: ~roi
    assert (data.foreground_of(0) == roi).all()


def test_synthetic_defects_outside_say_nothing_about_thresholds():
    model = small_glass()
    masks = np.ones((2, 32, 32), np.int8)
    assert (calibration._known(masks, model.scorer()) == masks).all()
    inside = np.zeros((32, 32), bool)
    inside[:, :16] = True
    model.features.inspected = inspected_of(inside, model.grid)
    known = calibration._known(masks, model.scorer())
    assert (known[:, :, :16] == 1).all()
    assert (known[:, :, 16:] == -1).all()


def test_truth_outside_is_unknown():
    inside = np.array([[True, True], [False, True]])
    masks = PackedMasks(2, (2, 2), inside)
    masks[0], masks[1] = np.array([[1, 0], [1, 0]], np.int8), np.full((2, 2), -1, np.int8)
    assert masks[0].tolist() == [[1, 0], [-1, 0]]
    assert masks[1].tolist() == [[-1, -1], [-1, -1]]


# ------------------------------------------------------------------------------------------- files


def test_polygons_are_filled_where_they_lie(tmp_path):
    square = [[2, 2], [2, 8], [8, 8], [8, 2]]
    other = [[5, 5], [5, 12], [12, 12], [12.4, 5]]
    (tmp_path / "r.json").write_text(json.dumps({"size": [30, 20], "polygons": [square, other]}))
    mask = read_roi(tmp_path / "r.json").mask
    expected = np.zeros((20, 30), bool)
    expected[2:9, 2:9] = expected[5:13, 5:13] = True
    assert (mask == expected).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_region_survives_packing(width, height, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    mask[0, 0] = True
    roi = RegionOfInterest(mask)
    again = RegionOfInterest.of_packed(json.loads(json.dumps(roi.packed())))
    assert (again.mask == mask).all()
    assert again.plain() == roi.plain()
    other = mask.copy()
    other[-1, -1] ^= True
    assert RegionOfInterest(other).digest != roi.digest


def write(path, what):
    if isinstance(what, bytes):
        path.write_bytes(what)
    elif isinstance(what, str):
        path.write_text(what)
    else:
        Image.fromarray(what).save(path, "PNG")


def polygons(text):
    return f'{{"size": [64, 64], "polygons": {text}}}'


BAD = [
    ("r.png", left_half() * 0, "is empty: no pixel is inspected"),
    ("r.png", left_half()[:, :40], "was drawn on 40x64 pixels, but"),
    ("r.png", left_half() // 2, "has a pixel of 127; give a PNG of 255"),
    ("r.png", np.dstack([left_half()] * 4), "has transparent pixels"),
    ("r.png", b"\xff\xd8\xff\xe0 a JPEG", "is not a PNG; give a PNG of 255"),
    ("r.png", b"\x89PNG\r\n\x1a\n and no more", "is a damaged PNG"),
    ("r.jpg", b"", "is not a PNG"),
    ("none.png", None, "there is no such file"),
    ("r.json", "{", "is not JSON"),
    ("r.json", "[1]", "size must be the picture's [width, height]"),
    ("r.json", '{"size": [64, 64]}', "there are no polygons"),
    ("r.json", '{"size": [64, true], "polygons": [[[1, 1], [9, 9], [9, 1]]]}', "size must be"),
    ("r.json", '{"size": [9000000000, 64], "polygons": [[[1, 1], [9, 9], [9, 1]]]}', "more than --max_pixels"),
    ("r.json", polygons('[[[1, 1], [9, 9]]]'), "polygon 1 has no area; give at least three points"),
    ("r.json", polygons('[[[1, 1], [9, 9], [20, 20]]]'), "polygon 1 has no area"),
    ("r.json", polygons('[[[1, 1], [9, 9], ["a", 1]]]'), "is not a list of points"),
    ("r.json", polygons('[3]'), "polygon 1 is not a list of points"),
    ("r.json", polygons('[[[1, 1], [9, 9], [99, 1]]]'), "[99, 1] lies outside the picture of 64x64"),
    ("r.json", polygons('[[[1, 1], [9, 9], [NaN, 1]]]'), "lies outside the picture"),
    ("r.json", "[" * 100_000, "is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "what", "says"), BAD)
def test_bad_files_end_a_training_with_one_line(tiny, tmp_path, name, what, says):
    if what is not None:
        write(tmp_path / name, what)
    done = train_cli(*tiny, tmp_path / "r", dataset=("-d", "disc", "--roi", tmp_path / name))
    assert done.returncode == 2, done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("Error: --roi")
    assert says in last
    assert not list(tmp_path.rglob("*.pth"))


def test_tiles_are_refused(tiny, png, tmp_path):
    done = cli("dataset", "--tile", 32, "--roi", png, "custom", *tiny)
    assert done.returncode == 2
    assert "--roi needs whole images, which --tile cuts" in done.stdout


def test_preview_shows_anomalies_in_the_region(tiny, png, tmp_path):
    done = cli(
        "preview",
        "--roi",
        png,
        "--fg",
        0,
        "--resize",
        SIDE,
        "--imagesize",
        SIDE,
        "-d",
        "disc",
        "--samples",
        2,
        "--out",
        tmp_path,
        "custom",
        *tiny,
    )
    assert done.returncode == 0, done.stdout
    done = cli("preview", "--roi", tmp_path / "none.png", "-d", "disc", "--out", tmp_path, "custom", *tiny)
    assert done.returncode == 2
    assert "there is no such file" in done.stdout
