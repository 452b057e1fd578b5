"""How an exported graph compares with torch, and what quantisation costs.

Loaded by `pth2onnx.py`; the folder is not a package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image

import metrics
from datasets.base import is_good
from datasets.listing import list_images
from inference.inspector import Inspector
from inference.judge import Judge
from inference.loading import open_rgb
from utils import LOGGER, progress_bar

# ------------------------------------------------------------------------------------ against torch


def difference(
    path: Path, model: Inspector, picture_size: tuple[int, int] | None, postprocess: bool
) -> tuple[float, float]:
    """The largest differences of a score and of a map's pixel between the graph and torch, on synthetic images.

    Args:
        path: of the graph.
        model: that it was exported from.
        picture_size: (h, w) of the images if the graph takes only one size.
        postprocess: whether the graph gives a smoothed map; otherwise it gives patch scores.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    of_score, of_map = 0.0, 0.0
    for pixels in _trial_images(model, picture_size):
        graph_score, *_, graph_map = session.run(None, _as_input(session, pixels))
        image = open_rgb(pixels)
        scores, maps = model.score(model.prepare(image)[None])
        if not postprocess:
            maps = _patch_scores(model, image)
        of_score = max(of_score, float(np.abs(graph_score - scores).max()))
        of_map = max(of_map, float(np.abs(graph_map - maps).max()))
    return of_score, of_map


@torch.no_grad()
def _patch_scores(model: Inspector, picture: Image.Image) -> np.ndarray:
    inspected, scores = model.scorer.features.inspected, model.scorer.score_images(model.prepare(picture)[None])
    return (scores if inspected is None else inspected.scores(scores)).numpy()


def _trial_images(model: Inspector, picture_size: tuple[int, int] | None) -> list[NDArray[np.uint8]]:
    """Smooth colours (h, w, 3) in a few sizes, or in the only size that the graph takes."""
    rng, (height, width) = np.random.default_rng(0), model.settings.size
    sizes = ((height, width), (2 * height, 3 * width), (height + 37, width + 11))
    sizes = sizes if picture_size is None else (picture_size,) * 3
    return [cv2.resize(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8), (w, h)) for h, w in sizes]


def _as_input(session: onnxruntime.InferenceSession, pixels: NDArray[np.uint8]) -> dict[str, np.ndarray]:
    """An image (h, w, 3) in the type that the graph takes."""
    floats = "float" in session.get_inputs()[0].type
    return {"image": pixels[None].astype(np.float32) / 255 if floats else pixels[None]}


# ------------------------------------------------------------------------------- after quantisation


def is_defective(file: Path, folder: Path) -> bool:
    """Whether an image below `folder` lies in a subfolder of defective images."""
    return not is_good(file.relative_to(folder).parts[0])


def auroc(judge: Judge, folder: Path) -> float:
    """Image AUROC on a folder with good/ and folders of defects in it."""
    files = list_images(folder, recursive=True)
    labels = [is_defective(file, folder) for file in files]
    scores = []
    with progress_bar(len(files), "img") as bar:
        for file in files:
            scores.append(judge.predict_image(file).score)
            bar.update(1)
    return metrics.compute_imagewise_retrieval_metrics(scores, labels)["auroc"]


def log_false_alarms(judge: Judge, path: Path, good: Sequence[Path]) -> None:
    """Log how many good images are above the threshold.

    Quantisation shifts the scores, while the threshold is that of the float model.

    Args:
        judge: of the graph.
        path: of the graph.
        good: image files.
    """
    if judge.thresholds is None:
        return
    above = sum(bool(judge.predict_image(file).decision) for file in good)
    line = f"{path}: {above} of {len(good)} good images are above the threshold in int8"
    if above > max(1, 2 * judge.thresholds.false_alarm * len(good)):
        LOGGER.warning(
            "%s: quantisation has shifted the scores; give --images that show all kinds of good images, or use fp32",
            line,
        )
    else:
        LOGGER.info(line)
