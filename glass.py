"""GLASS: builds the parts, trains, evaluates and predicts one class (Chen et al., ECCV 2024)."""

from __future__ import annotations

import inspect
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import metrics
from common import Aggregator, FusedPooling, NetworkFeatureAggregator, Preprocessing, RescaleSegmentor
from datasets.cache import GB
from datasets.geometry import Blend
from datasets.loaders import end_workers
from inference import checkpoint
from inference.head import ScoringHead, fold_projection
from inference.thresholds import HELD_OUT, Thresholds, best_f1
from inference.thresholds import calibrate as thresholds_of
from loss import focal_loss
from model import Discriminator, PatchMaker, Projection
from reporting import tables as report
from reporting import tensorboard
from synthesis.arithmetic import Workspace, linear, quantile, ring_factor
from synthesis.gas import GASResult, gas
from synthesis.slope import Fused, compile_updates
from training.device_metrics import DeviceTruth
from training.evaluation import (
    METRICS,
    Predictions,
    Tested,
    ended,
    evaluate,
    judge,
    metrics_line,
    remember,
    selection_value,
    why_nan,
)  # fmt: skip
from training.feature_cache import AUTO, OFF, FeatureCache, check_choice, feature_budget, step_bytes
from utils import LOGGER, InputError, WorkError, choose_precision, seeded

if TYPE_CHECKING:
    from inference.inspector import Inspector

Batch = Mapping[str, Any]
PREDICTED_AT_ONCE = 8  # images
STEP_FIGURES = ("loss", "p_true", "p_fake", "r_t", "r_g", "r_f")
# settings that may change between the start of a training and its resumption; `weights` is a path, what it
# holds is compared by `backbone_hash`
FREE_ON_RESUME = frozenset(
    {
        "max_pixels",
        "meta_epochs",
        "eval_epochs",
        "weights",
        "precision",
        "feature_cache",
        "compile",
        "patience",
        "false_alarm",
        "image_size",
        "data_path",
        "data_images",
        "verdict",
    }
)
SHOW_EVERY = 10  # evaluations: after so many without pictures TensorBoard gets those of a new best one
READ_EVERY = 8  # steps, on CUDA: to read a figure waits for all that was started before it
MOST_LR = 1e30  # Adam's first step is a multiple of it, and has to be a number in float32
SELECTIONS = ("best", "last", "val")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# settings that choose the good images kept for the test: with other ones a test would hold images of the training
OF_SPLIT = ("split_seed", "test_share")
# settings that a test must share with the training, or its scores mean nothing
NEEDED_ALIKE = (
    *OF_SPLIT,
    "backbone",
    "backbone_hash",
    "layers_to_extract_from",
    "pretrain_embed_dimension",
    "target_embed_dimension",
    "patchsize",
    "dsc_layers",
    "dsc_hidden",
    "pre_proj",
    "input_shape",
    "resize",
    "keep_all",
    "tile",
    "overlap",
)


@dataclass
class TestMemory:
    """What does not change about a test set from one evaluation to the next.

    features: of each image. found: labels and masks, no maps.
    """

    __test__ = False  # pytest takes a name that begins so for a test

    features: FeatureCache
    found: Predictions | None = None

    @property
    def complete(self) -> bool:
        """Whether an evaluation needs no image any more."""
        return self.found is not None and self.features.complete


