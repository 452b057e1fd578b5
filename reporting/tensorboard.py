"""The TensorBoard files of a training."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from reporting import drawing
from training.evaluation import METRICS, Predictions
from utils import WorkError, evenly_chosen, printable, reason_of

EXAMPLES = 6  # images with their heatmaps


@contextmanager
def open_board(folder: Path, first_epoch: int | None = None) -> Iterator[SummaryWriter]:
    """A writer of TensorBoard files.

    Args:
        folder: of the files.
        first_epoch: values that an earlier run wrote for this epoch and later ones are hidden.

    Raises:
        WorkError: the files cannot be written, on opening or on closing.
    """
    with _collected_thread_errors() as errors:
        with writing(folder):
            board = SummaryWriter(str(folder), purge_step=first_epoch)
        try:
            yield board
        except BaseException:
            with suppress(OSError):  # report the first error, not one that follows from it
                board.close()
            raise
        with writing(folder):
            board.close()
            if errors:  # closing the writer does not report them
                raise errors[0]


@contextmanager
def writing(folder: Path | str) -> Iterator[None]:
    """Turn an error of the writer's thread, which the next write raises, into a message of one line.

    Raises:
        WorkError: the files cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise WorkError(f"cannot write TensorBoard's files in {folder}: {reason_of(error)}") from error


@contextmanager
def _collected_thread_errors() -> Iterator[list[OSError]]:
    """Collect the errors of the writers' threads, which Python would otherwise print with a traceback."""
    original_hook, errors = threading.excepthook, []

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if isinstance(arguments.exc_value, OSError) and type(arguments.thread).__module__.startswith("tensorboard."):
            errors.append(arguments.exc_value)
        else:
            original_hook(arguments)

    threading.excepthook = hook
    try:
        yield errors
    finally:
        threading.excepthook = original_hook


def write_epoch(board: SummaryWriter, figures: Mapping[str, float], record: Mapping[str, Any], kind: str) -> None:
    """Write the curves of an epoch that has just ended.

    Args:
        board: writer.
        figures: losses and other values of the epoch.
        record: of the training, see `GLASS.trainer`.
        kind: of the images that the metrics were measured on, `test` or `val`.
    """
    epoch = record["epoch"] - 1
    for name, value in figures.items():
        board.add_scalar(f"train/{name}", value, epoch)
    if record["last"] and record["last"]["epoch"] == epoch:
        for name in METRICS:
            board.add_scalar(f"{kind}/{name}", record["last"][name], epoch)
            if record["best"] and name in record["best"]:
                board.add_scalar(f"best/{name}", record["best"][name], epoch)


def write_evaluation(board: SummaryWriter, epoch: int, predictions: Predictions, dataset: Any) -> None:
    """Write histograms of the scores, and the heatmaps of the same few images each time.

    Args:
        board: writer.
        epoch: that was evaluated.
        predictions: scores and maps of the images.
        dataset: of these images, items with `image`; None writes no heatmaps.
    """
    for label, selected in (("good", ~predictions.labels), ("defective", predictions.labels)):
        if selected.any():
            board.add_histogram(f"scores/{label}", predictions.scores[selected], epoch)
    if hasattr(dataset, "__getitem__"):
        board.add_image("examples", _examples(predictions, dataset), epoch, dataformats="HWC")


def _examples(predictions: Predictions, dataset: Any) -> NDArray[np.uint8]:
    """Pictures (image, ground truth, heatmap) of images spread over the data set, stacked vertically, RGB."""
    maps, rows = predictions.maps, []
    for i in evenly_chosen(len(predictions.scores), EXAMPLES):
        anomaly_map = maps[i].cpu().numpy() if isinstance(maps, Tensor) else maps[i]
        rows.append(drawing.picture(dataset[i]["image"].numpy(), predictions.masks[i], anomaly_map))
    return np.ascontiguousarray(np.vstack(rows)[..., ::-1])


def write_settings(board: SummaryWriter, settings: Mapping[str, Any], record: Mapping[str, Any], val: bool) -> None:
    """Write the hyperparameters with the final metrics, for TensorBoard's comparison of runs.

    Args:
        board: writer.
        settings: of the training.
        record: of the training, see `GLASS.trainer`.
        val: whether the metrics were measured on the validation set; they are then called `final_val`.
    """
    plain = {k: v if isinstance(v, (int, float, bool)) else printable(str(v)) for k, v in settings.items()}
    last = {f"final{'_val' if val else ''}/{name}": record["last"][name] for name in METRICS} if record["last"] else {}
    loss = record["history"][-1]["loss"]
    board.add_hparams(plain, {"final/loss": loss, **last}, run_name=".")
