"""Embeddings of images that do not change from epoch to epoch, kept so that the backbone sees each of them once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.cache import GB
from datasets.memory import free_memory
from utils import LOGGER, InputError

SHARE_OF_FREE = 0.5  # of the device's free memory that a training step leaves, for `auto`
PASS_OUTPUTS = 5  # of its largest module's size, that a frozen backbone has at once
MARGIN = 1.2  # for what operators need while they run, and for the pieces that free memory lies in
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


def step_bytes(
    rows: int, width: int, hidden: int, *, svd: int, dsc_layers: int = 2, pre_proj: int = 1, largest_output: int = 0
) -> int:
    """About how many bytes a training step with a frozen backbone has at once, what it is given included.

    Args:
        rows: N = B·P, of the features.
        width: C, of the features.
        hidden: `dsc_hidden`.
        svd: 0 manifold, 1 hypersphere, whose projections are kept for the backward pass.
        dsc_layers, pre_proj: as `GLASS.load`.
        largest_output: bytes of the largest output of a module of the backbone, for the whole batch.
    """
    hidden = hidden if dsc_layers > 1 else 1  # of the first layer
    # how many arrays of N·C and N·hidden there are: counted, see the tests
    of_width, of_hidden = (7, 22) if svd else (5, 12)
    if 2 * width < hidden:  # the path keeps the features' own increments
        of_width, of_hidden = (12, 11) if svd else (5, 10)
    of_hidden += 7 * max(0, dsc_layers - 2)
    weights = 8 * width * hidden + 4 * pre_proj * width**2 + 10 * max(0, dsc_layers - 2) * hidden**2
    values = rows * (of_width * width + of_hidden * hidden) + weights
    return int(MARGIN * (4 * values + PASS_OUTPUTS * largest_output))


def feature_budget(value: str, device: torch.device, needed: int = 0) -> int:
    """Bytes that may be kept.

    Args:
        value: `auto` is half of what is left of the device's free memory; gigabytes are as given, or 0 where the device
            has not that much; `off` is 0.
        device: where they are kept.
        needed: bytes of a training step.
    """
    if value == OFF:
        return 0
    free = free_on(device)
    if value == AUTO:
        return int(max(0, free - needed) * SHARE_OF_FREE)
    wanted = int(min(_gigabytes(value), 1e9) * GB)
    if wanted > free:
        LOGGER.warning(
            "--feature_cache %s is more than the %.1f GB that are free: nothing is kept, each epoch computes the "
            "embeddings anew", value, free / GB,
        )  # fmt: skip
        return 0
    if wanted > free - needed:
        LOGGER.warning(
            "--feature_cache %s leaves less of the %.1f GB that are free than the %.1f GB that a training step needs",
            value, free / GB, needed / GB,
        )  # fmt: skip
    return wanted
