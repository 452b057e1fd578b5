"""Saving images in `predict`: full disks and awkward names; and the work that is done before the network runs."""

import csv
import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import Brightness, cli, make_glass
from PIL import Image

from datasets.geometry import Geometry
from datasets.settings import ImageSettings
from inference import inputs, predict
from inference.inspector import Inspector
from inference.judge import PreparedImage
from inference.table import PredictionsTable
from inference.thresholds import Thresholds
from tools import script
from utils import WorkError


def write_images(folder, names):
    made = Image.new("RGB", (32, 32), (200, 200, 200))
    for name in names:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name if isinstance(name, bytes) else f"{folder}/{name}"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            made.save(file, "PNG")
    return folder


def judge(folder, out, maps="tiff", go_on=False, model=None, batch_size=4):
    pictures = predict.find_pictures([str(folder)], out=out)
    return predict.predict(
        model or Brightness(), pictures, predict.PredictionOptions(out, maps, False, batch_size), go_on
    )


def rows_of(out):
    with (out / "predictions.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {os.path.basename(row["path"]): row for row in csv.DictReader(file)}


def saved_in(out):
    return sorted(
        p.relative_to(out).as_posix() for name in inputs.SAVED for p in (out / name).rglob("*.*") if p.is_file()
    )


LONG = "b" * 251 + ".png"


def test_an_image_that_cannot_be_saved_becomes_a_row_and_leaves_no_files(tmp_path):
    write_images(tmp_path / "p", [*(f"{i}.png" for i in range(6)), LONG, "檢" * 83 + ".png", "x.png", "x.tiff/y.png"])
    for go_on in (False, True):
        assert judge(tmp_path / "p", tmp_path / "o", go_on=go_on) == 2
        rows = rows_of(tmp_path / "o")
        assert len(rows) == 10
        assert "File name too long" in rows[LONG]["error"]
        assert rows["y.png"]["error"]  # maps/x.tiff is a map already
        assert {row["score"] for row in rows.values() if row["error"]} == {""}
        assert sum(not row["error"] for row in rows.values()) == 8
    saved = saved_in(tmp_path / "o")
    assert len(saved) == 3 * 8
    assert not [name for name in saved if "bbb" in name or "/." in name]
    assert not list((tmp_path / "o").rglob(".*"))


def test_names_of_maximal_length_and_names_that_are_not_utf8_are_saved(tmp_path):
    names = [LONG, "檢" * 83 + ".png", b"00\xe9.png"]
    write_images(tmp_path / "p", names)
    assert judge(tmp_path / "p", tmp_path / "npy", maps="npy") == 0
    assert len(saved_in(tmp_path / "npy")) == 9
    (tmp_path / "p" / LONG).unlink()
    assert judge(tmp_path / "p", tmp_path / "tiff") == 0
    assert len(saved_in(tmp_path / "tiff")) == 6
    raw = Image.open(os.fsencode(tmp_path / "tiff") + b"/maps/00\xe9.tiff")
    assert np.asarray(raw).dtype == np.float32


def fail_from(monkeypatch, count, number, where="maps"):
    """Let writing fail with this error number after `count` files in a folder of this name."""
    write, left = Path.write_bytes, [count]

    def write_bytes(path, content):
        if path.parent.name == where:
            left[0] -= 1
            if left[0] < 0:
                write(path, content[: len(content) // 2])
                raise OSError(number, os.strerror(number))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota is used up"), (errno.EROFS, "read-only")],
)
def test_a_full_disk_ends_the_run_and_keeps_the_rows_so_far(tmp_path, monkeypatch, number, says):
    write_images(tmp_path / "p", [f"{i}.png" for i in range(9)])
    fail_from(monkeypatch, 5, number)
    with pytest.raises(WorkError, match=f"/5.tiff: .*{says}"):
        judge(tmp_path / "p", tmp_path / "o")
    assert list(rows_of(tmp_path / "o")) == [f"{i}.png" for i in range(5)]
    assert len(saved_in(tmp_path / "o")) == 15
    assert not list((tmp_path / "o").rglob(".*"))
    monkeypatch.undo()
    assert judge(tmp_path / "p", tmp_path / "o", go_on=True) == 0
    assert len(rows_of(tmp_path / "o")) == 9


def test_a_map_too_large_for_the_file_system_fails_only_its_image(tmp_path, monkeypatch):
    write_images(tmp_path / "p", [f"{i}.png" for i in range(3)])
    write, maps = Path.write_bytes, []

    def refuses(path, content):
        maps.extend([path] * (path.parent.name == "maps"))
        if path.parent.name == "maps" and len(maps) == 2:
            raise OSError(errno.EFBIG, "File too large")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuses)
    assert judge(tmp_path / "p", tmp_path / "o") == 1
    assert "larger than the file system or a limit" in rows_of(tmp_path / "o")["1.png"]["error"]


def test_running_out_of_memory_at_an_overlay_fails_only_its_image(tmp_path):
    class Scarce(Brightness):
        def overlay(self, image, result):
            if image.size == (40, 32):
                raise MemoryError
            return super().overlay(image, result)

    write_images(tmp_path / "p", ["0.png", "2.png"])
    Image.new("RGB", (40, 32)).save(tmp_path / "p/1.png")
    assert judge(tmp_path / "p", tmp_path / "o", model=Scarce()) == 1
    assert "out of memory" in rows_of(tmp_path / "o")["1.png"]["error"]


def test_folders_that_cannot_be_made_stop_the_run_before_the_first_image(tmp_path):
    write_images(tmp_path / "p", ["0.png"])
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "maps").touch()
    with pytest.raises(WorkError, match=r"cannot make the folder .*/maps"):
        judge(tmp_path / "p", tmp_path / "o")
    assert not rows_of(tmp_path / "o")


