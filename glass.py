"""GLASS: the paper's method on one class (Chen et al., ECCV 2024).

Names follow the paper: f(I) are the patch features of a normal image, f(I') those of the image with a synthetic local
anomaly (LAS, section 3.3), A is the projection, D the discriminator, c the centre of the projected features of the
training set. t = A(f(I)) is normal, g is t pushed by noise and gradient ascent (GAS, section 3.2), u = A(f(I')).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from common import RescaleSegmentor
from inference.features import PRECISIONS, Batch, FeatureCache, PatchFeatures, kept_features
from inference.head import ScoringHead, build_heads, fold_projection
from inference.inspected import draw_locations
from inference.inspector import load_checkpoint
from inference.scorer import Scorer
from inference.settings import Settings
from synthesis.arithmetic import Workspace, centre_distances, linear, quantile, ring_factor
from synthesis.gas import GASResult, gas
from synthesis.las import local_loss
from synthesis.slope import try_to_compile
from training import testing
from training.averaging import AveragedWeights
from training.evaluation import Predictions
from training.record import StepFigures
from training.schedule import set_rates
from training.trainer import Loaders, Trainer
from utils import choose_precision

__all__ = ["GLASS", "load_checkpoint"]


class GLASS:
    """One model for one class. `load` builds it; `trainer`, `tester` and `predict` use it.

    Attributes:
        settings: how the model is built and trained; each setting is also an attribute (`glass.noise`).
        features: backbone and pooling, which compute f(I).
        discriminator, pre_projection: D and A (`pre_projection` is None with `pre_proj=0`).
        c: the centre of each location, (P, C).
        averaged: the averaged weights, which score; None without `average`.
        svd: 0 manifold, 1 hypersphere.
        extra_config: further plain values for checkpoints (settings of the data), set by the caller.
        results_path: folder of the pictures; None writes none.
        pictures: `end`, or `every_eval` for pictures of every evaluation during the training as well.
        model_dir: folder of the checkpoints and of TensorBoard.
    """

    settings: Settings

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.extra_config: dict[str, Any] = {}
        self.results_path: Path | None = None
        self.pictures = "end"
        self.model_dir: Path | None = None
        self.c: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """A setting by its name; Python calls this only if there is no attribute of that name."""
        settings = self.__dict__.get("settings")
        if settings is None or name not in settings.__dataclass_fields__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(settings, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """An attribute with the name of a setting replaces the setting; `svd` is the model's own."""
        settings = self.__dict__.get("settings")
        if name != "svd" and settings is not None and name in settings.__dataclass_fields__:
            name, value = "settings", replace(settings, **{name: value})
        object.__setattr__(self, name, value)

    # ------------------------------------------------------------------------------------- building

    def load(
        self,
        backbone: nn.Module,
        layers_to_extract_from: Iterable[str],
        device: torch.device | str,
        input_shape: tuple[int, int, int],
        pretrain_embed_dimension: int | None,
        target_embed_dimension: int | None,
        **settings: Any,
    ) -> GLASS:
        """Build all parts of the model.

        Args:
            backbone: the whole network, as `backbones.load` returns it.
            layers_to_extract_from: dotted names of its layers.
            device: of the model.
            input_shape: (3, H, W) of the images.
            pretrain_embed_dimension, target_embed_dimension, settings: the other fields of `Settings`; both dimensions
                may be None with the `pooling` `channels`.

        Raises:
            InputError: a layer, size or value cannot work.
            TypeError: a setting is unknown or missing.
        """
        origin = getattr(backbone, "origin", None)
        name, weights = (origin.name, origin.weights) if origin else (type(backbone).__name__, "")
        if unknown := settings.keys() - Settings.names_for_load():
            raise TypeError(f"load() got an unexpected keyword argument {min(unknown)!r}")
        shape = tuple(input_shape), pretrain_embed_dimension, target_embed_dimension
        self.settings = Settings(tuple(layers_to_extract_from), *shape, **settings, backbone=name, weights=weights)
        Settings.check(self.settings.plain())
        self.device = torch.device(device)
        self._build(backbone)
        return self

    def _build(self, backbone: nn.Module) -> None:
        precision = choose_precision(self.settings.precision, self.device)
        self.dtype = PRECISIONS[precision]
        self.features = PatchFeatures(backbone, self.settings, self.device, self._dtype_of_backbone())
        digest = self.features.aggregator.fingerprint
        self.settings = replace(self.features.settings, precision=precision, backbone_hash=digest)
        self.svd = self.settings.svd
        self.segmentor = RescaleSegmentor(self.device, self.settings.image_size)
        self.pre_projection, self.discriminator = build_heads(self.settings, self.device)
        self.generator = torch.Generator(self.device).manual_seed(self.settings.seed)
        self._build_optimisers()
        parts = self.pre_projection, self.discriminator
        self.averaged = AveragedWeights(*parts, self.settings.average) if self.settings.average else None
        updates = self.settings.step if self.settings.mining else 0
        self._fused = try_to_compile(self.settings.dsc_layers, updates, self.device) if self.settings.compile else None
        self._workspace = Workspace()

    def _dtype_of_backbone(self) -> torch.dtype:
        """The precision of the training on CUDA, which changes gradients by 2 to 5 %; a CPU would gain too little."""
        return self.dtype if self.device.type == "cuda" else torch.float32

    def _build_optimisers(self) -> None:
        lr = self.settings.lr
        self.optimisers = {"discriminator": torch.optim.AdamW(self.discriminator.parameters(), lr=2 * lr)}
        if self.pre_projection is not None:
            self.optimisers["pre_projection"] = torch.optim.Adam(
                self.pre_projection.parameters(), lr=lr, weight_decay=1e-5
            )
        if self.settings.train_backbone:
            self.optimisers["backbone"] = torch.optim.AdamW(self.features.aggregator.parameters(), lr=lr)

    def set_model_dir(self, model_dir: str | Path, name: str) -> None:
        """Let checkpoints and TensorBoard go to the folder `model_dir`/`name`."""
        self.model_dir = Path(model_dir) / name

    @property
    def config(self) -> dict[str, Any]:
        """The values that checkpoints keep: enough to rebuild the model without options."""
        return {**self.settings.plain(), "svd": int(self.svd), **self.extra_config}

    @property
    def grid(self) -> tuple[int, int]:
        """(H', W') of the patches."""
        return self.features.grid

    # ------------------------------------------------------------------- features and projections

    def _embed(self, images: Tensor, own: Tensor | None = None) -> tuple[Tensor, list[tuple[int, int]]]:
        """f(I) (section 3.1): normalised images (B, 3, H, W) → (B·H'·W', C), and the grid of each layer."""
        return self.features.embed(images, own)

    def _project(self, features: Tensor) -> Tensor:
        """A(f), (N, C) → (N, C)."""
        for layer in self.pre_projection.layers if self.pre_projection is not None else ():
            features = linear(features, layer.weight, layer.bias, self.dtype)
        return features.float()

    @torch.no_grad()
    def _project_roughly(self, features: Tensor) -> Tensor:
        """A(f) in the precision of the training and without gradients, for lengths; (N, C) → (N, C)."""
        for layer in self.pre_projection.layers if self.pre_projection is not None else ():
            weight, bias = layer.weight.to(self.dtype), layer.bias.to(self.dtype)
            features = F.linear(features.to(self.dtype), weight, bias)
        return features.float()

    def _features(self, images: Tensor) -> Tensor:
        """A(f(I)), (B, 3, H, W) → (B·P, C)."""
        return self._project(self._embed(images)[0])

    def set_mode(self, training: bool) -> None:
        """Set all parts to training or evaluation mode; a frozen backbone stays in evaluation mode."""
        for module in (self.features.aggregator, self.pre_projection, self.discriminator):
            if module is not None:
                module.train(training)

    # ------------------------------------------------------------------------------------- training

    def train_step(
        self,
        image: Tensor | None,
        aug: Tensor,
        mask_s: Tensor,
        features: Tensor | None = None,
        own: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One optimiser step (section 3; losses of section 3.4), without waiting for the device.

        Args:
            image: I, (B, 3, H, W); not used if `features` are given.
            aug: I', the image with synthetic local anomalies, (B, 3, H, W).
            mask_s: (B, H', W'), 1 where a patch of `aug` contains an anomaly.
            features: f(I), (B·P, C), if it is already known.
            own: (B,), indices of the images, whose own patches in a memory do not count.

        Returns:
            `loss`, `p_true`, `p_fake`, `r_t`, `r_g`, `r_f` as detached 0-d tensors.
        """
        self._begin_step()
        f_true = self._embed(image, own)[0] if features is None else features  # (N, C)
        f_true, true_centre = self._some(self.settings.ascent_share, f_true, self.c)
        return self._finish_step(f_true, true_centre, *self._local_features(aug, mask_s, own))

    def _begin_step(self) -> None:
        """Set the mode, and forget the gradients of the step before."""
        self.set_mode(True)
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)

    def _finish_step(
        self, f_true: Tensor, true_centre: Tensor, f_local: Tensor, local_centre: Tensor, anomalous: Tensor
    ) -> dict[str, Tensor]:
        """Losses and updates of a step from f(I), f(I') and the centres of their locations; `anomalous` is (N,)."""
        # on the manifold no gradient flows through t
        true = self._project(f_true) if self.svd else self._project_roughly(f_true)  # (N, C)
        true_distance = centre_distances(true.detach(), true_centre)
        local_distance = centre_distances(self._project_roughly(f_local), local_centre)
        normal = torch.cat([~anomalous, torch.ones(len(true), dtype=torch.bool, device=self.device)])  # (2·N,)
        r_t = quantile(torch.cat([local_distance, true_distance]), self.settings.radius, normal)
        r_f = quantile(local_distance, self.settings.radius, anomalous)
        folded = fold_projection(self.pre_projection, self.discriminator.first)
        ascent = self._ascend(true, linear(f_true, *folded, self.dtype), true_centre, r_t)
        local_y = linear(f_local, *folded, self.dtype)  # (N, hidden)
        if self.svd:
            local_y = self._pushed_out(local_y, f_local, local_centre, anomalous, r_t)
        local_scores = self.discriminator.after_first(local_y).squeeze(1)  # (N,)
        loss = ascent.loss + local_loss(local_scores, anomalous, self.settings.p)
        with self.features.aggregator.exact():  # for the backward pass of a trained backbone
            loss.backward()
        for optimiser in self.optimisers.values():
            optimiser.step()
        if self.averaged is not None:
            self.averaged.update()
        shares = self._shares(ascent, local_scores.detach(), anomalous)
        return {"loss": loss.detach(), **shares, "r_t": r_t, "r_g": ascent.r_g, "r_f": r_f}

    def _local_features(self, aug: Tensor, mask_s: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """f(I') (N, C), the centres of its locations, and whether each is anomalous (N,), for a share of them."""
        anomalous = mask_s.to(self.device, non_blocking=True).flatten() > 0
        alone = self.features.memory is not None  # only the chosen locations are compared with the memory
        features = self.features.embed_alone(aug) if alone else self._embed(aug)[0]
        features, anomalous, centre = self._some(self.settings.local_share, features, anomalous, self.c)
        return self.features.relative(features, own), centre, anomalous

    def _some(self, share: float, *rows: Tensor) -> list[Tensor]:
        """A share of the inspected locations, drawn alike for all images, of tensors (n·P, …) and of c (P, C)."""
        chosen = draw_locations(self.features, share, self.generator)
        if chosen is None:
            return list(rows)
        return [x.unflatten(0, (-1, len(self.c)))[:, chosen].flatten(0, 1) for x in rows]

    def _ascend(self, true: Tensor, true_y: Tensor, centre: Tensor, r_t: Tensor) -> GASResult:
        """GAS from t (N, C) with the centres of its locations; `true_y` (N, hidden) is D's first layer for t."""
        settings = self.settings
        noise = self._workspace.take("noise", true).normal_(generator=self.generator).mul_(settings.noise)
        return gas(
            self.discriminator, true, noise, centre,
            r_t=r_t, svd=self.svd, step=settings.step, mining=settings.mining, radius=settings.radius,
            true_y=true_y, dtype=self.dtype, fused=self._fused, workspace=self._workspace,
        )  # fmt: skip

    def _pushed_out(self, local_y: Tensor, f_local: Tensor, centre: Tensor, anomalous: Tensor, r_t: Tensor) -> Tensor:
        """The first layer's outputs for u (N, hidden), with anomalous rows moved to [2·r_t, 4·r_t] away from c.

        The layer is linear, so moving u along its ray from c moves its y along the ray from the y of c.
        """
        # indexing with a mask would wait for the GPU to count the rows; there all rows are computed
        rows = slice(None) if local_y.is_cuda else anomalous.nonzero()[:, 0]
        locations = torch.arange(len(centre), device=self.device).repeat(len(local_y) // len(centre))[rows]
        norm = (self._project(f_local[rows]) - centre[locations]).norm(dim=1, keepdim=True)  # (n, 1)
        first = self.discriminator.first
        centre_y = linear(centre, first.weight, first.bias, self.dtype)[locations]  # (n, hidden)
        moved = centre_y + (local_y[rows] - centre_y) * ring_factor(norm, 2 * r_t, 4 * r_t)
        if isinstance(rows, slice):
            return torch.where(anomalous.unsqueeze(1), moved, local_y)
        return local_y.index_copy(0, rows, moved)

    def _shares(self, ascent: GASResult, local_scores: Tensor, anomalous: Tensor) -> dict[str, Tensor]:
        """The shares of normal rows with a score below the margin, and of anomalous rows with a score not below it."""
        margin = self.settings.dsc_margin
        below, above = local_scores < margin, local_scores >= margin
        true_rows, local_rows, local_anomalies = len(ascent.true_scores), len(anomalous), anomalous.sum()
        true_correct = (ascent.true_scores < margin).sum() + (below & ~anomalous).sum()
        fake_correct = (ascent.fake_scores >= margin).sum() + (above & anomalous).sum()
        return {
            "p_true": true_correct / (true_rows + local_rows - local_anomalies),
            "p_fake": fake_correct / (true_rows + local_anomalies),
        }

    @torch.no_grad()
    def set_centre(self, mean_embedding: Tensor) -> None:
        """c = A(mean f(I)) (P, C), which equals the mean of A(f(I)) since A is affine."""
        self.c = self.pre_projection(mean_embedding) if self.pre_projection is not None else mean_embedding

    def _train_discriminator(
        self,
        loader: Iterable[Batch],
        epoch: int,
        progress: tqdm | None = None,
        shown: str = "",
        cache: FeatureCache | None = None,
    ) -> dict[str, float]:
        """Train one epoch, which ends once more than `limit` samples have been used.

        Args:
            loader: batches with `image`, `aug`, `mask_s`.
            epoch: counted from 0.
            progress: a progress bar that counts samples.
            shown: text for the bar, after the step's figures.
            cache: features of images that are already known.

        Returns:
            The mean over the steps of each of `STEP_FIGURES`.

        Raises:
            InputError: the loader is empty.
            WorkError: a loss is not finite.
        """
        samples, figures = 0, StepFigures(epoch, self.device.type == "cuda", progress, shown)
        sampler = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        if cache is not None and hasattr(sampler, "known"):
            sampler.known = cache.knows
        for number, batch in enumerate(loader):
            set_rates(self.optimisers, self.settings, epoch, number, loader)
            features = kept_features(self.features, batch, cache, of_training=True)
            own = batch["index"] if self.features.memory is not None else None
            step_figures = self.train_step(batch.get("image"), batch["aug"], batch["mask_s"], features, own)
            figures.add(step_figures, len(batch["aug"]))
            samples += len(batch["aug"])
            if samples > self.settings.limit:
                break
        return figures.means()

    # -------------------------------------------------------------------------------------- scoring

    def scorer(self, dtype: torch.dtype = torch.float32) -> Scorer:
        """A scorer with the current weights; sets all parts to evaluation mode."""
        self.set_mode(False)
        return Scorer(self.features, ScoringHead(*reversed(self.scoring_parts), dtype), self.segmentor)

    @property
    def scoring_parts(self) -> tuple[nn.Module, nn.Module | None]:
        """D and A (None without one) with the weights that score: averaged, if `average` says so."""
        parts = self.averaged
        return (self.discriminator, self.pre_projection) if parts is None else (parts.discriminator, parts.projection)

    @contextmanager
    def scored_as_predicted(self) -> Iterator[Scorer]:
        """A context with a scorer that computes in float32 throughout, as `predict` and an exported graph do."""
        with self.features.in_float32():
            yield self.scorer()

    def _predict(self, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, 3, H, W) → image scores (B,) and anomaly maps (B, H, W), both float32 in [0, 1]."""
        return self.scorer().predict(images)

    # These methods call training/, for callers that only know this class.

    def trainer(
        self,
        train_loader: Iterable[Batch],
        test_loader: Iterable[Batch] | None,
        name: str,
        centre_loader: Iterable[Batch] | None = None,
        val_loader: Iterable[Batch] | None = None,
    ) -> dict[str, Any]:
        """Train up to `meta_epochs`; see `training.trainer.Trainer.train`."""
        return Trainer(self, Loaders(train_loader, test_loader, centre_loader, val_loader), name).train()

    def tester(self, test_loader: Iterable[Batch], name: str) -> dict[str, Any]:
        """The metrics and `best_epoch` of the chosen checkpoint; see `training.testing.test`."""
        return testing.test(self, test_loader, name).figures

    def predict(self, loader: Iterable[Batch] | Tensor, pictures: Path | None = None) -> Predictions:
        """Scores and maps of a test set; see `training.testing.score_set`."""
        return testing.score_set(self.scorer(), loader, pictures)
