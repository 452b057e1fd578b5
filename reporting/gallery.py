"""Which test images report.html shows, and the four panels that it shows of each."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.thresholds import normalise
from reporting.drawing import heatmap, outline, show_truth, to_bgr
from training.evaluation import Tested

WORST = 12  # false negatives shown at most, and as many false positives
SAMPLE = 24  # of all other images
PANEL_HEIGHT = 192  # pixels
JPEG_QUALITY = 82
MISS, FALSE_ALARM, HIT, CORRECT = "miss", "false alarm", "hit", "correct"
LABELS = {True: "defective", False: "good"}  # shown if the checkpoint has no threshold


def outcomes(tested: Tested) -> list[str]:
    """The outcome of each image: its label compared with the threshold's decision, or its label alone."""
    labels = tested.predictions.labels
    if tested.thresholds is None:
        return [LABELS[bool(label)] for label in labels]
    names = {(True, True): HIT, (True, False): MISS, (False, True): FALSE_ALARM, (False, False): CORRECT}
    flagged = tested.predictions.scores > tested.thresholds.image
    return [names[bool(label), bool(flag)] for label, flag in zip(labels, flagged, strict=True)]


def choose(tested: Tested, seed: int) -> list[int]:
    """Indices of the images to show: the worst misses and false alarms, then a sample of the others by falling score.

    Args:
        tested: the class.
        seed: of the sample.
    """
    kinds, scores = np.array(outcomes(tested)), tested.predictions.scores
    misses = [i for i in np.argsort(scores, kind="stable") if kinds[i] == MISS][:WORST]
    alarms = [i for i in np.argsort(-scores, kind="stable") if kinds[i] == FALSE_ALARM][:WORST]
    others = [i for i in range(len(scores)) if i not in {*misses, *alarms}]
    sample = np.random.default_rng(seed).permutation(others)[:SAMPLE].tolist()
    return [int(i) for i in (*misses, *alarms, *sorted(sample, key=lambda i: -scores[i]))]


def cards(tested: Tested, dataset: Any, seed: int) -> list[dict[str, Any]]:
    """What the report shows of each chosen image.

    Args:
        tested: the class.
        dataset: of the tested images; items with a normalised `image` (3, H, W).
        seed: of the sample.

    Returns:
        `index`, `outcome` and `panels` of each image: the four panels as base64 JPEGs.
    """
    kinds = outcomes(tested)
    shown = []
    for i in choose(tested, seed):
        parts = panels(dataset[i]["image"].numpy(), tested.predictions.masks[i], _anomaly_map(tested, i), tested)
        shown.append({"index": i, "outcome": kinds[i], "panels": [_jpeg(part) for part in parts]})
    return shown


def panels(
    image: NDArray[np.float32], mask: NDArray[np.int8], anomaly_map: NDArray[np.float32], tested: Tested
) -> list[NDArray[np.uint8]]:
    """Image, ground truth, heatmap overlay and decision outline, (PANEL_HEIGHT, w, 3) BGR each.

    The overlay shows the map rescaled so that the pixel threshold is at 0.5, or the plain map without a threshold.

    Args:
        image: normalised, (3, H, W).
        mask: ground truth, (H, W).
        anomaly_map: (H, W) in [0, 1].
        tested: the class, for its thresholds.
    """
    height, width = image.shape[1:]
    size = (max(1, round(width * PANEL_HEIGHT / height)), PANEL_HEIGHT)
    picture = cv2.resize(to_bgr(image), size, interpolation=cv2.INTER_AREA)
    scaled_map = cv2.resize(anomaly_map, size, interpolation=cv2.INTER_LINEAR)
    threshold = tested.thresholds.pixel if tested.thresholds else None
    coloured = heatmap(scaled_map if threshold is None else normalise(scaled_map, threshold))
    overlay = cv2.addWeighted(picture, 0.5, coloured, 0.5, 0)
    decision = picture.copy()
    if threshold is not None:
        outline(decision, scaled_map > threshold, 2)
    truth = cv2.resize(show_truth(mask), size, interpolation=cv2.INTER_NEAREST)
    return [picture, cv2.cvtColor(truth, cv2.COLOR_GRAY2BGR), overlay, decision]


def _anomaly_map(tested: Tested, index: int) -> NDArray[np.float32]:
    anomaly_map = tested.predictions.maps[index]
    return anomaly_map if isinstance(anomaly_map, np.ndarray) else anomaly_map.cpu().numpy()


def _jpeg(picture: NDArray[np.uint8]) -> str:
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return base64.b64encode(data.tobytes()).decode("ascii")
