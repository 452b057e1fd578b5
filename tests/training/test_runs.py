"""Runs of the command line on every layout a user brings, and on what can be wrong with one."""

import csv
import multiprocessing
import os
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from forked import Forked, run_main
from helpers import DATASET, NET, cli, make_mvtec, shape_of_part, shaped, train_set
from PIL import Image
from torch.utils.data import DataLoader

import main as command
from datasets import EpochSampler, make_loader
from datasets.defects import Defects, list_defects, refuse_test_images
from reporting import drawing
from utils import InputError


def run(data, textures, results, *dataset, name="folder", main=(), net=()):
    arguments = ["--gpu", -1, "--results_path", results, *main, *NET, *net, *DATASET, *dataset, name, data, textures]
    return CliRunner().invoke(command.main, [str(a) for a in arguments])


def rows(results):
    with (results / "results.csv").open() as file:
        return {row["Row Names"]: row for row in csv.DictReader(file)}


@pytest.fixture
def textures(tmp_path):
    return make_mvtec(tmp_path / "for_textures")[1]


# ----------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("form", "more", "tested"),
    [("plain", {}, False), ("good", {}, True), ("good", {"defects": False}, False), ("train", {}, True),
     ("train", {"good_test": False}, True), ("train", {"defects": False}, False)],
)  # fmt: skip
def test_folder_trains_whatever_form_it_has(tmp_path, textures, form, more, tested):
    done = run(shaped(tmp_path / "x", form, **more), textures, tmp_path / "r")
    assert done.exit_code == 0, done.output
    best = [p.name for p in (tmp_path / "r/models/backbone_0/folder_disc").glob("ckpt_best_*.pth")]
    assert len(best) == 1
    assert tested or best == ["ckpt_best_1.pth"]  # with no test set the last epoch is kept
    assert (tmp_path / "r" / "results.csv").exists() == tested
    split = tmp_path / "r" / "splits" / "folder_disc.csv"
    assert split.exists() == (tested and (form == "good" or not more.get("good_test", True)))
    if split.exists():
        with split.open() as file:
            parts = {row["path"]: row["part"] for row in csv.DictReader(file)}
        assert len(parts) == 6
        assert set(parts.values()) == {"train", "test"}


