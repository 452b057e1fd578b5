"""Pillow's antialiased bilinear resize of 8-bit images as an ONNX graph, bit for bit.

Loaded by `pth2onnx.py`; the folder is not a package.

The operator Resize cannot be used: OpenVINO and OpenCV silently ignore its `antialias`, and it does not round as Pillow
does. A resize along one axis is a product with a matrix whose columns are triangles. Over a common denominator, the
values of a triangle are integers: max(0, 2·max(n, m) − |(2x + 1)·m − (2y + 1)·n|) for input pixel x of n and output
pixel y of m. Pillow divides them by their sum, rounds the quotient to 22 bits, and rounds the pixels to 8 bits after
each of the two passes.

Here, the 22 bits of a weight are split into two numbers of 11 bits, with a product for each. All sums are then integers
below 2²⁴, which float32 adds without error in any order. The tensor cores of a GPU keep 11 bits of a float32, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

PART = 2048.0  # 11 bits, half of the precision of Pillow's weights
BLOCK = 32  # output pixels per product; a product with the whole matrix would mostly multiply zeros
COLUMNS_LAST = 100  # Pillow resizes the rows first if an image is more than this many times as high as wide
ROWS, COLUMNS = 2, 3  # axes of (B, 3, h, w)
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass
class Nodes:
    """The nodes and constants of a graph under construction. The methods add a node and return its output's name.

    Attributes:
        prefix: of every name, so that graphs can be merged.
        nodes: so far.
        constants: so far.
    """

    prefix: str
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)

    def constant(self, values: Any, kind: type = np.float32) -> str:
        """Add a constant; returns its name."""
        name = f"{self.prefix}_constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        name = f"{self.prefix}_{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def slice(self, x: str, first: str, last: str, axis: int) -> str:
        """The range [first, last) of an axis; both name tensors of shape (1,)."""
        return self.add("Slice", x, first, last, self.constant([axis], np.int64))

    def integer(self, x: str) -> str:
        """Cast to int64, the type of indices."""
        return self.add("Cast", x, to=TensorProto.INT64)

    def number(self, x: str) -> str:
        """Cast to float32."""
        return self.add("Cast", x, to=TensorProto.FLOAT)


def split_weights(length: int, resized: int, outputs: NDArray[np.int64]) -> Pair:
    """The weights of Pillow's resize from `length` to `resized` pixels, in units of 2⁻²², as first·2048 + second.

    Args:
        length: pixels before the resize.
        resized: pixels after it.
        outputs: indices of the output pixels, (count,).

    Returns:
        Two arrays (length, count) of integers.
    """
    distance = np.abs((2 * np.arange(length)[:, None] + 1) * resized - (2 * outputs + 1) * length)
    weights = np.maximum(0, 2 * max(length, resized) - distance)
    total = weights.sum(0)
    # rounding as Pillow does: the smallest integer that is at least the weight minus a half
    rounded = (weights * (1 << 23) + total) // (2 * total)
    return (rounded // int(PART)).astype(np.float32), (rounded % int(PART)).astype(np.float32)


@dataclass(frozen=True)
class _Window:
    """The input of a block of the output: the range [first, last), names of (1,), and the names of its two weights."""

    first: str
    last: str
    weights: tuple[str, str]


def resize_fixed(g: Nodes, planes: str, size: tuple[int, int], resized: tuple[int, int], crop: tuple[int, int]) -> str:
    """Resize images of one known size and crop their centre, with constant matrices.

    Args:
        g: gets the nodes.
        planes: name of the 8-bit pixels, (B, 3, *size).
        size: (H, W) of the images.
        resized: (H, W) after the resize.
        crop: (H, W) after the crop.

    Returns:
        The name of the result, (B, 3, *crop) float32 with integer values.
    """
    x, axes = planes, [COLUMNS, ROWS]
    if size[0] > COLUMNS_LAST * size[1] and resized[0] < size[0]:
        axes.reverse()
    for axis in axes:
        n, m, count = (sides[axis - ROWS] for sides in (size, resized, crop))
        start = round((m - count) / 2)  # as torchvision's centre crop
        if n == m:
            ends = (g.constant([k], np.int64) for k in (start, start + count))
            x = x if n == count else g.slice(x, *ends, axis)
            continue
        windows = []
        for outputs in np.array_split(np.arange(start, start + count), -(-count // BLOCK)):
            pair = split_weights(n, m, outputs)
            used = np.flatnonzero(sum(pair).any(1))
            first, last = used[0], used[-1] + 1
            kept = (part[first:last] for part in pair)
            names = tuple(g.constant(part if axis == COLUMNS else part.T) for part in kept)
            windows.append(_Window(g.constant([first], np.int64), g.constant([last], np.int64), names))
        x = _products(g, x, windows, axis)
    return x if x != planes else g.number(x)


def resize_any(g: Nodes, planes: str, sides: tuple[str, str], resized: tuple[str, str], crop: tuple[int, int]) -> str:
    """Resize images of any size, known only when the graph runs, and crop their centre.

    The result equals Pillow's, except that values differ by up to 1 if an image is more than a hundred times as high as
    wide.

    Args:
        g: gets the nodes.
        planes: name of the 8-bit pixels, (B, 3, h, w).
        sides: names of h and w, int64 (1,).
        resized: names of h and w after the resize, int64 (1,).
        crop: (H, W) after the crop.

    Returns:
        The name of the result, (B, 3, *crop) float32 with integer values.
    """
    x = planes
    for axis in (COLUMNS, ROWS):
        i = axis - ROWS
        windows = _windows(g, g.number(sides[i]), g.number(resized[i]), crop[i], axis)
        x = _products(g, x, windows, axis)
        if crop[i] > BLOCK and crop[i] % -(-crop[i] // BLOCK):  # the last block extends beyond the crop
            x = g.slice(x, g.constant([0], np.int64), g.constant([crop[i]], np.int64), axis)
    return x


def _windows(g: Nodes, n: str, m: str, count: int, axis: int) -> list[_Window]:
    """The windows for the `count` middle pixels of the m that n pixels are resized to; n and m name float32 (1,)."""
    blocks = -(-count // BLOCK)
    block = -(-count // blocks)
    one, two, zero, half = (g.constant([k]) for k in (1, 2, 0, 0.5))
    left = g.add("Sub", m, g.constant([count]))
    # half of what is cropped, rounded to even as in torchvision's centre crop
    start = g.add("Add", *(_floor_of(g, g.add("Add", left, k), 0.25) for k in (one, two)))
    scale = g.add("Div", n, m)
    reach = g.add("Max", scale, one)
    # all windows have the same length, that of the input of a block with a spare pixel at each end
    span = g.add("Add", g.add("Mul", scale, g.constant([block])), g.add("Mul", reach, two))
    length = g.add("Min", n, g.add("Floor", g.add("Add", span, g.constant([4]))))
    begins = g.add("Add", start, g.constant(np.arange(blocks) * block))
    first = g.add("Sub", g.add("Mul", g.add("Add", begins, half), scale), g.add("Add", reach, one))
    first = g.add("Max", g.add("Min", g.add("Floor", first), g.add("Sub", n, length)), zero)  # (blocks,)
    last = g.add("Add", first, length)
    weights = _weights(g, (n, m), (first, length, start), (blocks, block), axis)
    firsts, lasts = g.integer(first), g.integer(last)
    windows = []
    for i in range(blocks):
        ends = [g.constant([k], np.int64) for k in (i, i + 1)]
        index = g.constant(i, np.int64)
        parts = tuple(g.add("Gather", part, index, axis=0) for part in weights)
        windows.append(_Window(g.slice(firsts, *ends, 0), g.slice(lasts, *ends, 0), parts))
    return windows


def _weights(
    g: Nodes, sides: tuple[str, str], window: tuple[str, str, str], shape: tuple[int, int], axis: int
) -> tuple[str, str]:
    """`split_weights` for each block, in the graph: (blocks, length, block), or (blocks, block, length) for rows."""
    (n, m), (first, length, start), (blocks, block) = sides, window, shape
    one, two, part = g.constant([1]), g.constant([2]), g.constant([PART])
    inner, outer = ([-1, 1], [1, block]) if axis == COLUMNS else ([1, -1], [block, 1])
    scalar = g.add("Squeeze", length, g.constant([0], np.int64))
    steps = g.add("Range", g.constant(0), scalar, g.constant(1))
    steps = g.add("Reshape", steps, g.constant([1, *inner], np.int64))
    x = g.add("Add", g.add("Reshape", first, g.constant([blocks, 1, 1], np.int64)), steps)
    y = g.add("Add", g.constant(np.arange(blocks * block).reshape(blocks, *outer)), start)
    x, y = (g.add("Add", g.add("Mul", k, two), one) for k in (x, y))
    distance = g.add("Abs", g.add("Sub", g.add("Mul", x, m), g.add("Mul", y, n)))
    values = g.add("Relu", g.add("Sub", g.add("Mul", g.add("Max", n, m), two), distance))
    total = g.add("ReduceSum", values, g.constant([axis - ROWS or 2], np.int64), keepdims=1)
    total = g.add("Max", total, one)  # it is 0 where the last block extends beyond the image
    # a long division: the exact remainder of the first part gives the second part
    values = g.add("Mul", values, part)
    high = g.add("Floor", g.add("Div", values, total))
    rest = g.add("Mul", g.add("Sub", values, g.add("Mul", high, total)), part)
    low = g.add("Floor", g.add("Add", g.add("Div", rest, total), g.constant([0.5])))
    return high, low


def _floor_of(g: Nodes, x: str, factor: float) -> str:
    return g.add("Floor", g.add("Mul", x, g.constant([factor])))


def _products(g: Nodes, x: str, windows: Sequence[_Window], axis: int) -> str:
    """One pass of the resize: the products of all blocks, rounded to 8 bits and concatenated."""
    sums: tuple[list[str], list[str]] = ([], [])
    for window in windows:
        part = g.number(g.slice(x, window.first, window.last, axis))
        for weights, products in zip(window.weights, sums, strict=True):
            products.append(g.add("MatMul", *((part, weights) if axis == COLUMNS else (weights, part))))
    high, low = (parts[0] if len(parts) == 1 else g.add("Concat", *parts, axis=axis) for parts in sums)
    whole = g.add("Add", g.add("Add", high, _floor_of(g, low, 1 / PART)), g.constant([PART / 2]))
    return _floor_of(g, whole, 1 / PART)
