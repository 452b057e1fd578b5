"""Images of cameras with 10, 12 or 14 bits in 16-bit files: one depth from the training to the exported graph."""

import os

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import DATASET, NET, cli, make_textures
from image_files import png, tiff
from PIL import Image

from datasets import ImageSettings, Sample
from datasets.defects import Defects, refuse_test_images
from datasets.depth import bits_of, find_depth, read_as_found
from datasets.files import CLIPPED, ReadOptions, read_header, read_peak, read_rgb, to_8_bits
from datasets.foreground_masks import make_masks
from glass import load_checkpoint
from inference import checkpoint
from tools import script
from training import saving
from utils import InputError

RNG = np.random.default_rng(0)
LOW = RNG.integers(0, 256, (64, 64)).astype(np.uint16)
LOW[0, 0], LOW[0, 1] = 0, 255


def save(values, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png" and values.ndim == 3:
        path.write_bytes(png(values, 2))
    elif path.suffix == ".tif":
        path.write_bytes(tiff(values))
    else:
        Image.fromarray(values).save(path)
    return path


def found(given, paths, others=(), **options):
    headers = {path: read_header(path) for path in (*paths, *others)}
    return find_depth(given, paths, list(others), headers, ReadOptions(**options))


# --------------------------------------------------------------------------------------- arithmetic


def test_16_bits_stay_what_they_were_to_the_digit():
    values = np.arange(65536, dtype=np.uint16)
    assert (to_8_bits(values) == np.floor(values / 257 + 0.5)).all()
    for bits in range(8, 16):
        top = (1 << bits) - 1
        wanted = np.floor(np.minimum(values, top) * 255.0 / top + 0.5)
        assert (np.abs(to_8_bits(values, bits) - wanted) <= 0).all()
    assert to_8_bits(LOW.astype(np.uint8), 12) is not None
    assert [bits_of(peak) for peak in (0, 255, 256, 1023, 1024, 4095, 4096, 16383, 16384, 65520)] == [
        8, 8, 10, 10, 12, 12, 14, 14, 16, 16,
    ]  # fmt: skip


# --------------------------------------------------------------------------------------- what is found


@pytest.mark.parametrize(("factor", "bits"), [(1, 8), (4, 10), (16, 12), (64, 14), (256, 16), (257, 16)])
@pytest.mark.parametrize("kind", ["gray.png", "colour.png", "gray.tif", "colour.tif"])
def test_the_depth_is_found(tmp_path, factor, bits, kind):
    values = LOW * factor if kind.startswith("gray") else np.stack([LOW, LOW[::-1], 0 * LOW], 2) * np.uint16(factor)
    path = save(values.astype(np.uint16), tmp_path / kind)
    depth = found("auto", [path])
    assert depth.bits == bits
    assert f"{bits} bits are in use" in depth.lines[0]
    assert not depth.warnings
    shown = np.asarray(read_rgb(path, ReadOptions(bits)))[..., 0]
    assert np.abs(shown - LOW.astype(int)).max() <= 1
    assert read_rgb(path, ReadOptions(bits)).info == {}


def test_images_that_do_not_fit_the_depth_are_reported(tmp_path):
    twelve = [save(LOW * 16, tmp_path / f"{i}.png") for i in range(4)]
    bright = save(LOW * 257, tmp_path / "bright.png")
    eight = save(LOW.astype(np.uint8), tmp_path / "eight.png")
    assert not found("auto", twelve).warnings
    (said,) = found("auto", twelve, [bright]).warnings  # a test picture does not decide
    assert "1 pictures are brighter than 12 bits allow, such as" in said
    assert "--bits 16 holds them all" in said
    (said,) = found("auto", [*twelve, bright]).warnings
    assert "mixed depth? 4 of 5 use 12 bits or less" in said
    (said,) = found("auto", [*twelve, eight]).warnings
    assert "1 pictures have 8 bits a channel" in said
    (said,) = found(10, twelve).warnings
    assert "4 pictures are brighter than 10 bits allow" in said
    (said,) = found(16, twelve).warnings  # as a model of 16 bits that is tested on them
    assert "they look dark; --bits 12" in said
    assert read_rgb(bright, ReadOptions(12)).info == {CLIPPED: 65535}
    assert np.asarray(read_rgb(bright, ReadOptions(12))).max() == 255


def test_8_bits_cost_nothing(tmp_path, monkeypatch):
    paths = [save(LOW.astype(np.uint8), tmp_path / f"{i}.png") for i in range(3)]
    monkeypatch.setattr("datasets.depth.read_peak", None)
    assert found("auto", paths).bits == found(12, paths).bits + 4 == 16
    deep = save(LOW * 16, tmp_path / "deep.png")
    monkeypatch.setattr("datasets.depth.read_peak", lambda path, _: read_peak(path))
    assert found("auto", [*paths, deep]).bits == 12


def test_everything_that_reads_takes_the_depth(tmp_path, log):
    path = save(LOW * 16, tmp_path / "d" / "cap" / "good" / "0.png")
    samples = [Sample(path)]
    reading = read_as_found("cap", "auto", samples, ReadOptions())
    assert reading.bits == 12
    assert "12 bits are in use" in log.text
    bright = np.asarray(read_rgb(path, reading))
    tile = Sample(path, box=(0, 0, 64, 64))
    assert (np.asarray(tile.read(reading)) == bright).all()
    assert np.asarray(tile.read()).max() < 20  # what was read with one depth is not given for another
    shown = Defects([(path, None)], ImageSettings(resize=64, imagesize=64, bits=12))
    assert (shown._images[0] == bright).all()
    copy = tmp_path / "copy.png"
    Image.fromarray(bright).save(copy)
    refuse_test_images([(copy, None)], samples)  # looks like another picture at 16 bits
    with pytest.raises(InputError, match="is the test image"):
        refuse_test_images([(copy, None)], samples, reading)
    first = make_masks(samples, tmp_path / "masks", show_progress=False, reading=reading)
    written = os.stat(first[0]).st_mtime_ns
    make_masks(samples, tmp_path / "masks", show_progress=False, reading=reading)
    assert os.stat(first[0]).st_mtime_ns == written
    make_masks(samples, tmp_path / "masks", show_progress=False)  # of another depth it is computed again
    assert os.stat(first[0]).st_mtime_ns != written
    result = cli("check", "folder", tmp_path / "d", tmp_path / "d")
    assert "note: cap: 1 files with more than 8 bits a channel: 12 bits are in use" in result.stdout
    assert "note: textures: 1 files with more than 8 bits a channel: 12 bits" in result.stdout


def test_the_preview_shows_what_the_training_gets(tmp_path):
    for i in range(2):
        save(LOW * 16, tmp_path / "d" / "cap" / "good" / f"{i}.png")
    arguments = ["--fg", 0, "--resize", 64, "--imagesize", 64, "--out", tmp_path, "folder", tmp_path / "d", "builtin"]
    for bits, low, high in (("auto", 100, 160), ("16", 0, 20)):
        done = cli("preview", "--bits", bits, *arguments)
        assert done.returncode == 0, done.stdout
        sheet = np.asarray(Image.open(tmp_path / "folder_cap.png"))
        image = sheet[2 * 18 + 6 + 18 :, 6 : 6 + 64][:64]
        assert low < image.mean() < high


@pytest.mark.parametrize("bits", ["7", "17", "12.5", "deep", ""])
def test_a_depth_that_there_is_not(bits):
    done = cli("dataset", "--bits", bits, "folder", "x", "builtin")
    assert done.returncode == 2
    assert "possible: auto, or bits from 8 to 16" in done.stdout


# --------------------------------------------------------------------------- from training to graph


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training on 12-bit pictures: their folder, the results, and what was said."""
    root = tmp_path_factory.mktemp("deep")
    for i in range(4):
        noise = RNG.normal(0, 40, (64, 64))
        disc = np.hypot(*(np.mgrid[:64, :64] - 32)) < 22
        save((np.where(disc, 2500, 1000) + noise).astype(np.uint16), root / "d" / "cap" / "good" / f"{i}.png")
    save(np.full((64, 64), 50000, np.uint16), root / "d" / "cap" / "bad" / "0.png")
    save((np.hypot(*(np.mgrid[:64, :64] - 32)) < 9).astype(np.uint8), root / "d" / "cap" / "masks" / "bad" / "0.png")
    command = ["--gpu", -1, "--results_path", root / "res", *NET, *DATASET, "--test_share", 0.3, "folder", root / "d"]
    make_textures(root / "textures", RNG)
    return root, [*command, root / "textures"]


def test_a_training_keeps_its_depth_for_all_that_follows(run, log):
    root, command = run
    done = cli(*command)
    assert done.returncode == 0, done.stdout
    assert "12 bits are in use" in log.text
    assert "1 pictures are brighter than 12 bits allow, such as" in log.text
    folder = root / "res" / "models" / "backbone_0" / "folder_cap"
    best = checkpoint.find_best(folder)[0]
    assert checkpoint.load(best)["config"]["bits"] == 12
    path = root / "d" / "cap" / "good" / "0.png"
    values = np.asarray(Image.open(path)).astype(np.uint16)
    eight = to_8_bits(values, 12)
    model = load_checkpoint(folder)
    wanted = model.predict_image(eight).score
    deep = Image.fromarray(values)
    assert deep.mode == "I;16"
    for picture in (path, values, values[..., None], np.stack([values] * 3, 2), deep):
        assert model.predict_image(picture).score == wanted
    log.clear()
    for _ in range(2):
        model.predict_images([values * 4, deep])
    assert log.text.count("the model was trained with 12 bits, where white is 4095") == 1

    export = script("pth2onnx")
    out = root / "model.onnx"
    done = CliRunner().invoke(export.main, [str(folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    judge = export._beside("ort").GraphJudge(out)
    assert judge.reading == ReadOptions(12)
    assert judge.predict_image(path).score == judge.predict_image(values).score == judge.predict_image(eight).score
    prepared = export.quantisation.CalibrationImages(model, [path]).get_next()["normalised_image"]
    assert (prepared == model.prepare(Image.fromarray(eight).convert("RGB"))[None].numpy()).all()

    log.clear()  # the same again, and with another depth
    assert cli(*["--test", "test", *command]).returncode == 0
    assert "12 bits of 16-bit files are in use, as the model was trained" in log.text
    command = [*command[:-3], "--bits", "14", *command[-3:]]
    for call in (["--test", "test", *command], command):
        done = cli(*call)
        assert done.returncode == 2
        assert "bits" in done.stdout
        assert "12" in done.stdout
    for path in folder.glob("ckpt*.pth"):  # made before there was a choice
        state = checkpoint.load(path)
        del state["config"]["bits"], state["config"]["max_pixels"]
        saving.save(state, path)
    assert load_checkpoint(folder).reading == ReadOptions(16)
    log.clear()
    assert cli(*run[1]).returncode == 0
    assert "16 bits of 16-bit files are in use, as the model was trained" in log.text
