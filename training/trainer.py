"""The epochs of one training: centre, GAS/LAS epoch, evaluation, record, checkpoint."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from datasets.cache import GB
from inference.features import Batch, FeatureCache
from inference.scorer import finite_scores
from inference.settings import OFF
from networks.weights import not_finite
from reporting import tensorboard
from training.evaluation import Predictions, evaluate, metrics_line
from training.feature_cache import feature_budget, step_bytes
from training.record import STEP_FIGURES, Record
from training.state import EPOCHS_APART, TrainingState
from training.testing import SCORED_AT_ONCE, TestMemory, score_set
from utils import LOGGER, InputError, WorkError

if TYPE_CHECKING:
    from glass import GLASS

SHOW_EVERY = 10  # evaluations: after so many without pictures, TensorBoard gets those of a new best epoch


@dataclass(frozen=True)
class Loaders:
    """What a training reads.

    Attributes:
        train: batches with `image`, `aug`, `mask_s`.
        test: batches with `image`, `mask_gt`, `is_anomaly`, `image_path`; None evaluates nothing.
        centre: all training images once, for the centre; `train` by default.
        val: as `test`, of held-out images; with `select` `val` these are evaluated in place of the test set.
    """

    train: Iterable[Batch]
    test: Iterable[Batch] | None = None
    centre: Iterable[Batch] | None = None
    val: Iterable[Batch] | None = None


class Trainer:
    """Trains one class up to `meta_epochs`, evaluating every `eval_epochs`; resumes an unfinished training.

    Args:
        model: of the class, with its folder.
        loaders: what it reads.
        name: of the class, for messages and pictures.
        state: what `model.model_dir` holds, where the caller has started the training already.
    """

    def __init__(self, model: GLASS, loaders: Loaders, name: str, state: TrainingState | None = None) -> None:
        self.model, self.loaders, self.name = model, loaders, name
        self.settings = model.settings
        self.state = TrainingState(model, name) if state is None else state
        self.record = Record()
        self._cache: FeatureCache | None = None
        self._memory: TestMemory | None = None
        self._without_pictures = SHOW_EVERY  # evaluations since TensorBoard last got pictures

    @property
    def validates(self) -> bool:
        """Whether held-out images choose the epoch, so that no test image is looked at."""
        return self.settings.select == "val"

    @property
    def evaluated(self) -> Iterable[Batch] | None:
        """The images that are evaluated in the training."""
        return self.loaders.val if self.validates else self.loaders.test

    def train(self) -> dict[str, Any]:
        """Train, or continue.

        Returns:
            The record as plain values: `epoch` (how many are done), `best` and `last` (each `epoch` and the metrics),
            `history` (the figures of each epoch), `stale` (evaluations since the best one).

        Raises:
            InputError: the folder holds a training with other settings, or there is no validation set to select by.
            WorkError: the training diverged, or a checkpoint cannot be read or written.
        """
        self.record = self.state.start()
        if self._is_over():
            return self.record.plain()
        self.state.leave()
        if self.validates and self.loaders.val is None:
            raise InputError("select 'val' needs a validation set")
        bar, folder = self._progress(), self.model.model_dir / "tb"
        if not self._moving:
            self._allocate_memories()
        with self._ending(), bar, tensorboard.open_board(folder, self.record.epoch) as board:
            mean_embedding = None
            for epoch in range(self.record.epoch, self.settings.meta_epochs):
                mean_embedding = self._train_epoch(epoch, mean_embedding, bar, board)
                if self._is_over():
                    break
        if self.record.epoch < self.settings.meta_epochs:
            LOGGER.info(
                "%s: stopped after %d epochs: no better one in %d evaluations (--patience)", self.name,
                self.record.epoch, self.settings.patience,
            )  # fmt: skip
        return self.record.plain()

    def _train_epoch(self, epoch: int, mean_embedding: Tensor | None, bar: tqdm, board: SummaryWriter) -> Tensor:
        """One epoch, from the centre to the checkpoint; the mean embedding that it used, (P, C)."""
        model, started, samples = self.model, time.monotonic(), bar.n
        if self.settings.train_backbone:  # it may have dropout, which draws from the global generator alone
            torch.manual_seed(self.settings.seed * EPOCHS_APART + epoch)
        bar.set_description(f"{self.name} epoch {epoch + 1}/{self.settings.meta_epochs}")
        if self._moving or mean_embedding is None:
            centre = self.loaders.train if self.loaders.centre is None else self.loaders.centre
            mean_embedding = compute_mean_embedding(model, centre, self._cache, epoch)
        model._set_centre(mean_embedding)
        figures = model._train_discriminator(self.loaders.train, epoch, bar, self.record.in_short(), self._cache)
        refuse_diverged(model, epoch, mean_embedding)
        figures["samples_per_second"] = (bar.n - samples) / (time.monotonic() - started)
        predictions = self._evaluate(epoch)
        is_best = self._choose(predictions is not None)
        self.record.add({name: figures[name] for name in STEP_FIGURES})  # the speed is no result
        with tensorboard.writing(model.model_dir / "tb"):
            self._write_board(board, figures, predictions, is_best)
        self.state.save_epoch(self.record, is_best)
        return mean_embedding

    def _is_over(self) -> bool:
        return self.state.is_over(self.record)

    @property
    def _moving(self) -> bool:
        """Whether the images or f differ from epoch to epoch, so that no features can be kept."""
        dataset = getattr(self.loaders.train, "dataset", None)
        return self.settings.train_backbone or getattr(dataset, "randomly_augmented", False)

    # ----------------------------------------------------------------------------------- evaluation

    def _evaluate(self, epoch: int) -> Predictions | None:
        """Evaluate where it is due; None where it is not."""
        last = epoch + 1 == self.settings.meta_epochs
        self.record.epoch = epoch + 1
        if self.evaluated is None or ((epoch + 1) % self.settings.eval_epochs and not last):
            return None
        pictures = self._pictures_of(epoch, last)
        predictions = score_set(self.model.scorer(), self.evaluated, pictures, self._memory)
        figures = evaluate(predictions)
        self.record.last = {"epoch": epoch, **figures}
        kind = " (validation)" if self.validates else ""
        LOGGER.info("%s epoch %d%s: %s", self.name, epoch, kind, metrics_line(figures))
        return predictions

    def _choose(self, was_evaluated: bool) -> bool:
        """Whether the epoch that has just ended is the one to keep so far."""
        record, last = self.record, self.record.epoch == self.settings.meta_epochs
        better = record.compare_last() if was_evaluated else None
        without_figures = self.evaluated is None or (was_evaluated and better is None)
        if not (last if self.settings.select == "last" else better or (without_figures and last)):
            return False
        record.best = dict(record.last) if was_evaluated else {"epoch": record.epoch - 1}
        return True

    def _pictures_of(self, epoch: int, last: bool) -> Path | None:
        """Where the pictures of an evaluation go; None where none are made."""
        if self.model.results_path is None or self.validates:  # those would show the validation set
            return None
        folder = self.model.results_path / "training" / self.name
        if last:
            return folder
        return folder / f"epoch_{epoch}" if self.model.pictures == "every_eval" else None

    # ----------------------------------------------------------------------------- progress, memory

    def _progress(self) -> tqdm:
        """A bar of the samples of all epochs, as far as the loader tells how many there are."""
        samples = _samples_per_epoch(self.loaders.train, self.settings.limit)
        return tqdm(
            total=samples and samples * self.settings.meta_epochs, initial=(samples or 0) * self.record.epoch,
            unit="img", desc=self.name, mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True,
        )  # fmt: skip

    def _write_board(
        self, board: SummaryWriter, figures: Mapping[str, float], predictions: Predictions | None, is_best: bool
    ) -> None:
        """What TensorBoard shows of an epoch, and of its evaluation where there was one."""
        record, over = self.record.plain(), self._is_over()
        tensorboard.write_epoch(board, figures, record, "val" if self.validates else "test")
        if predictions is not None:
            self._without_pictures += 1
            every = self.model.pictures == "every_eval"
            show = every or over or (is_best and self._without_pictures >= SHOW_EVERY)
            self._without_pictures = 0 if show else self._without_pictures
            dataset = getattr(self.evaluated, "dataset", None)
            shown = getattr(dataset, "whole", dataset) if show else None
            tensorboard.write_evaluation(board, self.record.epoch - 1, predictions, shown)
        if over:
            tensorboard.write_settings(board, self.settings.plain(), record, self.validates)
        board.flush()

    def _allocate_memories(self) -> None:
        """Memory for the features of the training images and of those that are evaluated, within `feature_cache`."""
        model, train = self.model, self.loaders.train if self.loaders.centre is None else self.loaders.centre
        room = feature_budget(self.settings.feature_cache, model.device, step_bytes_of(model, train))
        # an epoch takes `used` of the training images, an evaluation takes all of its own: the set that is read more
        # often gets the memory first
        used = _samples_per_epoch(train, self.settings.limit)
        rarely = used is not None and used * self.settings.eval_epochs < _count(train)
        loaders, caches = (train, self.evaluated), [None, None]
        for i in (1, 0) if rarely else (0, 1):
            caches[i] = None if loaders[i] is None else allocate_cache(model, loaders[i], self.name, room)
            room -= caches[i].bytes if caches[i] else 0
        self._cache, of_evaluated = caches
        self._memory = TestMemory(of_evaluated) if of_evaluated else None
        if self.settings.feature_cache != OFF:
            self._log_memories(self._cache, of_evaluated, _count(train))

    def _log_memories(self, train: FeatureCache | None, evaluated: FeatureCache | None, images: int) -> None:
        kind = "validation (good, and with synthetic defects)" if self.validates else "test"
        count = _count(self.evaluated) if self.evaluated else 0
        of_test = f", {evaluated.capacity if evaluated else 0} of {count} {kind}" if self.evaluated else ""
        size = sum(cache.bytes for cache in (train, evaluated) if cache)
        LOGGER.info(
            "%s: keeping the embeddings of %d of %d training%s images in %s (%.2f GB; --feature_cache %s)", self.name,
            train.capacity if train else 0, images, of_test, self.settings.precision, size / GB,
            self.settings.feature_cache,
        )  # fmt: skip

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """However the training inside ends: its last epoch is saved, and there is a checkpoint to be tested with."""
        try:
            yield
        except BaseException:
            try:
                self.state.conclude()
            except (InputError, WorkError) as error:  # it must not hide what ended the training
                LOGGER.warning("%s: %s", self.name, error)
            raise
        self.state.conclude()


@torch.no_grad()
def compute_mean_embedding(
    model: GLASS, loader: Iterable[Batch], cache: FeatureCache | None = None, epoch: int = 0
) -> Tensor:
    """mean f(I) over all images of the loader, (P, C); each f(I) goes into `cache`.

    Raises:
        InputError: there is no image.
        WorkError: the features are not finite.
    """
    if hasattr(getattr(loader, "sampler", None), "set_epoch"):
        loader.sampler.set_epoch(epoch)
    model.set_mode(True)
    total, count = None, 0
    for batch in loader:
        features = model._embed(batch["image"])[0]
        if cache is not None:
            cache.put(batch["index"].tolist(), features)
        part = features.unflatten(0, (len(batch["image"]), -1)).sum(0, dtype=torch.float64)
        total = part if total is None else total + part
        count += len(batch["image"])
    if total is None:
        raise InputError("the training set has no image")
    mean = (total / count).float()
    if not mean.isfinite().all():
        raise WorkError(
            f"the features of the training images are not finite (NaN or infinity) in epoch {epoch}: "
            + ("the training diverged; try a smaller --lr" if model.settings.train_backbone and epoch else
               f"the weights of backbone {model.settings.backbone} are damaged, or too large")
        )  # fmt: skip
    return mean


@torch.no_grad()
def refuse_diverged(model: GLASS, epoch: int, features: Tensor) -> None:
    """Stop before a model is evaluated or kept that has become useless in an epoch's last step.

    Args:
        model: after the epoch.
        epoch: from 0.
        features: of an image, (P, C), to be scored where the backbone is frozen.

    Raises:
        WorkError: a weight, or the score of an image, is not finite.
    """
    scorer = model.scorer()
    parts = {"discriminator": model.discriminator, "pre_projection": model.pre_projection, "head": scorer.head}
    if model.settings.train_backbone:
        parts["backbone"] = model.features.aggregator
    state = {f"{part}.{key}": x for part, m in parts.items() if m is not None for key, x in m.state_dict().items()}
    if names := not_finite(state):
        raise WorkError(
            f"{names[0]} is not finite (NaN or infinity) after epoch {epoch}: the training diverged; try a smaller "
            "--lr or --noise"
        )
    if model.settings.train_backbone:
        scorer.predict(torch.ones(1, *model.settings.input_shape))
    else:
        finite_scores(scorer.score_features(features))


def allocate_cache(model: GLASS, loader: Iterable[Batch], name: str, room: int) -> FeatureCache | None:
    """An empty cache for the features of a loader's images in `room` bytes; None where none of them would fit."""
    count = _count(loader)
    try:
        cache = FeatureCache(count, model.features.shape, model.dtype, model.device, room)
    except (RuntimeError, MemoryError):  # free memory may be fragmented, or taken by another program in the meantime
        LOGGER.warning("%s: the embeddings of %d images did not fit into memory after all, none is kept", name, count)
        return None
    return cache if cache.capacity else None


def step_bytes_of(model: GLASS, loader: Iterable[Batch]) -> int:
    """About how many bytes a training step with the loader's batches needs."""
    settings = model.settings
    batch = getattr(loader, "batch_size", None) or model.extra_config.get("batch_size") or SCORED_AT_ONCE
    return step_bytes(
        batch * math.prod(model.grid), settings.target_embed_dimension, settings.dsc_hidden, svd=model.svd,
        dsc_layers=settings.dsc_layers, pre_proj=settings.pre_proj,
        largest_output=batch * model.features.aggregator.largest_output,
    )  # fmt: skip


def _count(loader: Iterable[Batch]) -> int:
    return len(getattr(loader, "dataset", ()))


def _samples_per_epoch(loader: Iterable[Batch], limit: int) -> int | None:
    """How many samples an epoch will use; None where the loader does not tell."""
    size, batch = getattr(getattr(loader, "dataset", None), "__len__", None), getattr(loader, "batch_size", None)
    if size is None or not batch:
        return None
    return min(size(), (limit // batch + 1) * batch)
