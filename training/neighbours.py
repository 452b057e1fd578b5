"""What nearest neighbours on the same frozen features say of a test set, without any training: the honest baseline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common import RescaleSegmentor
from inference.features import Batch, PatchFeatures
from inference.memory import PatchMemory
from inference.scorer import Scorer
from model import PatchMaker
from training.evaluation import NEIGHBOURS, OF_NEIGHBOURS, evaluate
from training.remembering import draw_patches
from training.testing import score_set

if TYPE_CHECKING:
    from glass import GLASS

KEPT = 8000  # patches


class _NeighbourScorer(Scorer):
    """Scores a patch by its distance to the nearest of some patches of good images; scores are not limited to 1."""

    def __init__(self, features: PatchFeatures, segmentor: RescaleSegmentor, patches: PatchMemory) -> None:
        self.features, self.segmentor, self.patches = features, segmentor, patches

    @torch.no_grad()
    def score_images(self, images: Tensor, own: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) → distances (B, H', W')."""
        _, distances = self.patches.nearest(self.features.embed_alone(images).float())
        return PatchMaker.unpatch_scores(distances, len(images), self.features.grid)


def neighbour_figures(model: GLASS, train_loader: Iterable[Batch], test_loader: Iterable[Batch]) -> dict[str, float]:
    """Metrics of nearest neighbours: the distance to the nearest of 8,000 patches of good images.

    Args:
        model: computes the features.
        train_loader: batches with `image` and `index` of all training images.
        test_loader: as for `testing.score_set`.

    Returns:
        `nn_image_auroc`, `nn_pixel_auroc`, `nn_pixel_ap` and `nn_pixel_pro`, in [0, 1]; nan as for `evaluate`.
    """
    patches = PatchMemory().to(model.device)
    with model.features.in_float32():
        drawn = draw_patches(model, train_loader, KEPT)
        patches.keep(*drawn, typical=len(drawn[0]))
        scorer = _NeighbourScorer(model.features, model.segmentor, patches)
        figures = evaluate(score_set(scorer, test_loader).on_host())
    return {name: figures[name.removeprefix(NEIGHBOURS)] for name in OF_NEIGHBOURS}
