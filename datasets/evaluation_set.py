"""The test set: images to be scored, with their ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datasets.base import Sample
from datasets.cache import ImageCache
from datasets.masks import LOST, examine, read_mask_of
from datasets.settings import ImageSettings, normalise
from metrics import NO_PIXEL_LEFT


class TestDataset(Dataset):
    """Images to be scored, with their ground truth.

    The mask of a defective image is −1 everywhere if it has none, and −2 if resizing and crop leave no pixel of its
    defect.

    Args:
        samples: the images.
        settings: preprocessing.
        cache: keeps what was read, see `datasets.preloading`; by default nothing is kept.
    """

    __test__ = False  # pytest would take the class for a test by its name

    def __init__(self, samples: Sequence[Sample], settings: ImageSettings, cache: ImageCache | None = None) -> None:
        self.samples, self.settings, self.cache = list(samples), settings, cache or ImageCache(0)

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int) -> list[str]:
        """Read an image and its mask, and keep them if there is room; returns what is suspicious about the mask."""
        self._pixels(index)
        remarks: list[str] = []
        self._mask(index, remarks)
        return remarks

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        sample = self.samples[index]
        return self.cache.get(
            ("test", sample.key), lambda: np.asarray(self.settings.cropped(sample.read(self.settings.reading)))
        )

    def _image(self, index: int) -> Tensor:
        return normalise(self._pixels(index))

    def _mask(self, index: int, remarks: list[str] | None = None) -> NDArray[np.int8]:
        """The ground truth (H, W); what is suspicious about a mask that is read for it is added to `remarks`."""
        sample = self.samples[index]
        if sample.mask is None:
            return np.full(self.settings.size, -1 if sample.is_anomaly else 0, np.int8)
        mask = self.cache.get(("mask", sample.mask), lambda: self._read_mask(sample, remarks)).view(np.int8)
        if sample.is_anomaly and not mask.any():
            return np.full(self.settings.size, NO_PIXEL_LEFT, np.int8)
        return mask.copy()

    def _read_mask(self, sample: Sample, remarks: list[str] | None) -> NDArray[np.uint8]:
        """The mask (H, W) of a sample as the model sees its image; examined only if `remarks` are wanted."""
        if remarks is None:
            marked = read_mask_of(sample.mask, sample.path, reading=self.settings.reading)
            return self.settings.transform_mask(marked).view(np.uint8)
        marked, suspicious = examine(sample.mask, sample.path, self.settings.reading)
        remarks.extend(suspicious)
        shown = self.settings.transform_mask(marked).view(np.uint8)
        if marked.any() and not shown.any():
            remarks.append(LOST)
        return shown

    def truth(self, index: int) -> tuple[NDArray[np.int8], bool, str]:
        """The mask (H, W), whether the image shows a defect, and its path; the image is not read."""
        sample = self.samples[index]
        return self._mask(index), sample.is_anomaly, str(sample.path)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self._image(index),
            "mask_gt": torch.from_numpy(self._mask(index))[None],
            "is_anomaly": self.samples[index].is_anomaly,
            "image_path": str(self.samples[index].path),
            "index": index,
        }
