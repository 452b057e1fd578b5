"""From a checkpoint to one ONNX graph: RGB image in; score, normalised score and smoothed map out.

    python onnx/pth2onnx.py [CHECKPOINT] [OPTIONS]

The graph does what `predict` does with a picture: resize, crop, normalise, score, smooth. Its metadata says what it is.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from onnx import TensorProto, compose, helper  # noqa: E402
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # noqa: E402
from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

import metrics  # noqa: E402
from commands.command import CONTEXT, Command  # noqa: E402
from commands.parameters import SizeType  # noqa: E402
from datasets.base import is_good  # noqa: E402
from datasets.files import read_rgb  # noqa: E402
from datasets.geometry import pair  # noqa: E402
from datasets.listing import list_images  # noqa: E402
from datasets.settings import ImageSettings  # noqa: E402
from inference.inspector import Inspector, load_checkpoint  # noqa: E402
from inference.judge import open_picture  # noqa: E402
from inference.thresholds import TINY  # noqa: E402
from utils import IMAGENET_MEAN, IMAGENET_STD, LOGGER, InputError, WorkError, reason_of, setup_logging, write_atomically  # noqa: E402  # noqa: E402


def _beside(name: str) -> ModuleType:
    """A module beside this one; their folder is no package, which would hide the one of that name."""
    place = f"glass_onnx_{name}"
    if place not in sys.modules:
        spec = importlib.util.spec_from_file_location(place, Path(__file__).with_name(f"{name}.py"))
        sys.modules[place] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[place])
    return sys.modules[place]


resampling = _beside("resampling")

FORMAT = 1  # of the metadata
CALIBRATED = 100  # pictures
MUCH = 1e-3  # of a difference between the graph and torch
SMOOTHING_PRODUCTS = 2
OUTPUTS = ("score", "normalised", "map")


Change = Callable[[onnx.ModelProto], onnx.ModelProto]


class Network(nn.Module):
    """Normalised image → score, normalised score, map: what a graph can hold of a model.

    Args:
        model: a trained one.
        postprocess: whether scores are normalised and maps smoothed to the image's size; else patch scores come out.
    """

    def __init__(self, model: Inspector, postprocess: bool) -> None:
        super().__init__()
        self.glass, self.postprocess = [model.glass], postprocess  # in a list, or its parts would count twice
        self.backbone, self.head = model.glass.feature_aggregator, model._head
        self.threshold = model.thresholds.image if model.thresholds else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → (B,), (B,) and (B, H, W); without postprocessing (B,) and (B, H', W')."""
        glass = self.glass[0]
        maps = self.backbone(x)
        if glass.fused_pooling is not None:
            patch_scores = self.head.of_parts(glass.fused_pooling.parts(maps))
        else:
            patch_scores = self.head(self._pooled(maps))[..., 0].unflatten(1, glass.grid)
        score = patch_scores.flatten(1).amax(1)
        if not self.postprocess:
            return score, patch_scores
        return score, self._normalised(score), glass.anomaly_segmentor(patch_scores)

    def _normalised(self, score: Tensor) -> Tensor:
        if self.threshold is None:
            return score * torch.nan
        t = min(max(self.threshold, TINY), 1 - TINY)  # as `thresholds.normalise`
        lower, upper = (0.5 * score / t).clamp(0, 0.5), (0.5 + 0.5 * (score - t) / (1 - t)).clamp(0.5, 1)
        return torch.where(score <= self.threshold, lower, upper)

    def _pooled(self, maps: Sequence[Tensor]) -> Tensor:
        """The general pooling, (B, P, C): adaptive average pooling is linear, so it is a product with a matrix."""
        glass = self.glass[0]
        grid, layers = glass.grid, []
        for x, shape in zip(maps, glass.feature_aggregator.feature_shapes, strict=True):
            patches = F.unfold(x, glass.patchsize, padding=glass.patchsize // 2)  # (B, C·p², P_l)
            y = _pooling_matrix(shape[0] * glass.patchsize**2, glass.pretrain_embed_dimension) @ patches
            y = y.unflatten(2, shape[1:])
            if tuple(shape[1:]) != tuple(grid):
                y = F.interpolate(y, size=tuple(grid), mode="bilinear", align_corners=False)
            layers.append(y.flatten(2))
        joined = torch.cat(layers, dim=1)  # (B, layers·pretrain, P)
        total = len(layers) * glass.pretrain_embed_dimension
        return (_pooling_matrix(total, glass.target_embed_dimension) @ joined).transpose(1, 2)


def _pooling_matrix(length: int, out: int) -> Tensor:
    """(out, length) of torch's adaptive average pooling."""
    return F.adaptive_avg_pool1d(torch.eye(length).unsqueeze(0), out)[0].T.contiguous()


# -------------------------------------------------------------------------------------------- the graph


def export(
    model: Inspector, opset: int, dynamic: bool, postprocess: bool, change: Change | None = None, floats: bool = False,
    picture_size: tuple[int, int] | None = None,
) -> onnx.ModelProto:  # fmt: skip
    """The whole graph, from pictures on, uint8 or `floats` in [0, 1].

    Args:
        model: a trained one.
        opset: version of the operators.
        dynamic: whether there may be any number of pictures at once.
        postprocess: as `Network`.
        change: is made to the network in the graph, before the pictures' part is added.
        floats: whether pictures come as float32.
        picture_size: (h, w) of every picture, where it is known; None takes any.
    """
    size = model.settings.size
    network = Network(model, postprocess).eval()
    names = OUTPUTS if postprocess else ("score", "patch_scores")
    axes = {name: {0: "batch"} for name in ("normalised_image", *names)} if dynamic else None
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that never change here
        torch.onnx.export(
            network, (torch.zeros(2 if dynamic else 1, 3, *size),), buffer, input_names=["normalised_image"],
            output_names=list(names), dynamic_axes=axes, opset_version=opset, dynamo=False,
        )  # fmt: skip
    made = onnx.load_from_string(buffer.getvalue())
    made = made if change is None else change(made)
    before = _preparation(model, opset, dynamic, floats, picture_size)
    before.ir_version = made.ir_version
    return compose.merge_models(before, made, io_map=[("prepared", "normalised_image")])


def _preparation(
    model: Inspector, opset: int, dynamic: bool, floats: bool, size: tuple[int, int] | None
) -> onnx.ModelProto:
    """Pictures (B, h, w, 3) of any one size, or of `size`, → prepared (B, 3, H, W) float32, as `ImageSettings` does it.

    Every step gives the same number in every runtime: 8-bit values are whole numbers, as Pillow rounds them.
    """
    settings, (height, width) = model.settings, model.settings.size
    g = resampling.Nodes("prep")
    planes = g.add("Transpose", "image", perm=[0, 3, 1, 2])
    if floats:  # back to the 8 bits that they come from
        planes = g.add("Floor", g.add("Add", g.add("Mul", planes, g.constant(255.0)), g.constant(0.5)))
    if size is None:
        pixels = _resized_any(g, planes, settings)
    else:
        pixels = resampling.resize_fixed(g, planes, size, settings.resized_size(*size[::-1]), (height, width))
    mean, std = (g.constant(np.reshape(values, (1, 3, 1, 1)) * 255) for values in (IMAGENET_MEAN, IMAGENET_STD))
    g.nodes.append(helper.make_node("Div", [g.add("Sub", pixels, mean), std], ["prepared"]))
    first = "batch" if dynamic else 1
    kind = TensorProto.FLOAT if floats else TensorProto.UINT8
    image = helper.make_tensor_value_info("image", kind, [first, *(size or ("height", "width")), 3])
    prepared = helper.make_tensor_value_info("prepared", TensorProto.FLOAT, [first, 3, height, width])
    graph = helper.make_graph(g.nodes, "preparation", [image], [prepared], g.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _resized_any(g: resampling.Nodes, planes: str, settings: ImageSettings) -> str:
    """The name of pictures of any size, (B, 3, h, w), resized and cropped."""
    shape = g.add("Shape", planes)
    sides = tuple(g.slice(shape, *(g.constant([k], np.int64) for k in (i, i + 1)), 0) for i in (2, 3))
    if isinstance(settings.resize, int) and not settings.keep_all:
        shorter, wanted = g.add("Min", *sides), g.constant([settings.resize], np.int64)
        resized = tuple(g.add("Div", g.add("Mul", side, wanted), shorter) for side in sides)
    else:
        resized = tuple(g.constant([side], np.int64) for side in settings.resized_size(1, 1))
    return resampling.resize_any(g, planes, sides, resized, settings.size)


def describe(model: Inspector, names: Sequence[str], precision: str) -> dict[str, Any]:
    """What the graph's metadata says: enough to use it with nothing else at hand."""
    settings = model.settings
    return {
        "format": FORMAT, "project": "GLASS", "class_name": model.class_name, "backbone": model.config["backbone"],
        "layers": model.config["layers_to_extract_from"], "imagesize": settings.imagesize, "resize": settings.resize,
        "keep_all": settings.keep_all, "tile": model.config.get("tile"), "overlap": model.config.get("overlap"),
        "image_size": model.config.get("image_size"), "bits": settings.bits, "max_pixels": settings.max_pixels,
        "thresholds": model.thresholds.plain() if model.thresholds else None,
        "outputs": list(names), "precision": precision,
        "versions": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    }  # fmt: skip


def finish(graph: onnx.ModelProto, about: dict[str, Any], path: Path) -> None:
    """Put the metadata in, check the graph, write it.

    Raises:
        WorkError: it cannot be written.
    """
    plain = {k: None if isinstance(v, float) and v != v else v for k, v in (about["thresholds"] or {}).items()}
    helper.set_model_props(graph, {"glass": json.dumps({**about, "thresholds": plain or None})})
    onnx.checker.check_model(graph)
    write_atomically(path, lambda temporary: temporary.write_bytes(graph.SerializeToString()))


def to_half(network: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in float16; what goes in and comes out stays float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    made = OnnxModel(convert_float_to_float16(network, keep_io_types=True))
    made.topological_sort()  # the conversion puts its casts at the end
    return made.model


class _Prepared(CalibrationDataReader):
    """Good pictures as the network sees them, one at a time."""

    def __init__(self, model: Inspector, paths: Sequence[Path]) -> None:
        self._model, self._left = model, iter(tqdm(paths, desc="calibrating", unit="img"))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next one, None after the last; of a model of tiles one in the middle of the picture."""
        path = next(self._left, None)
        if path is None:
            return None
        picture, tiling = read_rgb(path, self._model.reading), self._model.tiling
        if tiling is not None:
            boxes = tiling.boxes(*picture.size)
            picture = Image.fromarray(tiling.cut(np.asarray(picture), boxes[len(boxes) // 2]))
        return {"normalised_image": self._model.prepare(picture)[None].numpy()}


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder of the system's for what is needed in between.

    Raises:
        WorkError: it has no room.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        except OSError as error:
            raise WorkError(
                f"cannot write temporary files in {folder}: {reason_of(error)}; the variable TMPDIR names another place"
            ) from error


def to_int8(network: onnx.ModelProto, model: Inspector, good: Sequence[Path]) -> onnx.ModelProto:
    """Static quantisation of convolutions and products, calibrated on good pictures."""
    # the smoothing at the end is two small products, which would round every pixel of the map
    kept = [n.name for n in network.graph.node if n.op_type == "MatMul"][-SMOOTHING_PRODUCTS:]
    with _temporary_folder() as folder:
        whole, prepared, small = (folder / f"{name}.onnx" for name in ("float", "prepared", "int8"))
        onnx.save(network, whole)
        quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(small), _Prepared(model, good), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "MaxPool", "AveragePool", "Relu"],
            nodes_to_exclude=kept, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(small)


# ------------------------------------------------------------------------------------------- checking


@torch.no_grad()
def _patch_scores(model: Inspector, picture: Image.Image) -> np.ndarray:
    return model.glass._score_images(model._head, model.prepare(picture)[None]).numpy()


def _as_input(session: onnxruntime.InferenceSession, picture: np.ndarray) -> dict[str, np.ndarray]:
    """A picture (h, w, 3) uint8 as the graph takes it."""
    floats = "float" in session.get_inputs()[0].type
    return {"image": picture[None].astype(np.float32) / 255 if floats else picture[None]}


def difference(path: Path, model: Inspector, pictures: Sequence[np.ndarray]) -> tuple[float, float]:
    """The largest difference of a score and of a map's pixel between the graph and torch."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = [0.0, 0.0]
    for picture in pictures:
        found = session.run(None, _as_input(session, picture))
        scores, maps = model.score(model.prepare(open_picture(picture))[None])
        if "patch_scores" in (output.name for output in session.get_outputs()):
            maps = _patch_scores(model, open_picture(picture))
        worst[0] = max(worst[0], float(np.abs(found[0] - scores).max()))
        if found[-1].shape == maps.shape:
            worst[1] = max(worst[1], float(np.abs(found[-1] - maps).max()))
    return worst[0], worst[1]


def _is_defective(file: Path, folder: Path) -> bool:
    return not is_good(file.relative_to(folder).parts[0])


def _trial_pictures(model: Inspector, picture_size: tuple[int, int] | None) -> list[np.ndarray]:
    """Smooth colours of a few sizes, or of the one that the graph takes."""
    rng, (height, width) = np.random.default_rng(0), model.settings.size
    sizes = ((height, width), (2 * height, 3 * width), (height + 37, width + 11))
    sizes = sizes if picture_size is None else (picture_size,) * 3
    return [cv2.resize(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8), (w, h)) for h, w in sizes]


def auroc(path: Path, folder: Path) -> float:
    """Image AUROC of a graph on a folder with good/ and other folders in it, as `ort.py` judges."""
    judge = _beside("ort").GraphJudge(path)
    files = list_images(folder, recursive=True)
    labels = [_is_defective(file, folder) for file in files]
    scores = [judge.predict_image(file).score for file in tqdm(files, unit="img")]
    return metrics.compute_imagewise_retrieval_metrics(scores, labels)["auroc"]


def _choose(given: str | None) -> Path:
    """The checkpoint given, or the only best one under results/."""
    if given is not None:
        return Path(given)
    found = sorted(Path("results").rglob("ckpt_best_*.pth"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError("no CHECKPOINT is given, and there is no ckpt_best_*.pth under results/")
    raise InputError(f"which CHECKPOINT? Under results/ there are {', '.join(map(str, found))}")


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
    help="Version of ONNX's operators.",
)
@click.option("--dynamic/--static", default=True, help="Any number of pictures at once, or one.")
@click.option(
    "--picture_size",
    default=None,
    type=SizeType(),
    help="Side, or height x width, that every picture has: its resizing is then built in.  [default: any size]",
)
@click.option(
    "--input",
    "kind",
    default="uint8",
    type=click.Choice(["uint8", "float"]),
    help="Of the pictures, RGB: 0 to 255, or 0 to 1 in float32.",
)
@click.option("--half", is_flag=True, help="float16 inside, for hardware that has it.  [default: no]")
@click.option(
    "--no-postprocess",
    "plain",
    is_flag=True,
    help="Patch scores in place of normalised score and smoothed map.  [default: no]",
)
@click.option(
    "--quantize",
    default=None,
    type=click.Choice(["int8"]),
    help="8-bit convolutions and products, calibrated on --images.",
)
@click.option(
    "--images", default=None, type=click.Path(), help="Folder of good pictures for --quantize; up to 100 are used."
)
@click.option(
    "--measure",
    default=None,
    type=click.Path(),
    help="Folder with good/ and others in it, to measure what --quantize costs in AUROC.",
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
    help="A picture of --images or --measure with more pixels is refused.  [default: as trained, or 500000000]",
)
def main(checkpoint: str | None, **options: Any) -> None:
    """Write the ONNX graph of CHECKPOINT (ckpt_best_<E>.pth, or its folder), and check it against torch."""
    setup_logging()
    chosen = _choose(checkpoint)
    if options["quantize"] and (options["half"] or not options["images"]):
        raise click.UsageError("--quantize int8 needs --images, a folder of good pictures, and goes without --half")
    good = list_images(Path(options["images"]), recursive=True) if options["images"] else []
    if options["images"] and not good:
        raise InputError(f"--images {options['images']}: no pictures there")
    _check_measured(options)
    model = load_checkpoint(chosen, weights=options["weights"], max_pixels=options["max_pixels"])
    beside = chosen if chosen.is_dir() else chosen.parent
    out = Path(options["out"]) if options["out"] else beside / f"{model.class_name or 'model'}{_suffix(options)}.onnx"
    names = OUTPUTS if not options["plain"] else ("score", "patch_scores")
    wanted = model, options["opset"], options["dynamic"], not options["plain"]
    picture_size = None if options["picture_size"] is None else pair(options["picture_size"])
    change: Change | None = to_half if options["half"] else None
    if options["quantize"]:
        change = functools.partial(to_int8, model=model, good=_spread(good, CALIBRATED))
    precision = options["quantize"] or ("fp16" if options["half"] else "fp32")
    floats = options["kind"] == "float"
    finish(export(*wanted, change, floats, picture_size), describe(model, names, precision), out)
    if options["quantize"] and not options["plain"]:
        _say_false_alarms(out, _spread(good, CALIBRATED))
    if options["measure"]:
        _measure(wanted, names, out, Path(options["measure"]))
    score, of_map = difference(out, model, _trial_pictures(model, picture_size))
    if precision == "fp32" and max(score, of_map) > MUCH:
        LOGGER.warning("%s does not say what torch says: do not use it before you know why", out)
    LOGGER.info("%s: %s, %.1f MB; largest difference to torch: score %.2g, map %.2g", out, precision,
                out.stat().st_size / 1e6, score, of_map)  # fmt: skip


def _check_measured(options: dict[str, Any]) -> None:
    """--images and --measure are of --quantize, and --measure needs both kinds of pictures."""
    for name in ("images", "measure"):
        if options[name] and not options["quantize"]:
            raise click.UsageError(f"--{name} is of --quantize, which is not given")
    if not options["measure"]:
        return
    folder = Path(options["measure"])
    if options["plain"]:
        raise click.UsageError("--measure needs the map that --no-postprocess leaves out")
    kinds = {_is_defective(file, folder) for file in list_images(folder, recursive=True)}
    if kinds != {True, False}:
        raise InputError(f"--measure {folder}: needs pictures in {folder / 'good'} and in other folders beside it")


def _suffix(options: dict[str, Any]) -> str:
    """Of the file's name, so that one kind of graph does not replace another."""
    kinds = {
        "int8": options["quantize"], "fp16": options["half"], "plain": options["plain"],
        "static": not options["dynamic"], "float": options["kind"] == "float",
        "x".join(map(str, pair(options["picture_size"] or 0))): options["picture_size"],
    }  # fmt: skip
    return "".join(f"_{kind}" for kind, given in kinds.items() if given)


def _spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of them, evenly chosen."""
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))
    return [paths[i] for i in chosen]


def _say_false_alarms(path: Path, good: Sequence[Path]) -> None:
    """Rounding shifts scores, and the threshold is the float model's: whether good pictures are still below it."""
    judge = _beside("ort").GraphJudge(path)
    if judge.thresholds is None:
        return
    above = sum(bool(judge.predict_image(file).decision) for file in good)
    line = f"{path}: {above} of {len(good)} good pictures are above the threshold in int8"
    if above > max(1, 2 * judge.thresholds.false_alarm * len(good)):
        LOGGER.warning(
            "%s: its scores have shifted; give --images of all kinds of good pictures, or stay in fp32", line
        )
    else:
        LOGGER.info(line)


def _measure(wanted: tuple[Inspector, int, bool, bool], names: Sequence[str], out: Path, folder: Path) -> None:
    """Say what the graph's precision costs in image AUROC against the same graph in float32."""
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "float.onnx"
        finish(export(*wanted), describe(wanted[0], names, "fp32"), whole)
        before, after = auroc(whole, folder), auroc(out, folder)
    change = 100 * (after - before)
    LOGGER.info("image AUROC on %s: %.2f, in fp32 %.2f (%+.2f)", folder, 100 * after, 100 * before, change)


if __name__ == "__main__":
    main(prog_name="python onnx/pth2onnx.py")
