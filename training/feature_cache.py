"""How much memory the features of images that stay the same may take, so that the backbone sees each image once."""

from __future__ import annotations

import torch

from datasets.cache import GB
from datasets.memory import free_memory
from inference.settings import AUTO, OFF, gigabytes
from utils import LOGGER

SHARE_OF_FREE = 0.5  # of the device's free memory that a training step leaves, for `auto`
PASS_OUTPUTS = 5  # of its largest module's size, that a frozen backbone has at once
MARGIN = 1.2  # for what operators need while they run, and for the pieces that free memory lies in


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
    wanted = int(min(gigabytes(value), 1e9) * GB)
    if wanted > free:
        LOGGER.warning(
            "--feature_cache %s is more than the %.1f GB that are free: nothing is kept, and each epoch computes the "
            "embeddings again", value, free / GB,
        )  # fmt: skip
        return 0
    if wanted > free - needed:
        LOGGER.warning(
            "--feature_cache %s leaves less of the %.1f GB that are free than the %.1f GB that a training step needs",
            value, free / GB, needed / GB,
        )  # fmt: skip
    return wanted
