"""Export a checkpoint to one ONNX graph: RGB image in; image score, normalised score and anomaly map out.

    python onnx/pth2onnx.py [CHECKPOINT] [OPTIONS]

The graph does what `predict` does with an image: resize, crop, normalise, score, smooth. Its metadata describe it.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402
import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
from onnx import TensorProto, compose, helper  # noqa: E402

from commands.command import CONTEXT, Command  # noqa: E402
from commands.parameters import SizeType  # noqa: E402
from datasets.geometry import pair  # noqa: E402
from datasets.listing import list_images  # noqa: E402
from datasets.settings import ImageSettings  # noqa: E402
from inference.inspector import Inspector, load_checkpoint  # noqa: E402
from reporting.formats import percent, points  # noqa: E402
from utils import IMAGENET_MEAN, IMAGENET_STD, LOGGER, InputError, setup_logging, write_atomically  # noqa: E402


def _beside(name: str) -> ModuleType:
    """Load a file of this folder. The folder is not a package, because it would hide the package of the same name."""
    module_name = f"glass_onnx_{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
    return sys.modules[module_name]


checking, network, quantisation, resampling = map(_beside, ("checking", "network", "quantisation", "resampling"))

FORMAT = 1  # of the metadata
TOLERANCE = 1e-3  # of the difference between the graph and torch in float32
OUTPUTS, PLAIN_OUTPUTS = ("score", "normalised", "map"), ("score", "patch_scores")

Change = Callable[[onnx.ModelProto], onnx.ModelProto]


# ---------------------------------------------------------------------------------------- the graph


@dataclass(frozen=True)
class GraphOptions:
    """What kind of graph to export.

    Attributes:
        opset: version of ONNX's operators.
        dynamic: whether the graph takes any number of images at once, or one.
        postprocess: whether the score is normalised and the map smoothed; otherwise patch scores come out.
        floats: whether images are float32 in [0, 1] instead of uint8.
        picture_size: (h, w) of every image; None takes any size.
    """

    opset: int = 18
    dynamic: bool = True
    postprocess: bool = True
    floats: bool = False
    picture_size: tuple[int, int] | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return OUTPUTS if self.postprocess else PLAIN_OUTPUTS


def export(model: Inspector, options: GraphOptions, change: Change | None = None) -> onnx.ModelProto:
    """The whole graph of a trained model.

    Args:
        model: a trained model.
        options: the kind of graph.
        change: is applied to the graph of the network, before the preparation of the images is put in front of it.
    """
    traced = _trace(model, options)
    traced = traced if change is None else change(traced)
    preparation = prepare_images(model.settings, options)
    preparation.ir_version = traced.ir_version
    return compose.merge_models(preparation, traced, io_map=[("prepared", "normalised_image")])


def _trace(model: Inspector, options: GraphOptions) -> onnx.ModelProto:
    """The graph from the normalised images (B, 3, H, W) on."""
    names = options.outputs
    axes = {name: {0: "batch"} for name in ("normalised_image", *names)} if options.dynamic else None
    example = torch.zeros(2 if options.dynamic else 1, 3, *model.settings.size)
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns about shapes that never change here
        torch.onnx.export(
            network.Network(model, options.postprocess).eval(), (example,), buffer, input_names=["normalised_image"],
            output_names=list(names), dynamic_axes=axes, opset_version=options.opset, dynamo=False,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def prepare_images(settings: ImageSettings, options: GraphOptions) -> onnx.ModelProto:
    """The graph from images (B, h, w, 3) to `prepared` (B, 3, H, W) float32, as `ImageSettings` prepares them.

    Every step gives the same number in every runtime: 8-bit values are whole numbers, rounded as Pillow rounds them.
    """
    size, (height, width) = options.picture_size, settings.size
    g = resampling.Nodes("prep")
    planes = g.add("Transpose", "image", perm=[0, 3, 1, 2])
    if options.floats:  # back to the 8-bit values
        planes = g.add("Floor", g.add("Add", g.add("Mul", planes, g.constant(255.0)), g.constant(0.5)))
    if size is None:
        pixels = _resize_any(g, planes, settings)
    else:
        pixels = resampling.resize_fixed(g, planes, size, settings.resized_size(*size[::-1]), (height, width))
    mean, std = (g.constant(np.reshape(values, (1, 3, 1, 1)) * 255) for values in (IMAGENET_MEAN, IMAGENET_STD))
    g.nodes.append(helper.make_node("Div", [g.add("Sub", pixels, mean), std], ["prepared"]))
    batch = "batch" if options.dynamic else 1
    element_type = TensorProto.FLOAT if options.floats else TensorProto.UINT8
    image = helper.make_tensor_value_info("image", element_type, [batch, *(size or ("height", "width")), 3])
    prepared = helper.make_tensor_value_info("prepared", TensorProto.FLOAT, [batch, 3, height, width])
    graph = helper.make_graph(g.nodes, "preparation", [image], [prepared], g.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", options.opset)])


def _resize_any(g: resampling.Nodes, planes: str, settings: ImageSettings) -> str:
    """Resize and crop images of any size, (B, 3, h, w); returns the name of the result."""
    shape = g.add("Shape", planes)
    sides = tuple(g.slice(shape, *(g.constant([k], np.int64) for k in (i, i + 1)), 0) for i in (2, 3))
    if isinstance(settings.resize, int) and not settings.keep_all:
        shorter, target = g.add("Min", *sides), g.constant([settings.resize], np.int64)
        resized = tuple(g.add("Div", g.add("Mul", side, target), shorter) for side in sides)
    else:
        resized = tuple(g.constant([side], np.int64) for side in settings.resized_size(1, 1))
    return resampling.resize_any(g, planes, sides, resized, settings.size)


def describe(model: Inspector, outputs: Sequence[str], precision: str) -> dict[str, Any]:
    """The metadata of a graph: all that is needed to use it without the checkpoint."""
    settings = model.settings
    return {
        "format": FORMAT, "project": "GLASS", "class_name": model.class_name, "backbone": model.config["backbone"],
        "layers": model.config["layers_to_extract_from"], "imagesize": settings.imagesize, "resize": settings.resize,
        "keep_all": settings.keep_all, "tile": model.config.get("tile"), "overlap": model.config.get("overlap"),
        "image_size": model.config.get("image_size"), "bits": settings.bits, "max_pixels": settings.max_pixels,
        "thresholds": model.thresholds.plain() if model.thresholds else None,
        "outputs": list(outputs), "precision": precision, **({"roi": model.roi.packed()} if model.roi else {}),
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    }  # fmt: skip


def save(graph: onnx.ModelProto, metadata: dict[str, Any], path: Path) -> None:
    """Add the metadata, check the graph and write it.

    Raises:
        WorkError: it cannot be written.
    """
    thresholds = {k: None if isinstance(v, float) and v != v else v for k, v in (metadata["thresholds"] or {}).items()}
    helper.set_model_props(graph, {"glass": json.dumps({**metadata, "thresholds": thresholds or None})})
    onnx.checker.check_model(graph)
    write_atomically(path, lambda temporary: temporary.write_bytes(graph.SerializeToString()))


# ------------------------------------------------------------------------------------- command line


@click.command("pth2onnx", cls=Command, context_settings=CONTEXT)
@click.argument("checkpoint", required=False, type=click.Path())
@click.option(
    "--out",
    default=None,
    type=click.Path(dir_okay=False),
    help="File to write.  [default: beside the checkpoint, .onnx]",
)
@click.option(
    "--opset",
    default=18,
    type=click.IntRange(18, 22),
    help="Version of the ONNX operators.",
)
@click.option("--dynamic/--static", default=True, help="Any number of images at once, or exactly one.")
@click.option(
    "--picture_size",
    default=None,
    type=SizeType(),
    help="Side, or height x width, of every image; the graph then resizes this size alone.  [default: any size]",
)
@click.option(
    "--input",
    "kind",
    default="uint8",
    type=click.Choice(["uint8", "float"]),
    help="Type of the RGB input: uint8 from 0 to 255, or float32 from 0 to 1.",
)
@click.option("--half", is_flag=True, help="Compute in float16, on hardware that supports it.  [default: no]")
@click.option(
    "--no-postprocess",
    "plain",
    is_flag=True,
    help="Output patch scores instead of the normalised score and the smoothed map.  [default: no]",
)
@click.option(
    "--quantize",
    default=None,
    type=click.Choice(["int8"]),
    help="Quantise convolutions and matrix products to 8 bits, calibrated on --images.",
)
@click.option(
    "--images", default=None, type=click.Path(), help="Folder of good images for --quantize; up to 100 are used."
)
@click.option(
    "--measure",
    default=None,
    type=click.Path(),
    help="Folder with good/ and folders of defects, to measure what --quantize costs in AUROC.",
)
@click.option(
    "--weights",
    default=None,
    type=click.Path(),
    help="File of the backbone's weights.  [default: where the training had them]",
)
@click.option(
    "--max_pixels",
    default=None,
    type=click.IntRange(min=1),
    help="Refuse an image of --images or --measure with more pixels.  [default: as trained, or 500000000]",
)
def main(checkpoint: str | None, **options: Any) -> None:
    """Write the ONNX graph of CHECKPOINT (ckpt_best_<E>.pth, or its folder), and compare it with torch."""
    setup_logging()
    path = _choose(checkpoint)
    good = _check_quantisation(options)
    model = load_checkpoint(path, weights=options["weights"], max_pixels=options["max_pixels"])
    folder = path if path.is_dir() else path.parent
    out = Path(options["out"]) if options["out"] else folder / f"{model.class_name or 'model'}{_suffix(options)}.onnx"
    picture_size = None if options["picture_size"] is None else pair(options["picture_size"])
    graph_options = GraphOptions(
        options["opset"], options["dynamic"], not options["plain"], options["kind"] == "float", picture_size
    )
    change: Change | None = quantisation.to_half if options["half"] else None
    if options["quantize"]:
        change = functools.partial(quantisation.to_int8, model=model, good=good)
    precision = options["quantize"] or ("fp16" if options["half"] else "fp32")
    save(export(model, graph_options, change), describe(model, graph_options.outputs, precision), out)
    if options["quantize"] and graph_options.postprocess:
        checking.log_false_alarms(_beside("ort").GraphJudge(out), out, good)
    if options["measure"]:
        _measure(model, graph_options, out, Path(options["measure"]))
    of_score, of_map = checking.difference(out, model, picture_size, graph_options.postprocess)
    if precision == "fp32" and max(of_score, of_map) > TOLERANCE:
        LOGGER.warning("%s gives other results than torch: do not use it before you know the reason", out)
    LOGGER.info("%s: %s, %.1f MB; largest difference to torch: score %.2g, map %.2g", out, precision,
                out.stat().st_size / 1e6, of_score, of_map)  # fmt: skip


def _choose(checkpoint: str | None) -> Path:
    """The checkpoint given, or the only best one under results/."""
    if checkpoint is not None:
        return Path(checkpoint)
    found = sorted(Path("results").rglob("ckpt_best_*.pth"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError("no CHECKPOINT is given, and there is no ckpt_best_*.pth under results/")
    raise InputError(f"which CHECKPOINT? Under results/ there are {', '.join(map(str, found))}")


def _check_quantisation(options: dict[str, Any]) -> list[Path]:
    """Check --quantize, --images and --measure; returns the images for the calibration."""
    for name in ("images", "measure"):
        if options[name] and not options["quantize"]:
            raise click.UsageError(f"--{name} {options[name]} needs --quantize int8")
    if not options["quantize"]:
        return []
    if options["half"] or not options["images"]:
        raise click.UsageError("--quantize int8 needs --images, a folder of good images, and excludes --half")
    good = list_images(Path(options["images"]), recursive=True)
    if not good:
        raise InputError(f"--images {options['images']}: the folder holds no images")
    if options["measure"]:
        folder = Path(options["measure"])
        if options["plain"]:
            raise click.UsageError("--measure needs the map that --no-postprocess leaves out")
        if {checking.is_defective(file, folder) for file in list_images(folder, recursive=True)} != {True, False}:
            raise InputError(f"--measure {folder}: needs images in {folder / 'good'} and in other folders beside it")
    return quantisation.calibration_sample(good)


def _suffix(options: dict[str, Any]) -> str:
    """A suffix for the file name, so that one kind of graph does not replace another."""
    kinds = {
        "int8": options["quantize"], "fp16": options["half"], "plain": options["plain"],
        "static": not options["dynamic"], "float": options["kind"] == "float",
        "x".join(map(str, pair(options["picture_size"] or 0))): options["picture_size"],
    }  # fmt: skip
    return "".join(f"_{kind}" for kind, applies in kinds.items() if applies)


def _measure(model: Inspector, options: GraphOptions, out: Path, folder: Path) -> None:
    """Log what quantisation costs in image AUROC, compared with the same graph in float32.

    Args:
        model: a trained model.
        options: of the graph.
        out: the quantised graph.
        folder: of test images, with good/ and folders of defects in it.
    """
    plain = GraphOptions(options.opset, options.dynamic, options.postprocess)
    judge_of = _beside("ort").GraphJudge
    with tempfile.TemporaryDirectory() as temporary:
        full = Path(temporary) / "float.onnx"
        save(export(model, plain), describe(model, plain.outputs, "fp32"), full)
        before, after = checking.auroc(judge_of(full), folder), checking.auroc(judge_of(out), folder)
    LOGGER.info("image AUROC on %s: %s, in fp32 %s (%s)", folder, percent(after), percent(before),
                points(after, before))  # fmt: skip


if __name__ == "__main__":
    main(prog_name="python onnx/pth2onnx.py")
