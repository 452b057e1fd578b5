"""Sheets that show, before training, which anomalies LAS will synthesise: `python main.py preview`."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datasets import DATASETS, ImageSettings, Layout, Sample, TrainDataset
from datasets.check import Problem, check_defects, drop_bad, look_at_pictures, quick_look
from datasets.defects import Defects, list_defects, of_class, refuse_test_images
from datasets.depth import Depth, find_depth, log_depth
from datasets.files import ReadOptions
from datasets.foreground_check import check_foreground, leave_out_small
from datasets.foreground_masks import make_masks
from datasets.geometry import Tiling
from datasets.limits import AUTO
from datasets.roi import read_roi, refuse_other_proportions
from datasets.textures import FileTextures, Textures, open_textures
from datasets.tiles import refuse_small, tiles_of
from inference.inspected import inspected_pixels
from synthesis import las
from training import distribution
from utils import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    InputError,
    WorkError,
    evenly_chosen,
    printable,
    row_name,
    write_bytes,
)

COLUMNS = ("image", "foreground", "mask", "texture or defect", "augmented")
GAP, LABEL, LONGEST_SIDE = 6, 18, 256  # pixels of a sheet
BACKGROUND = (225, 225, 225)  # of the sheet; white masks stand out from it
STRIDE = 8  # of the usual feature grid, on which a mask must cover something, or it is drawn again


def preview_class(layout: Layout, name: str, options: dict[str, Any], samples: int, seed: int) -> Image.Image:
    """The sheet of one class, with a row for each sample: image, foreground, mask, texture, augmented image.

    Args:
        layout: of the data set.
        name: of the class.
        options: of the command `dataset`, by name.
        samples: number of rows, evenly spread over the training images.
        seed: of all draws; the sheet shows the first epoch of a training with this seed.

    Raises:
        InputError, WorkError: as in a run.
    """
    settings = ImageSettings.of(options).for_class(layout, name)
    train, sizes, depth = _read_training_set(layout, name, options, settings)
    settings = replace(settings, bits=depth.bits)
    textures = _textures(options, seed)
    roi = _inspected_pixels(options, settings, sizes)
    tiling = None if options["tile"] is None else Tiling.of(settings, options["tile"], options["overlap"])
    defects = _defects(layout, name, settings, options, sizes, tiling)
    grid = tuple(max(1, side // STRIDE) for side in settings.size)
    flags = distribution.read_flags(options["name"], row_name(options["name"], name))
    with tempfile.TemporaryDirectory() as folder:
        masks = None
        if distribution.wants_foreground(options["fg"], flags):
            masks = _foreground(layout, name, train, sizes, settings, tiling is not None, Path(folder))
        if tiling is not None:
            refuse_small(train, tiling, sizes)
            tiles = tiles_of(train, tiling, sizes)
            by_path = None if masks is None else dict(zip((s.path for s in train), masks, strict=True))
            train, masks = tiles, by_path and [by_path[s.path] for s in tiles]
        data = TrainDataset(train, settings, textures, grid, masks, seed, defects=defects, roi=roi)
        rows = [_row(data, index) for index in evenly_chosen(len(train), samples)]
    return _draw_sheet(row_name(options["name"], name), rows)


def _inspected_pixels(
    options: dict[str, Any], settings: ImageSettings, sizes: dict[Path, tuple[int, int]]
) -> NDArray[np.bool_] | None:
    """The region of interest of what the model sees, (H, W); None without one."""
    if not options["roi"]:
        return None
    roi = read_roi(Path(options["roi"]), options["max_pixels"])
    refuse_other_proportions(roi.size, sizes)
    return inspected_pixels(roi, settings)


def _read_training_set(
    layout: Layout, name: str, options: dict[str, Any], settings: ImageSettings
) -> tuple[list[Sample], dict[Path, tuple[int, int]], Depth]:
    """The training images, their (width, height) and bit depth; with --skip_bad, only those that can be read."""
    train = layout.train(name)
    problems, headers = quick_look(name, train, [], settings.reading)
    _refuse(problems, options["skip_bad"], name)
    train = drop_bad(train, problems)
    depth = find_depth(options["bits"], [sample.path for sample in train], [], headers, settings.reading)
    log_depth(name, depth)
    return train, {path: header.size for path, header in headers.items()}, depth


def _refuse(problems: Sequence[Problem], skip_bad: bool, what: str) -> None:
    """Raise the first problem that stops the preview; with `skip_bad`, unreadable files do not.

    Raises:
        WorkError: there is one; the message begins with `what`.
    """
    for problem in problems:
        if not (skip_bad and problem.kind == "unreadable"):
            raise WorkError(f"{what}: {problem}")


def _textures(options: dict[str, Any], seed: int) -> Textures:
    textures = open_textures(options["aug_path"], seed, ReadOptions(max_pixels=options["max_pixels"]))
    if not isinstance(textures, FileTextures):
        return textures
    problems, headers = look_at_pictures(textures.paths, None, textures.reading)
    _refuse(problems, options["skip_bad"], "textures")
    unreadable = {problem.path for problem in problems}
    depth = find_depth(AUTO, textures.paths, [], headers, textures.reading)
    paths = [path for path in textures.paths if path not in unreadable]
    return FileTextures(paths, replace(textures.reading, bits=depth.bits))


def _defects(
    layout: Layout,
    name: str,
    settings: ImageSettings,
    options: dict[str, Any],
    sizes: dict[Path, tuple[int, int]],
    tiling: Tiling | None,
) -> Defects | None:
    """The known defects of a class, as in a run."""
    if not options["defects"]:
        return None
    pairs = of_class(list_defects(options["defects"]), options["defects"], name, layout.classes())
    problems = check_defects(pairs, settings.reading)
    _refuse(problems, options["skip_bad"], "defects")
    unreadable = {problem.path for problem in problems}
    pairs = [pair for pair in pairs if unreadable.isdisjoint(pair)]
    refuse_test_images(pairs, layout.test(name), settings.reading)
    size = tuple(np.median(list(sizes.values()), axis=0).round().astype(int).tolist())
    size = size if tiling is None else tiling.tile[::-1]
    return Defects(pairs, settings, options["defects_share"], size, tiling is not None) if pairs else None


def _foreground(
    layout: Layout,
    name: str,
    train: list[Sample],
    sizes: dict[Path, tuple[int, int]],
    settings: ImageSettings,
    tiled: bool,
    folder: Path,
) -> list[Path | None]:
    """The foreground mask of each training image, as in a run; masks that have to be made are written to `folder`."""
    masks = layout.foreground(name, train)
    if masks:
        _refuse(check_foreground(masks, train, sizes, name, settings, tiled, settings.reading), False, name)
        return masks
    masks = make_masks(train, folder, announce=False, reading=settings.reading)
    return masks if tiled else leave_out_small(masks, train, sizes, settings)


def _row(data: TrainDataset, index: int) -> tuple[str, list[NDArray[np.uint8]]]:
    """The label and the pictures of one sample, as in the first epoch of a training."""
    image, rng = data.image(0, index)
    texture, mask, _, beta = data.anomaly(rng, index)
    augmented = las.blend(image, texture, torch.from_numpy(mask).float(), beta)
    foreground = data.foreground_of(index)
    foreground = np.ones_like(mask) if foreground is None else foreground
    pictures = [_to_rgb(part) for part in (image, foreground, mask, texture, augmented)]
    return f"{printable(data.samples[index].path.name)}  beta {beta:.2f}", pictures


def _to_rgb(picture: Tensor | NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A normalised image (3, H, W) or a mask (H, W) as RGB, (H, W, 3) uint8."""
    if isinstance(picture, np.ndarray):
        return np.repeat(picture[..., None].astype(np.uint8) * 255, 3, axis=2)
    values = picture.permute(1, 2, 0).numpy() * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _draw_sheet(title: str, rows: list[tuple[str, list[NDArray[np.uint8]]]]) -> Image.Image:
    height, width = rows[0][1][0].shape[:2]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    height, width = round(height * scale), round(width * scale)
    step = height + LABEL + GAP
    sheet = Image.new("RGB", (GAP + (width + GAP) * len(COLUMNS), LABEL * 2 + GAP + step * len(rows)), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((GAP, 2), title, (0, 0, 0), font)
    for column, label in enumerate(COLUMNS):
        draw.text((GAP + column * (width + GAP), LABEL + 2), label, (90, 90, 90), font)
    for row, (label, pictures) in enumerate(rows):
        top = LABEL * 2 + GAP + row * step
        draw.text((GAP, top), label, (0, 0, 0), font)
        for column, picture in enumerate(pictures):
            shown = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
            sheet.paste(shown, (GAP + column * (width + GAP), top + LABEL))
    return sheet


def _save(sheet: Image.Image, path: Path) -> None:
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG")
    write_bytes(path, encoded.getvalue())


def write_sheets(options: dict[str, Any], out: Path, samples: int, seed: int) -> Iterator[Path]:
    """Write the sheet of each class.

    Args:
        options: of the command `dataset`, by name.
        out: folder of the sheets.
        samples: rows of a sheet.
        seed: of all draws.

    Yields:
        The path of each sheet, once it is written.

    Raises:
        InputError, WorkError: as in a run.
    """
    if options["name"] not in DATASETS:
        raise InputError(f"unknown data set {options['name']!r}; possible: {', '.join(DATASETS)}")
    layout = DATASETS[options["name"]](options["data_path"], options["split_seed"], options["test_share"])
    for name in layout.choose(options["subdatasets"]):
        path = out / f"{row_name(options['name'], name)}.png"
        _save(preview_class(layout, name, options, samples, seed), path)
        yield path
