"""What is no longer needed is freed at once, and what will be needed is known before."""

import gc
import weakref

import pytest
import torch
from small import LAYERS, SIDE, small_batch, small_glass

import synthesis
from common import NetworkFeatureAggregator

VARIANTS = (
    {"svd": 0},
    {"svd": 1},
    {"svd": 1, "dsc_hidden": 200},  # the increments are kept themselves
    {"svd": 1, "dsc_layers": 3},  # slopes by autograd
    {"svd": 0, "dsc_layers": 1},
    {"mining": 0},
    {"svd": 1, "train_backbone": True},
)


@pytest.fixture
def no_collector():
    """The cyclic garbage collector is off: what is freed is freed by the last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_nothing_of_a_step_waits_for_the_cyclic_collector(settings, no_collector, monkeypatch):
    paths = weakref.WeakSet()
    build = synthesis._Path.__init__

    def counted(path, *arguments):
        build(path, *arguments)
        paths.add(path)

    monkeypatch.setattr(synthesis._Path, "__init__", counted)
    model = small_glass(**settings)
    batch = small_batch(model)
    for _ in range(3):
        model.train_step(*batch)
        assert not len(paths)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        model.train_step(*batch)
        model._predict(batch[0])
        gc.collect()
        left = [type(one).__name__ for one in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert not left


@pytest.mark.parametrize("trained", [False, True])
def test_a_model_that_is_done_with_is_freed(trained, no_collector):
    model = small_glass(train_backbone=trained)
    batch = small_batch(model)
    model.train_step(*batch)
    network, aggregator = weakref.ref(model.feature_aggregator.backbone), weakref.ref(model.feature_aggregator)
    del model
    assert aggregator() is None
    assert network() is None


def test_a_cut_network_outlives_its_aggregator():
    model = small_glass(train_backbone=True)
    images, *_ = small_batch(model)
    network, expected = model.feature_aggregator.backbone, model.feature_aggregator(images)
    del model
    again = NetworkFeatureAggregator(network, LAYERS, "cpu", (3, SIDE, SIDE))
    torch.testing.assert_close(again(images), expected, rtol=1e-3, atol=1e-4)
