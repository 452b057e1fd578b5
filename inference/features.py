"""Patch features f(I): computed by the frozen backbone and the pooling, or kept from an earlier pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import Aggregator, NetworkFeatureAggregator, Preprocessing
from inference.pooling import FusedPooling
from inference.settings import Settings
from model import PatchMaker
from utils import InputError

Batch = Mapping[str, Any]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PatchFeatures:
    """The backbone up to the last layer used, and the pooling that makes patch features of its maps (section 3.1).

    Attributes:
        aggregator: the cut backbone.
        grid: (H', W') of the patches, which is the grid of the first layer.
        fused_pooling: the pooling without unfolding; None for dimensions that only the general form can do.

    Args:
        backbone: the whole network, as `backbones.load` gives it.
        settings: of the model.
        device: where it runs.
        dtype: number format of the backbone's arithmetic; the features are float32.

    Raises:
        InputError: a layer or image size that does not go together with the backbone.
    """

    def __init__(
        self, backbone: nn.Module, settings: Settings, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.settings, self.device = settings, device
        self.aggregator = NetworkFeatureAggregator(
            backbone,
            settings.layers_to_extract_from,
            device,
            settings.input_shape,
            settings.train_backbone,
            dtype,
        )
        # weights in bfloat16 are folded and rounded: scoring in float32 needs the network as it was
        rounded = dtype != torch.float32 and not settings.train_backbone
        self._unrounded_backbone = backbone if rounded else None
        shapes = self.aggregator.feature_shapes
        self.grid: tuple[int, int] = shapes[0][1:]
        if math.prod(self.grid) < 2:
            height, width = settings.image_size
            raise InputError(
                f"layer {settings.layers_to_extract_from[0]} has a grid of 1x1 on an image of {height}x{width}: take a "
                "larger --imagesize or an earlier layer"
            )
        self.patch_maker = PatchMaker(settings.patchsize)
        dimensions = settings.pretrain_embed_dimension, settings.target_embed_dimension
        self._preprocessing, self._aggregator = Preprocessing(dimensions[0]), Aggregator(dimensions[1])
        pooling = [shape[0] for shape in shapes], settings.patchsize, *dimensions
        self.fused_pooling = FusedPooling(*pooling) if FusedPooling.applies(*pooling) else None

    @property
    def shape(self) -> tuple[int, int]:
        """(P, C): how many patches an image has, and the length of their features."""
        return math.prod(self.grid), self.settings.target_embed_dimension

    def maps(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → the backbone's maps, [(B, C_l, H_l, W_l), …]."""
        return self.aggregator(images.to(self.device, torch.float32, non_blocking=True))

    def embed(self, images: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """(B, 3, H, W), normalised → patch features (B·P, C) and each layer's grid, [(H', W'), …]."""
        maps = self.maps(images)
        shapes = [tuple(layer_map.shape[2:]) for layer_map in maps]
        if self.fused_pooling is not None:
            return self.fused_pooling(maps), shapes
        # the neighbourhoods of a whole batch would be p² times as large as the maps: one image at a time
        rows = [self._pool_unfolded([layer_map[i : i + 1] for layer_map in maps]) for i in range(len(images))]
        return torch.cat(rows), shapes

    def _pool_unfolded(self, maps: list[Tensor]) -> Tensor:
        """[(1, C_l, H_l, W_l), …] → (P, C) for settings whose pooling windows `FusedPooling` cannot do."""
        grid = maps[0].shape[2:]
        pooled = []
        for x in maps:
            y = self._preprocessing(self.patch_maker.patchify(x))  # (1, P_l, pretrain_embed_dimension)
            y = y.transpose(1, 2).unflatten(2, tuple(x.shape[2:]))
            if y.shape[2:] != grid:
                y = F.interpolate(y, size=grid, mode="bilinear", align_corners=False)
            pooled.append(y.flatten(2).transpose(1, 2))
        return self._aggregator(pooled)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Inside, features are computed in float32 throughout, as `predict` and an exported graph compute them.

        A threshold is the score of a good image: found with a backbone in bfloat16, it would differ by up to 0.005
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


class FeatureCache:
    """f(I) by the index of the image, in one block of memory that is allocated at the start.

    The first images are kept, as many as there is room for, so that the order in which they come does not matter.

    Args:
        count: number of images.
        shape: (P, C) of an image's features.
        dtype: number format in which they are kept.
        device: where they are kept.
        budget: bytes.
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
        """Keep the features (n·P, C) of n images, where there is room for them."""
        rows = features.detach().unflatten(0, (len(indices), -1))
        for index, of_image in zip(indices, rows, strict=True):
            if index < self.capacity:
                self._features[index] = of_image
                self._known[index] = True

    def take(self, indices: Sequence[int]) -> Tensor:
        """The features of images that are all kept, (n·P, C)."""
        if len(indices) and list(indices) == list(range(indices[0], indices[0] + len(indices))):
            return self._features[indices[0] : indices[0] + len(indices)].flatten(0, 1)  # no copy
        chosen = torch.tensor(indices)
        if self._features.is_cuda:  # the copy from memory that is not pinned would have to be waited for
            chosen = chosen.pin_memory().to(self._features.device, non_blocking=True)
        return self._features.index_select(0, chosen).flatten(0, 1)


def kept_features(features: PatchFeatures, batch: Batch, cache: FeatureCache | None) -> Tensor | None:
    """f(I) of a batch, (B·P, C), from what is kept; images that are not kept are computed.

    Returns:
        None where no image of the batch is kept.
    """
    indices = batch["index"].tolist() if cache is not None else []
    missing = [i for i, index in enumerate(indices) if not cache.knows(index)]
    if len(missing) == len(indices):
        return None
    if not missing:
        return cache.take(indices)
    images = batch["image"]
    if len(images) == len(indices):  # else the loader has left out the images whose features are kept
        images = images[missing]
    with torch.no_grad():
        computed = features.embed(images)[0].unflatten(0, (len(missing), -1))
        rows = [None if i in missing else cache.take([index]) for i, index in enumerate(indices)]
        for i, of_image in zip(missing, computed, strict=True):
            rows[i] = of_image
        return torch.cat([row.to(computed.dtype) for row in rows])
