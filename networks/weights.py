"""Files of weights: which tensors are not finite, and why a file cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that contain NaN or infinity; only floating-point tensors are checked."""
    floats = {name: x for name, x in tensors.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    if not floats:
        return []
    # 8-bit types do not support `isfinite`; stacking makes the device synchronise once instead of once per tensor
    finite = torch.stack([(x if x.itemsize > 1 else x.float()).isfinite().all() for x in floats.values()])
    return [name for name, is_finite in zip(floats, finite.tolist(), strict=True) if not is_finite]


def unreadable(error: Exception) -> str:
    """Why torch could not read a file, without torch's advice to read it unsafely."""
    if "nsupported" in str(error):  # "Unsupported global", "Unsupported operand": an object other than tensors
        return "it holds more than tensors and plain values"
    return f"it is damaged, or not a file of this kind ({type(error).__name__})"
