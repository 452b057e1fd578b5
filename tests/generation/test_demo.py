"""The demo data: the same for a seed, in the layout of MVTec AD, every defect visible where its mask says so."""

import shutil

import numpy as np
import pytest
from helpers import cli

from datasets import DATASETS
from datasets.files import read_rgb
from datasets.masks import read_mask
from generation import demo


@pytest.mark.parametrize("name", list(demo.PARTS))
def test_defects_are_where_their_masks_are(name):
    for kind in demo.kinds_of(name):
        image, mask = demo.defective_image(name, kind, 3, 1)
        assert image.shape == (demo.SIDE, demo.SIDE, 3)
        assert 0 <= image.min() <= image.max() <= 1
        assert 10 < (mask > 0.5).sum() < 0.1 * mask.size, kind
        again = demo.defective_image(name, kind, 3, 1)[0]
        assert (image == again).all()
        assert (image != demo.defective_image(name, kind, 4, 1)[0]).any()
    good = demo.good_image(name, 3, 0)
    assert np.abs(good - demo.good_image(name, 3, 1)).mean() > 0.005


def test_a_plate_with_a_fault_is_the_same_plate_elsewhere():
    for kind in demo.FAULTS["plate"]:
        whole = demo.plate(np.random.default_rng(7))[0]
        faulty = demo.plate(np.random.default_rng(7), kind, np.random.default_rng(8))[0]
        changed = np.abs(whole - faulty).max(2) > 0.05
        assert 0.0005 < changed.mean() < 0.03


def test_the_command_writes_whole_folders_once(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TRAIN", 2)
    monkeypatch.setattr(demo, "GOOD", 1)
    monkeypatch.setattr(demo, "DEFECTIVE", 1)
    folder = tmp_path / "data"
    assert cli("demo", folder).returncode == 0
    layout = DATASETS["mvtec"](folder)
    assert layout.classes() == ["plate", "wall"]
    for name in layout.classes():
        assert len(layout.train(name)) == 2
        for sample in layout.test(name):
            size = read_rgb(sample.path).size
            assert size == (demo.SIDE, demo.SIDE)
            if sample.is_anomaly:
                assert read_mask(sample.mask).any()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    demo.make(folder, 0)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    with pytest.raises(demo.InputError, match="holds something else"):
        demo.make(folder, 1)
    # an empty folder stays the same one: "." here, and one behind a link
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    number = (tmp_path / "empty").stat().st_ino
    monkeypatch.chdir(tmp_path / "link")
    demo.make(demo.Path("."), 0)
    assert (tmp_path / "empty").stat().st_ino == number
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == ["demo.json", "plate", "wall"]
    shutil.rmtree(tmp_path / "empty" / "wall")
    with pytest.raises(demo.InputError, match="was made as demo data, but wall is missing"):
        demo.make(tmp_path / "link", 0)
    (tmp_path / "file").touch()
    with pytest.raises((demo.WorkError, demo.InputError)):
        demo.make(tmp_path / "file" / "below", 0)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
