"""Decisions on new pictures and what is kept of them: `python main.py predict`, and `onnx/ort.py` without torch."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from datasets.files import list_images
from drawing import save_image
from errors import InputError, WorkError
from judgement import Judge, Result, open_picture
from utils import LOGGER, cores, progress_bar, write_atomically

FILE = "predictions.csv"
COLUMNS = ("path", "score", "normalised_score", "decision", "seconds", "error")
AHEAD = 4  # batches that are read while one is judged


@dataclass(frozen=True)
class Picture:
    """A picture to be judged, and the name of what is saved of it, without suffix."""

    path: Path
    name: str


# ------------------------------------------------------------------------------------------- inputs


def find_pictures(inputs: Sequence[str], listed: Iterable[str] = ()) -> list[Picture]:
    """Files, folders (at any depth), patterns with * ? [ ], or `-` for the paths in `listed`; each file once.

    Raises:
        InputError: one of them gives no picture.
    """
    found: dict[Path, str] = {}
    taken: set[str] = set()
    for given in inputs:
        paths = [line.rstrip("\r\n") for line in listed] if given == "-" else [given]
        for one in filter(None, paths):
            for path, relative in _resolve(one):
                if path not in found:
                    found[path] = _free_name(relative, taken)
    if not found:
        raise InputError("no picture is given: files, folders, patterns, or - with a list on standard input")
    return [Picture(path, name) for path, name in found.items()]


def _resolve(given: str) -> list[tuple[Path, str]]:
    """The pictures that an input stands for, each with its path relative to the folder given."""
    path = Path(given)
    if path.is_dir():
        inside = [(p, p.relative_to(path).as_posix()) for p in list_images(path, recursive=True)]
        if not inside:
            raise InputError(f"{path}: the folder holds no png, jpg, bmp, tif or webp at any depth")
        return inside
    if path.is_file():
        return [(path, path.name)]
    matches = [Path(p) for p in sorted(glob.glob(given, recursive=True)) if Path(p).is_file()]
    if not matches:
        raise InputError(f"{given}: no such file or folder, and no file has a name like that")
    return [(p, p.name) for p in matches]


def _free_name(relative: str, taken: set[str]) -> str:
    stem, number = relative.rpartition(".")[0] or relative, 2
    name = stem
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    taken.add(name)
    return name


# ------------------------------------------------------------------------------------------ outputs


class Table:
    """predictions.csv, row by row: whenever the work stops, what is written is whole.

    Args:
        folder: where it lies; None keeps no table.
        go_on: whether there may be one already, to be continued.

    Raises:
        InputError: there is one, and `go_on` is off.
        WorkError: it cannot be written, or is something else.
    """

    def __init__(self, folder: Path | None, go_on: bool) -> None:
        self.done: set[str] = set()
        self._file: TextIO | None = None
        if folder is None:
            return
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                if not go_on:
                    raise InputError(f"{path} is there already; give --continue to go on with it, or another --out")
                self._keep_what_is_done(path)
            self._file = path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
            if not path.stat().st_size:
                csv.writer(self._file, lineterminator="\n").writerow(COLUMNS)
                self._file.flush()
        except OSError as error:
            raise WorkError(f"--out {folder} cannot be written to: {error.strerror or error}; give another") from error

    def _keep_what_is_done(self, path: Path) -> None:
        """Leave out rows with errors, to be tried again, and a last one that was cut off."""
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        whole = text[: text.rfind("\n") + 1]
        rows = list(csv.DictReader(io.StringIO(whole)))
        if rows and not set(COLUMNS) <= set(rows[0]):
            raise WorkError(f"{path} is no table of predictions; give another --out")
        kept = [row for row in rows if not row["error"] and row["score"]]
        self.done = {row["path"] for row in kept}
        made = io.StringIO()
        writer = csv.DictWriter(made, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        content = made.getvalue().encode("utf-8", "surrogateescape")
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows, all at once."""
        if self._file is None:
            return
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
        try:
            self._file.write(text.getvalue())
            self._file.flush()
        except OSError as error:
            raise WorkError(f"cannot write {self._file.name}: {error.strerror}") from error

    def close(self) -> None:
        """No more rows."""
        if self._file is not None:
            self._file.close()


