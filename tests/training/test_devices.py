"""What depends on the device or must not: contexts, memory formats, precision, the state that a resume goes on with."""

import copy
import random
import socket
import threading
import warnings

import cv2
import numpy as np
import pytest
import torch
from helpers import cli
from PIL import Image, ImageFile
from small import LAYERS, SIDE, small_batch, small_glass, small_network

import backbones
import common
import utils
from common import NetworkFeatureAggregator
from datasets.settings import ImageSettings, normalise
from glass import GLASS
from inference import checkpoint
from inference import inspector as inference
from inference.thresholds import HELD_OUT
from training import run, saving
from training.calibration import calibrate
from training.state import TrainingState, weights_of
from training.testing import score_chosen

CUDA = torch.device("cuda", 0)
CONFIG = {"class_name": "folder_disc", "resize": 48, "imagesize": 48, "keep_all": False}


def pictures(count=4):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)) for _ in range(count)]


def embedded_glass(folder, **settings):
    """A model with the network that comes along, whose checkpoint `load_checkpoint` takes."""
    model = GLASS("cpu").load(
        backbone=backbones.load("efficientnet_lite0"), layers_to_extract_from=["layer2", "layer3"], device="cpu",
        input_shape=(3, 48, 48), pretrain_embed_dimension=32, target_embed_dimension=32, dsc_hidden=16, **settings,
    )  # fmt: skip
    model.extra_config = dict(CONFIG)
    model.set_model_dir(folder, "disc")
    saving.save(weights_of(model, {"epoch": 0}), checkpoint.best_path(model.model_dir, 0))
    return model


def good_batches(images):
    seen = ImageSettings.of_config(CONFIG)
    batch = torch.stack([normalise(np.asarray(seen.cropped(one))) for one in images])
    count = len(images)
    return [
        {
            "image": batch, "mask_gt": torch.zeros(count, 1, 48, 48), "is_anomaly": np.zeros(count, bool),
            "image_path": [f"{i}.png" for i in range(count)],
        }
    ]  # fmt: skip


# ------------------------------------------------------------------------------- thresholds in float32


@pytest.mark.parametrize("trained", [False, True])
def test_a_threshold_is_to_the_digit_the_score_that_predict_gives(trained, tmp_path, monkeypatch):
    # as on CUDA, where bfloat16 rounds the backbone, too
    monkeypatch.setattr(GLASS, "_dtype_of_backbone", lambda _: torch.bfloat16)
    model, images = embedded_glass(tmp_path, train_backbone=trained), pictures()
    own = model.features.aggregator
    assert own.dtype == torch.bfloat16
    rounded = model._predict(good_batches(images)[0]["image"])[0]
    made = calibrate(model, good_batches(images), "disc", HELD_OUT)
    found = score_chosen(model, good_batches(images), "disc").predictions
    assert model.features.aggregator is own
    assert own.dtype == torch.bfloat16
    monkeypatch.undo()
    inspector = inference.load_checkpoint(model.model_dir)
    results = inspector.predict_images(images)
    assert made.image == max(result.score for result in results)
    assert made.pixel == max(result.map.max() for result in results)
    assert found.scores.tolist() == [result.score for result in results]
    assert not any(result.decision for result in results)
    assert not np.array_equal(found.scores, rounded)  # or this test would show nothing


def test_without_bfloat16_nothing_is_built_anew(tmp_path, monkeypatch):
    model = embedded_glass(tmp_path)
    monkeypatch.setattr("inference.features.NetworkFeatureAggregator", None)
    calibrate(model, good_batches(pictures(2)), "disc", HELD_OUT)


# -------------------------------------------------------------------------------------------- resuming


def begun(folder, epochs):
    model = small_glass(meta_epochs=epochs)
    model.set_model_dir(folder, "disc")
    image, aug, mask = small_batch(model)
    return model, [{"image": image, "aug": aug, "mask_s": mask}]


def test_a_training_goes_on_though_its_random_state_is_of_another_kind_of_device(tmp_path, caplog):
    found = []
    for name in "ab":
        model, batches = begun(tmp_path / name, 1)
        model.trainer(batches, None, "disc")
        path = model.model_dir / checkpoint.LATEST
        state = torch.load(path, weights_only=True)
        state["random_state"] = torch.arange(16, dtype=torch.uint8)  # as that of a CUDA generator
        torch.save(state, path)
        model, batches = begun(tmp_path / name, 2)
        with caplog.at_level("INFO", "glass"):
            utils.LOGGER.addHandler(caplog.handler)
            assert model.trainer(batches, None, "disc")["epoch"] == 2
            utils.LOGGER.removeHandler(caplog.handler)
        found.append(model.discriminator.state_dict())
    assert "started on another kind of device" in caplog.text
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key])


