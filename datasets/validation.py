"""Good images kept out of the training, half of them with synthetic defects too: to choose an epoch and thresholds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.base import Sample
from datasets.training_set import TrainDataset
from synthesis import las
from utils import InputError

LEAST = 8  # images held out
DRAWS = 4  # defects of each image that gets any: one alone says too little of a few images


def hold_out(samples: Sequence[Sample], share: float, seed: int, name: str) -> list[int]:
    """Indices of the images held out: a share of them, at least `LEAST`; which ones, seed and file names say.

    Args:
        samples: the good images.
        share: in [0, 1); 0 holds none out.
        seed: another one holds out others. It is the run's own, not that of the split into training and test: what is
            held out here is a random part of the training, and belongs into the deviation over seeds, while all of
            them are tested on the same images.
        name: of the class, for messages.

    Raises:
        InputError: as many images would not be left for the training.
    """
    if share <= 0:
        return []
    count = max(LEAST, math.ceil(share * len(samples) - 1e-9))
    if len(samples) < 2 * LEAST:
        raise InputError(
            f"class {name}: there are {len(samples)} good images, to hold {LEAST} of them out (--select val, "
            f"--val_share) takes at least {2 * LEAST}; give more, or --select last without --val_share"
        )
    if len(samples) - count < LEAST:
        raise InputError(
            f"class {name}: --val_share {share:g} holds out {count} of {len(samples)} good images, but at least "
            f"{LEAST} must be left to train on; give a smaller share"
        )
    drawn = [hashlib.sha256(f"{seed}/{s.path.name}".encode("utf-8", "surrogateescape")).digest() for s in samples]
    order = sorted(range(len(samples)), key=lambda i: (drawn[i], i))
    return sorted(order[:count])


class GoodImages(Dataset):
    """The images of a training set as a test would show them, without any random augmentation."""

    def __init__(self, train: TrainDataset) -> None:
        self.train = train

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._item(index, index, self.train.plain_image(index), None)

    def _item(self, index: int, of: int, image: Tensor, mask: np.ndarray | None) -> dict[str, Any]:
        size = self.train.settings.size
        truth = np.zeros(size, np.int8) if mask is None else mask.astype(np.int8)
        return {
            "image": image,
            "mask_gt": torch.from_numpy(truth)[None],
            "is_anomaly": mask is not None,
            "image_path": str(self.train.samples[of].path),
            "index": index,
        }


class ValidationDataset(GoodImages):
    """Every held-out image as it is, then every second one `DRAWS` times with another local synthetic anomaly.

    Args:
        train: a training set of the held-out images; its seed draws the anomalies, which never change.
    """

    def __len__(self) -> int:
        return len(self.train) + len(self.train) // 2 * DRAWS

    def __getitem__(self, index: int) -> dict[str, Any]:
        good = len(self.train)
        if index < good:
            return super().__getitem__(index)
        of, draw = 2 * ((index - good) // DRAWS), (index - good) % DRAWS
        image = self.train.plain_image(of)
        rng = np.random.default_rng([self.train.seed, of, draw, 1])  # apart from those of any epoch
        texture, mask, _, beta = self.train.anomaly(rng, of)
        return self._item(index, of, las.blend(image, texture, torch.from_numpy(mask).float(), beta), mask)
