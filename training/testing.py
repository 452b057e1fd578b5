"""Scoring a test set, whole or in tiles, and testing the chosen checkpoint of a class with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from datasets.geometry import Blend
from datasets.loaders import end_workers
from datasets.truth import PackedMasks
from inference import checkpoint
from inference.features import Batch, FeatureCache, kept_features
from inference.scorer import Scorer, finite_scores
from inference.thresholds import Thresholds
from reporting import drawing
from training.device_metrics import DeviceTruth
from training.evaluation import METRICS, Predictions, Tested, evaluate, judge, why_nan
from training.record import Record
from training.state import chosen_checkpoint, load_weights, refuse_other_scores
from utils import LOGGER

if TYPE_CHECKING:
    from glass import GLASS

SCORED_AT_ONCE = 8  # images


@dataclass
class TestMemory:
    """The parts of a test set that stay the same from one evaluation to the next.

    Attributes:
        features: of the images, or of the tiles.
        predictions: labels and masks, without scores and maps; None before the first evaluation.
    """

    __test__ = False  # pytest would collect a class of this name

    features: FeatureCache
    predictions: Predictions | None = None

    @property
    def complete(self) -> bool:
        """Whether further evaluations need no images."""
        return self.predictions is not None and self.features.complete


# ----------------------------------------------------------------------------------------- scoring


@torch.no_grad()
def score_set(
    scorer: Scorer, loader: Iterable[Batch] | Tensor, pictures: Path | None = None, memory: TestMemory | None = None
) -> Predictions:
    """Score a test set. Besides its map, an image needs only the bits of its mask and a few bytes of memory.

    Args:
        scorer: with the weights to test.
        loader: batches with `image`, `mask_gt`, `is_anomaly`, `image_path`; or a single (B, 3, H, W) tensor; or the
            tiles of a `TiledTestDataset`, for scores and maps of its whole images.
        pictures: folder for a picture (image | ground truth | heatmap) of each image; None writes none.
        memory: of the same test set, so that further evaluations only need the heads.

    Returns:
        Scores, maps and ground truth.

    Raises:
        WorkError: a score is not finite.
    """
    if hasattr(getattr(loader, "dataset", None), "whole"):
        return _score_tiles(scorer, loader, pictures, memory)
    if memory is not None and memory.complete and pictures is None:
        return _score_remembered(scorer, memory)
    if isinstance(loader, Tensor):
        loader = [{"image": loader}]
    if not hasattr(loader, "dataset"):
        loader = list(loader)  # the images are counted before they are read
    collected = _Collected(_count_images(loader), scorer, pictures)
    for batch in loader:
        patch_scores = _score_batch(scorer, batch, memory.features if memory else None)
        collected.add(batch, *scorer.finish(patch_scores))
    predictions = collected.predictions()
    if memory is not None:
        memory.predictions = predictions.without_scores()
    if memory is not None and memory.complete:
        end_workers(loader)
    return predictions


class _Collected:
    """Collects scores, maps and ground truth of a test set, batch by batch."""

    def __init__(self, count: int, scorer: Scorer, pictures: Path | None) -> None:
        size, device = scorer.image_size, scorer.features.device
        inspected = scorer.features.inspected
        # the device ranks the pixels of whole maps
        self._on_device = inspected is None and DeviceTruth.fits(count, size, device)
        # a NumPy array, since the system only provides its memory as it is written to
        host = np.empty((0 if self._on_device else count, *size), np.float32)
        self._maps = torch.empty(count, *size, device=device) if self._on_device else torch.from_numpy(host)
        self._predictions = Predictions(
            np.empty(count, np.float32), self._maps if self._on_device else host, np.zeros(count, bool),
            PackedMasks(count, size, None if inspected is None else inspected.pixels), [],
        )  # fmt: skip
        self._size, self._device, self._pictures = size, device, pictures
        self._inspected = None if inspected is None else inspected.pixels
        self._names: set[str] = set()
        self._end = 0

    def add(self, batch: Batch, scores: Tensor, maps: Tensor) -> None:
        """Add the next images with their scores (B,) and maps (B, H, W)."""
        start, self._end = self._end, self._end + len(scores)
        predictions, count = self._predictions, len(scores)
        predictions.scores[start : self._end], self._maps[start : self._end] = finite_scores(scores), maps
        masks = batch.get("mask_gt")
        for i in range(count):
            unknown = np.full(self._size, -1)
            predictions.masks[start + i] = unknown if masks is None else np.asarray(masks[i]).reshape(self._size)
        predictions.labels[start : self._end] = np.asarray(batch.get("is_anomaly", np.zeros(count)), bool)
        if self._inspected is not None:  # the label is about the region, too
            for i in range(start, self._end):
                predictions.labels[i] &= _may_be_inside(predictions.masks[i], self._inspected)
        predictions.paths += list(batch.get("image_path", [""] * count))
        if self._pictures is not None:
            for i in range(count):
                self._save_picture(start + i, batch["image"][i])

    def _save_picture(self, index: int, image: Tensor) -> None:
        file = self._pictures / drawing.picture_name(self._predictions.paths[index], self._names)
        anomaly_map = self._maps[index].cpu().numpy()
        drawing.save_picture(file, image.cpu().numpy(), self._predictions.masks[index], anomaly_map)

    def predictions(self) -> Predictions:
        """All predictions, after the last batch."""
        if self._on_device:
            self._predictions.truth = DeviceTruth(self._predictions.masks, self._size, self._device)
        return self._predictions


def _may_be_inside(mask: NDArray[np.int8], inspected: NDArray[np.bool_]) -> bool:
    """Whether a mask (H, W) marks a pixel of the region of interest (H, W), or it is unknown what it marks there."""
    return bool((mask[inspected] != 0).any())


def _score_remembered(scorer: Scorer, memory: TestMemory) -> Predictions:
    """Score a test set whose features are all in memory, which only needs the heads."""
    count, size, device = memory.features.count, scorer.image_size, scorer.features.device
    on_device = scorer.features.inspected is None and DeviceTruth.fits(count, size, device)
    maps = torch.empty(count, *size, device=device if on_device else "cpu")
    scores = torch.empty(count, device=maps.device)
    for start in range(0, count, SCORED_AT_ONCE):
        stop = min(start + SCORED_AT_ONCE, count)
        patch_scores = scorer.score_features(memory.features.take(range(start, stop)))
        scores[start:stop], maps[start:stop] = scorer.finish(patch_scores)
    if on_device and memory.predictions.truth is None:
        memory.predictions.truth = DeviceTruth(memory.predictions.masks, size, device)
    return replace(memory.predictions, scores=finite_scores(scores), maps=maps if on_device else maps.numpy())


def _score_tiles(scorer: Scorer, loader: DataLoader, pictures: Path | None, memory: TestMemory | None) -> Predictions:
    """`score_set` for images that are scored tile by tile: the highest score of the tiles, and their maps blended."""
    dataset, whole, names = loader.dataset, loader.dataset.whole, set()
    count, size = len(whole), whole.settings.size
    earlier = memory.predictions if memory else None
    truth = (earlier.labels, earlier.masks, earlier.paths) if earlier else (
        np.zeros(count, bool), PackedMasks(count, size), [],
    )  # fmt: skip
    predictions = Predictions(np.zeros(count, np.float32), np.empty((count, *size), np.float32), *truth)
    blend = None
    for index, score, tile_map in _scored_tiles(scorer, loader, memory):
        i, box = dataset.picture_of(index), dataset.box(index)
        blend = Blend(dataset.tiling, *dataset.sizes[i]) if blend is None else blend
        blend.add(box, tile_map)
        predictions.scores[i] = max(predictions.scores[i], score)
        if index + 1 < len(dataset) and dataset.picture_of(index + 1) == i:
            continue
        predictions.maps[i] = cv2.resize(blend.finish(), size[::-1], interpolation=cv2.INTER_AREA)
        if earlier is None:
            predictions.masks[i], predictions.labels[i], path = whole.truth(i)
            predictions.paths.append(path)
        if pictures is not None:
            file = pictures / drawing.picture_name(predictions.paths[i], names)
            drawing.save_picture(file, whole[i]["image"].numpy(), predictions.masks[i], predictions.maps[i])
        blend = None
    if memory is not None:
        memory.predictions = predictions.without_scores()
        if memory.complete:
            end_workers(loader)
    return predictions


def _scored_tiles(
    scorer: Scorer, loader: DataLoader, memory: TestMemory | None
) -> Iterator[tuple[int, float, NDArray[np.float32]]]:
    """Index, score and map (H, W) of each tile in order; no tile is read if all features are in memory."""
    cache = memory.features if memory else None
    known, count = cache is not None and cache.complete, len(loader.dataset)
    ranges = [range(i, min(i + SCORED_AT_ONCE, count)) for i in range(0, count, SCORED_AT_ONCE)]
    for part in ranges if known else loader:
        if known:
            indices, patch_scores = list(part), scorer.score_features(cache.take(part))
        else:
            indices, patch_scores = part["index"].tolist(), _score_batch(scorer, part, cache)
        scores, maps = scorer.finish(patch_scores)
        yield from zip(indices, finite_scores(scores).tolist(), maps.cpu().numpy(), strict=True)


def _score_batch(scorer: Scorer, batch: Batch, cache: FeatureCache | None) -> Tensor:
    """Patch scores of a batch, (B, H', W'); its features are kept as far as `cache` has room."""
    if cache is None:
        return scorer.score_images(batch["image"])
    features = kept_features(scorer.features, batch, cache)
    if features is None:
        features = scorer.features.embed(batch["image"])[0]
    cache.put(batch["index"].tolist(), features)
    return scorer.score_features(features)


def _count_images(loader: Iterable[Batch]) -> int:
    if hasattr(loader, "dataset"):
        return len(loader.dataset)
    return sum(len(batch["image"]) for batch in loader)


# ------------------------------------------------------------------------- the chosen checkpoint


def test(model: GLASS, test_loader: Iterable[Batch], name: str) -> Tested:
    """Test the chosen checkpoint of a class, and write pictures of the test images.

    Returns:
        All metrics and `best_epoch`, with the predictions that they were computed from.

    Raises:
        InputError: the checkpoint was trained with other settings.
        WorkError: there is no checkpoint, or it cannot be used.
    """
    pictures = model.results_path / "eval" / name if model.results_path else None
    tested = score_chosen(model, test_loader, name, pictures)
    figures = judge(tested.predictions, tested.thresholds)
    for reason in why_nan(figures, tested.predictions.masks):
        LOGGER.info("%s: %s", name, reason)
    return Tested({**figures, **tested.figures}, tested.predictions, tested.thresholds)


test.__test__ = False  # pytest would collect a function of this name


def score_chosen(model: GLASS, loader: Iterable[Batch], name: str, pictures: Path | None = None) -> Tested:
    """Score images with the chosen checkpoint; the only figure is its epoch. `pictures` as for `score_set`."""
    path, epoch = chosen_checkpoint(model, name)
    if path.name == checkpoint.LATEST:
        LOGGER.info("%s: no epoch has been chosen, so the latest, %d, is used", name, epoch)
    state = checkpoint.load(path, model.device)
    refuse_other_scores(state.get("config", {}), model.config, path)
    thresholds = Thresholds.of(load_weights(model, path, state).get("thresholds"))
    with model.scored_as_predicted() as scorer:
        predictions = score_set(scorer, loader, pictures)
    return Tested({"best_epoch": epoch}, predictions.on_host(), thresholds)


def last_figures(model: GLASS, test_loader: Iterable[Batch], record: Record) -> dict[str, Any]:
    """The metrics of the last epoch on the test set, computed if the training did not; {} without its weights."""
    exact = model.features.aggregator.dtype == torch.float32  # otherwise the metrics in the record are less exact
    evaluated = record.last is not None and record.last["epoch"] + 1 == record.epoch
    if exact and model.settings.select != "val" and evaluated:
        return {name: record.last[name] for name in METRICS}
    latest = model.model_dir / checkpoint.LATEST
    if not latest.exists():
        return {}
    load_weights(model, latest)
    with model.scored_as_predicted() as scorer:
        return evaluate(score_set(scorer, test_loader))
