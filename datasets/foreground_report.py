"""What `python main.py foreground` writes: the masks of a data set, contact sheets, and how good the masks are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from datasets import DATASETS
from datasets.base import Sample
from datasets.contact_sheet import COLUMNS, ROWS, draw_sheet, draw_tile
from datasets.depth import read_as_found
from datasets.files import ReadOptions, read_rgb
from datasets.foreground import Foreground
from datasets.foreground_masks import SHEET, TEST_SHEET, Record, choose_evenly, fit_samples, make_masks, write_png
from datasets.limits import AUTO, MAX_PIXELS
from datasets.masks import read_mask, read_mask_of
from utils import InputError, WorkError, printable


def write_masks(
    name: str,
    data_path: str,
    out: Path,
    classes: Sequence[str] = (),
    test: bool = False,
    bits: int | str = AUTO,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[str]:
    """Write the foreground masks of the training images and a contact sheet, into one folder for each class.

    Args:
        name: of the layout, a key of `DATASETS`.
        data_path: its folder.
        out: gets the folders.
        classes: names of the classes; () for all.
        test: whether to measure too how much of the defects in the test images lies inside masks made for them.
        bits: used in 16-bit files, or `auto`.
        max_pixels: an image with more is refused.

    Yields:
        A line for each class that is done, with `test` two.

    Raises:
        InputError: there is no such layout, folder or class.
        WorkError: an image cannot be read, or a file cannot be written.
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; possible: {', '.join(DATASETS)}")
    layout = DATASETS[name](data_path)
    for class_name in layout.choose(classes):
        # also those held out for the test: which ones a training holds out depends on its --split_seed
        samples, folder = [*layout.train(class_name), *layout.held_out(class_name)], out / class_name
        reading = read_as_found(class_name, bits, samples, ReadOptions(max_pixels=max_pixels))
        paths = make_masks(samples, folder, reading=reading)
        _write_sheet(samples, paths, folder / SHEET, f"{class_name}: {Record(folder).reason}", reading)
        yield printable(f"{class_name}: {len(paths)} masks and {SHEET} in {folder}")
        if test:
            measured = _measure(fit_samples(samples, reading), layout.test(class_name), folder / TEST_SHEET, reading)
            yield printable(f"{class_name}: {measured}")


def _write_sheet(
    samples: Sequence[Sample], masks: Sequence[Path], path: Path, title: str, reading: ReadOptions
) -> None:
    """Write a contact sheet of evenly chosen images with their masks."""
    tiles = []
    for i in choose_evenly(len(samples), COLUMNS * ROWS):
        image = read_rgb(samples[i].path, reading)
        tiles.append(draw_tile(image, read_mask(masks[i], reading) > 0, samples[i].path.stem))
    write_png(path, draw_sheet(tiles, title))


def _measure(foreground: Foreground, samples: Sequence[Sample], sheet: Path, reading: ReadOptions) -> str:
    """How well masks made for the test images contain their defects, as a line of text; writes a contact sheet too."""
    defective = [sample for sample in samples if sample.mask is not None]
    if not defective:
        return "no test image has a mask to measure by"
    shown = set(choose_evenly(len(defective), COLUMNS * ROWS))
    inside, defects, left_out, tiles = [], [], [], []
    for i, sample in enumerate(defective):
        image = read_rgb(sample.path, reading)
        truth = read_mask_of(sample.mask, sample.path, reading=reading) > 0
        mask = foreground.mask(image)
        if truth.shape != mask.shape:
            raise WorkError(f"{sample.mask}: a mask of another size than its image {sample.path}")
        inside.append(np.count_nonzero(truth & mask))
        defects.append(np.count_nonzero(truth))
        left_out.append(1 - mask.mean())
        if i in shown:
            tiles.append(draw_tile(image, mask, f"{sample.kind} {sample.path.stem}", truth))
    write_png(sheet, draw_sheet(tiles, foreground.reason))
    shares = np.divide(inside, np.maximum(defects, 1))
    worst = int(np.where(np.array(defects) > 0, shares, 1).argmin())
    return (
        f"{sum(inside) / max(sum(defects), 1):.2%} of the defect pixels of {len(defective)} test images lie inside "
        f"the mask (worst {shares[worst]:.2%}: {defective[worst].path}), {np.mean(left_out):.1%} of an image is left "
        f"out (least {min(left_out):.1%}); {sheet.name} in {sheet.parent}"
    )