def test_the_optimisers_counts_of_steps_stay_off_the_device(tmp_path, monkeypatch):
    model, batches = begun(tmp_path, 1)
    model.trainer(batches, None, "disc")
    model, batches = begun(tmp_path, 2)
    load = checkpoint.load

    def marked(path, device="cpu"):
        state = load(path)
        if torch.device(device).type == "cuda" and "optimisers" in state:
            for optimiser in state["optimisers"].values():
                for one in optimiser["state"].values():
                    one["step"] += 1000  # stands for one on the device
        return state

    monkeypatch.setattr(checkpoint, "load", marked)
    model.device = CUDA
    TrainingState(model, "disc").start()
    steps = [state["step"] for optimiser in model.optimisers.values() for state in optimiser.state.values()]
    assert len(steps) == 7  # parameters
    assert {float(step) for step in steps} == {1.0}


# ------------------------------------------------------------------------------------- CUDA's settings


@pytest.fixture
def two_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize(
    ("wished", "device", "current"),
    [((1,), "cuda:1", [1]), ((), "cuda:0", [0]), ((7, 1), "cuda:1", [1]), ((-1,), "cpu", [])],
)
def test_the_chosen_gpu_is_the_current_one(wished, device, current, two_gpus):
    assert utils.choose_device(wished) == torch.device(device)
    assert two_gpus == current


def test_channels_last_where_it_gains():
    for device, dtype, expected in (
        ("cpu", torch.float32, torch.channels_last), ("cpu", torch.bfloat16, torch.channels_last),
        ("cuda", torch.float32, torch.contiguous_format), ("cuda", torch.bfloat16, torch.channels_last),
    ):  # fmt: skip
        assert common.faster_format(torch.device(device), dtype) == expected
    assert NetworkFeatureAggregator(small_network(), LAYERS, "cpu", (3, 32, 32))._memory_format == torch.channels_last


def test_on_cuda_alone_convolutions_are_exact_and_only_while_the_network_runs():
    aggregator = NetworkFeatureAggregator(small_network(), LAYERS, "cpu", (3, SIDE, SIDE))
    seen = []
    aggregator.backbone.stem.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    before, legacy = torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.allow_tf32
    aggregator(torch.zeros(1, 3, SIDE, SIDE))
    aggregator._device = CUDA
    aggregator(torch.zeros(1, 3, SIDE, SIDE))
    assert seen == [before, "ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == before
    assert torch.backends.cudnn.allow_tf32 == legacy


def test_exact_convolutions_end_with_the_last_thread_that_asked_for_them():
    before, exact = torch.backends.cudnn.conv.fp32_precision, common._ExactConvolutions()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with exact:
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with exact, exact:
        thread.start()
        inside.wait(10)
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    leave.set()
    thread.join()
    assert torch.backends.cudnn.conv.fp32_precision == before
    with pytest.raises(ZeroDivisionError), exact:
        1 / 0  # noqa: B018
    assert torch.backends.cudnn.conv.fp32_precision == before


# ------------------------------------------------------------------------------------- global state


def global_state():
    """What a program that uses the library has set for itself."""
    backends = torch.backends
    flags = {
        f"{name}.{key}": getattr(module, key)
        for name, module, keys in (
            ("cudnn", backends.cudnn, ("allow_tf32", "benchmark", "deterministic", "enabled")),
            ("conv", backends.cudnn.conv, ("fp32_precision",)),
            ("matmul", backends.cuda.matmul, ("allow_tf32", "fp32_precision")),
            ("mkldnn", backends.mkldnn, ("enabled",)),
        )
        for key in keys
    }
    return {
        **flags,
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), cv2.getNumThreads()),
        "gradients": torch.is_grad_enabled(), "type": torch.get_default_dtype(),
        "matmul": torch.get_float32_matmul_precision(), "random": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()), "python": random.getstate(), "errors": np.geterr(),
        "timeout": socket.getdefaulttimeout(), "warnings": copy.copy(warnings.filters),
        "pillow": (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }  # fmt: skip


def test_loading_and_using_a_model_leaves_global_state_as_it_was(tmp_path, monkeypatch):
    model = embedded_glass(tmp_path)
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = global_state()
    inspector = inference.load_checkpoint(model.model_dir)
    inspector.predict_image(pictures(1)[0])
    inference.load_checkpoint(model.model_dir, precision="bf16").predict_image(pictures(1)[0])
    assert global_state() == before
    assert not seeds  # of other devices' generators


# ------------------------------------------------------------------------------------- -b auto


def test_the_network_that_auto_tries_is_loaded_once(tmp_path, monkeypatch):
    loads = []

    def load(name, weights="pretrained", seed=0):
        loads.append(name)
        return small_network()

    monkeypatch.setattr(backbones, "load", load)
    (tmp_path / "data" / "disc").mkdir(parents=True)
    for i, one in enumerate(pictures(2)):
        one.save(tmp_path / "data" / "disc" / f"{i}.png")
    prepared = []
    prepare = run.prepare

    def stop(*options):
        prepared.append(prepare(*options))
        raise utils.InputError("far enough")

    monkeypatch.setattr(run, "prepare", stop)
    nets = ["net", "-b", "auto", "-b", "auto.seed-3", "-b", "resnet18"]
    done = cli("--gpu", -1, "--results_path", tmp_path / "r", *nets, "dataset", "folder", tmp_path / "data", "builtin")
    assert "far enough" in done.stdout
    assert loads == ["wideresnet50", "resnet18"]
    assert [net.seed for net in prepared[0].nets] == [0, 3, 0]