def test_names_that_are_no_text_are_split_and_listed(tmp_path, textures):
    own = shaped(tmp_path / "x", "good")
    odd = os.fsencode(own / "disc" / "good") + b"/\xff,odd.png"
    shutil.copy(own / "disc" / "good" / "000.png", odd)
    done = run(own, textures, tmp_path / "r")
    assert done.exit_code == 0, done.output
    with (tmp_path / "r/splits/folder_disc.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert os.fsdecode(odd) in paths
    assert len(paths) == 7


def test_test_of_a_split_with_another_seed_is_refused(tmp_path, textures):
    own = shaped(tmp_path / "x", "good")
    assert run(own, textures, tmp_path / "r").exit_code == 0
    done = run(
        own,
        textures,
        tmp_path / "t",
        "--split_seed",
        5,
        main=("--test", "test", "--models_path", tmp_path / "r/models"),
    )
    assert done.exit_code == 2
    assert "split_seed 0, but 5 is given (give --split_seed 0)" in done.output


def test_new_pictures_are_scored_without_images_of_the_training(tmp_path, textures):
    """The training held nothing out, so a test with its checkpoint must not hold out what was trained on."""
    own = shaped(tmp_path / "x", "train", defects=False)
    assert run(own, textures, tmp_path / "r").exit_code == 0
    (own / "disc" / "test" / "new").mkdir(parents=True)
    shutil.copy(own / "disc/train/good/000.png", own / "disc/test/new/000.png")
    done = run(own, textures, tmp_path / "t", main=("--test", "test", "--models_path", tmp_path / "r/models"))
    assert done.exit_code == 0, done.output
    assert [p.name for p in (tmp_path / "t/eval/folder_disc").iterdir()] == ["new_000.png"]
    assert rows(tmp_path / "t")["folder_disc"]["image_auroc"] == "nan"


def test_gray_and_deep_images_of_any_size_in_a_wide_format(tmp_path, textures):
    folder = tmp_path / "data" / "part"
    rng = np.random.default_rng(0)
    for kind, count in (("good", 6), ("blot", 3)):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            image, _ = shape_of_part(rng, 60 + 7 * i, kind == "blot")
            wide = cv2.resize(image, (150 + 9 * i, 60 + 5 * i))
            name = str(folder / kind / f"{i}")
            if i % 3 == 0:
                cv2.imwrite(f"{name}.TIF", cv2.cvtColor(wide, cv2.COLOR_BGR2GRAY).astype(np.uint16) * 257)
            elif i % 3 == 1:
                Image.fromarray(wide).convert("P").save(f"{name}.png")
            else:
                Image.fromarray(wide).convert("RGBA").save(f"{name}.webp", lossless=True)
    flags = ("--imagesize", "50x110", "--resize", "50x110")
    done = run(tmp_path / "data", textures, tmp_path / "r", *flags)
    assert done.exit_code == 0, done.output
    picture = cv2.imread(str(next((tmp_path / "r" / "eval" / "folder_part").glob("blot*.png"))))
    assert picture.shape == (50, 3 * 110 + drawing.BAR_WIDTH, 3)


def test_keep_all_and_builtin_textures(tmp_path):
    data, _ = make_mvtec(tmp_path)
    arguments = ["--gpu", "-1", "--results_path", tmp_path / "r", *NET, *DATASET]
    del arguments[arguments.index("--resize") : arguments.index("--resize") + 2]
    done = CliRunner().invoke(command.main, [str(a) for a in [*arguments, "--keep_all", "folder", data, "builtin"]])
    assert done.exit_code == 0, done.output
    config = torch.load(tmp_path / "r/models/backbone_0/folder_disc/ckpt.pth", weights_only=True)["config"]
    assert config["keep_all"] is True
    assert config["resize"] == 64


# --------------------------------------------------------------------------------------- bad inputs


def test_truncated_image_stops_before_training_or_is_left_out(tmp_path, textures):
    data, _ = make_mvtec(tmp_path)
    train, test = data / "disc/train/good/002.png", data / "disc/test/good/001.png"
    for broken in (train, test):
        broken.write_bytes(broken.read_bytes()[:-200])
    done = run(data, textures, tmp_path / "r")
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert re.search(r"Error: class folder_disc: .*002\.png: .*and 1 more.*--skip_bad", done.output)
    assert not list(tmp_path.rglob("*.pth"))
    done = run(data, textures, tmp_path / "r", "--skip_bad")
    assert done.exit_code == 0, done.output
    listed = (tmp_path / "r" / "skipped" / "folder_disc.txt").read_text().splitlines()
    assert [line.split(": ")[0] for line in listed] == [str(train), str(test)]
    assert len(list((tmp_path / "r" / "eval" / "folder_disc").iterdir())) == 5


def test_truncated_texture_stops_before_training_or_is_left_out(tmp_path, textures):
    data, _ = make_mvtec(tmp_path)
    broken = textures / "kind0" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    done = run(data, textures, tmp_path / "r")
    assert done.exit_code == 1
    assert re.search(r"Error: textures: .*0\.jpg: .*--skip_bad", done.output), done.output
    assert not list(tmp_path.rglob("*.pth"))
    done = run(data, textures, tmp_path / "r", "--skip_bad")
    assert done.exit_code == 0, done.output
    assert "3 of 3 textures" in done.output
    assert str(broken) in (tmp_path / "r" / "skipped" / "textures.txt").read_text()


def test_image_broken_in_its_middle_is_found_before_training(tmp_path, textures):
    """Header and tail are whole: only reading it shows what is wrong."""
    data, _ = make_mvtec(tmp_path)
    broken = data / "disc/train/good/002.png"
    content = bytearray(broken.read_bytes())
    at = content.index(b"IDAT") + 40
    content[at : at + 400] = bytes(400)
    broken.write_bytes(content)
    done = run(data, textures, tmp_path / "r")
    assert done.exit_code == 1
    assert str(broken) in done.output.strip().splitlines()[-1]
    assert not list(tmp_path.rglob("*.pth"))
    done = run(data, textures, tmp_path / "r", "--skip_bad")
    assert done.exit_code == 0, done.output
    assert str(broken) in (tmp_path / "r" / "skipped" / "folder_disc.txt").read_text()


def test_mask_of_another_size_and_two_of_one_stem_stop_the_run(tmp_path, textures):
    data, _ = make_mvtec(tmp_path)
    mask = data / "disc/ground_truth/blot/001_mask.png"
    whole = mask.read_bytes()
    cv2.imwrite(str(mask), np.zeros((32, 64), np.uint8))
    done = run(data, textures, tmp_path / "r")
    assert done.exit_code == 1
    assert re.search(r"Error: class folder_disc: .*001_mask\.png: .*32x64.*64x64", done.output), done.output
    mask.write_bytes(whole)
    Image.open(data / "disc/test/blot/001.png").save(data / "disc/test/blot/001.bmp")
    done = run(data, textures, tmp_path / "r")
    assert done.exit_code == 1
    assert re.search(r"Error: class folder_disc: .*001\.(bmp|png): .*001\.(bmp|png)", done.output), done.output


def test_image_in_train_and_test_is_warned_of(tmp_path, textures):
    data, _ = make_mvtec(tmp_path)
    shutil.copy(data / "disc/train/good/000.png", data / "disc/test/good/copy.png")
    done = run(data, textures, tmp_path / "r")
    assert done.exit_code == 0, done.output
    assert re.search(r"copy\.png: .*000\.png.*the metrics will be too good", done.output), done.output


@pytest.mark.parametrize("value", ["8", "64x", "64x64x3", "=-64", "6x64", "²88"])
def test_sizes_that_are_none(tmp_path, value):
    done = run(tmp_path, tmp_path, tmp_path / "r", f"--imagesize={value.lstrip('=')}")
    assert done.exit_code == 2
    assert "is not a size; possible: 288, or 256x512" in done.output


# ---------------------------------------------------------------------------------- known defects


def make_defects(folder, masks=True):
    rng = np.random.default_rng(9)
    (folder / "scratch").mkdir(parents=True)
    for i in range(2):
        image, mask = shape_of_part(rng, 64, True)
        cv2.imwrite(str(folder / "scratch" / f"{i}.png"), image)
        if masks:
            place = folder / ("scratch" if i else "masks/scratch")
            place.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(place / f"{i}_mask.png"), mask)
    return folder


