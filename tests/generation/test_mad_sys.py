"""Test sets of weak defects: their content, that only β differs, that they can be continued."""

import json

import numpy as np
import pytest
from helpers import cli, make_mvtec

from datasets import MVTecLayout
from datasets.files import read_rgb
from datasets.masks import read_mask
from generation import mad_sys
from utils import InputError


def make(*arguments):
    return cli("mad-sys", *arguments)


def pixels(path):
    return np.asarray(read_rgb(path)).astype(int)


@pytest.fixture
def sources(tmp_path):
    return make_mvtec(tmp_path)


def test_subsets_differ_by_beta_alone(sources, tmp_path):
    data, textures = sources
    out = tmp_path / "out"
    done = make(data, textures, out, "-d", "disc", "--beta", "0.1", "0.5", "0.9", "--count", 4)
    assert done.returncode == 0, done.stdout
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["Beta_0.1", "Beta_0.5", "Beta_0.9"]
    strength = []
    for beta in (0.1, 0.5, 0.9):
        test = MVTecLayout(out / f"Beta_{beta}").test("disc")
        good, defects = [s for s in test if not s.is_anomaly], [s for s in test if s.is_anomaly]
        assert (len(good), len(defects)) == (3, 4)
        for sample in good:
            assert sample.path.read_bytes() == (data / "disc/test/good" / sample.path.name).read_bytes()
        change = 0
        for i, sample in enumerate(defects):
            normal, mask = pixels(data / f"disc/test/good/{i % 3:03d}.png"), read_mask(sample.mask).astype(bool)
            shown = pixels(sample.path)
            assert mask.any()
            assert np.array_equal(shown[~mask], normal[~mask])
            same = out / "Beta_0.5" / "disc" / "ground_truth" / "synthetic" / sample.mask.name
            assert np.array_equal(mask, read_mask(same))
            change += np.abs(shown - normal)[mask].sum()
        strength.append(change)
    # (1 − β) of the same difference
    assert strength[1] / strength[0] == pytest.approx(0.5 / 0.9, abs=0.03)
    assert strength[2] / strength[0] == pytest.approx(0.1 / 0.9, abs=0.03)


def test_killed_run_goes_on_and_ends_alike(sources, tmp_path):
    data, textures = sources
    arguments = (data, textures, tmp_path / "out", "-d", "disc", "--beta=0.3", "--seed", 3)
    assert make(*arguments).returncode == 0
    files = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.png")}
    assert len(files) == 3 + 2 * round(3 * 946 / 320)
    for path in list(files)[::2]:
        path.unlink()
    assert make(*arguments).returncode == 0
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.png")} == files
    assert json.loads((tmp_path / "out" / "mad_sys.json").read_text())["seed"] == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--seed", 4), "made with other settings (seed was 3, is 4)"),
        (("-d", "cup"), "unknown class 'cup'"),
        (("--beta", 1.5), "1.5 is not in the range"),
        (("--beta", "nan"), "nan is not a finite number"),
        (("--beta", "0.2", "0,3"), "'0,3' is not a valid float"),
    ],
)
def test_what_cannot_be_made(sources, tmp_path, change, says):
    data, textures = sources
    arguments = [data, textures, tmp_path / "out", "-d", "disc", "--beta", 0.3, "--count", 1, "--seed", 3]
    assert make(*arguments).returncode == 0
    if change[0] == "-d":
        arguments[4] = change[1]
    else:
        arguments += change
    done = make(*arguments)
    assert done.returncode == 2
    assert says in done.stdout
    with pytest.raises(InputError, match=r"has none of carpet, grid, leather, tile, wood; .* it has disc"):
        mad_sys._choose(MVTecLayout(data), [])


def test_anomaly_covers_images_of_any_shape():
    from datasets.textures import BuiltinTextures

    rng = np.random.default_rng(0)
    for shape in ((40, 90, 3), (90, 40, 3), (33, 33, 3)):
        image = np.full(shape, 100, np.uint8)
        mask, texture = mad_sys.make_anomaly(rng, image, BuiltinTextures(0).read(3))
        assert mask.shape == shape[:2]
        assert texture.shape == shape
        assert mask.any()


def test_output_does_not_join_the_source(sources):
    data, textures = sources
    for out in (data, data / "weak"):
        done = make(data, textures, out, "-d", "disc")
        assert done.returncode == 2
        assert "lies in MVTEC" in done.stdout
    assert [p.name for p in data.iterdir()] == ["disc"]
