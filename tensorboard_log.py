"""What a training writes for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import report
from evaluation import METRICS, Predictions
from utils import printable

EXAMPLES = 6  # images whose heatmaps are shown


def write_epoch(board: SummaryWriter, figures: Mapping[str, float], record: Mapping[str, Any], kind: str) -> None:
    """The curves of an epoch that has just ended.

    Args:
        figures: of its training.
        record: of the training, see `GLASS.trainer`.
        kind: `test` or `val`, what the metrics were measured on.
    """
    epoch = record["epoch"] - 1
    for name, value in figures.items():
        board.add_scalar(f"train/{name}", value, epoch)
    if record["last"] and record["last"]["epoch"] == epoch:
        for name in METRICS:
            board.add_scalar(f"{kind}/{name}", record["last"][name], epoch)
            if record["best"] and name in record["best"]:
                board.add_scalar(f"best/{name}", record["best"][name], epoch)


def write_evaluation(board: SummaryWriter, epoch: int, found: Predictions, dataset: Any) -> None:
    """Histograms of the scores, and the heatmaps of the same few images each time.

    Args:
        dataset: of what was evaluated, items with `image`; None shows no heatmaps.
    """
    for label, which in (("good", ~found.labels), ("defective", found.labels)):
        if which.any():
            board.add_histogram(f"scores/{label}", found.scores[which], epoch)
    if hasattr(dataset, "__getitem__"):
        board.add_image("examples", _examples(found, dataset), epoch, dataformats="HWC")


def _examples(found: Predictions, dataset: Any) -> NDArray[np.uint8]:
    """image | truth | heatmap of images spread over the data set, one under another, RGB."""
    rows = []
    for i in np.unique(np.linspace(0, len(found.scores) - 1, EXAMPLES).astype(int)).tolist():
        one_map = found.maps[i].cpu().numpy() if isinstance(found.maps, Tensor) else found.maps[i]
        rows.append(report.picture(dataset[i]["image"].numpy(), found.masks[i], one_map))
    return np.ascontiguousarray(np.vstack(rows)[..., ::-1])


def write_settings(board: SummaryWriter, settings: Mapping[str, Any], record: Mapping[str, Any], val: bool) -> None:
    """Hyperparameters with the final metrics (of the validation set: `final_val`), for TensorBoard's comparison."""
    plain = {k: v if isinstance(v, (int, float, bool)) else printable(str(v)) for k, v in settings.items()}
    last = {f"final{'_val' if val else ''}/{name}": record["last"][name] for name in METRICS} if record["last"] else {}
    loss = record["history"][-1]["loss"]
    board.add_hparams(plain, {"final/loss": loss, **last}, run_name=".")
