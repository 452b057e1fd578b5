"""Thresholds for the chosen checkpoint, from images known to be good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from inference.features import Batch
from inference.scorer import Scorer, finite_scores
from inference.thresholds import HELD_OUT, TRAINING, Thresholds, best_f1
from inference.thresholds import calibrate as thresholds_of
from metrics import all_pixel_metrics
from training import saving
from training.state import chosen_checkpoint, load_weights
from utils import LOGGER

if TYPE_CHECKING:
    from glass import GLASS


def calibrate(model: GLASS, loader: Iterable[Batch], name: str, source: str, data: str = "") -> Thresholds:
    """Write thresholds into the chosen checkpoint, unless it has thresholds for these images and this `false_alarm`.

    Args:
        model: of the class; has the chosen weights afterwards.
        loader: batches as of a test set, with good images and, if available, images with synthetic defects.
        name: of the class, for messages.
        source: of the good images, `HELD_OUT` or `TRAINING`.
        data: digest of the files of the good images.

    Returns:
        The thresholds.
    """
    saving.keep_latest(model.model_dir)
    path, _ = chosen_checkpoint(model, name)
    state = load_weights(model, path)
    existing, false_alarm = Thresholds.of(state.get("thresholds")), model.settings.false_alarm
    if existing is not None and (existing.false_alarm, existing.source, existing.data) == (false_alarm, source, data):
        return existing
    keep_maps = source == HELD_OUT and not model.extra_config.get("tile")  # tiles have no synthetic defects here
    with model.scored_as_predicted() as scorer:
        thresholds = replace(_thresholds_from(scorer, loader, source, false_alarm, keep_maps), data=data)
    saving.save({**state, "thresholds": thresholds.plain()}, path)
    LOGGER.info("%s: %s", name, thresholds.describe())
    return thresholds


@torch.no_grad()
def _thresholds_from(
    scorer: Scorer, loader: Iterable[Batch], source: str, false_alarm: float, keep_maps: bool
) -> Thresholds:
    """Thresholds from a set of images. Maps are only kept for sets with synthetic defects; there may be many images."""
    scores, peaks, labels, paths, maps, masks = [], [], [], [], [], []
    for batch in loader:
        own = batch["index"] if source == TRAINING else None  # as if the memory had no patch of the image
        image_scores, anomaly_maps = scorer.finish(scorer.score_images(batch["image"], own))  # (B,), (B, H, W)
        scores += finite_scores(image_scores).tolist()
        batch_maps = anomaly_maps.cpu().numpy()
        peaks += batch_maps.max((1, 2)).tolist()
        labels += np.asarray(batch["is_anomaly"], bool).tolist()
        paths += batch["image_path"]
        if keep_maps:
            maps.append(batch_maps)
            masks.append(_known(np.asarray(batch["mask_gt"])[:, 0], scorer))
    good = [i for i, label in enumerate(labels) if not label]
    highest = [_highest(values, paths, good) for values in (scores, peaks)]  # over the tiles of each image
    thresholds = thresholds_of(*highest, false_alarm, source)
    if any(labels):
        pixels = all_pixel_metrics(np.concatenate(maps), np.concatenate(masks), ())
        thresholds = replace(thresholds, image_f1=best_f1(scores, labels), pixel_f1=pixels["f1_max_threshold"])
    return thresholds


def _known(masks: NDArray[np.int8], scorer: Scorer) -> NDArray[np.int8]:
    """Masks (B, H, W), unknown (−1) outside the region of interest."""
    inspected = scorer.features.inspected
    return masks if inspected is None else np.where(inspected.pixels, masks, np.int8(-1))


def _highest(values: Sequence[float], paths: Sequence[str], chosen: Sequence[int]) -> list[float]:
    """The highest of the chosen values of each image."""
    highest: dict[str, float] = {}
    for i in chosen:
        highest[paths[i]] = max(values[i], highest.get(paths[i], values[i]))
    return list(highest.values())
