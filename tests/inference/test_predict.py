"""The command `predict`: results equal to those of the tester, inputs, resuming, and wrong usage."""

import csv
import json
import os
import shutil
import signal
import time
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from forked import Forked, run_main
from helpers import cli, cli_process, shape_of_part
from PIL import Image

from inference import checkpoint, predict


def run(*arguments, **kwargs):
    return cli("predict", *arguments, **kwargs)


def table(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def last_line(done):
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert "Traceback" not in done.stdout
    return lines[-1]


# ------------------------------------------------------------------------------- all ways agree


def test_tester_library_and_command_give_the_same_results(trained, tiny, folder, model, tmp_path):
    judged = pd.read_csv(trained[0] / "per_image.csv")
    done = run("--checkpoint", folder, tiny[0] / "disc" / "test", "--out", tmp_path, "--save")
    assert done.returncode == 0, done.stdout
    rows = table(tmp_path)
    assert set(rows) == set(judged.path)
    for one in judged.itertuples():
        row, result = rows[one.path], model.predict_image(one.path)
        assert float(row["score"]) == pytest.approx(one.score, abs=1e-5)
        assert result.score == pytest.approx(one.score, abs=1e-5)
        assert float(row["normalised_score"]) == pytest.approx(one.normalised_score, abs=1e-4)
        assert int(row["decision"]) == one.decision == int(result.decision)
        assert float(row["seconds"]) > 0
        name = os.path.join(*one.path.split("/")[-2:])[:-4]
        raw = np.asarray(Image.open(tmp_path / "maps" / f"{name}.tiff"))
        assert raw.dtype == np.float32
        np.testing.assert_allclose(raw, result.map, atol=1e-6)
        mask = cv2.imread(str(tmp_path / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert ((mask > 0) == result.mask).mean() > 0.999
        assert result.mask.mean() == pytest.approx(one.mask_area, abs=1e-3)
        assert cv2.imread(str(tmp_path / "overlays" / f"{name}.png")).shape == (64, 64, 3)


# -------------------------------------------------------------------------------------- inputs


def test_files_folders_patterns_and_lists_are_inputs(folder, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "in/b.png", "in/deep/b.PNG", "in/.hidden.png", "list me.png", "x[1].png"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shape_of_part(rng, 64, False)[0]).save(tmp_path / "p" / name)
    base = tmp_path / "p"
    listed = f"{base}/list me.png\n\n{base}/a.png\n"
    done = run(
        base / "a.png", base / "in", f"{base}/x*.png", f"{base}/x[1].png", "-", "--checkpoint", folder, "--out",
        tmp_path / "o", "--save", "--maps", "npy", input=listed,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert {os.path.relpath(p, base) for p in table(tmp_path / "o")} == {
        "a.png", "in/b.png", "in/deep/b.PNG", "list me.png", "x[1].png",
    }  # fmt: skip
    saved = sorted(p.relative_to(tmp_path / "o/maps").as_posix() for p in (tmp_path / "o/maps").rglob("*.npy"))
    assert saved == ["a.npy", "b.npy", "deep/b.npy", "list me.npy", "x[1].npy"]
    assert np.load(tmp_path / "o/maps/a.npy").shape == (64, 64)


def test_json_lines(folder, tiny, tmp_path):
    (tmp_path / "empty.png").touch()
    pictures = (tiny[0] / "disc/test/good", tmp_path / "empty.png")
    done = cli_process("predict", "--checkpoint", folder, "--json", *pictures, apart=True)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4
    assert {type(line["decision"]) for line in lines[:3]} == {bool}
    assert all(0 <= line["score"] <= 1 for line in lines[:3])
    assert lines[3]["score"] is None
    assert "the file is empty" in lines[3]["error"]
    assert "1 of 4 images could not be judged" in done.stderr


def write_bad_images(folder):
    folder.mkdir()
    good = shape_of_part(np.random.default_rng(0), 64, False)[0]
    Image.fromarray(good).save(folder / "good.png")
    data = (folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(data[: len(data) // 2])
    (folder / "zero.png").touch()
    Image.fromarray(good[:1, :1]).save(folder / "point.png")
    Image.fromarray(good).convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "text.png").write_text("no picture")
    small = bytearray((folder / "point.png").read_bytes())
    small[16:24] = (30_000).to_bytes(4, "big") + (20_000).to_bytes(4, "big")
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(small)


def test_a_bad_image_becomes_a_row_and_the_others_are_judged(folder, tmp_path):
    write_bad_images(tmp_path / "p")
    done = run("--checkpoint", folder, "--out", tmp_path / "o", tmp_path / "p", "--batch_size", 2)
    assert done.returncode == 1
    assert last_line(done).startswith("Error: 5 of 7 images could not be judged; ")
    rows = {os.path.basename(p): row for p, row in table(tmp_path / "o").items()}
    assert len(rows) == 7
    for name, says in (
        ("truncated.png", "truncated"), ("zero.png", "the file is empty"), ("point.png", "1x1 pixels is too small"),
        ("text.png", "not an image of a supported"), ("huge.png", "more than --max_pixels 500000000"),
    ):  # fmt: skip
        assert says in rows[name]["error"], name
        assert rows[name]["score"] == ""
    assert float(rows["cmyk.jpg"]["score"]) > 0
    assert rows["good.png"]["error"] == ""


def test_continue_skips_finished_images_and_retries_failed_ones(folder, tiny, tmp_path):
    shutil.copytree(tiny[0] / "disc/test/good", tmp_path / "p")
    first = sorted((tmp_path / "p").iterdir())[0]
    whole = first.read_bytes()
    first.write_bytes(b"")
    assert run("--checkpoint", folder, "--out", tmp_path / "o", tmp_path / "p").returncode == 1
    refused = run("--checkpoint", folder, "--out", tmp_path / "o", tmp_path / "p")
    assert refused.returncode == 2
    assert "give --continue to continue it" in last_line(refused)
    first.write_bytes(whole)
    with (tmp_path / "o/predictions.csv").open("a") as file:
        file.write("/half/a/line,0.")
    shutil.copy(first, tmp_path / "p" / "later.png")
    done = run("--checkpoint", folder, "--out", tmp_path / "o", tmp_path / "p", "--continue")
    assert done.returncode == 0, done.stdout
    assert "2 of 4 images are judged already" in done.stdout
    text = (tmp_path / "o/predictions.csv").read_text()
    assert text.count("\n") == 5
    assert "/half" not in text
    assert len(table(tmp_path / "o")) == 4


def test_an_interrupted_run_leaves_whole_rows(folder, tmp_path):
    image = Image.fromarray(shape_of_part(np.random.default_rng(0), 64, False)[0])
    (tmp_path / "p").mkdir()
    for i in range(400):
        image.save(tmp_path / "p" / f"{i:03d}.png")
    command = [str(tmp_path / "p"), "--checkpoint", str(folder), "--out", str(tmp_path / "o"), "--batch_size", "1"]
    process = Forked(run_main(["predict", *command]))
    rows = tmp_path / "o" / "predictions.csv"
    for _ in range(600):
        if rows.exists() and rows.read_text().count("\n") > 3:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    done = process.finish(timeout=60)
    assert done.returncode == 130, done.stdout
    assert "with --continue the same command goes on" in done.stdout
    assert "Traceback" not in done.stdout
    assert rows.read_text().endswith("\n")
    done = run(*command, "--continue")
    assert done.returncode == 0, done.stdout
    assert len(table(tmp_path / "o")) == 400


def test_memory_does_not_grow_with_the_number_of_images(model, tmp_path, monkeypatch):
    alive, most = set(), [0]

    class Counted:
        def __init__(self, picture):
            self.picture, self.size = picture, picture.size
            alive.add(id(self))
            most[0] = max(most[0], len(alive))

        def __del__(self):
            alive.discard(id(self))

    plain = Image.new("RGB", (64, 64))
    monkeypatch.setattr(predict, "open_rgb", lambda *_: Counted(plain))
    monkeypatch.setattr(predict.Image, "Image", Counted)
    monkeypatch.setattr(
        model, "predict_images", lambda images: [model.result(0.5, np.zeros((64, 64), np.float32))] * len(images)
    )
    pictures = [predict.InputImage(tmp_path / f"{i}.png", f"{i}.png") for i in range(500)]
    assert predict.predict(model, pictures, predict.PredictionOptions(tmp_path, "", False, 4)) == 0
    assert most[0] <= 4 * (predict.BATCHES_AHEAD + 2)


# ------------------------------------------------------------------------------------ bad requests


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("{good}",), 2, "Missing option '--checkpoint'"),
        (("--checkpoint", "{ckpt}", "{good}"), 2, "give --out DIR for a table, --json"),
        (("--checkpoint", "{ckpt}", "{good}", "--json", "--save"), 2, "--save needs --out"),
        (("--checkpoint", "{ckpt}", "/none/such.png", "--json"), 2, "/none/such.png: no such file or folder"),
        (("--checkpoint", "{ckpt}", "{empty}", "--json"), 2, "the folder holds no image"),
        (("--checkpoint", "{ckpt}", "--json"), 2, "Missing argument"),
        (("--checkpoint", "/none.pth", "{good}", "--json"), 2, "no checkpoint /none.pth"),
        (("--checkpoint", "{empty}", "{good}", "--json"), 2, "no ckpt_best_*.pth in"),
        (("--checkpoint", "{ckpt}", "{good}", "--out", "{file}/out"), 1, "cannot be written to"),
        (("--checkpoint", "{ckpt}", "{good}", "--json", "--weights", "/none.pth"), 2, "no such file"),
        (("--checkpoint", "{ckpt}", "{good}", "--json", "--gpu", "99"), 2, "-1 is the CPU"),
    ],
)
def test_wrong_usage_ends_with_one_line(folder, tiny, tmp_path, arguments, code, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {
        "good": tiny[0] / "disc/test/good",
        "ckpt": folder,
        "empty": tmp_path / "empty",
        "file": tmp_path / "file",
    }
    done = cli("predict", *[a.format(**places) for a in arguments])
    assert done.returncode == code, done.stdout
    assert last_line(done).startswith("Error: ")
    assert says in last_line(done)


def test_a_checkpoint_without_thresholds_gives_only_scores(folder, tiny, tmp_path):
    state = torch.load(checkpoint.find_best(folder)[0], weights_only=True)
    del state["thresholds"]
    torch.save(state, tmp_path / "c.pth")
    done = run("--checkpoint", tmp_path / "c.pth", tiny[0] / "disc/test/good", "--out", tmp_path / "o", "--save")
    assert done.returncode == 0, done.stdout
    assert "no threshold: scores without decisions" in done.stdout
    assert {row["decision"] for row in table(tmp_path / "o").values()} == {""}
    assert not (tmp_path / "o" / "masks").exists()


def test_predict_is_in_the_help_and_comes_before_its_options():
    assert "predict" in cli("--help").stdout
    assert "--checkpoint" in cli("predict", "--help").stdout
    assert cli("--seed", 1, "predict").returncode == 2


def test_continue_keeps_saved_images_and_saves_missing_ones(folder, tiny, tmp_path):
    good = sorted((tiny[0] / "disc/test/good").iterdir())[:2]
    for name, source in zip(("a", "b"), good, strict=True):
        (tmp_path / name).mkdir()
        shutil.copy(source, tmp_path / name / "x.png")
    call = ("--checkpoint", folder, "--out", tmp_path / "o")
    assert cli("predict", *call, tmp_path / "a").returncode == 0
    assert not (tmp_path / "o" / "maps").exists()
    done = cli("predict", *call, "--save", "--continue", tmp_path / "a", tmp_path / "b")
    assert done.returncode == 0, done.stdout
    rows = table(tmp_path / "o")
    assert {row["saved_as"] for row in rows.values()} == {"x", "x_2"}
    first = (tmp_path / "o/maps/x.tiff").read_bytes()
    (tmp_path / "c").mkdir()
    shutil.copy(good[0], tmp_path / "c" / "x.png")
    # what was saved lies in a folder that is judged too
    done = cli("predict", *call, "--save", "--continue", tmp_path)
    assert done.returncode == 0, done.stdout
    assert len(table(tmp_path / "o")) == 3
    assert (tmp_path / "o/maps/x.tiff").read_bytes() == first


def test_a_table_of_another_model_or_another_kind_is_not_changed(folder, tiny, tmp_path):
    picture = sorted((tiny[0] / "disc/test/good").iterdir())[0]
    call = ("predict", "--checkpoint", folder, "--out", tmp_path / "o", picture)
    assert cli(*call).returncode == 0
    other = cli(*call, "--continue", "--tile", 40)
    assert other.returncode == 2
    assert "begun with another model, other tiles or another --min_area (tile, overlap)" in other.stdout
    path = tmp_path / "o" / "predictions.csv"
    for text in ("path,label\n", "path,score,normalised_score,decision,seconds,error,saved_as,mine\n"):
        path.write_text(text)
        done = cli(*call, "--continue")
        assert done.returncode == 1
        assert "is not a table that this command wrote" in done.stdout
        assert path.read_text() == text


def test_a_listed_image_that_is_missing_becomes_a_row(folder, tiny, tmp_path):
    picture = sorted((tiny[0] / "disc/test/good").iterdir())[0]
    listed = f"{picture}\n{tmp_path}/gone.png\n{picture.parent}/../good/{picture.name}\n"
    done = run("--checkpoint", folder, "--out", tmp_path / "o", "-", input=listed)
    assert done.returncode == 1
    assert "1 of 2 images could not be judged" in last_line(done)
    assert table(tmp_path / "o")[f"{tmp_path}/gone.png"]["error"]


def test_an_image_that_cannot_be_judged_does_not_affect_others(model, tmp_path, monkeypatch):
    score = model.score_pictures

    def fails(pictures):
        if any(p.size == (70, 70) for p in pictures):
            raise MemoryError
        return score(pictures)

    monkeypatch.setattr(model, "score_pictures", fails)
    for i, side in enumerate((64, 70, 66)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{i}.png")
    pictures = predict.find_pictures([str(tmp_path)])
    assert predict.predict(model, pictures, predict.PredictionOptions(tmp_path / "o", "", False, 8)) == 1
    rows = {os.path.basename(p): row for p, row in table(tmp_path / "o").items()}
    assert rows["1.png"]["error"] == "out of memory"
    assert rows["0.png"]["score"]
    assert rows["2.png"]["score"]
