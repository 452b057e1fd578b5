"""Where two parts of a run meet: what one of them leaves is what the other one takes."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from helpers import make_mvtec
from test_runs import run
from test_training_state import names, stop
from test_waste import kept_class

from datasets.depth import find_depth
from datasets.files import DEFAULT, read_header
from inference.inspector import load_checkpoint
from reporting import class_record, page
from reporting import tables as report
from training import saving
from utils import WorkError


def test_a_damaged_report_that_is_written_anew_later_stops_nothing(tmp_path):
    class_record.save(tmp_path, "a", kept_class("a"))
    damaged = tmp_path / class_record.FOLDER / "b.json"
    damaged.write_text(json.dumps({"row": "b"}))
    written = page.Page(tmp_path)
    written.check(replaced_rows=("a", "b"))
    report.write_results(tmp_path, {"a": kept_class("a")["figures"]})
    written.write()
    class_record.save(tmp_path, "b", kept_class("b"))
    written.write()
    assert (tmp_path / page.FILE).read_text().count("<section id=") == 2
    damaged.write_text("{")
    with pytest.raises(WorkError, match=r"b\.json"):
        written.write()


def deep(path, top, kind=np.uint16):
    cv2.imwrite(str(path), np.linspace(0, top, 64 * 64).reshape(64, 64).astype(kind))
    return path


@pytest.mark.parametrize(("given", "train_top"), [("auto", None), (16, 4000)])
def test_pictures_that_will_look_dark_are_named(tmp_path, given, train_top):
    """8-bit training images with 12-bit test images, and a model of 16 bits tested on 12-bit images."""
    first = deep(tmp_path / "0.png", 200, np.uint8) if train_top is None else deep(tmp_path / "0.png", train_top)
    other = deep(tmp_path / "1.png", 4000)
    found = find_depth(given, [first], [other], {p: read_header(p) for p in (first, other)}, DEFAULT)
    assert found.bits == 16
    assert any("goes beyond 12 (brightest value 4000): they look dark; --bits 12" in line for line in found.warnings)
    deep(other, 60_000)
    found = find_depth(given, [first], [other], {p: read_header(p) for p in (first, other)}, DEFAULT)
    assert not any("look dark; --bits" in line for line in found.warnings)


def test_other_bits_than_those_of_a_finished_class_are_refused(tmp_path):
    data, textures = make_mvtec(tmp_path)
    for path in (data / "disc").rglob("*.png"):
        if "ground_truth" not in path.parts:
            cv2.imwrite(str(path), cv2.imread(str(path), 0).astype(np.uint16) * 16)
    assert run(data, textures, tmp_path / "r").exit_code == 0
    (tmp_path / "r/models/backbone_0/folder_disc/ckpt.pth").unlink()  # the chosen checkpoint alone is left
    again = run(data, textures, tmp_path / "r", "--bits", 16)
    assert again.exit_code == 2
    assert "--bits 16: class disc was trained with 12; omit the option" in again.output


def test_what_the_thresholds_come_from_is_no_other_model(trained):
    identity = load_checkpoint(trained[0] / "models" / "backbone_0" / "custom_disc").identity()
    assert identity["thresholds"]["image"] > 0
    assert "data" not in identity["thresholds"]


def test_a_killed_training_is_taken_by_predict_as_by_a_test(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SAVE_EVERY", 0)
    stop(tmp_path, monkeypatch, 1, killed=True, select="last")
    assert names(tmp_path) == ["ckpt.pth"]
    with pytest.raises(WorkError, match=r"ckpt\.pth does not say how it was trained"):  # found; without data settings
        load_checkpoint(tmp_path / "class")


def test_no_more_than_the_interval_is_at_stake(tmp_path, monkeypatch):
    clock, written = [0.0], []

    def write(saver, latest, best):
        saver._written, saver._waiting = clock[0], None
        written.append(clock[0])

    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(saving.Saver, "_write", write)
    saver = saving.Saver(tmp_path)
    for i in range(6):  # epochs of 20 s: the next one would end beyond 30 s
        clock[0] = 20.0 * i
        saver.put({"record": {"best": None}})
    assert written == [0, 20, 40, 60, 80, 100]
    for i in range(90):  # of a second
        clock[0] = 101.0 + i
        saver.put({"record": {"best": None}})
    assert np.diff(written[-3:]).tolist() == [29.0, 29.0]


def test_a_new_damaged_image_is_not_left_out_unasked(tmp_path):
    data, textures = make_mvtec(tmp_path, train=4)
    shutil.rmtree(data / "disc/test")
    first = run(data, textures, tmp_path / "r", net=("--meta_epochs", 1))
    assert first.exit_code == 0, first.output
    content = bytearray((data / "disc/train/good/000.png").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    (data / "disc/train/good/9.png").write_bytes(content)
    again = run(data, textures, tmp_path / "r", net=("--meta_epochs", 2))
    assert again.exit_code == 1
    assert "9.png: cannot be read" in again.output
    assert "--skip_bad leaves unreadable images out" in again.output


def test_the_results_of_all_seeds_are_looked_at_before_the_first_trains(tmp_path):
    data, textures = make_mvtec(tmp_path)
    seeds = ("--seed", 0, "--seed", 1)
    assert run(data, textures, tmp_path / "r", main=seeds, net=("--meta_epochs", 1)).exit_code == 0
    folder = tmp_path / "r/seed_1/models/backbone_0/folder_disc"
    state = torch.load(folder / "ckpt.pth", weights_only=True)
    before = (tmp_path / "r/seed_0/results.csv").read_bytes()
    state["config"]["split_seed"] = 1
    torch.save(state, folder / "ckpt.pth")
    again = run(data, textures, tmp_path / "r", main=seeds, net=("--meta_epochs", 2))
    assert again.exit_code == 2
    assert f"--seed 1 --results_path {tmp_path / 'r/seed_1'} … dataset --split_seed 1" in again.output
    (folder / "ckpt.pth").write_bytes(b"nothing")
    again = run(data, textures, tmp_path / "r", main=seeds, net=("--meta_epochs", 2))
    assert again.exit_code == 1
    assert "seed_1" in again.output.splitlines()[-1]
    assert (tmp_path / "r/seed_0/results.csv").read_bytes() == before


def test_a_single_seed_does_not_mix_with_the_mean_of_several(tmp_path):
    data, textures = make_mvtec(tmp_path)
    (tmp_path / "r/seed_0/models").mkdir(parents=True)
    done = run(data, textures, tmp_path / "r")
    assert done.exit_code == 2
    assert "holds runs with several seeds and their mean; give the same seeds again" in done.output
    assert not (tmp_path / "r/results.csv").exists()


def test_a_model_of_8_bits_says_that_pictures_of_12_look_dark(trained, caplog):
    model = load_checkpoint(trained[0] / "models" / "backbone_0" / "custom_disc")
    values = np.full((64, 64), 4000, np.uint16)
    for _ in range(2):
        model.predict_image(values)
    assert caplog.text.count("has no value above 4000, so that it looks dark") == 1
    model.predict_image(values * 16)
    assert caplog.text.count("looks dark") == 1
