"""A trained model in use: from a checkpoint and a picture to a decision, without data set folders or training flags."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import backbones
import checkpoint
from common import NetworkFeatureAggregator
from datasets.files import read_rgb
from datasets.settings import ImageSettings, normalise
from errors import InputError, WorkError
from glass import GLASS, PRECISIONS
from thresholds import Thresholds
from thresholds import normalise as normalise_scores
from utils import choose_device, choose_precision

SMALLEST = 8  # pixels; below that a picture's side tells nothing
ON_THE_RUN = frozenset({"backbone", "weights", "precision", "compile", "feature_cache"})  # not of the model itself


@dataclass(frozen=True)
class Result:
    """What the model says of a picture.

    Attributes:
        score: in [0, 1], as the tester's.
        normalised: the score with the threshold at 0.5; nan without a threshold.
        decision: whether the picture is defective; None without a threshold.
        map: (h, w) float32 in [0, 1], in the picture's own geometry; 0 where a crop left something out.
        mask: (h, w) bool, the map above the pixel threshold; None without one.
        seconds: that it took, its share where several were scored at once.
    """

    score: float
    normalised: float
    decision: bool | None
    map: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    seconds: float


class Inspector:
    """A model ready to judge pictures. Made by `load_checkpoint`; may be used by several threads at once.

    Attributes:
        settings: preprocessing.
        thresholds: of the checkpoint; None of one without.
        config: everything that the checkpoint tells of itself.
        glass: the model.
    """

    def __init__(self, glass: GLASS, state: Mapping[str, Any], settings: ImageSettings) -> None:
        self.glass, self.settings = glass, settings
        self.config: dict[str, Any] = dict(state["config"])
        self.thresholds = Thresholds.of(state.get("thresholds"))
        glass._set_mode(False)
        self._head = glass._head()
        self._smoothing = threading.Lock()  # its matrices are made when first needed

    @property
    def class_name(self) -> str:
        """The class it was trained on, as `<dataset>_<class>`."""
        return str(self.config.get("class_name", ""))

    def predict_image(self, image: str | Path | NDArray[np.uint8] | Image.Image) -> Result:
        """Judge a picture.

        Args:
            image: a file; or (h, w, 3) RGB or (h, w) gray, uint8; or a PIL image.

        Raises:
            InputError: no such array.
            WorkError: the file cannot be read.
        """
        return self.predict_images([image])[0]

    def predict_images(self, images: Sequence[str | Path | NDArray[np.uint8] | Image.Image]) -> list[Result]:
        """Judge several at once, which is faster; see `predict_image`."""
        started = time.perf_counter()
        pictures = [open_picture(image) for image in images]
        batch = torch.stack([self.prepare(picture) for picture in pictures])
        scores, maps = self.score(batch)
        found = [
            self.result(score, self.place(one, picture.size))
            for score, one, picture in zip(scores.tolist(), maps, pictures, strict=True)
        ]
        seconds = (time.perf_counter() - started) / max(1, len(found))
        return [Result(**{**vars(one), "seconds": seconds}) for one in found]

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """What the model sees of a picture, (3, H, W)."""
        return normalise(np.asarray(self.settings.cropped(picture)))

    @torch.no_grad()
    def score(self, batch: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, 3, H, W) → image scores (B,) and maps (B, H, W)."""
        patch_scores = self.glass._score_images(self._head, batch)
        with self._smoothing:
            scores, maps = self.glass._judge(patch_scores)
        return scores.cpu().numpy(), maps.cpu().numpy()

    def place(self, anomaly_map: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """A map (H, W) of what the model saw, in the geometry of a picture of `size` (width, height)."""
        height, width = self.settings.resized_size(*size)
        canvas = np.zeros((height, width), np.float32)
        rows, columns = anomaly_map.shape
        # as torchvision's centre crop: a crop larger than the picture was padded
        top, left = round((height - rows) / 2), round((width - columns) / 2)
        y, x = max(top, 0), max(left, 0)
        inside = anomaly_map[y - top : y - top + height, x - left : x - left + width]
        canvas[y : y + inside.shape[0], x : x + inside.shape[1]] = inside[: height - y, : width - x]
        return cv2.resize(canvas, size, interpolation=cv2.INTER_LINEAR)

    def result(self, score: float, anomaly_map: NDArray[np.float32], seconds: float = 0.0) -> Result:
        """A result from a score and a map in the picture's geometry."""
        if self.thresholds is None:
            return Result(score, float("nan"), None, anomaly_map, None, seconds)
        normalised = float(normalise_scores(score, self.thresholds.image))
        decision, mask = score > self.thresholds.image, anomaly_map > self.thresholds.pixel
        return Result(score, normalised, decision, anomaly_map, mask, seconds)


def open_picture(image: str | Path | NDArray[np.uint8] | Image.Image) -> Image.Image:
    """An RGB picture from whatever `Inspector.predict_image` takes."""
    if isinstance(image, Image.Image):
        picture = image.convert("RGB")
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
            raise InputError(
                f"an array of {image.dtype} and shape {image.shape} is no picture; possible: uint8 of (h, w, 3) RGB or "
                "(h, w) gray"
            )
        gray = image.reshape(image.shape[:2]) if image.ndim == 2 or image.shape[2] == 1 else None
        picture = Image.fromarray(image if gray is None else gray).convert("RGB")
    else:
        picture = read_rgb(Path(image))
    if min(picture.size) < SMALLEST:
        raise WorkError(f"a picture of {picture.size[0]}x{picture.size[1]} pixels is too small to be judged")
    return picture


def load_checkpoint(
    path: str | Path,
    device: torch.device | str | None = None,
    weights: str | Path | None = None,
    precision: str = "fp32",
) -> Inspector:
    """A model from nothing but its checkpoint, and the backbone's weights from the cache or a file.

    Args:
        path: ckpt_best_<E>.pth, or the folder it lies in.
        device: the CPU by default.
        weights: file of the backbone's weights, where they are not where the training had them.
        precision: fp32, bf16 or auto.

    Raises:
        InputError: the weights given are not those of the training.
        WorkError: no checkpoint, none of this project, or the backbone's weights are not to be had.
    """
    path = _find(Path(path))
    state = checkpoint.load(path)
    config = state.get("config")
    if not isinstance(config, dict) or "input_shape" not in config or "resize" not in config:
        raise WorkError(
            f"{path} does not say how it was trained (the published code's checkpoints do not); score it with "
            "python main.py --test test and the flags of its training"
        )
    device = torch.device(device) if device is not None else choose_device((-1,))
    glass = _build(path, state, device, weights, choose_precision(precision, device))
    return Inspector(glass, state, _image_settings(config))


def _find(path: Path) -> Path:
    """The checkpoint itself, where its folder was given."""
    if not path.is_dir():
        return path
    found = checkpoint.find_best(path)
    if found is None:
        inside = sorted(p for p in path.rglob("ckpt_best_*.pth"))[:5]
        hint = f"; below it there are {', '.join(map(str, inside))}" if inside else ""
        raise WorkError(f"no ckpt_best_*.pth in {path}{hint}")
    return found[0]


def _image_settings(config: Mapping[str, Any]) -> ImageSettings:
    names = {f.name for f in fields(ImageSettings)}
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in names}
    return ImageSettings(**given)


