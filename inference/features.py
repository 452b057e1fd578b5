"""Patch features f(I): computed by the backbone and the pooling, or taken from a cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import Aggregator, NetworkFeatureAggregator, Preprocessing
from inference.inspected import Inspected
from inference.memory import PatchMemory
from inference.pooling import ChannelPooling, FusedPooling, Pooling
from inference.settings import CHANNELS, Settings
from model import PatchMaker
from utils import InputError

Batch = Mapping[str, Any]
DIMENSIONS = ("pretrain_embed_dimension", "target_embed_dimension")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PatchFeatures:
    """The backbone up to the last layer used, and the pooling of its maps to patch features (section 3.1).

    Attributes:
        aggregator: the cut backbone.
        grid: (H', W') of the patches, the grid of the first layer.
        settings: those given, with both dimensions decided.
        fused_pooling: the pooling without unfolding; None for dimensions that need the general form.
        inspected: the region of interest, which the owner of the model sets; None inspects everything.

    Args:
        backbone: the whole network, as `backbones.load` returns it.
        settings: of the model.
        device: of the computation.
        dtype: number format of the backbone's computation; the features are float32 in any case.

    Raises:
        InputError: a layer, an image size or a dimension does not fit the backbone.
    """

    def __init__(
        self, backbone: nn.Module, settings: Settings, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.device = device
        self.aggregator = NetworkFeatureAggregator(
            backbone,
            settings.layers_to_extract_from,
            device,
            settings.input_shape,
            settings.train_backbone,
            dtype,
        )
        # with bfloat16 the weights of the aggregator are rounded: scoring in float32 needs the original network
        rounded = dtype != torch.float32 and not settings.train_backbone
        self._unrounded_backbone = backbone if rounded else None
        shapes = self.aggregator.feature_shapes
        self.grid: tuple[int, int] = shapes[0][1:]
        if math.prod(self.grid) < 2:
            height, width = settings.image_size
            raise InputError(
                f"layer {settings.layers_to_extract_from[0]} has a grid of 1x1 for an image of {height}x{width}; give "
                "a larger --imagesize or an earlier layer"
            )
        self.patch_maker = PatchMaker(settings.patchsize)
        channels = [shape[0] for shape in shapes]
        dimensions = _dimensions(settings, sum(channels))
        self.settings = replace(settings, **dict(zip(DIMENSIONS, dimensions, strict=True)))
        self._preprocessing, self._aggregator = Preprocessing(dimensions[0]), Aggregator(dimensions[1])
        self.fused_pooling = _pooling(settings, channels, dimensions)
        self.memory = PatchMemory().to(device) if settings.memory else None
        self.inspected: Inspected | None = None

    def drop_original(self) -> None:
        """Let go of the original network, which only `in_float32` needs."""
        self._unrounded_backbone = None

    @property
    def shape(self) -> tuple[int, int]:
        """(P, C): the number of patches of an image, and the length of their features."""
        return math.prod(self.grid), self.settings.feature_width

    def maps(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → the backbone's maps, [(B, C_l, H_l, W_l), …]."""
        return self.aggregator(images.to(self.device, torch.float32, non_blocking=True))

    def embed(self, images: Tensor, own: Tensor | None = None) -> tuple[Tensor, list[tuple[int, int]]]:
        """Normalised images (B, 3, H, W) → patch features (B·P, C), and the grid of each layer, [(H', W'), …].

        Args:
            images: to embed.
            own: (B,), the indices of training images, whose own patches in memory do not count.
        """
        maps = self.maps(images)
        shapes = [tuple(layer_map.shape[2:]) for layer_map in maps]
        return self.relative(self.pool(maps), own), shapes

    def embed_alone(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → patch features (B·P, C) that are not relative to the memory."""
        return self.pool(self.maps(images))

    def pool(self, maps: list[Tensor]) -> Tensor:
        """The backbone's maps → (B·P, C)."""
        if self.fused_pooling is not None:
            return self.fused_pooling(maps)
        # one image at a time, since unfolded maps take p² times the memory of the maps
        rows = [self._pool_unfolded([layer_map[i : i + 1] for layer_map in maps]) for i in range(len(maps[0]))]
        return torch.cat(rows)

    def relative(self, features: Tensor, own: Tensor | None = None) -> Tensor:
        """Features (N, C) of images with equally many rows, relative to the memory; without one as they are."""
        if self.memory is None:
            return features
        return self.memory(features.float(), _of_rows(own, features))

    def stored(self, images: Tensor, own: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) → features in a short form and in float16, (B, P, C'), with (P, C') = `stored_shape`.

        Args:
            images: to embed.
            own: as for `embed`.
        """
        features = self.embed_alone(images)
        if self.memory is not None:
            features = self.memory.differences(features.float(), _of_rows(own, features))
        return features.half().unflatten(0, (len(images), -1))

    def restored(self, rows: Tensor) -> Tensor:
        """Rows (N, C') of `stored` → the features that `embed` would return, up to rounding."""
        return rows.float() if self.memory is None else self.memory.relative(rows.float())

    @property
    def stored_shape(self) -> tuple[int, int]:
        """(P, C') of `stored`."""
        return math.prod(self.grid), self.settings.target_embed_dimension + (self.memory is not None)

    def _pool_unfolded(self, maps: list[Tensor]) -> Tensor:
        """[(1, C_l, H_l, W_l), …] → (P, C) for settings that `FusedPooling` does not support."""
        grid = maps[0].shape[2:]
        pooled = []
        for x in maps:
            y = self._preprocessing(self.patch_maker.patchify(x))  # (1, P_l, pretrain_embed_dimension)
            y = y.transpose(1, 2).unflatten(2, tuple(x.shape[2:]))  # (1, pretrain_embed_dimension, H_l, W_l)
            if y.shape[2:] != grid:
                y = F.interpolate(y, size=grid, mode="bilinear", align_corners=False)
            pooled.append(y.flatten(2).transpose(1, 2))  # (1, P, pretrain_embed_dimension)
        return self._aggregator(pooled)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """A context in which features are computed in float32 throughout, as in `predict` and in an exported graph.

        A threshold is the score of a good image: computed with a backbone in bfloat16, it would differ by up to 0.005
        from the score that the same image gets later.
        """
        training = self.aggregator
        if training.dtype == torch.float32:
            yield
            return
        if self._unrounded_backbone is not None:
            self.aggregator = NetworkFeatureAggregator(
                self._unrounded_backbone, training.layers, self.device, self.settings.input_shape
            )
        dtype, self.aggregator.dtype = training.dtype, torch.float32
        try:
            yield
        finally:
            self.aggregator, training.dtype = training, dtype


def _of_rows(own: Tensor | None, features: Tensor) -> Tensor | None:
    """The images (B,) of B images, for each of their features (B·P, C): (B·P,)."""
    return None if own is None else own.to(features.device).repeat_interleave(len(features) // len(own))


def _dimensions(settings: Settings, channels: int) -> tuple[int, int]:
    """Both dimensions, where the layers have this many channels in total."""
    given = settings.pretrain_embed_dimension, settings.target_embed_dimension
    for name, value in zip(DIMENSIONS, given, strict=True):
        if settings.pooling == CHANNELS and value not in (None, channels):
            raise InputError(
                f"--{name} {value}: with --pooling channels it is the number of channels of the layers, {channels}; "
                "omit it, or give --pooling published"
            )
        if settings.pooling != CHANNELS and value is None:
            raise InputError(f"{name} is not given: --pooling {settings.pooling} needs a length")
    return (channels, channels) if settings.pooling == CHANNELS else given


def _pooling(settings: Settings, channels: Sequence[int], dimensions: tuple[int, int]) -> Pooling | None:
    """The pooling without unfolding; None if the settings need the general form."""
    if settings.pooling == CHANNELS:
        return ChannelPooling(settings.patchsize)
    fused = channels, settings.patchsize, *dimensions
    return FusedPooling(*fused) if FusedPooling.applies(*fused) else None


class FeatureCache:
    """f(I) by the index of the image, in one block of memory that is allocated at the start.

    It keeps the images with the lowest indices, as many as there is room for, in whatever order they come.

    Args:
        count: number of images.
        shape: (P, C) of an image's features.
        dtype: number format of the stored features.
        device: of the stored features.
        budget: memory in bytes.
    """

    def __init__(
        self, count: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, budget: int
    ) -> None:
        size = shape[0] * shape[1] * dtype.itemsize
        self.count, self.capacity = count, max(0, min(count, budget // size))
        self.bytes = self.capacity * size
        self._features = torch.empty(self.capacity, *shape, dtype=dtype, device=device)
        self._known = [False] * self.capacity

    @property
    def complete(self) -> bool:
        """Whether the features of every image are kept."""
        return self.capacity == self.count and all(self._known)

    def knows(self, index: int) -> bool:
        """Whether the features of an image are kept."""
        return index < self.capacity and self._known[index]

    def put(self, indices: Sequence[int], features: Tensor) -> None:
        """Keep the features (n·P, C) of those of n images for which there is room."""
        rows = features.detach().unflatten(0, (len(indices), -1))  # (n, P, C)
        for index, image_features in zip(indices, rows, strict=True):
            if index < self.capacity:
                self._features[index] = image_features
                self._known[index] = True

    def take(self, indices: Sequence[int]) -> Tensor:
        """The features of n images, all of which must be kept, (n·P, C)."""
        if len(indices) and list(indices) == list(range(indices[0], indices[0] + len(indices))):
            return self._features[indices[0] : indices[0] + len(indices)].flatten(0, 1)  # no copy
        chosen = torch.tensor(indices)
        if self._features.is_cuda:  # a copy from memory that is not pinned would wait for the device
            chosen = chosen.pin_memory().to(self._features.device, non_blocking=True)
        return self._features.index_select(0, chosen).flatten(0, 1)


def kept_features(
    features: PatchFeatures, batch: Batch, cache: FeatureCache | None, of_training: bool = False
) -> Tensor | None:
    """f(I) of a batch from the cache; the features of images that are not in it are computed.

    Args:
        features: compute f.
        batch: with `index`, and `image` where it is not in the cache.
        cache: of features.
        of_training: whether these are training images, whose own patches in the memory do not count.

    Returns:
        (B·P, C); None if no image of the batch is in the cache.
    """
    indices = batch["index"].tolist() if cache is not None else []
    missing = [i for i, index in enumerate(indices) if not cache.knows(index)]
    if len(missing) == len(indices):
        return None
    if not missing:
        return cache.take(indices)
    images = batch["image"]
    if len(images) == len(indices):  # otherwise the loader has already left out the images that are in the cache
        images = images[missing]
    with torch.no_grad():
        own = batch["index"][missing] if of_training else None
        computed = features.embed(images, own)[0].unflatten(0, (len(missing), -1))  # (len(missing), P, C)
        rows = [None if i in missing else cache.take([index]) for i, index in enumerate(indices)]
        for i, image_features in zip(missing, computed, strict=True):
            rows[i] = image_features
        return torch.cat([row.to(computed.dtype) for row in rows])
