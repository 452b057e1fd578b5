"""Thresholds for the chosen checkpoint, from images known to be good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference.features import Batch
from inference.scorer import Scorer, finite_scores
from inference.thresholds import HELD_OUT, Thresholds, best_f1
from inference.thresholds import calibrate as thresholds_of
from metrics import all_pixel_metrics
from training import saving
from training.state import chosen_checkpoint, load_weights
from utils import LOGGER

if TYPE_CHECKING:
    from glass import GLASS


def calibrate(model: GLASS, loader: Iterable[Batch], name: str, source: str, data: str = "") -> Thresholds:
    """Write thresholds into the chosen checkpoint, unless it has those of this `false_alarm` and these images already.

    Args:
        model: of the class; has the chosen weights afterwards.
        loader: good images, and where there are any images with synthetic defects: batches as of a test set.
        name: of the class, for messages.
        source: what the good images are, `HELD_OUT` or `TRAINING`.
        data: digest of the good images' files.
    """
    saving.keep_latest(model.model_dir)
    path, _ = chosen_checkpoint(model, name)
    state = load_weights(model, path)
    before, false_alarm = Thresholds.of(state.get("thresholds")), model.settings.false_alarm
    if before is not None and (before.false_alarm, before.source, before.data) == (false_alarm, source, data):
        return before
    keep_maps = source == HELD_OUT and not model.extra_config.get("tile")  # there are no tiles with defects
    with model.scored_as_predicted() as scorer:
        thresholds = replace(_thresholds_from(scorer, loader, source, false_alarm, keep_maps), data=data)
    saving.save({**state, "thresholds": thresholds.plain()}, path)
    LOGGER.info("%s: %s", name, thresholds.describe())
    return thresholds


@torch.no_grad()
def _thresholds_from(
    scorer: Scorer, loader: Iterable[Batch], source: str, false_alarm: float, keep_maps: bool
) -> Thresholds:
    """As `calibrate`. Maps are only kept of sets with synthetic defects, since good images may be many."""
    scores, peaks, labels, paths, maps, masks = [], [], [], [], [], []
    for batch in loader:
        of_images, of_batch = scorer.finish(scorer.score_images(batch["image"]))
        scores += finite_scores(of_images).tolist()
        batch_maps = of_batch.cpu().numpy()
        peaks += batch_maps.max((1, 2)).tolist()
        labels += np.asarray(batch["is_anomaly"], bool).tolist()
        paths += batch["image_path"]
        if keep_maps:
            maps.append(batch_maps)
            masks.append(np.asarray(batch["mask_gt"])[:, 0])
    good = [i for i, label in enumerate(labels) if not label]
    of_pictures = [_highest(values, paths, good) for values in (scores, peaks)]  # over the tiles of an image
    thresholds = thresholds_of(*of_pictures, false_alarm, source)
    if any(labels):
        pixels = all_pixel_metrics(np.concatenate(maps), np.concatenate(masks), ())
        thresholds = replace(thresholds, image_f1=best_f1(scores, labels), pixel_f1=pixels["f1_max_threshold"])
    return thresholds


def _highest(values: Sequence[float], paths: Sequence[str], chosen: Sequence[int]) -> list[float]:
    """The highest value of each image, of those chosen."""
    highest: dict[str, float] = {}
    for i in chosen:
        highest[paths[i]] = max(values[i], highest.get(paths[i], values[i]))
    return list(highest.values())