def _build(
    path: Path, state: Mapping[str, Any], device: torch.device, weights: str | Path | None, precision: str
) -> GLASS:
    config = state["config"]
    trained = bool(state.get("backbone"))  # then the checkpoint brings all its weights along
    source = "random" if trained else (weights or config["weights"] or "pretrained")
    if not weights and not trained and source not in ("pretrained", "random") and not Path(source).is_file():
        raise WorkError(
            f"{path}: the backbone's weights were read from {source}, which is not here; give --weights PATH (of "
            f"{config['backbone']!r}, the same file)"
        )
    backbone = backbones.load(config["backbone"], source, config["seed"])
    wanted = {f for f in GLASS.load.__annotations__ if f in config and f not in ON_THE_RUN}
    glass = GLASS(device).load(
        backbone=backbone, device=device, **{name: config[name] for name in wanted}, precision=precision
    )
    if not trained and glass.settings["backbone_hash"] != config.get("backbone_hash"):
        raise InputError(
            f"{path} was trained with other weights of {config['backbone']!r} than those from {source}: give the same "
            "ones with --weights"
        )
    glass.load_weights(path)
    if precision == "bf16" and device.type == "cpu":  # a training leaves the backbone in float32 there
        glass.feature_aggregator = NetworkFeatureAggregator(
            glass.feature_aggregator.backbone if trained else backbone, glass.layers_to_extract_from, device,
            tuple(glass.input_shape), False, PRECISIONS["bf16"],
        )  # fmt: skip
    return glass
