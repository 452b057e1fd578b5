"""A prediction run: judge image files, write the table and save images.

Used by `python main.py predict`, and by `onnx/ort.py` without torch. The parts are in `inputs` (which images), `table`
(predictions.csv) and `saving` (overlays, maps, masks).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from datasets.geometry import MUCH_LEFT_OUT
from inference.inputs import InputImage, find_pictures, paths_from_stdin
from inference.judge import Judge, PreparedImage, Result
from inference.loading import open_rgb
from inference.regions import as_cell
from inference.saving import affects_every_image, free_name, make_folders, save_result
from inference.table import FILE, PredictionsTable
from reporting.formats import valid_utf8
from utils import LOGGER, WorkError, cores, progress_bar, reason_of

__all__ = ["FILE", "InputImage", "PredictionOptions", "find_pictures", "paths_from_stdin", "predict"]

BATCHES_AHEAD = 4  # read in the background while one is judged
PIXELS_AHEAD = 100_000_000  # limit of the pixels waiting, assuming images as large as the last one


@dataclass(frozen=True)
class PredictionOptions:
    """What a prediction run does with each image.

    Attributes:
        out: folder of the table and of saved images; None writes neither.
        map_format: of the saved anomaly maps, `tiff` or `npy`; "" saves no images.
        json_lines: whether each result is printed as a line of JSON.
        batch_size: images judged at once, or tiles of one image.
    """

    out: Path | None
    map_format: str
    json_lines: bool
    batch_size: int

    @property
    def saves_images(self) -> bool:
        """Whether overlays, maps and masks are saved."""
        return bool(self.map_format) and self.out is not None


LoadedImage = Image.Image | PreparedImage
BatchItem = tuple[InputImage, LoadedImage | WorkError]


def predict(model: Judge, images: Sequence[InputImage], options: PredictionOptions, resume: bool = False) -> int:
    """Judge images and write the results, in memory that does not grow with the number of images.

    Args:
        model: that judges the images.
        images: see `find_pictures`.
        options: what to write.
        resume: whether a table of an earlier run is continued; images that it holds are skipped.

    Returns:
        The number of images that could not be judged or saved.

    Raises:
        InputError: there is a table, and `resume` is off or another model began it.
        WorkError: nothing more can be written; the rows before that are complete.
    """
    table = PredictionsTable(options.out, resume, model.identity(), bool(options.map_format))
    remaining = [image for image in images if os.path.abspath(image.path) not in table.done]
    if len(remaining) < len(images):
        LOGGER.info("%d of %d images are judged already", len(images) - len(remaining), len(images))
    failed, cropped = 0, 0
    model.tiles_at_once = options.batch_size
    batch_size = 1 if model.tiling else options.batch_size  # the tiles of one large image are a batch
    with contextlib.closing(table), progress_bar(len(remaining), "img") as bar:
        if options.saves_images:
            make_folders(options.out, masks=model.thresholds is not None)
        for batch in _batches(_load_ahead(model, remaining, BATCHES_AHEAD * batch_size), batch_size):
            cropped += sum(_is_cropped(model, image) for _, image in batch)
            failed += _finish_batch(model, batch, options, table)
            bar.update(len(batch))
            del batch  # free its images before the next batch is gathered
    if cropped:
        LOGGER.warning(
            "in %d of %d images the crop leaves out more than %.0f %% of the image, where no defect can be detected; "
            "train with --keep_all, or cut the images with --tile", cropped, len(remaining), 100 * MUCH_LEFT_OUT,
        )  # fmt: skip
    return failed


# ------------------------------------------------------------------------------------ reading ahead


def _load_ahead(model: Judge, images: Sequence[InputImage], count: int) -> Iterator[BatchItem]:
    """Load images on background threads, in order; the larger the images, the fewer are loaded ahead.

    Yields:
        Each image, prepared for the network, or the error why it cannot be read.
    """
    with ThreadPoolExecutor(max(1, min(4, cores()))) as pool:
        waiting: deque[tuple[InputImage, Future]] = deque()
        remaining, limit = iter(images), 1  # the first image shows how large they are
        while True:
            for image in itertools.islice(remaining, max(0, limit - len(waiting))):
                waiting.append((image, pool.submit(_load, model, image.path)))
            if not waiting:
                return
            image, loading = waiting.popleft()
            try:
                loaded: LoadedImage | WorkError = loading.result()
                limit = max(1, min(count, PIXELS_AHEAD // memory_in_pixels(loaded)))
            except WorkError as error:
                loaded = error
            except MemoryError:
                loaded = WorkError(f"{image.path}: out of memory")
            yield image, loaded


def _load(model: Judge, path: Path) -> LoadedImage:
    """An image, prepared as far as that is possible without running the network."""
    image = open_rgb(path, model.reading)
    try:
        return model.prepare_ahead(image)
    except Exception:  # it fails again when the image is judged, and is reported there
        return image


def memory_in_pixels(image: LoadedImage | WorkError) -> int:
    """The memory that an image takes, including its prepared network input, as a number of RGB pixels."""
    if isinstance(image, WorkError):
        return 0
    prepared = image.network_input.nbytes // 3 if isinstance(image, PreparedImage) else 0
    return image.size[0] * image.size[1] + prepared


def _batches(items: Iterator[BatchItem], batch_size: int) -> Iterator[list[BatchItem]]:
    """Group the images into batches, which are smaller if the images are very large."""
    batch: list[BatchItem] = []
    for item in items:
        batch.append(item)
        if len(batch) == batch_size or sum(memory_in_pixels(image) for _, image in batch) > PIXELS_AHEAD / 4:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_cropped(model: Judge, image: LoadedImage | WorkError) -> bool:
    if isinstance(image, WorkError) or model.tiling:
        return False
    return model.geometry.left_out(*image.size) > MUCH_LEFT_OUT


# ----------------------------------------------------------------------------------------- results


def _finish_batch(model: Judge, batch: Sequence[BatchItem], options: PredictionOptions, table: PredictionsTable) -> int:
    """Judge a batch, save its images and append a row for each, in the order given.

    Returns:
        The number of images that could not be judged or saved.

    Raises:
        WorkError: nothing more can be written; the rows before that are.
    """
    results = iter(_judge(model, [image for _, image in batch if not isinstance(image, WorkError)]))
    rows, failed, fatal_error = [], 0, None
    for source, image in batch:
        result = image if isinstance(image, WorkError) else next(results)
        name = ""
        if options.saves_images and not isinstance(result, WorkError):
            try:
                name = _save(source, image, result, model, options, table)
            except WorkError as error:
                if affects_every_image(options.out, error):
                    fatal_error = error
                    break
                result = error
        if isinstance(result, WorkError):
            rows.append({"path": str(source.path), "error": " ".join(str(result).split())})
            failed += 1
        else:
            rows.append({**_row(source, result), "saved_as": name})
    table.add(rows)
    if options.json_lines:
        print_json_lines(rows)
    if fatal_error is not None:
        raise fatal_error
    return failed


def _judge(model: Judge, images: Sequence[LoadedImage]) -> list[Result | WorkError]:
    """The result of each image; if the batch fails, each image is judged alone, so that only the bad ones fail."""
    if not images:
        return []
    try:
        return list(model.predict_images(images))
    except (WorkError, MemoryError, RuntimeError) as error:
        if len(images) > 1:
            return [result for image in images for result in _judge(model, [image])]
        reason = "out of memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__
        return [WorkError(reason)]


def _save(
    source: InputImage, image: LoadedImage, result: Result, model: Judge, options: PredictionOptions,
    table: PredictionsTable,
) -> str:  # fmt: skip
    """Save the images of a result under a name that is not taken yet, which is returned."""
    name = free_name(source.relative, table.names)
    try:
        picture = image.picture if isinstance(image, PreparedImage) else image
        save_result(options.out, name, picture, result, model, options.map_format)
    except WorkError:
        table.names.discard(name)
        raise
    return name


def _row(source: InputImage, result: Result) -> dict[str, Any]:
    return {
        "path": str(source.path),
        "score": f"{result.score:.6g}",
        "normalised_score": "" if math.isnan(result.normalised) else f"{result.normalised:.6g}",
        "decision": "" if result.decision is None else int(result.decision),
        "seconds": f"{result.seconds:.4f}",
        "error": "",
        "region_count": "" if result.regions is None else len(result.regions),
        "regions": as_cell(result.regions),
    }


def print_json_lines(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of the table on standard output, one JSON object a line.

    Raises:
        WorkError: standard output cannot be written.
    """
    try:
        for row in rows:
            print(json.dumps(as_json(row)), flush=True)  # noqa: T201 other programs read standard output here
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            # on exit, Python would try to write the rest again and print another error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe
            raise
        raise WorkError(f"cannot write to standard output: {reason_of(error)}") from error


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table with numbers as numbers, and None (null) for missing values."""
    numbers = {key: float(row[key]) if row.get(key) else None for key in ("score", "normalised_score", "seconds")}
    decision = bool(row["decision"]) if row.get("decision", "") != "" else None
    path, error = valid_utf8(row["path"]), valid_utf8(row["error"] or "")
    count, regions = row.get("region_count", ""), json.loads(row.get("regions") or "null")
    found = {"region_count": None if count == "" else count, "regions": regions}
    return {"path": path, **numbers, "decision": decision, "error": error or None, **found}
