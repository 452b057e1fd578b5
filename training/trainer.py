"""The epochs of one training: centre, training steps, evaluation, record, checkpoint."""

from __future__ import annotations

import math
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
from datasets.loaders import EpochSampler, end_workers
from inference.features import Batch, FeatureCache
from inference.scorer import finite_scores
from inference.settings import OFF
from networks.weights import not_finite
from reporting import tensorboard
from training import remembering
from training.evaluation import Predictions, evaluate, metrics_line
from training.feature_cache import feature_budget, step_bytes
from training.kept_images import KeptImages, train_epoch
from training.record import STEP_FIGURES, Record
from training.schedule import steps_per_epoch
from training.state import EPOCHS_APART, TrainingState
from training.testing import SCORED_AT_ONCE, TestMemory, score_set
from utils import LOGGER, InputError, WorkError, progress_bar

if TYPE_CHECKING:
    from glass import GLASS

SHOW_EVERY = 10  # evaluations without pictures, after which TensorBoard gets pictures of the next best epoch


@dataclass(frozen=True)
class Loaders:
    """The loaders of a training.

    Attributes:
        train: batches with `image`, `aug`, `mask_s`.
        test: batches with `image`, `mask_gt`, `is_anomaly`, `image_path`; None without a test set.
        centre: all training images once, for the centre; `train` by default.
        val: batches of held-out images as for `test`; evaluated instead of the test set with `select` `val`.
    """

    train: Iterable[Batch]
    test: Iterable[Batch] | None = None
    centre: Iterable[Batch] | None = None
    val: Iterable[Batch] | None = None


