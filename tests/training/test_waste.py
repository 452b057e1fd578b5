"""What is not written, sent, read or kept alive for nothing."""

import multiprocessing
import time

import cv2
import numpy as np
import pytest
import torch
from helpers import make_mvtec
from test_datasets import train_set
from test_training_state import small_glass as make_glass
from torch.utils.data import DataLoader

import datasets
from datasets import ImageSettings, MVTecLayout, TestDataset
from datasets.geometry import Geometry, Tiling
from datasets.loaders import EpochSampler, end_workers, make_loader
from datasets.tiles import TiledTestDataset
from datasets.training_set import CentreDataset
from datasets.truth import PackedMasks
from reporting import class_record, page
from reporting import tables as report
from training.evaluation import METRICS, Predictions
from training.record import Record
from training.testing import TestMemory, score_set
from training.trainer import Loaders, Trainer, allocate_cache

TestMemory.__test__ = TestDataset.__test__ = False


# ------------------------------------------------------------------------------------ TensorBoard


class Board:
    def __init__(self):
        self.pictures = []

    def add_image(self, tag, image, epoch, **_):
        self.pictures.append(epoch)

    def __getattr__(self, name):
        return lambda *_a, **_k: None


def shown(pictures, best, epochs=40, **settings):
    model = make_glass(meta_epochs=epochs, **settings)
    model.pictures = pictures
    model.set_model_dir("unused", "class")
    masks = PackedMasks(2, (8, 8))
    found = Predictions(np.zeros(2, np.float32), np.zeros((2, 8, 8), np.float32), np.array([False, True]), masks, [])
    judged = [{"image": torch.zeros(3, 8, 8)}] * 2
    board, trainer = Board(), Trainer(model, Loaders([], DataLoader(judged), None, DataLoader(judged)), "class")
    trainer.record = Record(history=[{"loss": 1}])
    for epoch in range(epochs):
        trainer.record.epoch, trainer.record.last = epoch + 1, dict.fromkeys(METRICS, 0.0) | {"epoch": epoch}
        trainer._write_board(board, {}, found, epoch in best)
        if trainer.state.is_over(trainer.record):
            break
    return board.pictures


def test_tensorboard_gets_pictures_of_few_evaluations():
    assert shown("end", range(40)) == [0, 10, 20, 30, 39]
    assert shown("end", [0, 3, 9, 12, 13, 25]) == [0, 12, 25, 39]
    assert shown("end", [5]) == [5, 39]
    assert shown("every_eval", [0]) == list(range(40))
    assert shown("every_eval", [0], select="val") == list(range(40))


# ------------------------------------------------------------------------------------------- report


def kept_class(row, select="best"):
    image = {
        "path": f"{row}/0.png",
        "label": 0,
        "score": 0.2,
        "normalised_score": None,
        "decision": None,
        "mask_area": None,
    }
    figures = dict.fromkeys((*METRICS, "image_auroc_low", "image_auroc_high"), 0.5) | {"best_epoch": 1}
    return {
        "row": row, "select": select, "figures": figures, "thresholds": None, "history": [], "images": [image],
        "curves": {}, "gallery": [],
    }  # fmt: skip


def test_each_class_is_rendered_once(tmp_path, monkeypatch):
    rendered, view = [], page._class_view
    monkeypatch.setattr(page, "_class_view", lambda data, table: rendered.append(data["row"]) or view(data, table))
    class_record.save(tmp_path, "earlier", kept_class("earlier"))
    written = page.Page(tmp_path)
    written.check()
    rows = {}
    for name in "abc":  # one after another, as a run does
        class_record.save(tmp_path, name, kept_class(name))
        rows[name] = kept_class(name)["figures"]
        report.write_results(tmp_path, rows)
        written.write()
    assert rendered == ["earlier", *"abc"]
    text = (tmp_path / "report.html").read_text()
    assert len({line for line in text.splitlines() if line.startswith('<section id="')}) == 4
    assert "Choice of the epoch" not in text
    page.write(tmp_path)
    assert (tmp_path / "report.html").read_text() == text
    # what changes is computed again
    rendered.clear()
    rows["b"] |= {"last_epoch": 7.0, "last_image_auroc": 0.3, "last_pixel_auroc": 0.4}
    report.write_results(tmp_path, rows)
    written.write()
    assert rendered == ["b"]
    assert "the last epoch, 7, has image AUROC 30.00" in (tmp_path / "report.html").read_text()
    class_record.save(tmp_path, "b", kept_class("b", "val"))
    written.write()
    assert (tmp_path / "report.html").read_text().count("Choice of the epoch") == 4


# -------------------------------------------------------------------------------------------- tiles


def test_whole_pictures_are_read_for_pictures_alone(tmp_path, monkeypatch):
    data, _ = make_mvtec(tmp_path, size=128, train=0, good=1, defective=2)
    samples = MVTecLayout(data).test("disc")
    sizes = {sample.path: (128, 128) for sample in samples}
    own = ImageSettings(resize=64, imagesize=64, keep_all=True)
    tiled = TiledTestDataset(samples, own, Tiling.of(Geometry(64, 64), 64, 0.25), sizes)
    model = make_glass()
    loader = DataLoader(tiled, batch_size=4)
    expected = model.predict(loader)
    read, masks = [], []
    pixels, mask = tiled.whole._pixels, tiled.whole._mask
    monkeypatch.setattr(tiled.whole, "_pixels", lambda index: read.append(index) or pixels(index))
    monkeypatch.setattr(tiled.whole, "_mask", lambda index: masks.append(index) or mask(index))
    memory = TestMemory(allocate_cache(model, loader, "disc", 1 << 30))
    for _ in range(3):
        found = score_set(model.scorer(), loader, None, memory)
        np.testing.assert_allclose(found.maps, expected.maps, atol=1e-6)
        assert found.paths == expected.paths
        assert found.labels.tolist() == expected.labels.tolist()
        assert all((found.masks[i] == expected.masks[i]).all() for i in range(3))
    assert (read, masks) == ([], [0, 1, 2])
    assert memory.complete
    score_set(model.scorer(), loader, tmp_path / "pictures", memory)
    assert read == [0, 1, 2]
    assert cv2.imread(str(next((tmp_path / "pictures").glob("*.png")))) is not None


