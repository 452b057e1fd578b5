"""From images to scores, for training, testing, `predict` and the export alike."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common import RescaleSegmentor
from inference.features import PatchFeatures
from inference.head import ScoringHead
from model import PatchMaker
from utils import WorkError


class Scorer:
    """Computes patch scores, image scores and anomaly maps.

    The head has copies of the weights, so a new Scorer is needed after a training step.

    Args:
        features: backbone and pooling.
        head: A and D, folded.
        segmentor: from patch scores to anomaly maps.
    """

    def __init__(self, features: PatchFeatures, head: ScoringHead, segmentor: RescaleSegmentor) -> None:
        self.features, self.head, self.segmentor = features, head, segmentor

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images and of their maps."""
        return self.segmentor.target_size

    @torch.no_grad()
    def score_features(self, features: Tensor) -> Tensor:
        """f(I) (B·P, C) → patch scores (B, H', W'), float32 in [0, 1]."""
        count = len(features) // self.features.shape[0]
        memory, features = self.features.memory, features.float()
        scores = self.head(features) if memory is None else memory.combine(self.head.logits(features), features)
        return PatchMaker.unpatch_scores(scores, count, self.features.grid)

    @torch.no_grad()
    def score_images(self, images: Tensor, own: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) → patch scores (B, H', W'), float32 in [0, 1]; `own` (B,) as for `PatchFeatures.embed`.

        If the pooling allows it, the features of the layers are never resized and concatenated.
        """
        pooling = self.features.fused_pooling
        if pooling is None or self.features.memory is not None:
            return self.score_features(self.features.embed(images, own)[0])
        parts = pooling.parts(self.features.maps(images))  # [(B, C/layers, H_l, W_l), …]
        return self.head.of_parts([part.float() for part in parts])

    def finish(self, patch_scores: Tensor) -> tuple[Tensor, Tensor]:
        """Patch scores (B, H', W') → image scores (B,) and anomaly maps (B, H, W), of the region of interest alone."""
        inspected = self.features.inspected
        if inspected is None:
            return PatchMaker.score(patch_scores), self.segmentor(patch_scores)
        patch_scores = inspected.scores(patch_scores)
        return PatchMaker.score(patch_scores), inspected.maps(self.segmentor(patch_scores))

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, 3, H, W) → image scores (B,) and anomaly maps (B, H, W), both float32 in [0, 1].

        Raises:
            WorkError: a score is not finite.
        """
        scores, maps = self.finish(self.score_images(images))
        return finite_scores(scores), maps.cpu().numpy()


def finite_scores(scores: Tensor) -> NDArray[np.float32]:
    """Scores (B,) as an array.

    Raises:
        WorkError: a score is not finite, so that no metric, threshold or decision could be based on it.
    """
    values = scores.cpu().numpy()
    if not np.isfinite(values).all():
        raise WorkError(
            "the model gives a score that is not finite (NaN or infinity): its training diverged (try a smaller --lr "
            "or --noise), or its weights are damaged"
        )
    return values
