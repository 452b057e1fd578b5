"""The part of an exported graph that torch traces: from the normalised image to scores and map.

Loaded by `pth2onnx.py`; the folder is not a package.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference.inspector import Inspector
from inference.thresholds import TINY


class Network(nn.Module):
    """Normalised image → image score, normalised score and anomaly map, in operations that a graph can hold.

    Args:
        model: a trained model.
        postprocess: whether to normalise the score and smooth the map; otherwise the patch scores are returned.
    """

    def __init__(self, model: Inspector, postprocess: bool) -> None:
        super().__init__()
        self.scorer, self.postprocess = model.scorer, postprocess
        self.backbone, self.head = model.scorer.features.aggregator, model.scorer.head
        self.threshold = model.thresholds.image if model.thresholds else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) → (B,), (B,) and (B, H, W); without postprocessing (B,) and (B, H', W')."""
        pooling, maps = self.scorer.features.fused_pooling, self.backbone(x)
        memory, grid = self.scorer.features.memory, self.scorer.features.grid
        if memory is not None:
            features = memory(pooling(maps) if pooling is not None else self._pooled(maps).flatten(0, 1))
            scores = memory.combine(self.head.logits(features), features)
            patch_scores = scores.reshape(-1, *grid)
        elif pooling is not None:
            patch_scores = self.head.of_parts(pooling.parts(maps))
        else:
            patch_scores = self.head(self._pooled(maps))[..., 0].unflatten(1, self.scorer.features.grid)
        inspected = self.scorer.features.inspected
        patch_scores = patch_scores if inspected is None else inspected.scores(patch_scores)
        score = patch_scores.flatten(1).amax(1)
        if not self.postprocess:
            return score, patch_scores
        anomaly_map = self.scorer.segmentor(patch_scores)
        return score, self._normalised(score), anomaly_map if inspected is None else inspected.maps(anomaly_map)

    def _normalised(self, score: Tensor) -> Tensor:
        """As `thresholds.normalise`; nan if the model has no threshold."""
        if self.threshold is None:
            return score * torch.nan
        inner = min(max(self.threshold, TINY), 1 - TINY)
        lower = (0.5 * score / inner).clamp(0, 0.5)
        upper = (0.5 + 0.5 * (score - inner) / (1 - inner)).clamp(0.5, 1)
        return torch.where(score <= self.threshold, lower, upper)

    def _pooled(self, maps: Sequence[Tensor]) -> Tensor:
        """The general pooling, (B, P, C). Adaptive average pooling is linear, so it is a product with a matrix."""
        grid, settings, layers = self.scorer.features.grid, self.scorer.features.settings, []
        size = settings.patchsize
        for x, shape in zip(maps, self.backbone.feature_shapes, strict=True):
            patches = F.unfold(x, size, padding=size // 2)  # (B, C·p², P_l)
            y = _pooling_matrix(shape[0] * size**2, settings.pretrain_embed_dimension) @ patches
            y = y.unflatten(2, shape[1:])
            if tuple(shape[1:]) != tuple(grid):
                y = F.interpolate(y, size=tuple(grid), mode="bilinear", align_corners=False)
            layers.append(y.flatten(2))
        joined = torch.cat(layers, dim=1)  # (B, layers·pretrain, P)
        total = len(layers) * settings.pretrain_embed_dimension
        return (_pooling_matrix(total, settings.target_embed_dimension) @ joined).transpose(1, 2)


def _pooling_matrix(length: int, out: int) -> Tensor:
    """The matrix (out, length) of torch's adaptive average pooling."""
    return F.adaptive_avg_pool1d(torch.eye(length).unsqueeze(0), out)[0].T.contiguous()
