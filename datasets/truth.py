"""Ground truth of a whole test set, in little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class PackedMasks(Sequence):
    """Ground truth masks kept as bits, (n, H, W) when read.

    A read mask is int8: 0 normal, 1 anomalous, −1 everywhere for an image whose mask is not known, `NO_PIXEL_LEFT`
    everywhere where it is known, but no pixel of it is left.
    """

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self._bits = np.zeros((count, math.ceil(size[0] * size[1] / 8)), np.uint8)
        self._unknown = np.zeros(count, np.int8)  # what a mask below 0 is filled with
        self._size = tuple(size)

    def __len__(self) -> int:
        return len(self._bits)

    def __setitem__(self, index: int, mask: NDArray) -> None:
        """Store an (H, W) mask; > 0 is anomalous, any value < 0 makes the whole mask unknown."""
        self._unknown[index] = min(0, int(np.min(mask)))
        self._bits[index] = np.packbits(mask > 0)

    def __getitem__(self, index: int) -> NDArray[np.int8]:
        if self._unknown[index]:
            return np.full(self._size, self._unknown[index], np.int8)
        flat = np.unpackbits(self._bits[index], count=self._size[0] * self._size[1])
        return flat.view(np.int8).reshape(self._size)