def save(folder: Path, picture: Picture, image: Image.Image, result: Result, model: Judge, kind: str) -> None:
    """Overlay, raw map and mask of a picture, in its own geometry.

    Args:
        folder: gets overlays/, maps/ and masks/.
        kind: of the map, `tiff` (float32) or `npy`.

    Raises:
        WorkError: one of them cannot be written.
    """
    save_image(folder / "overlays" / f"{picture.name}.png", model.overlay(image, result))
    made = Image.fromarray(result.map)

    def write_map(temporary: Path) -> None:
        np.save(temporary, result.map) if kind == "npy" else made.save(temporary, compression="tiff_adobe_deflate")

    write_atomically(folder / "maps" / f"{picture.name}.{kind}", write_map)
    if result.mask is not None:
        save_image(folder / "masks" / f"{picture.name}.png", result.mask.astype(np.uint8) * 255)


# --------------------------------------------------------------------------------------------- work


@dataclass(frozen=True)
class Wishes:
    """What is to become of each picture.

    out: folder of the table and of what is saved; None writes neither. maps: `tiff`, `npy`, or "" for no pictures.
    lines: whether each result is printed as a line of JSON. judge: a prepared picture's score and map.
    """

    out: Path | None
    maps: str
    lines: bool
    batch_size: int


def _ahead(pictures: Sequence[Picture], count: int, read: Callable[[Picture], Any]) -> Iterator[tuple[Picture, Future]]:
    """Each picture with what `read` makes of it, a few of them at a time in the background."""
    with ThreadPoolExecutor(max(1, min(4, cores()))) as pool:
        waiting: deque[tuple[Picture, Future]] = deque()
        for picture in pictures:
            waiting.append((picture, pool.submit(read, picture)))
            if len(waiting) >= count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def predict(model: Judge, pictures: Sequence[Picture], wishes: Wishes, go_on: bool = False) -> int:
    """Judge pictures and write down what comes of it, in memory that does not grow with their number.

    Returns:
        How many could not be judged.
    """
    table = Table(wishes.out, go_on)
    left = [p for p in pictures if str(p.path) not in table.done]
    if len(left) < len(pictures):
        LOGGER.info("%d of %d pictures are judged already", len(pictures) - len(left), len(pictures))
    bar = progress_bar(len(left), "img")
    failed = 0

    def read(picture: Picture) -> Image.Image:
        return open_picture(picture.path)

    with contextlib.closing(table), bar:
        batch: list[tuple[Picture, Image.Image | WorkError]] = []
        for picture, reading in _ahead(left, AHEAD * wishes.batch_size, read):
            try:
                batch.append((picture, reading.result()))
            except WorkError as error:
                batch.append((picture, error))
                failed += 1
            if len(batch) == wishes.batch_size:
                _finish(model, batch, wishes, table, bar)
                batch = []
        _finish(model, batch, wishes, table, bar)
    return failed


def _finish(
    model: Judge, batch: Sequence[tuple[Picture, Image.Image | WorkError]], wishes: Wishes, table: Table, bar: Any
) -> None:
    """Judge what is gathered, save, write a row each in the order given."""
    images = [image for _, image in batch if isinstance(image, Image.Image)]
    found = iter(model.predict_images(images) if images else ())
    rows = []
    for picture, image in batch:
        if isinstance(image, WorkError):
            rows.append({"path": str(picture.path), "error": " ".join(str(image).split())})
            continue
        result = next(found)
        if wishes.maps and wishes.out is not None:
            save(wishes.out, picture, image, result, model, wishes.maps)
        rows.append(_row(picture, result))
    table.add(rows)
    if wishes.lines:
        for row in rows:
            print(json.dumps(_as_json(row)), flush=True)  # noqa: T201 standard output is for other programs here
    bar.update(len(rows))


def _row(picture: Picture, result: Result) -> dict[str, Any]:
    return {
        "path": str(picture.path),
        "score": f"{result.score:.6g}",
        "normalised_score": "" if math.isnan(result.normalised) else f"{result.normalised:.6g}",
        "decision": "" if result.decision is None else int(result.decision),
        "seconds": f"{result.seconds:.4f}",
        "error": "",
    }


def _as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row with numbers as numbers, and null for what there is not."""
    numbers = {key: float(row[key]) if row.get(key) else None for key in ("score", "normalised_score", "seconds")}
    decision = bool(row["decision"]) if row.get("decision", "") != "" else None
    path = os.fsencode(row["path"]).decode("utf-8", "replace")
    return {"path": path, **numbers, "decision": decision, "error": row["error"] or None}
