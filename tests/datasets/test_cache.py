"""The image cache: the right pixels, within the budget, shared by processes."""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from helpers import make_mvtec

from datasets import ImageSettings, MVTecLayout, TestDataset, TrainDataset, cache, open_textures
from datasets.cache import ImageCache, SharedBytes, cache_budget
from datasets.check import quick_check
from datasets.preloading import plan_images, plan_textures, read_all

SETTINGS = ImageSettings(resize=72, imagesize=64)


def sets(root, budget, settings=SETTINGS):
    data, textures = make_mvtec(root, size=80)
    layout = MVTecLayout(data)
    train, test = layout.train("disc"), layout.test("disc")
    kept = ImageCache(budget)
    sizes = quick_check("disc", train, test)[1]
    line = plan_images(kept, settings, train, False, test, sizes)
    count = plan_textures(kept, settings, open_textures(textures))
    kept.allocate()
    return (
        TrainDataset(train, settings, open_textures(textures), (8, 8), cache=kept),
        TestDataset(test, settings, kept),
        kept,
        f"{line}, {count} textures",
    )


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("budget", [0, 30_000, 10_000_000])
def test_items_are_the_same_with_any_budget(tmp_path, budget, augmented):
    settings = ImageSettings(resize=72, imagesize=64, rotate_degrees=20, hflip=0.5) if augmented else SETTINGS
    train, test, kept, _ = sets(tmp_path / "a", budget, settings)
    bare, bare_test, _, _ = sets(tmp_path / "b", 0, settings)
    assert kept.used <= budget
    for epoch in (0, 1):
        for i in range(len(train)):
            for key in ("image", "aug", "mask_s"):
                assert torch.equal(train[epoch, i][key], bare[epoch, i][key])
        for i in range(len(test)):
            for key in ("image", "mask_gt"):
                assert torch.equal(test[i][key], bare_test[i][key])


def test_a_kept_image_is_read_once(tmp_path):
    train, test, _, line = sets(tmp_path, 10_000_000)
    assert line == "6 of 6 training images, 6 of 6 test images, 4 textures"
    before = train[0, 2]["image"], test[1]["image"]
    assert read_all((train, test), 2, "disc") == {}
    for sample in (*train.samples, *test.samples):
        sample.path.unlink()
    assert torch.equal(train[0, 2]["image"], before[0])
    assert torch.equal(test[1]["image"], before[1])


def test_a_batch_does_not_write_into_what_is_kept(tmp_path):
    _, test, _, _ = sets(tmp_path, 10_000_000)
    first = test[0]["mask_gt"].clone()
    test[0]["mask_gt"].fill_(1)
    test[0]["image"].zero_()
    assert torch.equal(test[0]["mask_gt"], first)
    assert test[0]["image"].abs().max() > 0


def test_budget_goes_to_training_images_first(tmp_path):
    _, _, kept, line = sets(tmp_path, 6 * (64 * 64 * 3 + 1) + 100)
    assert line == "6 of 6 training images, 0 of 6 test images, 0 textures"
    assert kept.used == 6 * (64 * 64 * 3 + 1)


def test_what_does_not_have_the_planned_shape_is_not_kept():
    kept = ImageCache(1000)
    assert kept.plan("a", (2, 3))
    kept.allocate()
    made = []

    def make():
        made.append(1)
        return np.ones((3, 3), np.uint8)

    assert kept.get("a", make).shape == kept.get("a", make).shape == (3, 3)
    assert len(made) == 2
    with pytest.raises(RuntimeError, match="plan comes before get"):
        kept.plan("b", (1,))


def _fill(kept):
    kept.get("a", lambda: np.full((4, 4), 7, np.uint8))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_it(method, monkeypatch):
    monkeypatch.setattr(cache.multiprocessing, "get_start_method", lambda: method)
    kept = ImageCache(1000)
    kept.plan("a", (4, 4))
    kept.allocate()
    process = torch.multiprocessing.get_context(method).Process(target=_fill, args=(kept,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert (kept.get("a", lambda: np.zeros((4, 4), np.uint8)) == 7).all()


def test_memory_of_forked_workers_is_not_pickled():
    assert multiprocessing.get_start_method() == "fork"
    with pytest.raises(TypeError, match="cannot be handed"):
        pickle.dumps(SharedBytes(10))


def test_budget_by_default_is_a_quarter_of_what_is_free(monkeypatch):
    monkeypatch.setattr(cache, "free_memory", lambda: 2_000)
    assert cache_budget(None) == 500
    assert cache_budget(0.5) == 1 << 29
    assert cache_budget(0) == 0