# ----------------------------------------------------------------------------------------- training


def sent(batch):
    return sum(value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))


def test_images_whose_features_are_known_are_not_sent(tmp_path):
    data = train_set(tmp_path)
    count = len(data)
    plain = datasets.make_loader(data, 4, 0, EpochSampler(count, 0, shuffle=False))
    sampler = EpochSampler(count, 0, shuffle=False)
    loader = datasets.make_loader(data, 4, 0, sampler)
    expected = next(iter(plain))
    sampler.known = lambda index: True
    lean = next(iter(loader))
    assert sent(lean) < 0.52 * sent(expected)
    assert torch.equal(lean["aug"], expected["aug"])
    sampler.known = lambda index: index in (0, 2)
    assert torch.equal(next(iter(loader))["image"], expected["image"][[1, 3]])
    sampler.known = lambda index: False
    assert torch.equal(next(iter(loader))["image"], expected["image"])


class Sending(EpochSampler):
    """One that has every image sent."""

    known = property(lambda _: None, lambda *_: None)


@pytest.mark.parametrize("kept", [0, 3, 6])
def test_training_goes_the_same_whichever_images_are_sent(tmp_path, monkeypatch, kept):
    data = train_set(tmp_path)
    assert len(data) == 6
    weights = []
    for kind, expected in ((Sending, 6), (EpochSampler, 6 - kept)):
        model = make_glass(meta_epochs=2, step=1)
        model.set_model_dir(tmp_path / kind.__name__, "class")
        monkeypatch.setattr("training.trainer.feature_budget", lambda *_: kept * 8 * 8 * 16 * 4)
        loader = make_loader(data, 2, 0, kind(6, 0))
        centre = make_loader(CentreDataset(data), 2, 0, EpochSampler(6, 0, shuffle=False))
        model.trainer(loader, None, "class", centre)
        assert sum(len(batch.get("image", ())) for batch in loader) == expected
        weights.append(model.discriminator.state_dict())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key])


def test_memory_goes_to_what_is_asked_for_more_often(monkeypatch):
    per_image = 8 * 8 * 16 * 4
    for limit, eval_epochs, expected in ((4, 1, (2, 6)), (4, 4, (8, 0)), (392, 1, (8, 0))):
        model = make_glass(limit=limit, eval_epochs=eval_epochs)
        model.set_model_dir("unused", "class")
        monkeypatch.setattr("training.trainer.feature_budget", lambda *_: 8 * per_image)
        trainer = Trainer(model, Loaders(DataLoader(range(20), 2), DataLoader(range(6), 2)), "class")
        trainer._allocate_memories()
        kept, memory = trainer._cache, trainer._memory
        assert (kept.capacity, memory.features.capacity if memory else 0) == expected


def test_what_is_remembered_of_a_test_set_holds_no_map(tmp_path):
    data, _ = make_mvtec(tmp_path, train=0, good=1, defective=1)
    loader = DataLoader(TestDataset(MVTecLayout(data).test("disc"), ImageSettings(resize=64, imagesize=64)), 2)
    model = make_glass()
    memory = TestMemory(allocate_cache(model, loader, "disc", 1 << 30))
    first = score_set(model.scorer(), loader, None, memory)
    for array in (memory.predictions.maps, memory.predictions.scores):
        assert array.nbytes == 0
        assert array.base is None
    assert score_set(model.scorer(), loader, None, memory).maps.shape == first.maps.shape


def started_workers():
    """The workers that were started since this was called, by other loaders than those of earlier tests."""
    before = {child.pid for child in multiprocessing.active_children()}

    def alive():
        return sum(child.pid not in before for child in multiprocessing.active_children())

    return alive


def wait_for_the_end(alive):
    until = time.monotonic() + 5
    while alive() and time.monotonic() < until:
        time.sleep(0.01)
    return alive()


def test_workers_end_when_they_are_not_needed_any_more(tmp_path):
    data, _ = make_mvtec(tmp_path, train=0, good=2, defective=2)
    dataset = TestDataset(MVTecLayout(data).test("disc"), ImageSettings(resize=64, imagesize=64))
    model = make_glass()
    alive = started_workers()
    loader = make_loader(dataset, 2, 2)
    if not loader.num_workers:
        return
    model.predict(loader)
    assert alive() == loader.num_workers  # they wait for the next reading
    end_workers(loader)
    assert wait_for_the_end(alive) == 0
    memory = TestMemory(allocate_cache(model, loader, "disc", 1 << 30))
    found = score_set(model.scorer(), loader, None, memory)
    assert wait_for_the_end(alive) == 0  # all features are known: no image is read again
    np.testing.assert_array_equal(score_set(model.scorer(), loader, tmp_path / "pictures", memory).scores, found.scores)
    assert wait_for_the_end(alive) == 0
    end_workers(None)
    end_workers([])
