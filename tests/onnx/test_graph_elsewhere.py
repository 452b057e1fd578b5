"""The exported graph in several runtimes: its resize equals Pillow's bit for bit, its scores equal torch's."""

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from forked import Forked
from helpers import run_here
from PIL import Image

from datasets.settings import ImageSettings, normalise
from glass import load_checkpoint
from tools import script


@pytest.fixture(scope="module")
def folder(trained):
    return trained[0] / "models" / "backbone_0" / "custom_disc"


@pytest.fixture(scope="module")
def exporter():
    return script("pth2onnx")


def in_onnxruntime(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"image": pictures})


def in_openvino(path):
    """In a process of its own: a process that has run OpenVINO may crash when it forks later."""

    def run(pictures):
        kept = path.with_suffix(".npz")

        def work():
            import openvino

            # without the hint OpenVINO calculates in bfloat16 on processors that have it
            exact = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
            model = openvino.Core().compile_model(str(path), "CPU", exact)
            found = model({"image": pictures})
            np.savez(kept, *[found[i] for i in range(len(model.outputs))])

        done = Forked(work).finish()
        assert done.returncode == 0, done.stdout
        with np.load(kept) as outputs:
            return [outputs[name] for name in outputs.files]

    return run


def in_opencv(path):
    net = cv2.dnn.readNetFromONNX(str(path))

    def run(pictures):
        net.setInput(np.ascontiguousarray(pictures), "image")
        return net.forward(net.getUnconnectedOutLayersNames())

    return run


RUNTIMES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino, "opencv": in_opencv}


def preparation(exporter, settings, size=None):
    """A graph that only resizes, crops and normalises."""
    graph = exporter.prepare_images(settings, exporter.GraphOptions(picture_size=size))
    graph.ir_version = 10
    onnx.checker.check_model(graph, full_check=True)
    return graph


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "settings",
    [
        ImageSettings(71, 64),
        ImageSettings((50, 120), (48, 100)),
        ImageSettings(None, (60, 100), True),
        ImageSettings(97, 97),
    ],
    ids=["shorter side", "both sides", "keep_all", "no crop"],
)
def test_resize_equals_pillow_bit_for_bit(exporter, tmp_path, runtime, settings):
    rng, path = np.random.default_rng(0), tmp_path / "resize.onnx"
    onnx.save(preparation(exporter, settings), path)
    run_any = RUNTIMES[runtime](path)
    for height, width in ((97, 97), (301, 200), (40, 900), (24, 31)):  # equal, smaller, long, enlarged
        pictures = rng.integers(0, 256, (2, height, width, 3)).astype(np.uint8)
        wanted = np.stack([normalise(np.asarray(settings.cropped(Image.fromarray(one)))).numpy() for one in pictures])
        onnx.save(preparation(exporter, settings, (height, width)), path)
        for run in (run_any, RUNTIMES[runtime](path)):
            # a value of 8 bits is at least 0.017 from the next one
            np.testing.assert_allclose(run(pictures)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_scores_equal_torch_in_every_runtime(exporter, folder, tmp_path, runtime):
    path, model = tmp_path / "model.onnx", load_checkpoint(folder)
    assert run_here(exporter.main, "pth2onnx.py", folder, "--out", path).returncode == 0
    run, rng = RUNTIMES[runtime](path), np.random.default_rng(0)
    for size in ((150, 200), (64, 64), (90, 70)):
        small = rng.integers(0, 256, (7, 7, 3)).astype(np.uint8)
        picture = np.asarray(Image.fromarray(small).resize(size[::-1], Image.BICUBIC))
        score, normalised, anomaly_map = run(picture[None])
        scores, maps = model.score(model.prepare(Image.fromarray(picture))[None])
        assert float(np.ravel(score)[0]) == pytest.approx(float(scores[0]), abs=2e-4)
        assert float(np.ravel(normalised)[0]) == pytest.approx(float(model.thresholds.normalise(scores)[0]), abs=2e-4)
        np.testing.assert_allclose(np.reshape(anomaly_map, maps.shape), maps, atol=2e-4)


def test_a_graph_for_one_image_size_refuses_others(exporter, folder, tmp_path):
    path, judge_of = tmp_path / "model.onnx", exporter._beside("ort").GraphJudge
    done = run_here(exporter.main, "pth2onnx.py", folder, "--out", path, "--picture_size", "90x70")
    assert done.returncode == 0, done.stdout
    kinds = {node.op_type for node in onnx.load(path).graph.node if node.name.startswith("prep")}
    assert not kinds & {"Shape", "Range", "ReduceMin"}
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8)
    assert judge_of(path).predict_image(picture).score == pytest.approx(
        load_checkpoint(folder).predict_image(picture).score, abs=2e-4
    )
    with pytest.raises(
        Exception, match=r"takes only images of 90x70 pixels .* this one has 91x70; export the model without"
    ):
        judge_of(path).predict_image(np.zeros((91, 70, 3), np.uint8))