def test_a_table_on_a_full_disk_keeps_whole_rows(tmp_path, monkeypatch):
    table = PredictionsTable(tmp_path, False, {}, False)
    table.add([{"path": "a.png", "score": "1"}])
    whole = (tmp_path / "predictions.csv").read_bytes()

    class NearlyFull:
        def __init__(self, file):
            self.file, self.room = file, 10

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            done, self.room = self.file.write(data[: self.room]), 0
            return done

    table._file = NearlyFull(table._file)
    with pytest.raises(WorkError, match=r"predictions\.csv: the disk is full"):
        table.add([{"path": "b.png", "score": "1"}])
    table.close()
    assert (tmp_path / "predictions.csv").read_bytes() == whole


def test_json_lines_on_a_full_disk(monkeypatch):
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", full)
        with pytest.raises(WorkError, match="standard output: the disk is full"):
            predict.print_json_lines([{"path": "a", "error": ""}])


# ------------------------------------------------------------------------------ before the network


@pytest.fixture(scope="module")
def inspector():
    glass = make_glass()
    settings = ImageSettings(resize=80, imagesize=64)
    return Inspector(glass.scorer(), {"config": {}, "thresholds": Thresholds(0.5, 0.5).plain()}, settings)


def test_images_are_resized_by_the_threads_that_read_them(inspector, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(tmp_path / "p" / f"{i}.png")
    threads, resized = [], ImageSettings.resized

    def noted(settings, image):
        threads.append(threading.current_thread())
        return resized(settings, image)

    monkeypatch.setattr(ImageSettings, "resized", noted)
    assert judge(tmp_path / "p", tmp_path / "o", maps="npy", model=inspector, batch_size=2) == 0
    assert len(threads) == 6
    assert threading.main_thread() not in threads
    paths = sorted((tmp_path / "p").iterdir())
    for pair in (paths[:2], paths[2:4], paths[4:]):
        for path, result in zip(pair, inspector.predict_images(pair), strict=True):
            assert (np.load(tmp_path / "o/maps" / f"{path.stem}.npy") == result.map).all()


def test_the_prepared_input_counts_as_memory(inspector):
    image = Image.new("RGB", (32, 32))
    ready = inspector.prepare_ahead(image)
    assert isinstance(ready, PreparedImage)
    assert predict.memory_in_pixels(ready) == 32 * 32 + 4 * 64 * 64
    assert inspector.predict_images([ready])[0].score == inspector.predict_image(image).score
    assert predict.memory_in_pixels(image) == 32 * 32


def test_a_narrow_image_is_refused_before_it_is_resized(inspector, tmp_path, monkeypatch):
    monkeypatch.setattr("inference.judge.MOST_PIXELS", 1 << 20)
    monkeypatch.setattr(ImageSettings, "resized", lambda *_: pytest.fail("was resized"))
    Image.new("L", (60_000, 20)).save(tmp_path / "narrow.png")
    assert judge(tmp_path, tmp_path / "o", maps="", model=inspector) == 1
    assert "too long and narrow" in rows_of(tmp_path / "o")["narrow.png"]["error"]


def test_no_images_give_no_results(inspector):
    assert inspector.predict_images([]) == []
    assert Brightness().predict_images(()) == []
    scores, maps = inspector.score_pictures([])
    assert scores.shape == (0,)
    assert maps.shape == (0, 64, 64)
    graph_judge = script("ort").GraphJudge
    graph = graph_judge.__new__(graph_judge)
    graph.geometry, graph.thresholds = Geometry(imagesize=64), None
    assert graph.predict_images([]) == []
    assert graph.score_pictures([])[1].shape == (0, 64, 64)


# ------------------------------------------------------------------------- options before the word


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--gpu", "-1", "predict", "x.png", "--json", "--checkpoint", "c"), 2, "x.png: no such file"),
        (
            ("--gpu=-1", "--batch-size", "4", "predict", "--json", "--checkpoint", "c", "x.png"),
            2,
            "x.png: no such file",
        ),
        (("--checkpoint", "predict", "--json", "predict", "x.png"), 2, "x.png: no such file"),
        (("--batch_size", "0", "predict", "x.png", "--json", "--checkpoint", "c"), 2, "'--batch_size': 0 is not in"),
        (("--seed", "1", "predict", "x.png", "--checkpoint", "c"), 2, "--seed is not an option of predict"),
        (("--gpu", "-1", "--results_path", "r", "predict"), 2, "--results_path is not an option of predict"),
        (("--none", "1", "predict", "x.png"), 2, "No such option '--none'"),
        (("--test", "predict"), 2, "'--test': 'predict' is not one of"),
        (("--gpu", "-1", "predict"), 2, "Missing"),
        (("--help", "predict"), 0, "Judge images: files"),
    ],
)
def test_options_may_come_before_the_word_predict(arguments, code, says):
    done = cli(*arguments)
    assert done.returncode == code, done.stdout
    assert says in done.stdout
    assert done.stdout.startswith("Error: " if code else "Usage: ")
