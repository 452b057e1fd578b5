"""A trained model in use: from a checkpoint and an image to a decision, without data set folders or training flags."""

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
from inference import checkpoint
from inference.features import PRECISIONS, PatchFeatures
from inference.head import ScoringHead, build_heads
from inference.judge import Judge, PreparedImage, choose_tiling
from inference.scorer import Scorer
from inference.settings import Settings
from inference.thresholds import Thresholds
from utils import InputError, WorkError, choose_device, choose_precision


class Inspector(Judge):
    """A model ready to judge images. Made by `load_checkpoint`; may be used by several threads at once.

    Attributes:
        scorer: the network.
        settings: preprocessing, also as `geometry`.
        thresholds: of the checkpoint; None of a checkpoint without.
        tiling: how large images are cut; None judges every image whole.
        config: everything that the checkpoint says about itself.
    """

    def __init__(
        self, scorer: Scorer, state: Mapping[str, Any], settings: ImageSettings, tiling: Tiling | None = None
    ) -> None:
        self.scorer, self.settings, self.geometry, self.tiling = scorer, settings, settings, tiling
        self.reading = settings.reading
        self.config: dict[str, Any] = dict(state["config"])
        self.class_name = str(self.config.get("class_name", ""))
        self.thresholds = Thresholds.of(state.get("thresholds"))
        self._finishing = threading.Lock()  # the segmentor's matrices are made when they are first needed

    def score_pictures(
        self, pictures: Sequence[Image.Image | PreparedImage]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """RGB pictures → scores (B,) and maps (B, H, W) of what the network saw of them."""
        if not len(pictures):
            return np.zeros(0, np.float32), np.zeros((0, *self.geometry.size), np.float32)
        seen = [one.network_input if isinstance(one, PreparedImage) else self.prepare(one) for one in pictures]
        return self.score(torch.stack(seen))

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """What the model sees of a picture, (3, H, W)."""
        return normalise(np.asarray(self.settings.cropped(picture)))

    @torch.no_grad()
    def score(self, batch: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, 3, H, W) → image scores (B,) and maps (B, H, W)."""
        patch_scores = self.scorer.score_images(batch)
        with self._finishing:
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
) -> Inspector:
    """A model from nothing but its checkpoint, and the backbone's weights from the cache or a file.

    A model hangs in a process that was forked after the model was loaded, since torch's threads do not survive a fork:
    load it in the child, or call `torch.set_num_threads(1)` before loading it.

    Args:
        path: ckpt_best_<E>.pth, or the folder it lies in.
        device: the CPU by default.
        weights: file of the backbone's weights, where they are not where the training had them.
        precision: fp32, bf16 or auto.
        tile: shorter side, in pixels, of the tiles that pictures are cut into; `auto` is as large as what was seen in
            the training, `off` takes pictures whole; by default as the training was.
        overlap: least share of a tile that its neighbour covers too, in [0, 0.75]; 0.25 by default.
        max_pixels: a file with more pixels is refused; by default as in the training, or 500 million.

    Raises:
        InputError: the weights given are not those of the training, or no such tiles.
        WorkError: no checkpoint, none of this project, or the backbone's weights are not available.
    """
    path = _find(Path(path))
    state = checkpoint.load(path)
    config = state.get("config")
    if not isinstance(config, dict) or "input_shape" not in config or "resize" not in config:
        raise WorkError(
            f"{path} does not say how it was trained (the published code's checkpoints do not); score it with "
            "python main.py --test test and the flags of its training"
        )
    tiling = choose_tiling(config, tile, overlap)
    device = torch.device(device) if device is not None else choose_device((-1,))
    scorer = _build_scorer(path, state, device, weights, choose_precision(precision, device))
    settings = ImageSettings.of_config(config if max_pixels is None else {**config, "max_pixels": max_pixels})
    return Inspector(scorer, state, settings, tiling)


def _find(path: Path) -> Path:
    """The checkpoint itself, where its folder was given."""
    if not path.is_dir():
        return path
    found = checkpoint.find_chosen(path)  # as a test takes it
    if found is None:
        inside = sorted(p for p in path.rglob("ckpt_best_*.pth"))[:5]
        hint = f"; below it there are {', '.join(map(str, inside))}" if inside else ""
        raise InputError(f"no ckpt_best_*.pth in {path}{hint}")
    return found[0]


def _build_scorer(
    path: Path, state: Mapping[str, Any], device: torch.device, weights: str | Path | None, precision: str
) -> Scorer:
    config = state["config"]
    trained = bool(state.get("backbone"))  # then the checkpoint has all its weights
    source = "random" if trained else (weights or config["weights"] or "pretrained")
    if not weights and not trained and source not in ("pretrained", "random") and not Path(source).is_file():
        raise WorkError(
            f"{path}: the backbone's weights were read from {source}, which is not here; give --weights PATH (of "
            f"{config['backbone']!r}, the same file)"
        )
    backbone = backbones.load(config["backbone"], source, config["seed"])
    settings, dtype = Settings.of_config(config, precision=precision, compile=False), PRECISIONS[precision]
    rounded_later = trained and device.type == "cpu" and dtype != torch.float32  # once its weights are loaded
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
    features.aggregator.train(False)
    return Scorer(
        features, ScoringHead(projection, discriminator, dtype), RescaleSegmentor(device, settings.image_size)
    )
