"""The memory for the features of images that do not change, so that the backbone sees each image only once."""

from __future__ import annotations

import torch

from datasets.cache import GB
from datasets.memory import free_memory
from inference.settings import AUTO, OFF, gigabytes
from utils import LOGGER

SHARE_OF_FREE = 0.5  # of the free device memory that a training step leaves, for `auto`
PASS_OUTPUTS = 5  # outputs of the size of the largest one that a frozen backbone has in memory at once
MARGIN = 1.2  # for temporary memory of operators and for fragmentation


def free_on(device: torch.device) -> int:
    """The free memory of a device in bytes, including what torch has reserved on a GPU but does not use."""
    if device.type != "cuda":
        return free_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def step_bytes(
    rows: int, width: int, hidden: int, *, svd: int, dsc_layers: int = 2, pre_proj: int = 1, largest_output: int = 0
) -> int:
    """An estimate of the peak memory of a training step with a frozen backbone in bytes, including its inputs.

    Args:
        rows: N = B·P, number of features.
        width: C, length of the features.
        hidden: `dsc_hidden`.
        svd: 0 manifold, 1 hypersphere, which keeps its projections for the backward pass.
        dsc_layers, pre_proj: as for `GLASS.load`.
        largest_output: size of the largest output of a module of the backbone for the whole batch, in bytes.
    """
    hidden = hidden if dsc_layers > 1 else 1  # width of the output of the first layer
    # number of arrays of shape (N, C) and (N, hidden) at the peak: counted, and checked by the tests
    wide_arrays, hidden_arrays = (7, 22) if svd else (5, 12)
    if 2 * width < hidden:  # the path stores increments of the features themselves
        wide_arrays, hidden_arrays = (12, 11) if svd else (5, 10)
    hidden_arrays += 7 * max(0, dsc_layers - 2)
    weights = 8 * width * hidden + 4 * pre_proj * width**2 + 10 * max(0, dsc_layers - 2) * hidden**2
    values = rows * (wide_arrays * width + hidden_arrays * hidden) + weights
    return int(MARGIN * (4 * values + PASS_OUTPUTS * largest_output))


def feature_budget(value: str, device: torch.device, needed: int = 0) -> int:
    """The memory for stored features in bytes.

    Args:
        value: `auto` for half of the free memory that a training step leaves; a number of gigabytes, which gives 0 if
            less is free; `off` for 0.
        device: of the stored features.
        needed: memory of a training step in bytes.
    """
    if value == OFF:
        return 0
    free = free_on(device)
    if value == AUTO:
        return int(max(0, free - needed) * SHARE_OF_FREE)
    wanted = int(min(gigabytes(value), 1e9) * GB)
    if wanted > free:
        LOGGER.warning(
            "--feature_cache %s is more than the %.1f GB that are free: no embeddings are kept, and each epoch "
            "computes them again", value, free / GB,
        )  # fmt: skip
        return 0
    if wanted > free - needed:
        LOGGER.warning(
            "--feature_cache %s leaves less of the %.1f GB that are free than the %.1f GB that a training step needs",
            value, free / GB, needed / GB,
        )  # fmt: skip
    return wanted
