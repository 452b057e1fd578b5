"""Embeddings of images that do not change from epoch to epoch, kept so that the backbone sees each of them once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.cache import GB, free_memory
from errors import InputError
from utils import LOGGER

SHARE_OF_FREE = 0.5  # of the device's free memory, for `auto`
AUTO, OFF = "auto", "off"


class FeatureCache:
    """f(I) by the number of the image, in one block of memory made at the start.

    The first images are kept, as many as there is room for, so that which ones are does not depend on their order.

    Args:
        count: images there are.
        shape: (P, C) of an image's features.
        dtype: as which they are kept.
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
        """Whether every image's features are there."""
        return self.capacity == self.count and all(self._known)

    def knows(self, index: int) -> bool:
        """Whether an image's features are there."""
        return index < self.capacity and self._known[index]

    def put(self, indices: Sequence[int], features: Tensor) -> None:
        """Keep the features (n·P, C) of n images, where there is room for them."""
        rows = features.detach().unflatten(0, (len(indices), -1))
        for index, own in zip(indices, rows, strict=True):
            if index < self.capacity:
                self._features[index] = own
                self._known[index] = True

    def take(self, indices: Sequence[int]) -> Tensor:
        """The features of images that are all known, (n·P, C)."""
        if len(indices) and list(indices) == list(range(indices[0], indices[0] + len(indices))):
            return self._features[indices[0] : indices[0] + len(indices)].flatten(0, 1)  # no copy
        chosen = torch.tensor(indices)
        if self._features.is_cuda:  # from memory that is not pinned the copy would be waited for
            chosen = chosen.pin_memory().to(self._features.device, non_blocking=True)
        return self._features.index_select(0, chosen).flatten(0, 1)


def check_choice(value: str) -> None:
    """Refuse a `--feature_cache` that is none.

    Raises:
        InputError: it is neither auto nor off nor a number of gigabytes.
    """
    if value not in (AUTO, OFF) and not _gigabytes(value) >= 0:
        raise InputError(f"--feature_cache {value}: possible are auto, off, or gigabytes, 0 or more")


def _gigabytes(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return -1.0


def free_on(device: torch.device) -> int:
    """Free bytes of a device's memory; what torch holds of a GPU's and does not use is free."""
    if device.type != "cuda":
        return free_memory()
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def feature_budget(value: str, device: torch.device) -> int:
    """Bytes that may be kept: as given, by `auto` half of the device's free memory; 0 where it has not that much."""
    if value == OFF:
        return 0
    free = free_on(device)
    if value == AUTO:
        return int(free * SHARE_OF_FREE)
    wanted = int(min(_gigabytes(value), 1e9) * GB)
    if wanted > free:
        LOGGER.warning(
            "--feature_cache %s is more than the %.1f GB that are free: nothing is kept, each epoch computes the "
            "embeddings anew", value, free / GB,
        )  # fmt: skip
        return 0
    return wanted
