"""An exported graph in float16 or with 8-bit integers.

Loaded by `pth2onnx.py`; the folder is not a package.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from PIL import Image

from datasets.files import read_rgb
from inference.inspector import Inspector
from utils import WorkError, evenly_chosen, progress_bar, reason_of

CALIBRATION_IMAGES = 100  # at most
SMOOTHING_PRODUCTS = 2  # matrix products at the end of the graph that smooth the map
QUANTISED = ["Conv", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "Relu"]


def to_half(network: onnx.ModelProto) -> onnx.ModelProto:
    """Convert weights and arithmetic to float16; inputs and outputs stay float32."""
    converted = OnnxModel(convert_float_to_float16(network, keep_io_types=True))
    converted.topological_sort()  # the conversion appends its casts at the end
    return converted.model


def calibration_sample(paths: Sequence[Path]) -> list[Path]:
    """At most `CALIBRATION_IMAGES` of the paths, evenly spread over them."""
    return [paths[i] for i in evenly_chosen(len(paths), CALIBRATION_IMAGES)]


def to_int8(network: onnx.ModelProto, model: Inspector, good: Sequence[Path]) -> onnx.ModelProto:
    """Quantise convolutions and matrix products statically.

    Args:
        network: the graph from the normalised image on.
        model: that it was exported from; it prepares the images.
        good: image files for the calibration.

    Raises:
        WorkError: there is no space for temporary files, or an image cannot be read.
    """
    # quantising the two small products that smooth the map would round each of its pixels
    products = [node.name for node in network.graph.node if node.op_type == "MatMul"]
    with _temporary_folder() as folder:
        full, prepared, quantised = (folder / f"{name}.onnx" for name in ("float", "prepared", "int8"))
        onnx.save(network, full)
        quant_pre_process(str(full), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(quantised), CalibrationImages(model, good), quant_format=QuantFormat.QDQ,
            per_channel=True, op_types_to_quantize=QUANTISED, nodes_to_exclude=products[-SMOOTHING_PRODUCTS:],
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(quantised)


class CalibrationImages(CalibrationDataReader):
    """The network inputs of good images, one at a time.

    Args:
        model: that the graph was exported from.
        paths: of the images.
    """

    def __init__(self, model: Inspector, paths: Sequence[Path]) -> None:
        self._model, self._paths = model, iter(paths)
        self._bar = progress_bar(len(paths), "img", "calibrating")

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input, None after the last. A model of tiles gets one tile from the middle of each image."""
        path = next(self._paths, None)
        if path is None:
            self._bar.__exit__(None, None, None)
            return None
        self._bar.update(1)
        image, tiling = read_rgb(path, self._model.reading), self._model.tiling
        if tiling is not None:
            boxes = tiling.boxes(*image.size)
            image = Image.fromarray(tiling.cut(np.asarray(image), boxes[len(boxes) // 2]))
        return {"normalised_image": self._model.prepare(image)[None].numpy()}


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A temporary folder.

    Raises:
        WorkError: there is no space in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except OSError as error:
            raise WorkError(
                f"cannot write temporary files in {folder}: {reason_of(error)}; set TMPDIR to another folder"
            ) from error
