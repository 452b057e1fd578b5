"""Which test images a report shows, and how."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.thresholds import normalise
from reporting import tables as report
from reporting.drawing import heatmap, outline
from training.evaluation import Tested

WORST = 12  # misses, and as many false alarms
SAMPLE = 24  # of all the others
PANEL_HEIGHT = 192  # pixels
QUALITY = 82  # of the JPEGs
MISS, FALSE_ALARM, HIT, CORRECT = "miss", "false alarm", "hit", "correct"
UNJUDGED = {True: "defective", False: "good"}  # where the checkpoint has no threshold


def outcomes(tested: Tested) -> list[str]:
    """What the threshold makes of each image."""
    if tested.thresholds is None:
        return [UNJUDGED[bool(label)] for label in tested.found.labels]
    names = {(True, True): HIT, (True, False): MISS, (False, True): FALSE_ALARM, (False, False): CORRECT}
    flagged = tested.found.scores > tested.thresholds.image
    return [names[bool(label), bool(f)] for label, f in zip(tested.found.labels, flagged, strict=True)]


def choose(tested: Tested, seed: int) -> list[int]:
    """Images to show: the worst misses, the worst false alarms, then a sample of the others, from high to low score."""
    kinds, scores = np.array(outcomes(tested)), tested.found.scores
    misses = [i for i in np.argsort(scores, kind="stable") if kinds[i] == MISS][:WORST]
    alarms = [i for i in np.argsort(-scores, kind="stable") if kinds[i] == FALSE_ALARM][:WORST]
    others = [i for i in range(len(scores)) if i not in {*misses, *alarms}]
    drawn = np.random.default_rng(seed).permutation(others)[:SAMPLE].tolist()
    return [int(i) for i in (*misses, *alarms, *sorted(drawn, key=lambda i: -scores[i]))]


def cards(tested: Tested, dataset: Any, seed: int) -> list[dict[str, Any]]:
    """What the report shows of each chosen image.

    Args:
        dataset: of the tested images, items with a normalised `image` (3, H, W).
        seed: of the sample.

    Returns:
        `index`, `outcome` and `panels`: image, truth, heatmap overlay, decision contour, as base64 JPEGs.
    """
    kinds = outcomes(tested)
    made = []
    for i in choose(tested, seed):
        parts = panels(dataset[i]["image"].numpy(), tested.found.masks[i], _map(tested, i), tested)
        made.append({"index": i, "outcome": kinds[i], "panels": [_jpeg(part) for part in parts]})
    return made


def panels(
    image: NDArray[np.float32], mask: NDArray[np.int8], anomaly_map: NDArray[np.float32], tested: Tested
) -> list[NDArray[np.uint8]]:
    """Image, truth, heatmap overlay and decision contour, (h, w, 3) BGR each.

    The overlay's colours are the map normalised so that the pixel threshold is at 0.5, or the plain map without one.
    """
    height, width = image.shape[1:]
    size = (max(1, round(width * PANEL_HEIGHT / height)), PANEL_HEIGHT)
    picture = cv2.resize(report.to_bgr(image), size, interpolation=cv2.INTER_AREA)
    large = cv2.resize(anomaly_map, size, interpolation=cv2.INTER_LINEAR)
    threshold = tested.thresholds.pixel if tested.thresholds else None
    shown = large if threshold is None else normalise(large, threshold)
    overlay = cv2.addWeighted(picture, 0.5, heatmap(shown), 0.5, 0)
    decided = picture.copy()
    if threshold is not None:
        outline(decided, large > threshold, 2)
    truth = cv2.resize(report.show_truth(mask), size, interpolation=cv2.INTER_NEAREST)
    return [picture, cv2.cvtColor(truth, cv2.COLOR_GRAY2BGR), overlay, decided]


def _map(tested: Tested, index: int) -> NDArray[np.float32]:
    one = tested.found.maps[index]
    return one if isinstance(one, np.ndarray) else one.cpu().numpy()


def _jpeg(picture: NDArray[np.uint8]) -> str:
    data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return base64.b64encode(data.tobytes()).decode("ascii")
