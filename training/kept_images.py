"""Training images with synthetic local anomalies that are drawn once, and whose features are kept for all epochs.

Goes beyond the paper (setting `local_kept`): on a CPU, a step spends most of its time on drawing anomalies and on the
features of the images that have them. The features are kept in float16, as `PatchFeatures.stored` returns them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets.cache import GB
from inference.features import Batch
from training.feature_cache import free_on
from training.record import StepFigures
from training.schedule import set_rates, steps_per_epoch
from utils import InputError, WorkError

if TYPE_CHECKING:
    from glass import GLASS

EPOCH_STREAM = 1  # so that the order of an epoch has other random numbers than the images


class KeptBatch(NamedTuple):
    """A batch of images, whose features are those of `PatchFeatures.stored`.

    Attributes:
        count: B, the number of images.
        true: of the images, (B·P, C').
        local: of the same images with anomalies, (B·P, C').
        anomalous: whether a patch of the latter contains an anomaly, (B·P,).
    """

    count: int
    true: Tensor
    local: Tensor
    anomalous: Tensor


class KeptImages:
    """The kept features of a training set.

    Args:
        model: computes the features.
        loader: of the training; batches with `image`, `aug`, `mask_s`, `index`. Its first epochs are used.
        count: number of images to draw.
        changing: whether an image is different each time that the loader returns it.
        bar: counts the images.

    Raises:
        InputError: the loader is empty, or the features do not fit into the free memory.
        WorkError: a feature is not finite in float16.
    """

    def __init__(
        self, model: GLASS, loader: Iterable[Batch], count: int, changing: bool, bar: tqdm | None = None
    ) -> None:
        self.seed, self.batch = model.settings.seed, 0
        self._local, self._anomalous, self._true = [], [], []
        self._rows: dict[int, int] = {}  # of `_true`, by the index of the image
        self._row_of: list[int] = []  # of `_true`, by the number of the kept image
        for batch in _first_samples(loader, count):
            self.batch = self.batch or len(batch["aug"])
            if not self._local:
                _refuse_too_large(model, count)
            self._add(model, batch, changing)
            if bar is not None:
                bar.update(len(batch["aug"]))
        self.count = min(count, len(self._local))

    @torch.no_grad()
    def _add(self, model: GLASS, batch: Batch, changing: bool) -> None:
        own = batch["index"] if model.features.memory is not None else None
        anomalous = batch["mask_s"].flatten(1) > 0
        local = model.features.stored(batch["aug"], own)  # (B, P, C')
        new = [i for i, index in enumerate(batch["index"].tolist()) if changing or index not in self._rows]
        true = model.features.stored(batch["image"][new], None if own is None else own[new]) if new else []
        if not all(part.isfinite().all() for part in (local, true) if len(part)):
            raise WorkError(
                "features are not finite in float16, in which --local_kept keeps them; give --local_kept 0, or check "
                f"the weights of backbone {model.settings.backbone}"
            )
        for i, index in enumerate(batch["index"].tolist()):
            if i in new:
                self._rows[index] = len(self._true)
                self._true.append(true[new.index(i)])
            self._row_of.append(self._rows[index])
            self._local.append(local[i])
            self._anomalous.append(anomalous[i].to(model.device))

    @property
    def without(self) -> int:
        """The number of images that are kept without anomalies."""
        return len(self._true)

    @property
    def bytes(self) -> int:
        """The memory of the features."""
        return sum(rows.nbytes for rows in (*self._true, *self._local))

    def batches(self, epoch: int, steps: int) -> Iterator[KeptBatch]:
        """The batches of an epoch: the kept images in random order, from the start again when all were used."""
        rng = np.random.default_rng([self.seed, EPOCH_STREAM, epoch])
        wanted = steps * self.batch
        order = np.concatenate([rng.permutation(self.count) for _ in range(-(-wanted // self.count))])[:wanted]
        for chosen in order.reshape(steps, self.batch).tolist():
            true, local, anomalous = (
                torch.cat([rows[i] for i in numbers])
                for rows, numbers in (
                    (self._true, [self._row_of[i] for i in chosen]), (self._local, chosen), (self._anomalous, chosen),
                )
            )  # fmt: skip
            yield KeptBatch(len(chosen), true, local, anomalous)


def train_step(model: GLASS, kept: KeptBatch) -> dict[str, Tensor]:
    """One optimiser step as `GLASS.train_step`, with kept features."""
    model._begin_step()
    settings, centre = model.settings, model.c
    true, true_centre = model._some(settings.ascent_share, kept.true, centre)
    local, anomalous, local_centre = model._some(settings.local_share, kept.local, kept.anomalous, centre)
    f_true, f_local = model.features.restored(true), model.features.restored(local)
    return model._finish_step(f_true, true_centre, f_local, local_centre, anomalous)


def train_epoch(
    model: GLASS, images: KeptImages, loader: Iterable[Batch], epoch: int, progress: tqdm | None = None, shown: str = ""
) -> dict[str, float]:
    """Train one epoch of as many steps as an epoch of `loader` has; see `GLASS._train_discriminator`."""
    figures = StepFigures(epoch, model.device.type == "cuda", progress, shown)
    for number, batch in enumerate(images.batches(epoch, steps_per_epoch(model.settings, loader))):
        set_rates(model.optimisers, model.settings, epoch, number, loader)
        figures.add(train_step(model, batch), batch.count)
    return figures.means()


def _first_samples(loader: Iterable[Batch], count: int) -> Iterator[Batch]:
    """The batches of the first epochs of a loader, until there are `count` samples."""
    samples = epoch = 0
    while samples < count:
        if hasattr(getattr(loader, "sampler", None), "set_epoch"):
            loader.sampler.set_epoch(epoch)
        before = samples
        for batch in loader:
            yield batch
            samples += len(batch["aug"])
            if samples >= count:
                return
        if samples == before:
            raise InputError("the training set has no image")
        epoch += 1


def _refuse_too_large(model: GLASS, count: int) -> None:
    patches, width = model.features.stored_shape
    needed, free = 2 * count * patches * width * torch.float16.itemsize, free_on(model.device)
    if needed > free:
        raise InputError(
            f"--local_kept {count}: the features of the images need up to {needed / GB:.1f} GB, {free / GB:.1f} GB are "
            "free; give a smaller number, or 0 to keep none"
        )