def test_known_defects_are_drawn_where_they_may_lie(tmp_path):
    from datasets import ImageSettings

    pairs = list_defects(make_defects(tmp_path))
    assert [(p.name, m.name) for p, m in pairs] == [("0.png", "0_mask.png"), ("1.png", "1_mask.png")]
    settings = ImageSettings(resize=64, imagesize=64)
    defects = Defects(pairs, settings)
    left = np.zeros((64, 64), bool)
    left[:, :32] = True
    centres = []
    for seed in range(20):
        texture, mask = defects.draw(np.random.default_rng(seed), left)
        assert texture.shape == (3, 64, 64)
        assert mask.any()
        assert not (mask & ~left).any()
        # what is cut out is the defect: its colours, not the disc's or the ground's
        blot = torch.tensor([200, 160, 20]) / 255
        shown = texture[:, torch.from_numpy(mask)].mean(1) * torch.tensor([0.229, 0.224, 0.225]) + torch.tensor(
            [0.485, 0.456, 0.406]
        )
        assert (shown - blot).abs().max() < 0.12
        centres.append(np.argwhere(mask).mean(0))
    assert np.std(centres, axis=0).min() > 4
    texture, mask = Defects([(pairs[0][0], None)], settings).draw(np.random.default_rng(0))
    assert mask is None
    assert texture.shape == (3, 64, 64)