class Trainer:
    """Trains one class up to `meta_epochs`, evaluating every `eval_epochs`; resumes an unfinished training.

    Args:
        model: of the class, with its folder.
        loaders: of the training.
        name: of the class, for messages and pictures.
        state: of the training, if the caller has already started it.
    """

    def __init__(self, model: GLASS, loaders: Loaders, name: str, state: TrainingState | None = None) -> None:
        self.model, self.loaders, self.name = model, loaders, name
        self.settings = model.settings
        self.state = TrainingState(model, name) if state is None else state
        self.record = Record()
        self._cache: FeatureCache | None = None
        self._measured: dict[int, Tensor] = {}  # features of some training images, to measure D's logits with a memory
        self._kept: KeptImages | None = None
        self._memory: TestMemory | None = None
        self._without_pictures = SHOW_EVERY  # number of evaluations since TensorBoard last got pictures

    @property
    def validates(self) -> bool:
        """Whether held-out images choose the epoch, so that the training uses no test image."""
        return self.settings.select == "val"

    @property
    def evaluated(self) -> Iterable[Batch] | None:
        """The images that the training evaluates."""
        return self.loaders.val if self.validates else self.loaders.test

    def train(self) -> dict[str, Any]:
        """Train, or resume the training.

        Returns:
            The record as plain values, see `Record`.

        Raises:
            InputError: the folder holds a training with other settings, or `select` `val` has no validation set.
            WorkError: the training diverged, or a checkpoint cannot be read or written.
        """
        self.record = self.state.start()
        if self._is_over():
            return self.record.plain()
        self.state.leave()
        if self.validates and self.loaders.val is None:
            raise InputError("select 'val' needs a validation set; give a val_loader")
        bar, folder = self._progress(), self.model.model_dir / "tb"
        if not self._moving:
            self._allocate_memories()
        self._prepare_memory()
        if self.settings.local_kept:
            self._keep_images()
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
        """Do one epoch, from the centre to the checkpoint; returns the mean embedding that it used, (P, C)."""
        model, started, samples = self.model, time.monotonic(), bar.n
        if self.settings.train_backbone:  # it may have dropout, which only draws from the global generator
            torch.manual_seed(self.settings.seed * EPOCHS_APART + epoch)
        bar.set_description(f"{self.name} epoch {epoch + 1}/{self.settings.meta_epochs}")
        if self._moving or mean_embedding is None:
            centre = self.loaders.train if self.loaders.centre is None else self.loaders.centre
            mean_embedding = compute_mean_embedding(model, centre, self._cache, epoch, self._measured)
        model.set_centre(mean_embedding)
        if self._kept is not None:
            figures = train_epoch(model, self._kept, self.loaders.train, epoch, bar, self.record.in_short())
        else:
            figures = model._train_discriminator(self.loaders.train, epoch, bar, self.record.in_short(), self._cache)
        refuse_diverged(model, epoch, mean_embedding)
        if self._measured:
            remembering.measure(model, self._measured)
        figures["samples_per_second"] = (bar.n - samples) / (time.monotonic() - started)
        predictions = self._evaluate(epoch)
        is_best = self._choose(predictions is not None)
        self.record.add({name: figures[name] for name in STEP_FIGURES})  # without the speed, which is not a result
        with tensorboard.writing(model.model_dir / "tb"):
            self._write_board(board, figures, predictions, is_best)
        self.state.save_epoch(self.record, is_best)
        return mean_embedding

    def _prepare_memory(self) -> None:
        """Fill the memory of patches, if the model has one and it was not loaded with the state."""
        memory = self.model.features.memory
        if memory is None:
            return
        loader = self.loaders.train if self.loaders.centre is None else self.loaders.centre
        if not memory.ready:
            remembering.fill_memory(self.model, loader)
        self._measured = dict.fromkeys(remembering.measured_indices(loader))

    def _keep_images(self) -> None:
        """Draw the images with anomalies that all epochs use; they depend on the seed alone."""
        changing = getattr(getattr(self.loaders.train, "dataset", None), "randomly_augmented", False)
        with progress_bar(self.settings.local_kept, "img", f"{self.name} drawing anomalies") as bar:
            kept = KeptImages(self.model, self.loaders.train, self.settings.local_kept, changing, bar)
        end_workers(self.loaders.train)
        LOGGER.info(
            "%s: keeping the features of %d images with anomalies and of %d without, in float16 (%.2f GB)", self.name,
            kept.count, kept.without, kept.bytes / GB,
        )  # fmt: skip
        self._kept = kept

    def _is_over(self) -> bool:
        return self.state.is_over(self.record)

    @property
    def _moving(self) -> bool:
        """Whether images or backbone change from epoch to epoch, so that no features can be kept."""
        dataset = getattr(self.loaders.train, "dataset", None)
        return self.settings.train_backbone or (
            getattr(dataset, "randomly_augmented", False) and not self.settings.local_kept
        )

    # ----------------------------------------------------------------------------------- evaluation

    def _evaluate(self, epoch: int) -> Predictions | None:
        """Evaluate the model if an evaluation is due after this epoch; None if not."""
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
        """Whether the epoch that has just ended is the best so far; updates the record."""
        record, last = self.record, self.record.epoch == self.settings.meta_epochs
        better = record.compare_last() if was_evaluated else None
        without_figures = self.evaluated is None or (was_evaluated and better is None)
        if not (last if self.settings.select == "last" else better or (without_figures and last)):
            return False
        record.best = dict(record.last) if was_evaluated else {"epoch": record.epoch - 1}
        return True

    def _pictures_of(self, epoch: int, last: bool) -> Path | None:
        """The folder for the pictures of an evaluation; None if there are none."""
        if self.model.results_path is None or self.validates:  # only pictures of the test set are wanted
            return None
        folder = self.model.results_path / "training" / self.name
        if last:
            return folder
        return folder / f"epoch_{epoch}" if self.model.pictures == "every_eval" else None

    # ----------------------------------------------------------------------------- progress, memory

    def _progress(self) -> tqdm:
        """A progress bar of the samples of all epochs; it has no total if the loader does not tell their number."""
        samples = _samples_per_epoch(self.loaders.train, self.settings.limit)
        if samples and self.settings.local_kept:  # all batches are full
            samples = steps_per_epoch(self.settings, self.loaders.train) * self.loaders.train.batch_size
        total = samples and samples * self.settings.meta_epochs
        return progress_bar(total, "img", self.name, (samples or 0) * self.record.epoch)

    def _write_board(
        self, board: SummaryWriter, figures: Mapping[str, float], predictions: Predictions | None, is_best: bool
    ) -> None:
        """Write an epoch to TensorBoard, and its evaluation if there was one."""
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
        """Allocate caches for the features of training and evaluated images, as `feature_cache` allows."""
        model, train = self.model, self.loaders.train if self.loaders.centre is None else self.loaders.centre
        budget = feature_budget(self.settings.feature_cache, model.device, step_bytes_of(model, train))
        # an epoch uses `used` training images and an evaluation uses all of its images: the set whose images are used
        # more often gets memory first
        used = _samples_per_epoch(train, self.settings.limit)
        evaluation_first = used is not None and used * self.settings.eval_epochs < _count(train)
        loaders, caches = (None if self.settings.local_kept else train, self.evaluated), [None, None]
        for i in (1, 0) if evaluation_first else (0, 1):
            caches[i] = None if loaders[i] is None else allocate_cache(model, loaders[i], self.name, budget)
            budget -= caches[i].bytes if caches[i] else 0
        self._cache, evaluation_cache = caches
        self._memory = TestMemory(evaluation_cache) if evaluation_cache else None
        if self.settings.feature_cache != OFF and not self.settings.local_kept:
            self._log_memories(self._cache, evaluation_cache, _count(train))

    def _log_memories(self, train: FeatureCache | None, evaluated: FeatureCache | None, images: int) -> None:
        kind = "validation (good, and with synthetic defects)" if self.validates else "test"
        count = _count(self.evaluated) if self.evaluated else 0
        evaluation = f", {evaluated.capacity if evaluated else 0} of {count} {kind}" if self.evaluated else ""
        size = sum(cache.bytes for cache in (train, evaluated) if cache)
        LOGGER.info(
            "%s: keeping the embeddings of %d of %d training%s images in %s (%.2f GB; --feature_cache %s)", self.name,
            train.capacity if train else 0, images, evaluation, self.settings.precision, size / GB,
            self.settings.feature_cache,
        )  # fmt: skip

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """A context that saves the last epoch and keeps a checkpoint for tests, however the training in it ends."""
        try:
            yield
        except BaseException:
            try:
                self.state.conclude()
            except (InputError, WorkError) as error:  # must not hide the error that ended the training
                LOGGER.warning("%s: %s", self.name, error)
            raise
        self.state.conclude()


