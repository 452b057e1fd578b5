"""Files that cannot be written: what is said, and that nothing half-written is left."""

import errno
import gc
import os
import resource
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch

import utils
from commands.command import describe, exit_code
from datasets import foreground_masks
from generation import demo
from inference import checkpoint
from reporting import drawing
from reporting import tables as report
from reporting import tensorboard as tensorboard_log
from training import distribution, saving
from utils import WorkError


@contextmanager
def small_files(size=1000):
    """No file may become larger, which fails where a full disk would, in every library alike."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
TABLE = pd.DataFrame({name: np.arange(300) / 7 for name in report.COLUMNS}, index=[f"row {i}" for i in range(300)])
WRITERS = {
    "ckpt.pth": lambda path: saving.save({"x": torch.zeros(9999)}, path),
    "a.png": lambda path: drawing.save_image(path, NOISE),
    "b.png": lambda path: foreground_masks.write_png(path, NOISE),
    "c.png": lambda path: demo._write(path, NOISE[..., 0].astype(np.float32)),
    "results.csv": lambda path: report._write_csv(path, TABLE),
    "settings.json": lambda path: report.write_settings(path.parent, {"x": ["long"] * 999}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_says_the_path_and_why(name, tmp_path, capfd):
    path = tmp_path / name
    path.write_text("what was there before")
    with small_files(), pytest.raises(WorkError) as found:
        WRITERS[name](path)
    assert str(found.value) == (
        f"cannot write {path}: the file is larger than the file system or a limit of this process (ulimit -f) allows "
        "(File too large)"
    )
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert path.read_text() == "what was there before"
    assert capfd.readouterr().err == ""


def test_workbooks_that_cannot_be_written_say_where_and_why(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(distribution, "EXCEL_DIR", tmp_path)
    writers = {
        "results.xlsx": lambda: report.write_workbook(tmp_path, TABLE[:20], {}, {}),
        "x_distribution.xlsx": lambda: distribution.write_flag("x", "row", 1, distribution.EXCEL_DIR),
    }
    for write in writers.values():
        with small_files(100), pytest.raises(WorkError, match=r"temporary files in .*: the file is larger .*TMPDIR"):
            write()
    with monkeypatch.context() as patched:
        patched.setattr(utils.Path, "write_bytes", refuse)
        for name, write in writers.items():
            with pytest.raises(WorkError) as found:
                write()
            assert str(found.value) == f"cannot write {tmp_path / name}: the disk is full (No space left on device)"
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


def refuse(path, content):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EFBIG, "the file is larger than"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_reasons_in_plain_words(number, says, tmp_path):
    def fails(temporary):
        temporary.write_text("half")
        raise OSError(number, os.strerror(number), str(temporary))

    with pytest.raises(WorkError) as found:
        utils.write_atomically(tmp_path / "a.txt", fails)
    assert str(found.value).startswith(f"cannot write {tmp_path / 'a.txt'}: {says}")
    assert not list(tmp_path.iterdir())
    error = OSError(number, "x", "/there/a")
    assert describe(error).startswith("/there/a: " + (says if number != errno.EACCES else "x"))
    assert exit_code(error) == 1


def test_a_checkpoint_on_a_full_disk_says_so():
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        saving._serialise({"x": torch.zeros(99_999)}, full)
    # what is wrong with the state itself stays what it is
    with open("/dev/null", "wb") as file, pytest.raises(Exception, match=r"pickle|lambda"):
        saving._serialise({"x": lambda: 0}, file)


def test_tensorboard_on_a_full_disk_is_one_line(tmp_path, capfd):
    says = f"cannot write TensorBoard's files in {tmp_path}: the file is larger"
    with small_files(), pytest.raises(WorkError, match=says), tensorboard_log.open_board(tmp_path, 0) as board:
        board.add_scalar("short", 1)
        with tensorboard_log.writing(tmp_path):
            board.add_text("long", "x" * 100_000)
            board.flush()
    with small_files(), pytest.raises(WorkError, match=says), tensorboard_log.open_board(tmp_path) as board:
        board.add_text("long", "x" * 100_000)
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match="file/tb"), tensorboard_log.open_board(tmp_path / "file" / "tb"):
        pass
    assert "Traceback" not in capfd.readouterr().err


def test_an_interruption_leaves_nothing_half_written(tmp_path):
    def stopped(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        utils.write_atomically(tmp_path / "a.txt", stopped)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["b" * 251 + ".png", "檢" * 83 + ".tiff", "a." + "x" * 253, "ckpt.pth", "n" * 255])
def test_the_name_of_the_file_beside_is_short(name, tmp_path):
    path = tmp_path / name
    beside = utils.temporary_beside(path)
    assert beside.parent == path.parent
    assert beside.name.startswith(".")
    assert len(os.fsencode(beside.name)) <= max(len(os.fsencode(name)), 14)
    assert beside.suffix == path.suffix or len(path.suffix) > 16
    assert beside != utils.temporary_beside(path)
    utils.write_text(path, "whole")
    saving.save({}, path)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_a_kill_left_of_a_checkpoint_is_taken_away(tmp_path):
    left = [utils.temporary_beside(tmp_path / "ckpt.pth"), tmp_path / "ckpt.pth.77.tmp"]
    for path in (*left, tmp_path / "ckpt.pth", checkpoint.best_path(tmp_path, 3)):
        path.touch()
    saving.remove_other_bests(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt.pth", "ckpt_best_3.pth"]