def test_training_with_known_defects_but_never_those_of_the_test(tmp_path, textures):
    data, _ = make_mvtec(tmp_path)
    known = make_defects(tmp_path / "known")
    done = run(data, textures, tmp_path / "r", "--defects", known, "--defects_share", 1)
    assert done.exit_code == 0, done.output
    without = run(data, textures, tmp_path / "w")
    assert without.exit_code == 0
    weights = [
        torch.load(tmp_path / r / "models/backbone_0/folder_disc/ckpt.pth", weights_only=True)["discriminator"]
        for r in "rw"
    ]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    # the same pixels in another file format
    Image.open(data / "disc/test/blot/001.png").save(known / "again.bmp")
    done = run(data, textures, tmp_path / "x", "--defects", known)
    assert done.exit_code == 2
    assert re.search(r"again\.bmp is the test image .*001\.png; remove it", done.output)
    done = run(data, textures, tmp_path / "y", "--defects", tmp_path / "nowhere")
    assert done.exit_code == 2
    assert "--defects" in done.output
    with pytest.raises(InputError, match="no picture in it"):
        (tmp_path / "empty").mkdir()
        list_defects(tmp_path / "empty")
    refuse_test_images([], [])


# ----------------------------------------------------------------------------------------- preview


def test_preview_shows_what_training_makes(tmp_path, textures):
    data, _ = make_mvtec(tmp_path)
    arguments = ["--out", tmp_path / "p", "--samples", 3, *DATASET[1:], "-d", "disc", "mvtec", data, textures]
    done = cli("preview", *arguments)
    assert done.returncode == 0, done.stdout
    sheet = cv2.imread(str(tmp_path / "p" / "mvtec_disc.png"))
    assert sheet.shape == (36 + 6 + 3 * (64 + 18 + 6), 6 + 5 * (64 + 6), 3)
    first = sheet[36 + 6 + 18 :][:64]
    image, mask, augmented = (first[:, 6 + c * 70 :][:, :64].astype(int) for c in (0, 2, 4))
    assert np.isin(mask, (0, 255)).all()
    changed = np.abs(image - augmented).max(2) > 3
    assert changed.any()
    assert not (changed & (mask[..., 0] == 0)).any()
    again = cli("preview", "--out", tmp_path / "q", *arguments[2:])
    assert again.returncode == 0
    assert (tmp_path / "q" / "mvtec_disc.png").read_bytes() == (tmp_path / "p" / "mvtec_disc.png").read_bytes()


# ---------------------------------------------------------------------------------- worker processes


def test_workers_that_are_sent_their_data_and_none_and_no_cache_give_the_same_weights(tmp_path, textures):
    """Workers on Windows and macOS get everything by pickle, as from a fork server; no number depends on that."""
    data, _ = make_mvtec(tmp_path)
    weights, short = [], ("--meta_epochs", 1)
    for name, flags in (("sent", ("--num_workers", 1)), ("none", ()), ("bare", ("--cache_gb", 0))):
        if name == "sent":
            places = ("--gpu", -1, "--results_path", tmp_path / name)
            call = [str(a) for a in (*places, *NET, *short, *DATASET, *flags, "folder", data, textures)]

            def work(call=call):
                multiprocessing.set_forkserver_preload(["datasets.loaders", "datasets.training_set"])
                multiprocessing.set_start_method("forkserver", force=True)
                run_main(call)()

            done = Forked(work).finish()
            assert done.returncode == 0, done.stdout
        else:
            done = run(data, textures, tmp_path / name, *flags, net=short)
            assert done.exit_code == 0, done.output
        state = torch.load(tmp_path / name / "models/backbone_0/folder_disc/ckpt.pth", weights_only=True)
        weights.append(state["discriminator"])
    assert multiprocessing.get_start_method() == "fork"  # else the first is nothing special
    for other in weights[1:]:
        assert all(torch.equal(weights[0][key], other[key]) for key in other)


def test_a_spawned_worker_gives_the_same_items(tmp_path):
    """As workers start on Windows and macOS: a new process that imports what it needs and gets the rest by pickle."""
    dataset = train_set(tmp_path)
    sampler = EpochSampler(len(dataset), 0)
    spawned = DataLoader(
        dataset, 2, sampler=sampler, num_workers=1, multiprocessing_context="spawn", collate_fn=make_loader(dataset, 2, 0).collate_fn
    )  # fmt: skip
    for ours, other in zip(make_loader(dataset, 2, 0, sampler), spawned, strict=True):
        assert ours.keys() == other.keys()
        assert all(torch.equal(ours[name], other[name]) for name in ours if isinstance(ours[name], torch.Tensor))