@torch.no_grad()
def compute_mean_embedding(
    model: GLASS,
    loader: Iterable[Batch],
    cache: FeatureCache | None = None,
    epoch: int = 0,
    kept: dict[int, Tensor | None] | None = None,
) -> Tensor:
    """The mean of f(I) over all images of a loader, (P, C).

    Args:
        model: computes f.
        loader: batches with `image`; with a cache also `index`.
        cache: receives f(I) of each image.
        epoch: for the loader's sampler and for messages.
        kept: receives f(I), (P, C), of the images whose indices are its keys.

    Raises:
        InputError: there is no image.
        WorkError: the features are not finite.
    """
    if hasattr(getattr(loader, "sampler", None), "set_epoch"):
        loader.sampler.set_epoch(epoch)
    model.set_mode(True)
    total, count = None, 0
    for batch in loader:
        own = batch["index"] if model.features.memory is not None else None
        features = model._embed(batch["image"], own)[0]  # (B·P, C)
        if cache is not None:
            cache.put(batch["index"].tolist(), features)
        rows = features.unflatten(0, (len(batch["image"]), -1))  # (B, P, C)
        batch_sum = rows.sum(0, dtype=torch.float64)  # (P, C)
        for i, index in enumerate(batch["index"].tolist() if kept else ()):
            if index in kept:
                kept[index] = rows[i].clone()
        total = batch_sum if total is None else total + batch_sum
        count += len(batch["image"])
    if total is None:
        raise InputError("the training set has no image")
    mean = (total / count).float()
    if not mean.isfinite().all():
        raise WorkError(
            f"the features of the training images are not finite (NaN or infinity) in epoch {epoch}: "
            + ("the training diverged; try a smaller --lr" if model.settings.train_backbone and epoch else
               f"the weights of backbone {model.settings.backbone} are damaged or too large")
        )  # fmt: skip
    return mean


@torch.no_grad()
def refuse_diverged(model: GLASS, epoch: int, features: Tensor) -> None:
    """Stop before a model is evaluated or saved whose weights are not finite after the last step of an epoch.

    Args:
        model: after the epoch.
        epoch: counted from 0.
        features: of an image, (P, C), which is scored if the backbone is frozen.

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
    """An empty cache of at most `room` bytes for the features of a loader's images; None if not even one fits."""
    count = _count(loader)
    try:
        cache = FeatureCache(count, model.features.shape, model.dtype, model.device, room)
    except (RuntimeError, MemoryError):  # free memory may be fragmented, or used by another program in the meantime
        LOGGER.warning("%s: the embeddings of %d images do not fit into memory, so none is kept", name, count)
        return None
    return cache if cache.capacity else None


def step_bytes_of(model: GLASS, loader: Iterable[Batch]) -> int:
    """An estimate of the memory of a training step with the loader's batches, in bytes."""
    settings = model.settings
    batch = getattr(loader, "batch_size", None) or model.extra_config.get("batch_size") or SCORED_AT_ONCE
    return step_bytes(
        batch * math.prod(model.grid), settings.feature_width, settings.dsc_hidden, svd=model.svd,
        dsc_layers=settings.dsc_layers, pre_proj=settings.pre_proj,
        largest_output=batch * model.features.aggregator.largest_output,
    )  # fmt: skip


def _count(loader: Iterable[Batch]) -> int:
    return len(getattr(loader, "dataset", ()))


def _samples_per_epoch(loader: Iterable[Batch], limit: int) -> int | None:
    """The number of samples of an epoch; None if the loader does not tell."""
    sampler, batch = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    size = getattr(sampler if isinstance(sampler, EpochSampler) else getattr(loader, "dataset", None), "__len__", None)
    if size is None or not batch:
        return None
    return min(size(), (limit // batch + 1) * batch)
