"""Good images held out of the training, and half of them with synthetic defects, to choose an epoch and thresholds."""

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

LEAST = 8  # images, held out as well as left
DRAWS = 4  # defects drawn on each image that gets any: with few images, one each would say too little


def hold_out(samples: Sequence[Sample], share: float, seed: int, name: str) -> list[int]:
    """Indices of the images that are held out: a share of all, at least `LEAST`, chosen by seed and file names.

    Args:
        samples: the good images.
        share: in [0, 1); 0 holds none out.
        seed: of the choice. This is the seed of the run, not that of the split into training and test set: what is
            held out here is a random part of the training, which contributes to the deviation over seeds, while all
            seeds are tested on the same images.
        name: of the class, for messages.

    Raises:
        InputError: too few images are left for the training.
    """
    if share <= 0:
        return []
    count = max(LEAST, math.ceil(share * len(samples) - 1e-9))
    if len(samples) < 2 * LEAST:
        raise InputError(
            f"class {name}: there are {len(samples)} good images; to hold {LEAST} of them out (--select val, "
            f"--val_share) takes at least {2 * LEAST}; give more, or --select last without --val_share"
        )
    if len(samples) - count < LEAST:
        raise InputError(
            f"class {name}: --val_share {share:g} holds out {count} of {len(samples)} good images, but at least "
            f"{LEAST} must be left to train on; give a smaller share"
        )
    digests = [hashlib.sha256(f"{seed}/{s.path.name}".encode("utf-8", "surrogateescape")).digest() for s in samples]
    order = sorted(range(len(samples)), key=lambda i: (digests[i], i))
    return sorted(order[:count])


class GoodImages(Dataset):
    """The images of a training set as in a test set, without random augmentation."""

    def __init__(self, train: TrainDataset) -> None:
        self.train = train

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._item(index, index, self.train.plain_image(index), None)

    def _item(self, index: int, source: int, image: Tensor, mask: np.ndarray | None) -> dict[str, Any]:
        size = self.train.settings.size
        truth = np.zeros(size, np.int8) if mask is None else mask.astype(np.int8)
        return {
            "image": image,
            "mask_gt": torch.from_numpy(truth)[None],
            "is_anomaly": mask is not None,
            "image_path": str(self.train.samples[source].path),
            "index": index,
        }


class ValidationDataset(GoodImages):
    """Every held-out image unchanged, then every second one `DRAWS` times, each with another synthetic local anomaly.

    Args:
        train: a training set of the held-out images, whose seed determines the anomalies, which never change.
    """

    def __len__(self) -> int:
        return len(self.train) + len(self.train) // 2 * DRAWS

    def __getitem__(self, index: int) -> dict[str, Any]:
        good = len(self.train)
        if index < good:
            return super().__getitem__(index)
        source, draw = 2 * ((index - good) // DRAWS), (index - good) % DRAWS
        image = self.train.plain_image(source)
        rng = np.random.default_rng([self.train.seed, source, draw, 1])  # different from those of any epoch
        texture, mask, _, beta = self.train.anomaly(rng, source)
        return self._item(index, source, las.blend(image, texture, torch.from_numpy(mask).float(), beta), mask)
