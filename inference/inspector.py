"""A trained model in use: from a checkpoint and an image to a decision, without a data set or training options."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import backbones
from common import RescaleSegmentor
from datasets.geometry import Tiling
from datasets.settings import ImageSettings, normalise
from inference import checkpoint, inspected
from inference.features import PRECISIONS, PatchFeatures
from inference.head import ScoringHead, build_heads
from inference.judge import Judge, PreparedImage, choose_tiling, refuse_tiles
from inference.scorer import Scorer
from inference.settings import Settings
from inference.thresholds import Thresholds
from utils import InputError, WorkError, choose_device, choose_precision


class Inspector(Judge):
    """A model that is ready to judge images, built by `load_checkpoint`. Several threads may use it at once.

    Attributes:
        scorer: computes scores and maps.
        settings: of the preprocessing, also available as `geometry`.
        thresholds: of the checkpoint; None if it has none.
        tiling: how images are cut into tiles; None judges every image whole.
        config: the settings in the checkpoint.
    """

    def __init__(
        self, scorer: Scorer, state: Mapping[str, Any], settings: ImageSettings, tiling: Tiling | None = None
    ) -> None:
        self.scorer, self.settings, self.geometry, self.tiling = scorer, settings, settings, tiling
        self.reading = settings.reading
        self.config: dict[str, Any] = dict(state["config"])
        self.class_name = str(self.config.get("class_name", ""))
        self.thresholds = Thresholds.of(state.get("thresholds"))
        self.roi = scorer.features.inspected.roi if scorer.features.inspected else None
        self._finish_lock = threading.Lock()  # the segmentor computes its matrices when it first needs them

    def score_pictures(
        self, pictures: Sequence[Image.Image | PreparedImage]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """RGB images → image scores (B,) and anomaly maps (B, H, W) of the part that the network sees."""
        if not len(pictures):
            return np.zeros(0, np.float32), np.zeros((0, *self.geometry.size), np.float32)
        inputs = [
            image.network_input if isinstance(image, PreparedImage) else self.prepare(image) for image in pictures
        ]
        return self.score(torch.stack(inputs))  # (B, 3, H, W)

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """The network's input for an image, (3, H, W), normalised."""
        return normalise(np.asarray(self.settings.cropped(picture)))

    @torch.no_grad()
    def score(self, batch: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, 3, H, W) → image scores (B,) and anomaly maps (B, H, W)."""
        patch_scores = self.scorer.score_images(batch)
        with self._finish_lock:
            scores, maps = self.scorer.finish(patch_scores)
        return scores.cpu().numpy(), maps.cpu().numpy()


def load_checkpoint(
    path: str | Path,
    device: torch.device | str | None = None,
    weights: str | Path | None = None,
    precision: str = "fp32",
    tile: int | str | None = None,
    overlap: float | None = None,
    max_pixels: int | None = None,
    min_area: int = 1,
) -> Inspector:
    """Build a model from its checkpoint alone, with the backbone's weights from the cache or a file.

    A model that was loaded before a fork hangs in the child process, since torch's threads do not survive a fork: load
    it in the child, or call `torch.set_num_threads(1)` before loading it.

    Args:
        path: ckpt_best_<E>.pth, or its folder.
        device: of the model; the CPU by default.
        weights: file of the backbone's weights, if they are not where the training read them.
        precision: fp32, bf16 or auto.
        tile: shorter side in pixels of the tiles that images are cut into; `auto` is the size that the network saw in
            the training, `off` judges images whole; by default as in the training.
        overlap: smallest share of a tile that its neighbour covers as well, in [0, 0.75]; 0.25 by default.
        max_pixels: a file with more pixels is refused; by default as in the training, or 500 million.
        min_area: regions with fewer pixels of the image are left out of the results' `regions`.

    Raises:
        InputError: there is no checkpoint, the weights are not those of the training, or the tiles are impossible.
        WorkError: the checkpoint cannot be used, or the backbone's weights are not available.
    """
    path = _find(Path(path))
    state = checkpoint.load(path)
    config = state.get("config")
    if not isinstance(config, dict) or "input_shape" not in config or "resize" not in config:
        raise WorkError(
            f"{path} does not say how it was trained (checkpoints of the published code do not); score it with "
            "python main.py --test test and the options of its training"
        )
    tiling = choose_tiling(config, tile, overlap)
    device = torch.device(device) if device is not None else choose_device((-1,))
    scorer = _build_scorer(path, state, device, weights, choose_precision(precision, device))
    settings = ImageSettings.of_config(config if max_pixels is None else {**config, "max_pixels": max_pixels})
    model = Inspector(scorer, state, settings, tiling)
    refuse_tiles(model.roi, tiling)
    model.min_area = min_area
    return model


def _find(path: Path) -> Path:
    """The checkpoint that a test of this folder would use; a path that is not a folder stays as it is."""
    if not path.is_dir():
        return path
    chosen = checkpoint.find_chosen(path)
    if chosen is None:
        below = sorted(p for p in path.rglob("ckpt_best_*.pth"))[:5]
        hint = f"; below it there are {', '.join(map(str, below))}" if below else ""
        raise InputError(f"no ckpt_best_*.pth in {path}{hint}")
    return chosen[0]


def _build_scorer(
    path: Path, state: Mapping[str, Any], device: torch.device, weights: str | Path | None, precision: str
) -> Scorer:
    config = state["config"]
    trained = bool(state.get("backbone"))  # the checkpoint contains all weights of the backbone
    source = "random" if trained else (weights or config["weights"] or "pretrained")
    if not weights and not trained and source not in ("pretrained", "random") and not Path(source).is_file():
        raise WorkError(
            f"{path}: the training read the backbone's weights from {source}, which does not exist; give "
            f"--weights PATH with the same weights of {config['backbone']!r}"
        )
    backbone = backbones.load(config["backbone"], source, config["seed"])
    settings, dtype = Settings.of_config(config, precision=precision, compile=False), PRECISIONS[precision]
    rounded_later = trained and device.type == "cpu" and dtype != torch.float32  # after its weights are loaded
    features = PatchFeatures(backbone, settings, device, torch.float32 if rounded_later else dtype)
    if not trained and features.aggregator.fingerprint != config.get("backbone_hash"):
        raise InputError(
            f"{path} was trained with other weights of {config['backbone']!r} than those from {source}: give the same "
            "weights with --weights"
        )
    projection, discriminator = build_heads(settings, device)
    checkpoint.load_parts(path, state, discriminator, projection, features.aggregator.backbone if trained else None)
    if rounded_later:
        frozen = replace(settings, train_backbone=False)
        features = PatchFeatures(features.aggregator.backbone, frozen, device, dtype)
    if features.memory is not None:
        features.memory.restore(checkpoint.memory_of(path, state))
    features.aggregator.train(False)
    features.drop_original()
    segmentor = RescaleSegmentor(device, settings.image_size)
    features.inspected = inspected.restore(checkpoint.roi_of(path, state), config, segmentor, features.grid)
    return Scorer(features, ScoringHead(projection, discriminator, dtype), segmentor)
