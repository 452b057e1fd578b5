"""The region of interest as a model sees it: which patches count, and how the map is made from them alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common import RescaleSegmentor
from datasets.roi import RegionOfInterest
from datasets.settings import ImageSettings
from synthesis.las import pool_mask
from utils import InputError

if TYPE_CHECKING:
    from inference.features import PatchFeatures

LEAST_PATCHES = 2


class Inspected:
    """What of an image is inspected.

    A patch counts if its cell of the grid has an inspected pixel. The map is a weighted mean of the patches that count:
    a patch outside has no influence on it, and beside the border it is no lower than elsewhere.

    Args:
        roi: in the picture's geometry.
        settings: how pictures are resized and cropped.
        segmentor: of the model.
        grid: (H', W') of the patches.

    Attributes:
        pixels: (H, W) bool, the inspected pixels of what the model sees.
        patches: (H', W') float32 in {0, 1}, the patches that count.
        locations: the indices of these patches, ascending.
        weights: (H, W) float32, what the smoothed scores are multiplied by; 0 outside.

    Raises:
        InputError: the crop leaves too little of the region.
    """

    def __init__(
        self, roi: RegionOfInterest, settings: ImageSettings, segmentor: RescaleSegmentor, grid: tuple[int, int]
    ) -> None:
        self.roi, device = roi, segmentor.device
        self.pixels = inspected_pixels(roi, settings)
        patches = torch.from_numpy(pool_mask(self.pixels, grid))
        self.locations = patches.flatten().nonzero()[:, 0].to(device)
        if len(self.locations) < LEAST_PATCHES:
            raise InputError(
                f"--roi: of the region of interest, the model sees {len(self.locations)} of {patches.numel()} patches, "
                f"but it needs {LEAST_PATCHES}; draw a larger region, or give --keep_all if the crop leaves it out"
            )
        self.patches = patches.to(device)
        share = segmentor(self.patches[None])[0]  # of each pixel's weights that belongs to patches that count
        inside = torch.from_numpy(self.pixels).to(device)
        self.weights = torch.where(inside, 1 / share.clamp_min(1e-12), 0.0)

    def scores(self, patch_scores: Tensor) -> Tensor:
        """Patch scores (B, H', W') with 0 for patches that do not count."""
        return patch_scores * self.patches

    def maps(self, smoothed: Tensor) -> Tensor:
        """Anomaly maps (B, H, W) from the smoothed result of `scores`."""
        return smoothed * self.weights

    def plain(self) -> dict[str, Any]:
        """The region as a checkpoint keeps it."""
        return {"size": list(self.roi.size), "mask": torch.from_numpy(np.packbits(self.roi.mask))}


def inspected_pixels(roi: RegionOfInterest, settings: ImageSettings) -> np.ndarray:
    """The inspected pixels of what the model sees, (H, W) bool."""
    return settings.transform_mask(roi.mask.astype(np.uint8)) > 0


def restore(
    roi: RegionOfInterest | None, config: Mapping[str, Any], segmentor: RescaleSegmentor, grid: tuple[int, int]
) -> Inspected | None:
    """The region of a checkpoint, for a model of the checkpoint's `config`; None without one."""
    return None if roi is None else Inspected(roi, ImageSettings.of_config(config), segmentor, grid)


def draw_locations(features: PatchFeatures, share: float, generator: torch.Generator) -> Tensor | None:
    """The indices of a share of the inspected patches, drawn at random; None for all patches of the grid."""
    inside = None if features.inspected is None else features.inspected.locations
    if share == 1:
        return inside
    count = features.shape[0] if inside is None else len(inside)
    chosen = torch.randperm(count, generator=generator, device=features.device)[: max(2, round(share * count))]
    return chosen if inside is None else inside[chosen]
