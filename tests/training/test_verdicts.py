"""Where verdicts are written, and that no run is changed by its own."""

import shutil
import threading

import pandas as pd
import pytest
from helpers import make_mvtec
from test_runs import run

from inference import checkpoint
from training import distribution


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def verdicts(folder):
    table = pd.read_excel(distribution.excel_path("mine", folder))
    return {row: (flag, foreground) for row, flag, foreground in table.to_numpy().tolist()}


def test_published_files_are_only_read(tmp_path, monkeypatch):
    monkeypatch.setattr(distribution, "EXCEL_DIR", distribution.PUBLISHED_DIR)
    before = contents(distribution.PUBLISHED_DIR)
    for row, flag in (("mine_a", 1), ("mine_b", 0), ("mine_a", 0)):
        distribution.keep_verdict(tmp_path, "mine", row, flag, 0)
    assert verdicts(tmp_path / "distribution") == {"mine_b": (0, 0), "mine_a": (0, 0)}
    assert contents(distribution.PUBLISHED_DIR) == before
    assert distribution.read_flags("mine", "mine_a") is None


def test_a_folder_of_the_users_is_written_too_but_not_what_would_be_turned_round(tmp_path):
    distribution.keep_verdict(tmp_path, "mine", "mine_a", 1, 1)
    assert distribution.read_flags("mine", "mine_a") == (1, 1)
    distribution.keep_verdict(tmp_path, "mine", "mine_b", 1, 4)
    assert distribution.read_flags("mine", "mine_b") is None
    assert verdicts(tmp_path / "distribution") == {"mine_a": (1, 1), "mine_b": (1, 1)}


@pytest.mark.parametrize("how", ["no folder", "damaged"])
def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog, how):
    folder = tmp_path / "user"
    if how == "no folder":
        folder.write_text("a file")
    else:
        folder.mkdir()
        distribution.excel_path("mine", folder).write_text("not Excel")
    monkeypatch.setattr(distribution, "EXCEL_DIR", folder)
    distribution.LOGGER.propagate = True
    distribution.keep_verdict(tmp_path, "mine", "mine_a", 1, 1)
    assert "mine_a: the verdict (hypersphere) is not saved: cannot" in caplog.text
    assert verdicts(tmp_path / "distribution") == {"mine_a": (1, 1)}


def test_verdicts_written_at_the_same_time_are_all_kept(tmp_path):
    writers = [
        threading.Thread(target=distribution.write_flag, args=("mine", f"mine_{i}", 1, tmp_path)) for i in range(6)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(verdicts(tmp_path)) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["mine_distribution.xlsx"]


@pytest.mark.parametrize(("mode", "published"), [(0, True), (0, False), (4, False)])
def test_the_second_run_gets_the_variant_of_the_first(tmp_path, monkeypatch, mode, published):
    if published:
        monkeypatch.setattr(distribution, "EXCEL_DIR", distribution.PUBLISHED_DIR)
    monkeypatch.setattr(distribution, "judge", lambda image: distribution.HYPERSPHERE)
    data, textures = make_mvtec(tmp_path, train=2, good=1, defective=1)
    shutil.rmtree(data / "disc/test")
    config = []
    for _ in range(2):
        done = run(data, textures, tmp_path / "r", "--distribution", mode, net=("--meta_epochs", 1))
        assert done.exit_code == 0, done.output
        config.append(checkpoint.config_of(tmp_path / "r/models/backbone_0/folder_disc"))
        shutil.rmtree(tmp_path / "r/models")
    assert [one["svd"] for one in config] == [1, 1]
    assert config[0]["verdict"] == 1
    assert (tmp_path / "r/distribution/folder_distribution.xlsx").is_file()