class GLASS:
    """One model for one class. `load` builds it; `trainer`, `tester` and `predict` use it.

    Attributes:
        discriminator, pre_projection: D and A (`pre_projection` is None with `pre_proj=0`).
        c: centre, (P, C), per location.
        svd: 0 manifold, 1 hypersphere.
        grid: (H', W') of the patches.
        settings: effective arguments of `load`, plain values.
        extra_config: further plain values a checkpoint is to carry (data settings); set by the caller.
        results_path: where pictures go; None writes none.
        pictures: `end`, or `every_eval` for those of each evaluation in the training too.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.extra_config: dict[str, Any] = {}
        self.results_path: Path | None = None
        self.pictures = "end"
        self.model_dir: Path | None = None
        self.c: Tensor | None = None
        self._said: set[tuple[object, ...]] = set()
        self._unshown = SHOW_EVERY  # evaluations since TensorBoard last got pictures: the first one shows some
        self._started: dict[str, Any] | None = None  # record of a training whose state is loaded

    # ------------------------------------------------------------------------------------- building

    def load(
        self,
        backbone: nn.Module,
        layers_to_extract_from: Iterable[str],
        device: torch.device | str,
        input_shape: tuple[int, int, int],
        pretrain_embed_dimension: int,
        target_embed_dimension: int,
        patchsize: int = 3,
        meta_epochs: int = 640,
        eval_epochs: int = 1,
        dsc_layers: int = 2,
        dsc_hidden: int = 1024,
        dsc_margin: float = 0.5,
        train_backbone: bool = False,
        pre_proj: int = 1,
        mining: int = 1,
        noise: float = 0.015,
        radius: float = 0.75,
        p: float = 0.5,
        lr: float = 1e-4,
        svd: int = 0,
        step: int = 20,
        limit: int = 392,
        seed: int = 0,
        precision: str = "fp32",
        feature_cache: str = AUTO,
        compile: bool = False,
        select: str = "best",
        patience: int = 0,
        false_alarm: float = 0.01,
    ) -> GLASS:
        """Build all parts. The arguments are the paper's; `seed` starts the weights of A and D and the noise.

        `precision` is fp32, bf16, or auto: bf16 on CUDA that has it, else fp32. `feature_cache` is auto, off, or how
        many gigabytes of features may be kept. `compile` makes one kernel of what gradient ascent does element by
        element, where a compiler is there. `select` says which epoch is kept: `best` on the test set, `last`, or the
        best on the validation set, `val`; after `patience` evaluations without a better one training ends, 0 is never.
        `false_alarm` is the share of good images that the thresholds may call defective.

        Raises:
            InputError: a layer, size or dimension that does not go together with the backbone.
        """
        given = locals()
        names = [n for n in inspect.signature(GLASS.load).parameters if n not in ("self", "backbone", "device")]
        self.settings: dict[str, Any] = {name: given[name] for name in names}
        self.settings["layers_to_extract_from"] = list(layers_to_extract_from)
        self.settings["input_shape"] = list(input_shape)
        origin = getattr(backbone, "origin", None)
        self.settings["backbone"] = origin.name if origin else type(backbone).__name__
        self.settings["weights"] = origin.weights if origin else ""
        self.check_settings(self.settings)
        for name in names:
            setattr(self, name, self.settings[name])
        self.device = torch.device(device)
        self._build(backbone)
        return self

    def _build(self, backbone: nn.Module) -> None:
        """All parts, by the settings."""
        self.precision = self.settings["precision"] = choose_precision(self.precision, self.device)
        self._dtype = PRECISIONS[self.precision]
        of_backbone = self._dtype_of_backbone()
        self.feature_aggregator = NetworkFeatureAggregator(
            backbone,
            self.layers_to_extract_from,
            self.device,
            tuple(self.input_shape),
            self.train_backbone,
            of_backbone,
        )
        # its weights are folded and rounded in what was made of it: scoring in float32 needs them as they were
        self._unrounded = backbone if of_backbone != torch.float32 and not self.train_backbone else None
        self.settings["backbone_hash"] = self.feature_aggregator.fingerprint
        self._build_pooling()
        self._build_heads()
        self._fused = self._compile() if self.compile else None
        self._workspace = Workspace()

    def _dtype_of_backbone(self) -> torch.dtype:
        """Of its arithmetic in a training: on CUDA the run's, though that turns gradients by 2 to 5 %; on a CPU it
        would gain too little.
        """
        return self._dtype if self.device.type == "cuda" else torch.float32

    def _compile(self) -> Fused | None:
        """Compiled parts; None where that does not work or nothing is to be compiled, which is said."""
        if self.dsc_layers != 2 or not self.mining or not self.step:
            LOGGER.warning(
                "--compile: only gradient ascent through a --dsc_layers of 2 can be compiled; going on without"
            )
            return None
        try:
            return compile_updates(self.device)
        except Exception as error:  # what a compiler ends in, that is missing or does not get on with torch
            lines = [line for line in str(error).splitlines() if line.strip() and not line.endswith("raised:")]
            reason = lines[0] if lines else type(error).__name__
            LOGGER.warning("--compile does not work here (%s); going on without", reason[:200])
            return None

    @staticmethod
    def check_settings(s: Mapping[str, Any]) -> None:
        """Refuse settings of `load` that cannot work with any backbone.

        Raises:
            InputError: names the setting and what would do.
        """
        if s["patchsize"] < 1 or s["patchsize"] % 2 == 0:
            raise InputError(f"patchsize {s['patchsize']}: must be odd (1, 3, 5, …), so that a patch has a centre")
        for name in ("pretrain_embed_dimension", "target_embed_dimension", "dsc_layers", "dsc_hidden", "eval_epochs"):
            if s[name] < 1:
                raise InputError(f"{name} {s[name]}: must be at least 1")
        if s["lr"] > MOST_LR:
            raise InputError(f"lr {s['lr']:g}: must be at most {MOST_LR:g}; the published rate is 0.0001")
        if s["select"] not in SELECTIONS:
            raise InputError(f"select {s['select']!r}: possible are {', '.join(SELECTIONS)}")
        if s["patience"] and s["select"] == "last":
            raise InputError(
                "--patience needs figures to go by, --select last looks at none; give --select val or best"
            )
        check_choice(s["feature_cache"])

    def _build_pooling(self) -> None:
        shapes = self.feature_aggregator.feature_shapes
        self.grid: tuple[int, int] = shapes[0][1:]
        if math.prod(self.grid) < 2:
            raise InputError(
                f"layer {self.layers_to_extract_from[0]} has a grid of 1x1 on an image of "
                f"{self.input_shape[1]}x{self.input_shape[2]}: take a larger --imagesize or an earlier layer"
            )
        self.patch_maker = PatchMaker(self.patchsize)
        self.preprocessing = Preprocessing(self.pretrain_embed_dimension)
        self.aggregator = Aggregator(self.target_embed_dimension)
        pooling = [s[0] for s in shapes], self.patchsize, self.pretrain_embed_dimension, self.target_embed_dimension
        self.fused_pooling = FusedPooling(*pooling) if FusedPooling.applies(*pooling) else None
        self.anomaly_segmentor = RescaleSegmentor(self.device, tuple(self.input_shape[1:]))

    def _build_heads(self) -> None:
        width = self.target_embed_dimension
        with seeded(self.seed):
            projection = Projection(width, width, self.pre_proj) if self.pre_proj else None
            discriminator = Discriminator(width, self.dsc_layers, self.dsc_hidden)
        self.pre_projection = projection.to(self.device) if projection else None
        self.discriminator = discriminator.to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(self.seed)
        self.optimisers = {"discriminator": torch.optim.AdamW(self.discriminator.parameters(), lr=2 * self.lr)}
        if self.pre_projection is not None:
            self.optimisers["pre_projection"] = torch.optim.Adam(
                self.pre_projection.parameters(), lr=self.lr, weight_decay=1e-5
            )
        if self.train_backbone:
            self.optimisers["backbone"] = torch.optim.AdamW(self.feature_aggregator.parameters(), lr=self.lr)

    def set_model_dir(self, model_dir: str | Path, name: str) -> None:
        """Checkpoints and TensorBoard go to `model_dir`/`name`."""
        self.model_dir = Path(model_dir) / name
        self._saver = checkpoint.Saver(self.model_dir)
        self._started = None

    @property
    def config(self) -> dict[str, Any]:
        """Plain values, enough to rebuild the model with no flags."""
        return {**self.settings, "svd": int(self.svd), **self.extra_config}

    # ------------------------------------------------------------------------------------ embedding

    def _embed(self, images: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """Patch features f(I) (paper section 3.1).

        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            (B·H'·W', C) features and each layer's grid, [(H', W'), …].
        """
        maps = self.feature_aggregator(images.to(self.device, torch.float32, non_blocking=True))
        shapes = [tuple(m.shape[2:]) for m in maps]
        if self.fused_pooling is not None:
            return self.fused_pooling(maps), shapes
        # the neighbourhoods of a whole batch would be p² times the maps: one image at a time
        rows = [self._pool_unfolded([m[i : i + 1] for m in maps]) for i in range(len(images))]
        return torch.cat(rows), shapes

    def _pool_unfolded(self, maps: list[Tensor]) -> Tensor:
        """[(1, C_l, H_l, W_l), …] → (P, C) for settings whose windows `FusedPooling` cannot do."""
        grid = maps[0].shape[2:]
        pooled = []
        for x in maps:
            y = self.preprocessing(self.patch_maker.patchify(x))  # (1, P_l, pretrain_embed_dimension)
            y = y.transpose(1, 2).unflatten(2, tuple(x.shape[2:]))
            if y.shape[2:] != grid:
                y = F.interpolate(y, size=grid, mode="bilinear", align_corners=False)
            pooled.append(y.flatten(2).transpose(1, 2))
        return self.aggregator(pooled)

    def _project(self, features: Tensor) -> Tensor:
        """A(f), (N, C)."""
        for layer in self.pre_projection.layers if self.pre_projection is not None else ():
            features = linear(features, layer.weight, layer.bias, self._dtype)
        return features.float()

    @torch.no_grad()
    def _project_roughly(self, features: Tensor) -> Tensor:
        """A(f) in the precision of the run, (N, C), for lengths that are only looked at."""
        for layer in self.pre_projection.layers if self.pre_projection is not None else ():
            weight, bias = layer.weight.to(self._dtype), layer.bias.to(self._dtype)
            features = F.linear(features.to(self._dtype), weight, bias)
        return features.float()

    def _lengths(self, x: Tensor) -> Tensor:
        """‖x − c‖ of projected features (B·P, C), (B·P,). Image by image: what is small needs no fresh memory."""
        return torch.cat([(own - self.c).norm(dim=1) for own in x.split(len(self.c))])

    def _features(self, images: Tensor) -> Tensor:
        """A(f(I)), (B·P, C)."""
        return self._project(self._embed(images)[0])

    def _set_mode(self, training: bool) -> None:
        for module in (self.feature_aggregator, self.pre_projection, self.discriminator):
            if module is not None:
                module.train(training)

    # ------------------------------------------------------------------------------------- training

    def train_step(
        self, image: Tensor | None, aug: Tensor, mask_s: Tensor, features: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One optimiser step (method of paper section 3, losses of section 3.4). Nothing waits for the device.

        Args:
            image: I, (B, 3, H, W).
            aug: I', the image with synthetic local anomalies, the same shape.
            mask_s: (B, H', W'), 1 where a patch of `aug` holds an anomaly.
            features: f(I), (B·P, C), where it is known already; `image` is not looked at then.

        Returns:
            `loss`, `p_true`, `p_fake`, `r_t`, `r_g`, `r_f` as detached 0-d tensors.
        """
        self._set_mode(True)
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        anomalous = mask_s.to(self.device, non_blocking=True).flatten() > 0  # (N,)
        f_true = self._embed(image)[0] if features is None else features
        f_local = self._embed(aug)[0]
        # on the manifold t is only looked at
        true = self._project(f_true) if self.svd else self._project_roughly(f_true)
        true_distance, local_distance = self._lengths(true.detach()), self._lengths(self._project_roughly(f_local))
        normal = torch.cat([~anomalous, torch.ones_like(anomalous)])
        r_t = quantile(torch.cat([local_distance, true_distance]), self.radius, normal)
        r_f = quantile(local_distance, self.radius, anomalous)
        folded = fold_projection(self.pre_projection, self.discriminator.first)
        noise = self._workspace.take("noise", true).normal_(generator=self.generator).mul_(self.noise)
        ascent = gas(
            self.discriminator, true, noise, self.c,
            r_t=r_t, svd=self.svd, step=self.step, mining=self.mining, radius=self.radius,
            true_y=linear(f_true, *folded, self._dtype), dtype=self._dtype, fused=self._fused,
            workspace=self._workspace,
        )  # fmt: skip
        local_y = linear(f_local, *folded, self._dtype)
        if self.svd:
            local_y = self._pushed_out(local_y, f_local, anomalous, r_t)
        local_scores = self.discriminator.after_first(local_y).squeeze(1)  # v
        loss = ascent.loss + self._local_loss(local_scores, anomalous)
        with self.feature_aggregator.exact():  # where the backbone is trained, its convolutions go backward, too
            loss.backward()
        for optimiser in self.optimisers.values():
            optimiser.step()
        shares = self._shares(ascent, local_scores.detach(), anomalous)
        return {"loss": loss.detach(), **shares, "r_t": r_t, "r_g": ascent.r_g, "r_f": r_f}

    def _pushed_out(self, local_y: Tensor, f_local: Tensor, anomalous: Tensor, r_t: Tensor) -> Tensor:
        """The first layer's outputs on u, the rows with local anomalies moved to [2·r_t, 4·r_t] around c.

        The layer is linear, so what moves u along its ray from c moves its y along the ray from c's y.
        """
        # how many rows there are a GPU only tells who waits for it; there all of them are computed
        rows = slice(None) if local_y.is_cuda else anomalous.nonzero()[:, 0]
        places = torch.arange(len(self.c), device=self.device).repeat(len(local_y) // len(self.c))[rows]
        norm = (self._project(f_local[rows]) - self.c[places]).norm(dim=1, keepdim=True)
        first = self.discriminator.first
        centre_y = linear(self.c, first.weight, first.bias, self._dtype)[places]
        moved = centre_y + (local_y[rows] - centre_y) * ring_factor(norm, 2 * r_t, 4 * r_t)
        if isinstance(rows, slice):
            return torch.where(anomalous.unsqueeze(1), moved, local_y)
        return local_y.index_copy(0, rows, moved)

    def _local_loss(self, scores: Tensor, anomalous: Tensor) -> Tensor:
        """Focal loss on the rows of LAS; with `p` > 0 on the hard ones alone."""
        if self.p <= 0:
            return focal_loss(scores, anomalous)
        difficulty = (scores.detach() - anomalous.float()) ** 2
        return focal_loss(scores, anomalous, difficulty >= quantile(difficulty, self.p))

    def _shares(self, ascent: GASResult, local_scores: Tensor, anomalous: Tensor) -> dict[str, Tensor]:
        """Share of the true rows scored under the margin, of the fake rows scored at least it."""
        below, above = local_scores < self.dsc_margin, local_scores >= self.dsc_margin
        rows, fake = len(anomalous), anomalous.sum()
        true_right = (ascent.true_scores < self.dsc_margin).sum() + (below & ~anomalous).sum()
        fake_right = (ascent.fake_scores >= self.dsc_margin).sum() + (above & anomalous).sum()
        return {"p_true": true_right / (2 * rows - fake), "p_fake": fake_right / (rows + fake)}

    @torch.no_grad()
    def _mean_embedding(self, loader: Iterable[Batch], kept: FeatureCache | None = None, epoch: int = 0) -> Tensor:
        """mean f(I) over all images of the loader, (P, C); each f(I) goes into `kept`."""
        if hasattr(getattr(loader, "sampler", None), "set_epoch"):
            loader.sampler.set_epoch(epoch)
        self._set_mode(True)
        total, count = None, 0
        for batch in loader:
            embedded = self._embed(batch["image"])[0]
            if kept is not None:
                kept.put(batch["index"].tolist(), embedded)
            part = embedded.unflatten(0, (len(batch["image"]), -1)).sum(0, dtype=torch.float64)
            total = part if total is None else total + part
            count += len(batch["image"])
        if total is None:
            raise InputError("no training image")
        mean = (total / count).float()
        if not mean.isfinite().all():
            raise WorkError(
                f"the features of the training images are not finite (NaN or infinity) in epoch {epoch}: "
                + ("the training diverged; try a smaller --lr" if self.train_backbone and epoch else
                   f"the weights of backbone {self.settings['backbone']} are damaged, or too large")
            )  # fmt: skip
        return mean

    @torch.no_grad()
    def _set_centre(self, mean_embedding: Tensor) -> None:
        """c = A(mean f(I)): f is frozen or was run just now, and A is affine."""
        self.c = self.pre_projection(mean_embedding) if self.pre_projection is not None else mean_embedding

    def _known_features(self, batch: Batch, kept: FeatureCache | None) -> Tensor | None:
        """f(I) of a batch from what is kept, with what is not kept computed; None where nothing of it is kept."""
        indices = batch["index"].tolist() if kept is not None else []
        missing = [i for i, index in enumerate(indices) if not kept.knows(index)]
        if len(missing) == len(indices):
            return None
        if not missing:
            return kept.take(indices)
        images = batch["image"]
        if len(images) == len(indices):  # else the loader has left out those whose features are known
            images = images[missing]
        with torch.no_grad():
            computed = self._embed(images)[0].unflatten(0, (len(missing), -1))
            rows = [None if i in missing else kept.take([index]) for i, index in enumerate(indices)]
            for i, own in zip(missing, computed, strict=True):
                rows[i] = own
            return torch.cat([row.to(computed.dtype) for row in rows])

    def _kept_features(self, loader: Iterable[Batch], name: str, room: int) -> FeatureCache | None:
        """An empty cache for the images of a loader in `room` bytes; None where none of them would fit."""
        count = len(getattr(loader, "dataset", ()))
        shape = math.prod(self.grid), self.target_embed_dimension
        try:
            kept = FeatureCache(count, shape, self._dtype, self.device, room)
        except (RuntimeError, MemoryError):  # what was free is not in one piece, or somebody else took it
            LOGGER.warning("%s: no memory for the embeddings of %d images after all, none is kept", name, count)
            return None
        return kept if kept.capacity else None

    def _train_discriminator(
        self,
        loader: Iterable[Batch],
        epoch: int,
        progress: tqdm | None = None,
        shown: str = "",
        kept: FeatureCache | None = None,
    ) -> dict[str, float]:
        """One epoch of `train_step`; ends once more than `limit` samples were used.

        Args:
            loader: batches with `image`, `aug`, `mask_s`.
            epoch: from 0.
            progress: bar to move by samples.
            shown: text to show behind the step's figures.
            kept: features of images that are known already.

        Returns:
            The mean of each figure over the steps.
        """
        found, unread, samples = [], [], 0
        every = READ_EVERY if self.device.type == "cuda" else 1
        sampler = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        if kept is not None and hasattr(sampler, "known"):
            sampler.known = kept.knows
        for batch in loader:
            features = self._known_features(batch, kept)
            figures = self.train_step(batch.get("image"), batch["aug"], batch["mask_s"], features)
            unread.append(torch.stack([figures[name].float() for name in STEP_FIGURES]))
            samples += len(batch["aug"])
            if len(unread) == every:
                found += _read_figures(unread, epoch)
                unread = []
            if progress is not None:
                if found:
                    values = dict(zip(STEP_FIGURES, found[-1], strict=True))
                    line = "loss {loss:.3f} p {p_true:.2f}/{p_fake:.2f} r {r_t:.2f}/{r_g:.2f}/{r_f:.2f} "
                    progress.set_postfix_str(line.format(**values) + shown, refresh=False)
                progress.update(len(batch["aug"]))
            if samples > self.limit:
                break
        found += _read_figures(unread, epoch)
        if not found:
            raise InputError("no training image")
        return dict(zip(STEP_FIGURES, np.mean(found, axis=0).tolist(), strict=True))

    def trainer(
        self,
        train_loader: Iterable[Batch],
        test_loader: Iterable[Batch] | None,
        name: str,
        centre_loader: Iterable[Batch] | None = None,
        val_loader: Iterable[Batch] | None = None,
    ) -> dict[str, Any]:
        """Train up to `meta_epochs`, evaluating every `eval_epochs`; resumes an unfinished training.

        Args:
            train_loader: batches with `image`, `aug`, `mask_s`.
            test_loader: batches with `image`, `mask_gt`, `is_anomaly`, `image_path`; None evaluates nothing.
            name: of the class, for messages and pictures.
            centre_loader: all training images once, for the centre; `train_loader` by default.
            val_loader: as `test_loader`, of held-out images; with `select` `val` it is what is looked at, and the test
                set is not.

        Returns:
            The record: `epoch` (how many are done), `best` and `last` (each `epoch` and the metrics), `history` (the
            figures of each epoch), `stale` (evaluations since the best one).
        """
        record = self.start(name)
        if self.finished(record):
            return record
        self._started = None  # from here on the model moves away from it
        judged_loader = val_loader if self.select == "val" else test_loader
        if self.select == "val" and val_loader is None:
            raise InputError("select 'val' needs a validation set")
        centre_loader = train_loader if centre_loader is None else centre_loader
        moving = self.train_backbone or getattr(
            getattr(train_loader, "dataset", None), "randomly_augmented", False
        )  # images or f differ from epoch to epoch, so the mean embedding must be made anew
        mean_embedding = None
        kept, memory = (None, None) if moving else self._memories(centre_loader, judged_loader, name)
        bar = self._progress(train_loader, record, name)
        board_folder = self.model_dir / "tb"
        with self._ending(name), bar, tensorboard.open_board(board_folder, record["epoch"]) as board:
            for epoch in range(record["epoch"], self.meta_epochs):
                started = time.monotonic()
                if self.train_backbone:  # it may have dropout, which knows no generator but the global one
                    torch.manual_seed(self.seed * 1_000_003 + epoch)
                before = bar.n
                bar.set_description(f"{name} epoch {epoch + 1}/{self.meta_epochs}")
                if moving or mean_embedding is None:
                    mean_embedding = self._mean_embedding(centre_loader, kept, epoch)
                self._set_centre(mean_embedding)
                figures = self._train_discriminator(train_loader, epoch, bar, _shown(record), kept)
                self._refuse_diverged(epoch, mean_embedding)
                figures["samples_per_second"] = (bar.n - before) / (time.monotonic() - started)
                is_best, found = self._end_epoch(epoch, judged_loader, name, record, memory)
                remember(record, {name: figures[name] for name in STEP_FIGURES})  # how fast it was is no result
                judged = getattr(judged_loader, "dataset", None)
                with tensorboard.writing(board_folder):
                    self._write_board(board, figures, record, found, judged, is_best)
                self._save_epoch(record, is_best)
                if self.finished(record):
                    break
        if record["epoch"] < self.meta_epochs:
            LOGGER.info(
                "%s: stopped after %d epochs: no better one in %d evaluations (--patience)", name, record["epoch"],
                self.patience,
            )  # fmt: skip
        return record

    @torch.no_grad()
    def _refuse_diverged(self, epoch: int, features: Tensor) -> None:
        """Nothing is to be evaluated or kept of a model that has become useless in an epoch's last step.

        Args:
            epoch: from 0.
            features: of an image, (P, C), to be scored where the backbone is frozen.

        Raises:
            WorkError: a weight, or the score of an image, is not finite.
        """
        head = self._head()
        parts = {"discriminator": self.discriminator, "pre_projection": self.pre_projection, "head": head}
        if self.train_backbone:
            parts["backbone"] = self.feature_aggregator
        state = {f"{part}.{key}": x for part, m in parts.items() if m is not None for key, x in m.state_dict().items()}
        names = checkpoint.not_finite(state)
        if names:
            raise WorkError(
                f"{names[0]} is not finite (NaN or infinity) after epoch {epoch}: the training diverged; try a smaller "
                "--lr or --noise"
            )
        if self.train_backbone:
            self._predict(torch.ones(1, *self.input_shape))
        else:
            _on_host(self._score(head, features))

    def _progress(self, loader: Iterable[Batch], record: Mapping[str, Any], name: str) -> tqdm:
        """A bar of the samples of all epochs, as far as the loader tells them."""
        samples = _samples_per_epoch(loader, self.limit)
        return tqdm(
            total=samples and samples * self.meta_epochs, initial=(samples or 0) * record["epoch"], unit="img",
            desc=name, mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True,
        )  # fmt: skip

    def _write_board(
        self, board: SummaryWriter, figures: Mapping[str, float], record: Mapping[str, Any],
        found: Predictions | None, judged: Any, is_best: bool,
    ) -> None:  # fmt: skip
        """What TensorBoard shows of an epoch, and of its evaluation on the data set `judged` where there was one."""
        val = self.select == "val"
        tensorboard.write_epoch(board, figures, record, "val" if val else "test")
        if found is not None:
            self._unshown += 1
            every = self.pictures == "every_eval"
            show = every or self.finished(record) or (is_best and self._unshown >= SHOW_EVERY)
            self._unshown = 0 if show else self._unshown
            shown = getattr(judged, "whole", judged) if show else None
            tensorboard.write_evaluation(board, record["epoch"] - 1, found, shown)
        if self.finished(record):
            tensorboard.write_settings(board, self.settings, record, val)
        board.flush()

    def finished(self, record: Mapping[str, Any]) -> bool:
        """Whether there is nothing left to train."""
        return ended(record, self.meta_epochs, self.patience)

    def _memories(
        self, train_loader: Iterable[Batch], test_loader: Iterable[Batch] | None, name: str
    ) -> tuple[FeatureCache | None, TestMemory | None]:
        """Room for the features of the training and of the test images, within `feature_cache`."""
        room = feature_budget(self.feature_cache, self.device, self._step_bytes(train_loader))
        # an epoch takes `used` of the training images, an evaluation takes all of its own: what is asked for more often
        # gets the room first
        used = _samples_per_epoch(train_loader, self.limit)
        rarely = used is not None and used * self.eval_epochs < _count(train_loader)
        loaders, caches = (train_loader, test_loader), [None, None]
        for i in (1, 0) if rarely else (0, 1):
            caches[i] = None if loaders[i] is None else self._kept_features(loaders[i], name, room)
            room -= caches[i].bytes if caches[i] else 0
        kept, tested = caches
        if self.feature_cache != OFF:
            kind = "validation (good, and with synthetic defects)" if self.select == "val" else "test"
            of_test = f", {tested.capacity if tested else 0} of {_count(test_loader)} {kind}" if test_loader else ""
            used = sum(cache.bytes for cache in (kept, tested) if cache)
            LOGGER.info(
                "%s: keeping the embeddings of %d of %d training%s images in %s (%.2f GB; --feature_cache %s)", name,
                kept.capacity if kept else 0, _count(train_loader), of_test, self.precision, used / GB,
                self.feature_cache,
            )  # fmt: skip
        return kept, TestMemory(tested) if tested else None

    def _step_bytes(self, loader: Iterable[Batch]) -> int:
        """About what a training step with the loader's batches needs."""
        batch = getattr(loader, "batch_size", None) or self.extra_config.get("batch_size") or PREDICTED_AT_ONCE
        return step_bytes(
            batch * math.prod(self.grid), self.target_embed_dimension, self.dsc_hidden, svd=self.svd,
            dsc_layers=self.dsc_layers, pre_proj=self.pre_proj,
            largest_output=batch * self.feature_aggregator.largest_output,
        )  # fmt: skip

    def start(self, name: str) -> dict[str, Any]:
        """Load the state of a training under way, or save that of a new one: from then on its settings are fixed.

        Returns:
            The record as `trainer` does.
        """
        if self._started is None:
            record = self._resume(name)
            if not self._latest.exists() and not self.finished(record):
                self._save_epoch(record, False)
            self._started = record
        return dict(self._started)

    @contextmanager
    def _ending(self, name: str) -> Iterator[None]:
        """However the training within ends: its last epoch is saved, and there is a checkpoint to be tested with."""
        try:
            yield
        except BaseException:
            try:
                self._conclude(name)
            except (InputError, WorkError) as error:  # it must not hide what ended the training
                LOGGER.warning("%s: %s", name, error)
            raise
        self._conclude(name)

    def _conclude(self, name: str) -> None:
        """Save what waits; where no epoch has been chosen, keep the latest."""
        self._saver.flush()
        kept = checkpoint.keep_latest(self.model_dir)
        if kept is not None and self.select != "last":
            LOGGER.info("%s: there is no checkpoint of a chosen epoch: the latest, %d, is kept", name, kept[1])

    def _end_epoch(
        self,
        epoch: int,
        judged_loader: Iterable[Batch] | None,
        name: str,
        record: dict[str, Any],
        memory: TestMemory | None = None,
    ) -> tuple[bool, Predictions | None]:
        """Evaluate where it is due; whether the epoch is the one to keep so far, and what was found."""
        final = epoch + 1 == self.meta_epochs
        record["epoch"] = epoch + 1
        found = None
        if judged_loader is not None and ((epoch + 1) % self.eval_epochs == 0 or final):
            found = self.predict(judged_loader, self._pictures_of(name, epoch, final), memory)
            figures = self.evaluate(found)
            record["last"] = {"epoch": epoch, **figures}
            kind = " (validation)" if self.select == "val" else ""
            LOGGER.info("%s epoch %d%s: %s", name, epoch, kind, metrics_line(figures))
        value = selection_value(record["last"]) if found is not None else None
        best = selection_value(record["best"]) if record["best"] else None
        better = value is not None and (best is None or value > best)
        if value is not None:
            record["stale"] = 0 if better else record.get("stale", 0) + 1
        unjudged = judged_loader is None or (found is not None and value is None)
        if not (final if self.select == "last" else better or (unjudged and final)):
            return False, found
        record["best"] = {"epoch": epoch} if found is None else dict(record["last"])
        return True, found

    def _pictures_of(self, name: str, epoch: int, final: bool) -> Path | None:
        """Where the pictures of an evaluation go; None where none are to be made."""
        folder = self._picture_dir("training", name)
        if folder is None or self.select == "val":  # its pictures are of the validation set, which nobody knows
            return None
        if final:
            return folder
        return folder / f"epoch_{epoch}" if self.pictures == "every_eval" else None

    def _save_epoch(self, record: Mapping[str, Any], is_best: bool) -> None:
        """Keep the best, save what a resume needs; not on the disk before that is due, see `checkpoint.Saver`."""
        best = self._weights(record["best"]) if is_best else None
        self._saver.put({**self._weights(record["last"] or {}), **self._training_state(record)}, best)

    # ------------------------------------------------------------------------------ saving, resuming

    @property
    def _latest(self) -> Path:
        return self.model_dir / checkpoint.LATEST

    def _weights(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        state = {"discriminator": self.discriminator.state_dict(), "config": self.config, "metrics": dict(figures)}
        if self.pre_projection is not None:
            state["pre_projection"] = self.pre_projection.state_dict()
        if self.train_backbone:
            state["backbone"] = self.feature_aggregator.backbone.state_dict()
        return state

    def _training_state(self, record: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "random_state": self.generator.get_state(),
            "record": dict(record),
        }

    def load_weights(self, path: Path, state: dict[str, Any] | None = None) -> dict[str, Any]:
        """Load A and D (and a trained backbone) from a checkpoint of ours or of the published code.

        Args:
            path: the checkpoint.
            state: what it holds, where it has been read already.

        Returns:
            The checkpoint.

        Raises:
            WorkError: no checkpoint, or one of a model of another shape.
        """
        self._started = None
        state = checkpoint.load(path, self.device) if state is None else state
        parts = {"discriminator": self.discriminator, "pre_projection": self.pre_projection}
        if self.train_backbone:
            parts["backbone"] = self.feature_aggregator.backbone
        if state.get("backbone") and not self.train_backbone:
            raise WorkError(f"{path} holds a trained backbone; give --train_backbone to use it")
        for key, module in parts.items():
            if (module is None) != (not state.get(key)):
                has, wants = ("no ", "one") if module is not None else ("a ", "none")
                raise WorkError(f"{path} holds {has}{key}, the given settings want {wants} (see --pre_proj)")
            if module is not None:
                try:
                    module.load_state_dict(state[key])
                except RuntimeError as error:
                    reason = " ".join(str(error).split())
                    raise WorkError(f"{path} was made with other settings: {key}: {reason[:300]}") from error
        return state

    def _resume(self, name: str) -> dict[str, Any]:
        """The record of the class's training, its state loaded where there is one to go on with."""
        if self.model_dir is None:
            raise InputError("set_model_dir comes before trainer")
        fresh = {"epoch": 0, "best": None, "last": None, "history": [], "stale": 0}
        best = checkpoint.find_best(self.model_dir)
        anew = self._anew
        if not self._latest.exists():
            if best is None:
                return fresh
            self._say_once("%s: %s is already trained (no %s beside it); %s", name, best[0], checkpoint.LATEST, anew)
            return {**fresh, "epoch": self.meta_epochs, "best": {"epoch": best[1]}}
        state = checkpoint.read_latest(self.model_dir)
        if not isinstance(state.get("record"), dict):
            raise WorkError(f"{self._latest} cannot be resumed, it holds weights alone; {anew}")
        self._refuse_other_settings(state.get("config", {}), anew)
        record = {**fresh, **state["record"]}
        if self.finished(record):
            self._say_once("%s: training finished before (epochs: %d), skipped; %s", name, record["epoch"], anew)
            self._conclude(name)
            return record
        # to the CPU: the optimisers move to the device what belongs there and leave their counts of steps where they
        # are; on the device, each step would wait for it once a parameter
        state = self.load_weights(self._latest, checkpoint.load(self._latest))
        record = {**fresh, **state["record"]}
        for key, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][key])
        self._resume_noise(state["random_state"], record["epoch"], name)
        checkpoint.remove_other_bests(self.model_dir, record["best"]["epoch"] if record["best"] else None)
        if record["epoch"]:
            self._say_once("%s: resumed after %d of %d epochs", name, record["epoch"], self.meta_epochs)
        return record

    @property
    def _anew(self) -> str:
        return f"delete {self.model_dir} to train anew"

    def check_settings_of_before(self, test: bool) -> None:
        """Whether a training in the model's folder can be gone on with, or its checkpoint tested, with these settings.

        Raises:
            InputError: they are not those of the training.
            WorkError: a checkpoint is damaged.
        """
        if test:
            path, _ = self._chosen(self.model_dir.name)
            _refuse_other_scores(checkpoint.read_plain(path).get("config", {}), self.config, path)
        elif latest := checkpoint.read_latest(self.model_dir):
            self._refuse_other_settings(latest.get("config", {}), self._anew)

    def _resume_noise(self, saved: Tensor, epoch: int, name: str) -> None:
        """Go on with the generator's draws; where the saved state is of another kind of device, begin new ones."""
        if saved.numel() == self.generator.get_state().numel():
            self.generator.set_state(saved.cpu())
            return
        self.generator.manual_seed(self.seed * 1_000_003 + epoch)
        self._say_once(
            "%s: the training was begun on another kind of device than %s, which draws other random numbers: the "
            "figures of further epochs are not those of a training that stayed", name, self.device,
        )  # fmt: skip

    def _say_once(self, *message: object) -> None:
        """To the log, but not again when the state is loaded again."""
        if message not in self._said:
            self._said.add(message)
            LOGGER.info(*message)

    def _refuse_other_settings(self, saved: Mapping[str, Any], anew: str) -> None:
        own = self.config
        other = [
            f"{key} was {saved[key]}, is {own.get(key)}{_hint(key, saved)}"
            for key in saved
            if key not in FREE_ON_RESUME and _as_lists(own.get(key)) != _as_lists(saved[key])
        ]
        if other:
            raise InputError(f"{self._latest} was made with other settings ({'; '.join(other)}); {anew}")

    # ----------------------------------------------------------------------------------- predicting

    def _head(self, dtype: torch.dtype = torch.float32) -> ScoringHead:
        return ScoringHead(self.pre_projection, self.discriminator, dtype)

    @contextmanager
    def _as_predicted(self) -> Iterator[None]:
        """Inside, images are scored in float32 throughout, as `predict` and an exported graph score them.

        A threshold is the score of a good picture: found with a backbone in bfloat16, it would lie up to 0.005 away
        from the score that this picture gets later.
        """
        own = self.feature_aggregator
        if own.dtype == torch.float32:
            yield
            return
        if self._unrounded is not None:
            size = tuple(self.input_shape)
            self.feature_aggregator = NetworkFeatureAggregator(self._unrounded, own.layers, self.device, size)
        before, self.feature_aggregator.dtype = own.dtype, torch.float32
        try:
            yield
        finally:
            self.feature_aggregator, own.dtype = own, before

    @torch.no_grad()
    def _score(self, head: ScoringHead, features: Tensor) -> Tensor:
        """f(I), (B·P, C), → patch scores (B, H', W'), float32 in [0, 1]."""
        scores = head(features.float())
        return self.patch_maker.unpatch_scores(scores, len(features) // math.prod(self.grid), self.grid)

    @torch.no_grad()
    def _score_images(self, head: ScoringHead, images: Tensor) -> Tensor:
        """(B, 3, H, W) → patch scores (B, H', W'), float32 in [0, 1]; the features are never put together."""
        if self.fused_pooling is None:
            return self._score(head, self._embed(images)[0])
        maps = self.feature_aggregator(images.to(self.device, torch.float32, non_blocking=True))
        return head.of_parts([part.float() for part in self.fused_pooling.parts(maps)])

    def _judge(self, patch_scores: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H', W') → image scores (B,) and anomaly maps (B, H, W)."""
        return self.patch_maker.score(patch_scores), self.anomaly_segmentor(patch_scores)

    @torch.no_grad()
    def _predict(self, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, 3, H, W) → image scores (B,) and anomaly maps (B, H, W), both float32 in [0, 1]."""
        self._set_mode(False)
        scores, maps = self._judge(self._score_images(self._head(), images))
        return _on_host(scores), maps.cpu().numpy()

    @torch.no_grad()
    def _predict_remembered(self, memory: TestMemory) -> Predictions:
        """Score a test set whose features are all known: the heads alone."""
        self._set_mode(False)
        head, count, size = self._head(), memory.features.count, tuple(self.input_shape[1:])
        on_device = DeviceTruth.fits(count, size, self.device)
        maps = torch.empty(count, *size, device=self.device if on_device else "cpu")
        scores = torch.empty(count, device=maps.device)
        for start in range(0, count, PREDICTED_AT_ONCE):
            stop = min(start + PREDICTED_AT_ONCE, count)
            patch_scores = self._score(head, memory.features.take(range(start, stop)))
            scores[start:stop], maps[start:stop] = self._judge(patch_scores)
        if on_device and memory.found.truth is None:
            memory.found.truth = DeviceTruth(memory.found.masks, size, self.device)
        kept = maps if on_device else maps.numpy()
        return replace(memory.found, scores=_on_host(scores), maps=kept)

    @torch.no_grad()
    def predict(
        self, loader: Iterable[Batch], pictures: Path | None = None, memory: TestMemory | None = None
    ) -> Predictions:
        """Score a test set. Beyond the maps, what is kept grows by a few bytes and the mask's bits an image.

        Args:
            loader: batches with `image`, `mask_gt`, `is_anomaly`, `image_path`; or a single (B, 3, H, W) tensor; or
                tiles of a `TiledTestDataset`, whose pictures are then scored.
            pictures: folder for image | truth | heatmap of each image; None writes none.
            memory: of the same test set, so that the next time needs the heads alone.
        """
        if hasattr(getattr(loader, "dataset", None), "whole"):
            return self._predict_tiles(loader, pictures, memory)
        if memory is not None and memory.complete and pictures is None:
            return self._predict_remembered(memory)
        self._set_mode(False)
        head, kept = self._head(), memory.features if memory else None
        if isinstance(loader, Tensor):
            loader = [{"image": loader}]
        if not hasattr(loader, "dataset"):
            loader = list(loader)  # counted first, then read
        count, size = _count_images(loader), tuple(self.input_shape[1:])
        on_device = DeviceTruth.fits(count, size, self.device)
        room = np.empty((0 if on_device else count, *size), np.float32)
        maps_of_all = torch.empty(count, *size, device=self.device) if on_device else torch.from_numpy(room)
        found = Predictions(
            np.empty(count, np.float32), maps_of_all if on_device else room, np.zeros(count, bool),
            metrics.PackedMasks(count, size), [],
        )  # fmt: skip
        at, names = 0, set()
        for batch in loader:
            images = batch["image"]
            stop = at + len(images)
            scores, maps = self._judge(self._score_batch(head, batch, kept))
            found.scores[at:stop], maps_of_all[at:stop] = _on_host(scores), maps
            masks = batch.get("mask_gt")
            for i in range(len(images)):
                found.masks[at + i] = np.full(size, -1) if masks is None else np.asarray(masks[i]).reshape(size)
            found.labels[at:stop] = np.asarray(batch.get("is_anomaly", np.zeros(len(images))), bool)
            found.paths += list(batch.get("image_path", [""] * len(images)))
            if pictures is not None:
                for i in range(len(images)):
                    file = pictures / report.picture_name(found.paths[at + i], names)
                    one_map = maps_of_all[at + i].cpu().numpy()
                    report.save_picture(file, images[i].cpu().numpy(), found.masks[at + i], one_map)
            at = stop
        if on_device:
            found.truth = DeviceTruth(found.masks, size, self.device)
        if memory is not None:
            memory.found = found.without_scores()
        if memory is not None and memory.complete:
            end_workers(loader)
        return found

    def _predict_tiles(self, loader: DataLoader, pictures: Path | None, memory: TestMemory | None) -> Predictions:
        """As `predict`, for pictures that are scored tile by tile: highest score, maps put together."""
        self._set_mode(False)
        dataset, whole, names = loader.dataset, loader.dataset.whole, set()
        count, size = len(whole), whole.settings.size
        known = memory.found if memory else None
        truth = (known.labels, known.masks, known.paths) if known else (
            np.zeros(count, bool), metrics.PackedMasks(count, size), [],
        )  # fmt: skip
        found = Predictions(np.zeros(count, np.float32), np.empty((count, *size), np.float32), *truth)
        blend = None
        for index, score, one_map in self._scored_tiles(loader, memory):
            at, box = dataset.picture_of(index), dataset.box(index)
            blend = Blend(dataset.tiling, *dataset.sizes[at]) if blend is None else blend
            blend.add(box, one_map)
            found.scores[at] = max(found.scores[at], score)
            if index + 1 < len(dataset) and dataset.picture_of(index + 1) == at:
                continue
            found.maps[at] = cv2.resize(blend.finish(), size[::-1], interpolation=cv2.INTER_AREA)
            if known is None:
                found.masks[at], found.labels[at], path = whole.truth(at)
                found.paths.append(path)
            if pictures is not None:
                file = pictures / report.picture_name(found.paths[at], names)
                report.save_picture(file, whole[at]["image"].numpy(), found.masks[at], found.maps[at])
            blend = None
        if memory is not None:
            memory.found = found.without_scores()
            if memory.complete:
                end_workers(loader)
        return found

    def _scored_tiles(
        self, loader: DataLoader, memory: TestMemory | None
    ) -> Iterator[tuple[int, float, NDArray[np.float32]]]:
        """Index, score and map of each tile in order; where all features are known, no tile is read."""
        head, kept = self._head(), memory.features if memory else None
        known = kept is not None and kept.complete
        ranges = [
            range(i, min(i + PREDICTED_AT_ONCE, len(loader.dataset)))
            for i in range(0, len(loader.dataset), PREDICTED_AT_ONCE)
        ]
        for part in ranges if known else loader:
            if known:
                indices, patch_scores = list(part), self._score(head, kept.take(part))
            else:
                indices, patch_scores = part["index"].tolist(), self._score_batch(head, part, kept)
            scores, maps = self._judge(patch_scores)
            yield from zip(indices, _on_host(scores).tolist(), maps.cpu().numpy(), strict=True)

    def _score_batch(self, head: ScoringHead, batch: Batch, kept: FeatureCache | None) -> Tensor:
        """Patch scores of a batch's images, (B, H', W'); what has room in `kept` stays there."""
        if kept is None:
            return self._score_images(head, batch["image"])
        features = self._known_features(batch, kept)
        if features is None:
            features = self._embed(batch["image"])[0]
        kept.put(batch["index"].tolist(), features)
        return self._score(head, features)

    @staticmethod
    def evaluate(found: Predictions) -> dict[str, float]:
        """The metrics named in `METRICS`, in [0, 1]; nan where the test set does not allow one."""
        return evaluate(found)

    def tester(self, test_loader: Iterable[Batch], name: str) -> dict[str, Any]:
        """Evaluate the class's chosen checkpoint and write its pictures.

        Returns:
            The metrics and `best_epoch`; see `test` for the further ones.

        Raises:
            WorkError: there is no checkpoint, or it does not fit.
        """
        return self.test(test_loader, name).figures

    def test(self, test_loader: Iterable[Batch], name: str) -> Tested:
        """As `tester`, with everything that was found."""
        tested = self.look_at(test_loader, name, self._picture_dir("eval", name))
        figures = judge(tested.found, tested.thresholds)
        for reason in why_nan(figures, tested.found.masks):
            LOGGER.info("%s: %s", name, reason)
        return Tested({**figures, **tested.figures}, tested.found, tested.thresholds)

    def look_at(self, loader: Iterable[Batch], name: str, pictures: Path | None = None) -> Tested:
        """What the chosen checkpoint says of any images, of figures its epoch alone; `pictures` as for `predict`."""
        path, epoch = self._chosen(name)
        state = checkpoint.load(path, self.device)
        _refuse_other_scores(state.get("config", {}), self.config, path)
        thresholds = Thresholds.of(self.load_weights(path, state).get("thresholds"))
        with self._as_predicted():
            found = self.predict(loader, pictures)
        return Tested({"best_epoch": epoch}, found.on_host(), thresholds)

    def last_figures(self, test_loader: Iterable[Batch], record: Mapping[str, Any]) -> dict[str, float]:
        """The test set's metrics in the last epoch, evaluated where the training did not; {} where it is not there."""
        exact = self.feature_aggregator.dtype == torch.float32  # else the record's are rounded, and the others are not
        if exact and self.select != "val" and record["last"] and record["last"]["epoch"] + 1 == record["epoch"]:
            return {name: record["last"][name] for name in METRICS}
        if not self._latest.exists():
            return {}
        self.load_weights(self._latest)
        with self._as_predicted():
            return self.evaluate(self.predict(test_loader))

    def _chosen(self, name: str) -> tuple[Path, int]:
        chosen = checkpoint.find_chosen(self.model_dir) if self.model_dir else None
        if chosen is None:
            raise WorkError(f"{name}: no ckpt_best_*.pth in {self.model_dir}; train it first, or give --models_path")
        if chosen[0] == self._latest:
            self._say_once("%s: no chosen checkpoint is there: the latest epoch, %d, is taken", name, chosen[1])
        return chosen

    @torch.no_grad()
    def calibrate(self, loader: Iterable[Batch], name: str, source: str, data: str = "") -> Thresholds:
        """Put thresholds into the chosen checkpoint, where it has none for this `false_alarm` and these images yet.

        Args:
            loader: good images, and with synthetic defects where there are any: batches as of a test set.
            name: of the class, for messages.
            source: what the good images are, `HELD_OUT` or `TRAINING`.
            data: digest of the good images' files.
        """
        checkpoint.keep_latest(self.model_dir)
        path, _ = self._chosen(name)
        state = self.load_weights(path)
        before = Thresholds.of(state.get("thresholds"))
        if before is not None and (before.false_alarm, before.source, before.data) == (self.false_alarm, source, data):
            return before
        with self._as_predicted():
            made = replace(self._thresholds_from(loader, source), data=data)
        checkpoint.save({**state, "thresholds": made.plain()}, path)
        LOGGER.info("%s: %s", name, made.describe())
        return made

    def _thresholds_from(self, loader: Iterable[Batch], source: str) -> Thresholds:
        """As `calibrate`, by the weights that are loaded."""
        self._set_mode(False)
        head, scores, peaks, labels, paths = self._head(), [], [], [], []
        defective, masks = [], []  # maps of the synthetic defects' set alone: good images may be many
        keep = source == HELD_OUT and not self.extra_config.get("tile")  # tiles come without defects
        for batch in loader:
            batch_scores, maps = self._judge(self._score_images(head, batch["image"]))
            scores += _on_host(batch_scores).tolist()
            maps = maps.cpu().numpy()
            peaks += maps.max((1, 2)).tolist()
            labels += np.asarray(batch["is_anomaly"], bool).tolist()
            paths += batch["image_path"]
            if keep:
                defective.append(maps)
                masks.append(np.asarray(batch["mask_gt"])[:, 0])
        good = [i for i, label in enumerate(labels) if not label]
        of_pictures = [_highest(values, paths, good) for values in (scores, peaks)]  # tiles of one make one
        made = thresholds_of(*of_pictures, self.false_alarm, source)
        if any(labels):
            pixels = metrics.all_pixel_metrics(np.concatenate(defective), np.concatenate(masks), ())
            made = replace(made, image_f1=best_f1(scores, labels), pixel_f1=pixels["f1_max_threshold"])
        return made

    def _picture_dir(self, kind: str, name: str) -> Path | None:
        return self.results_path / kind / name if self.results_path else None


def _on_host(scores: Tensor) -> NDArray[np.float32]:
    """Scores as an array.

    Raises:
        WorkError: one is no number; no metric, threshold or decision could be made of it.
    """
    found = scores.cpu().numpy()
    if not np.isfinite(found).all():
        raise WorkError(
            "the model gives a score that is not finite (NaN or infinity): its training diverged (try a smaller --lr "
            "or --noise), or its weights are damaged"
        )
    return found


def _highest(values: Sequence[float], paths: Sequence[str], chosen: Sequence[int]) -> list[float]:
    """The highest of each picture's values, of those chosen."""
    found: dict[str, float] = {}
    for i in chosen:
        found[paths[i]] = max(values[i], found.get(paths[i], values[i]))
    return list(found.values())


def _count_images(loader: Iterable[Batch]) -> int:
    if hasattr(loader, "dataset"):
        return len(loader.dataset)
    return sum(len(batch["image"]) for batch in loader)


def _count(loader: Iterable[Batch]) -> int:
    return len(getattr(loader, "dataset", ()))


def _read_figures(unread: list[Tensor], epoch: int) -> list[list[float]]:
    """The figures of some steps, with one wait for the device.

    Raises:
        WorkError: a loss is no number.
    """
    values = torch.stack(unread).tolist() if unread else []
    for loss, *_ in values:
        if not math.isfinite(loss):
            raise WorkError(f"the loss became {loss} in epoch {epoch}; try a smaller --lr or --noise")
    return values


def _samples_per_epoch(loader: Iterable[Batch], limit: int) -> int | None:
    """How many samples an epoch will use; None where the loader does not tell."""
    size, batch = getattr(getattr(loader, "dataset", None), "__len__", None), getattr(loader, "batch_size", None)
    if size is None or not batch:
        return None
    return min(size(), (limit // batch + 1) * batch)


def _shown(record: Mapping[str, Any]) -> str:
    """I-AUROC/P-AUROC of the last and the best evaluation for the progress bar."""
    parts = []
    for which in ("last", "best"):
        if record[which] and "image_auroc" in record[which]:
            r = record[which]
            parts.append(f"{which} {100 * r['image_auroc']:.1f}/{100 * r['pixel_auroc']:.1f}@{r['epoch']}")
    return " ".join(parts)


def _as_lists(value: Any) -> Any:
    """A value of the settings as JSON has it, which knows no tuples."""
    return [_as_lists(one) for one in value] if isinstance(value, (list, tuple)) else value


def _refuse_other_scores(
    saved: Mapping[str, Any], own: Mapping[str, Any], path: Path, keys: Sequence[str] = NEEDED_ALIKE
) -> None:
    """Some of these settings would spoil a test unseen, the others only give a message of shapes."""
    for key in keys:
        if key in saved and _as_lists(saved[key]) != _as_lists(own.get(key)):
            raise InputError(f"{path} was trained with {key} {saved[key]}, given is {own.get(key)}{_hint(key, saved)}")


def refuse_other_split(saved: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> None:
    """Stop where a checkpoint's training kept other good images for the test.

    Args:
        saved: settings of the checkpoint at `path`.
        own: those of now, with the keys of `OF_SPLIT`.

    Raises:
        InputError: says which option to give.
    """
    _refuse_other_scores(saved, own, path, OF_SPLIT)


def _hint(key: str, saved: Mapping[str, Any]) -> str:
    return f" (give --{key} {saved[key]})" if key in OF_SPLIT else ""


def load_checkpoint(path: str | Path, **how: Any) -> Inspector:
    """A trained model, ready for `predict_image`; see `inference.load_checkpoint`."""
    from inference import inspector as inference

    return inference.load_checkpoint(path, **how)
