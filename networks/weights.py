"""Weights files: which tensors are not finite, and why a file cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that hold NaN or infinity; values other than floating-point tensors are passed over."""
    floats = {name: x for name, x in tensors.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    if not floats:
        return []
    # types of 8 bits do not know `isfinite`; one wait for the device, not one for each tensor
    finite = torch.stack([(x if x.itemsize > 1 else x.float()).isfinite().all() for x in floats.values()])
    return [name for name, fine in zip(floats, finite.tolist(), strict=True) if not fine]


def unreadable(error: Exception) -> str:
    """Why torch could not read a file, without its advice to read it unsafely."""
    if "nsupported" in str(error):  # "Unsupported global", "Unsupported operand": an object other than tensors
        return "it holds more than tensors and plain values"
    return f"damaged, or of another kind ({type(error).__name__})"
