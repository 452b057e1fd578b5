"""Ground truth of a whole test set, in little memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class PackedMasks(Sequence):
    """A sequence of n ground truth masks (H, W), stored as bits.

    A mask is int8: 0 normal, 1 anomalous. It is −1 everywhere if the mask of an image is unknown, and `NO_PIXEL_LEFT`
    everywhere if it is known but no anomalous pixel is left after preprocessing. Outside `inspected`, (H, W), it is
    unknown.
    """

    def __init__(self, count: int, size: tuple[int, int], inspected: NDArray[np.bool_] | None = None) -> None:
        self._outside = None if inspected is None else ~inspected
        self._bits = np.zeros((count, math.ceil(size[0] * size[1] / 8)), np.uint8)
        self._fill = np.zeros(count, np.int8)  # the negative value of a whole mask, 0 for a mask stored as bits
        self._size = tuple(size)

    def __len__(self) -> int:
        return len(self._bits)

    def __setitem__(self, index: int, mask: NDArray) -> None:
        """Store an (H, W) mask; > 0 is anomalous, and a value < 0 counts for the whole mask."""
        self._fill[index] = min(0, int(np.min(mask)))
        self._bits[index] = np.packbits(mask > 0)

    def __getitem__(self, index: int) -> NDArray[np.int8]:
        if self._fill[index]:
            return np.full(self._size, self._fill[index], np.int8)
        flat = np.unpackbits(self._bits[index], count=self._size[0] * self._size[1])
        mask = flat.view(np.int8).reshape(self._size)
        if self._outside is not None:
            mask[self._outside] = -1
        return mask
