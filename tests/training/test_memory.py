"""What is no longer needed is freed at once, and what will be needed is known before."""

import gc
import weakref

import cv2
import numpy as np
import pytest
import torch
from allocations import Allocations
from small import LAYERS, SIDE, WIDTH, small_batch, small_glass
from torch.utils.data import DataLoader

import main
from commands import predict
from commands.command import describe, exit_code
from common import NetworkFeatureAggregator
from datasets.cache import GB
from metrics import PackedMasks
from model import Discriminator, Projection
from synthesis import arithmetic, ascent, slope
from training import device_metrics, feature_cache
from training.feature_cache import feature_budget, step_bytes

VARIANTS = (
    {"svd": 0},
    {"svd": 1},
    {"svd": 1, "dsc_hidden": 200},  # the increments are kept themselves
    {"svd": 1, "dsc_layers": 3},  # slopes by autograd
    {"svd": 1, "train_backbone": True, "mining": 0},
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
    build = ascent.Path.__init__

    def counted(path, *arguments):
        build(path, *arguments)
        paths.add(path)

    monkeypatch.setattr(ascent.Path, "__init__", counted)
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


# ------------------------------------------------------------------------------- known before


def peak_of_a_step(rows, width, hidden, whole, monkeypatch, dtype=torch.float32, **settings):
    """Bytes of all tensors at once, counted; `whole` takes the rows in one block, as on CUDA."""
    for module in (arithmetic, slope):
        monkeypatch.setattr(module, "ROWS_AT_A_TIME", rows if whole else 256)
    pre_proj, layers = settings.setdefault("pre_proj", 1), settings.setdefault("dsc_layers", 2)
    model = small_glass(**settings)
    model.discriminator = Discriminator(width, layers, hidden)
    model.pre_projection = Projection(width, width, pre_proj) if pre_proj else None
    model._dtype, model.c = dtype, torch.randn(64, width)
    model._embed = lambda _: (torch.randn(rows, width), None)
    model.optimisers = {"discriminator": torch.optim.AdamW(model.discriminator.parameters())}
    if pre_proj:
        model.optimisers["pre_projection"] = torch.optim.Adam(model.pre_projection.parameters())
    masks = (torch.arange(rows) % (rows if whole else 5) > 0).float()
    features = torch.randn(rows, width)
    counted = Allocations()
    counted.add(features, model.c, *model.discriminator.parameters())
    counted.add(*(model.pre_projection.parameters() if pre_proj else ()))
    for _ in range(2):  # the second finds the workspace and the optimisers' state
        with counted:
            model.train_step(None, None, masks, features)
    return counted.peak


@pytest.mark.parametrize(
    ("rows", "width", "hidden", "whole", "settings"),
    [
        (512, 96, 64, True, {"svd": 1}),
        (512, 96, 64, True, {"svd": 0}),
        (512, 32, 96, True, {"svd": 1}),
        (512, 32, 96, False, {"svd": 0}),
        (512, 64, 64, False, {"svd": 1, "dsc_layers": 3}),
        (512, 64, 1, True, {"svd": 1, "dsc_layers": 1}),
        (512, 64, 64, True, {"svd": 1, "dtype": torch.bfloat16}),
    ],
    ids=str,
)
def test_what_a_step_needs_is_known_from_its_shapes(rows, width, hidden, whole, settings, monkeypatch):
    measured = peak_of_a_step(rows, width, hidden, whole, monkeypatch, step=20, **settings)
    shapes = {key: settings[key] for key in ("svd", "dsc_layers", "pre_proj") if key in settings}
    computed = step_bytes(rows, width, hidden, **shapes) / feature_cache.MARGIN
    assert computed == pytest.approx(measured, rel=0.3)


def test_what_a_step_needs_is_kept_free(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(feature_cache, "free_memory", lambda: 10 * GB)
    assert feature_budget("auto", cpu) == 5 * GB
    assert feature_budget("auto", cpu, 6 * GB) == 2 * GB
    assert feature_budget("auto", cpu, 11 * GB) == 0
    assert feature_budget("off", cpu, 1) == 0
    said = []
    monkeypatch.setattr(feature_cache.LOGGER, "warning", lambda *message: said.append(message[0] % message[1:]))
    assert feature_budget("7", cpu, 2 * GB) == 7 * GB
    assert not said
    assert feature_budget("7", cpu, 4 * GB) == 7 * GB
    assert said == [
        "--feature_cache 7 leaves less of the 10.0 GB that are free than the 4.0 GB that a training step needs"
    ]


def test_a_training_keeps_no_features_in_the_place_of_its_own_steps(monkeypatch):
    model, loader = small_glass(svd=1), DataLoader(torch.zeros(20, 1), batch_size=4)
    needed = model._step_bytes(loader)
    assert needed > step_bytes(4 * 64, WIDTH, 16, svd=1)  # the backbone's pass, too
    assert model._step_bytes(DataLoader(torch.zeros(20, 1), batch_size=8)) > needed
    monkeypatch.setattr(feature_cache, "free_memory", lambda: needed + 2 * 3 * 64 * WIDTH * 4)
    kept, _ = model._memories(loader, None, "disc")
    assert kept.capacity == 3
    monkeypatch.setattr(feature_cache, "free_memory", lambda: needed)
    assert model._memories(loader, None, "disc") == (None, None)


@pytest.mark.parametrize(("size", "bins"), [(48, 1 << 30), (64, 1 << 30), (64, 50)])
def test_what_ranking_on_the_device_needs_is_known(size, bins):
    rng, count = np.random.default_rng(0), 6
    masks = PackedMasks(count, (size, size))
    for i in range(count):
        masks[i] = np.pad(np.full((5, 9), i % 2, np.int8), ((3, size - 8), (4, size - 13)))
    maps = torch.from_numpy((rng.random((count, size, size)) * bins).round().astype(np.float32))
    truth = device_metrics.DeviceTruth(masks, (size, size), torch.device("cpu"))
    counted = Allocations().add(maps, truth.images, truth.positive, truth.shares)
    with counted:
        device_metrics.pixel_metrics(maps, truth)
    used = counted.peak / maps.numel()
    assert used <= device_metrics.BYTES_A_PIXEL
    assert bins == 50 or used > 0.95 * device_metrics.BYTES_A_PIXEL


def test_maps_are_ranked_on_the_device_where_that_many_bytes_are_free(monkeypatch):
    size, count = (100, 100), 10
    needed = device_metrics.BYTES_A_PIXEL * count * 10_000
    for free, fits in ((2 * needed + 2, True), (2 * needed, False)):
        monkeypatch.setattr(device_metrics, "free_on", lambda _, free=free: free)
        assert device_metrics.DeviceTruth.fits(count, size, torch.device("cuda")) is fits


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate"),
    ],
    ids=str,
)  # fmt: skip
def test_where_memory_lacks_the_options_that_need_less_are_named(error):
    message = describe(error, main.main.less_memory)
    assert exit_code(error) == 1
    for option in ("--feature_cache off", "--batch_size", "--imagesize"):
        assert option in message
    assert "--feature_cache" not in describe(error, predict.command.less_memory)  # it has no such option
    assert "CPUAllocator" not in message


def test_the_cpus_allocator_says_what_is_looked_for():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert describe(caught.value).startswith("out of memory")
