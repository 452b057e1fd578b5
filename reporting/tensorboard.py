"""What a training writes for TensorBoard."""

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

from reporting import tables as report
from training.evaluation import METRICS, Predictions
from utils import WorkError, printable, reason_of

EXAMPLES = 6  # images whose heatmaps are shown


@contextmanager
def open_board(folder: Path, first_epoch: int | None = None) -> Iterator[SummaryWriter]:
    """A writer of TensorBoard's files; what an earlier run wrote from `first_epoch` on is hidden.

    Raises:
        WorkError: nothing can be written there, when it is opened or at its end.
    """
    with _without_traceback() as failures:
        with writing(folder):
            board = SummaryWriter(str(folder), purge_step=first_epoch)
        try:
            yield board
        except BaseException:
            with suppress(OSError):  # what has failed already is to be told, not this
                board.close()
            raise
        with writing(folder):
            board.close()
            if failures:  # of which the writer says nothing when it is closed
                raise failures[0]


@contextmanager
def writing(folder: Path | str) -> Iterator[None]:
    """Turn what the writer's thread could not write, which is raised by whatever is written next, into one line."""
    try:
        yield
    except OSError as error:
        raise WorkError(f"cannot write TensorBoard's files in {folder}: {reason_of(error)}") from error


@contextmanager
def _without_traceback() -> Iterator[list[OSError]]:
    """What the writers' threads could not write, collected here instead of printed by Python with a traceback."""
    before, failures = threading.excepthook, []

    def hook(failed: threading.ExceptHookArgs) -> None:
        if isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard."):
            failures.append(failed.exc_value)
        else:
            before(failed)

    threading.excepthook = hook
    try:
        yield failures
    finally:
        threading.excepthook = before


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
