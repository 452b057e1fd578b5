"""Decisions on new pictures and what is kept of them: `python main.py predict`, and `onnx/ort.py` without torch."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import itertools
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from PIL import Image

from datasets.files import ReadOptions, look_through, what_else
from drawing import save_image
from errors import InputError, WorkError
from geometry import MUCH_LEFT_OUT
from judgement import Judge, Result, open_picture
from utils import LOGGER, cores, progress_bar, write_atomically, write_text

FILE = "predictions.csv"
COLUMNS = ("path", "score", "normalised_score", "decision", "seconds", "error", "saved_as")
SETTINGS = "predictions.json"
SAVED = ("overlays", "maps", "masks")
AHEAD = 4  # batches that are read while one is judged
PIXELS_AHEAD = 100_000_000  # that wait at most, of pictures as large as the last one


@dataclass(frozen=True)
class Picture:
    """A picture to be judged, and its path below what was given, from which the name of what is saved of it is made."""

    path: Path
    relative: str


# ------------------------------------------------------------------------------------------- inputs


def find_pictures(inputs: Sequence[str], listed: Iterable[str] = (), out: Path | None = None) -> list[Picture]:
    """Files, folders (at any depth), patterns with * ? [ ], or `-` for the paths in `listed`; each file once.

    A listed path that is not there is taken all the same: it becomes a row with an error, it may have gone meanwhile.

    Args:
        out: what was saved in this folder before is left out.

    Raises:
        InputError: one of them gives no picture.
    """
    found: dict[str, Picture] = {}
    own = [os.path.abspath(out / name) + os.sep for name in SAVED] if out else []
    for given in inputs:
        if given == "-":
            lines = (line.rstrip("\r\n") for line in listed)
            pairs = [(Path(line), Path(line).name) for line in lines if line]
        else:
            pairs = _resolve(given)
        for path, relative in pairs:
            place = os.path.abspath(path)
            if not place.startswith(tuple(own)):
                found.setdefault(place, Picture(path, relative))
    if not found:
        raise InputError("no picture is given: files, folders, patterns, or - with a list on standard input")
    return list(found.values())


def listed() -> Iterable[str]:
    """The lines of standard input; a file name need not be text."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")
    return sys.stdin


def _resolve(given: str) -> list[tuple[Path, str]]:
    """The pictures that an input stands for, each with its path relative to the folder given."""
    path = Path(given)
    if path.is_dir():
        listing = look_through(path, recursive=True)
        inside = [(p, p.relative_to(path).as_posix()) for p in listing.images]
        if not inside:
            raise InputError(f"{path}: the folder holds no png, jpg, bmp, tif or webp at any depth{what_else(path)}")
        if left := listing.describe():
            LOGGER.info("%s: %s", path, left)
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
        identity: of the model, which must be the one that began it.
        saving: whether pictures are saved: a row without any is then not done.

    Attributes:
        done: absolute paths that need no work any more.
        names: of what was saved.

    Raises:
        InputError: there is one, and `go_on` is off.
        WorkError: it cannot be written, or is something else.
    """

    def __init__(self, folder: Path | None, go_on: bool, identity: dict[str, Any], saving: bool) -> None:
        self.done: set[str] = set()
        self.names: set[str] = set()
        self._file: TextIO | None = None
        if folder is None:
            return
        path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                if not go_on:
                    raise InputError(f"{path} is there already; give --continue to go on with it, or another --out")
                _refuse_another_model(folder / SETTINGS, identity)
                self._keep_what_is_done(path, saving)
            write_text(folder / SETTINGS, json.dumps(identity))
            self._file = path.open("a", newline="", encoding="utf-8", errors="surrogateescape")
            if not path.stat().st_size:
                csv.writer(self._file, lineterminator="\n").writerow(COLUMNS)
                self._file.flush()
        except OSError as error:
            raise WorkError(f"--out {folder} cannot be written to: {error.strerror or error}; give another") from error

    def _keep_what_is_done(self, path: Path, saving: bool) -> None:
        """Leave out rows with errors, to be tried again, and a last one that was cut off."""
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole))
        if tuple(reader.fieldnames or COLUMNS) != COLUMNS:
            raise WorkError(f"{path} is no table of predictions of this command; give another --out, or move it away")
        kept = [
            row for row in reader
            if None not in row and None not in row.values() and not row["error"] and row["score"]
            and (row["saved_as"] or not saving)
        ]  # fmt: skip
        self.done = {os.path.abspath(row["path"]) for row in kept}
        self.names = {row["saved_as"] for row in kept if row["saved_as"]}
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


def _refuse_another_model(path: Path, identity: dict[str, Any]) -> None:
    """Scores of two models in one table would mean nothing."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # nothing is known of who began it
    if before != identity:
        differ = [key for key in {**before, **identity} if before.get(key) != identity.get(key)]
        what = ", ".join(differ)
        raise InputError(
            f"{path.parent / FILE} was begun with another model or other tiles ({what}); give another --out"
        )


def save(folder: Path, name: str, image: Image.Image, result: Result, model: Judge, kind: str) -> None:
    """Overlay, raw map and mask of a picture, in its own geometry.

    Args:
        folder: gets overlays/, maps/ and masks/.
        kind: of the map, `tiff` (float32) or `npy`.

    Raises:
        WorkError: one of them cannot be written.
    """
    save_image(folder / "overlays" / f"{name}.png", model.overlay(image, result))
    made = Image.fromarray(result.map)

    def write_map(temporary: Path) -> None:
        np.save(temporary, result.map) if kind == "npy" else made.save(temporary, compression="tiff_adobe_deflate")

    write_atomically(folder / "maps" / f"{name}.{kind}", write_map)
    if result.mask is not None:
        save_image(folder / "masks" / f"{name}.png", result.mask.astype(np.uint8) * 255)


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


Read = tuple[Picture, Image.Image | WorkError]


def _ahead(pictures: Sequence[Picture], count: int, options: ReadOptions) -> Iterator[Read]:
    """Each picture read, or why it cannot be; a few of them in the background, the fewer the larger they are."""
    with ThreadPoolExecutor(max(1, min(4, cores()))) as pool:
        waiting: deque[tuple[Picture, Future]] = deque()
        left, most = iter(pictures), 1  # how large they are, the first one tells
        while True:
            for picture in itertools.islice(left, max(0, most - len(waiting))):
                waiting.append((picture, pool.submit(open_picture, picture.path, options)))
            if not waiting:
                return
            picture, reading = waiting.popleft()
            try:
                image: Image.Image | WorkError = reading.result()
                most = max(1, min(count, PIXELS_AHEAD // (image.size[0] * image.size[1])))
            except WorkError as error:
                image = error
            except MemoryError:
                image = WorkError(f"{picture.path}: out of memory")
            yield picture, image


def predict(model: Judge, pictures: Sequence[Picture], wishes: Wishes, go_on: bool = False) -> int:
    """Judge pictures and write down what comes of it, in memory that does not grow with their number.

    Returns:
        How many could not be judged.
    """
    table = Table(wishes.out, go_on, model.identity(), bool(wishes.maps))
    left = [p for p in pictures if os.path.abspath(p.path) not in table.done]
    if len(left) < len(pictures):
        LOGGER.info("%d of %d pictures are judged already", len(pictures) - len(left), len(pictures))
    failed, cropped = 0, 0
    model.tiles_at_once = wishes.batch_size
    together = 1 if model.tiling else wishes.batch_size  # of a large picture, its tiles are the batch
    with contextlib.closing(table), progress_bar(len(left), "img") as bar:
        batch: list[Read] = []
        for picture, image in _ahead(left, AHEAD * together, model.reading):
            batch.append((picture, image))
            cropped += _much_left_out(model, image)
            pixels = sum(i.size[0] * i.size[1] for _, i in batch if isinstance(i, Image.Image))
            if len(batch) == together or pixels > PIXELS_AHEAD / 4:
                failed += _finish(model, batch, wishes, table)
                bar.update(len(batch))
                batch = []
        failed += _finish(model, batch, wishes, table)
        bar.update(len(batch))
    if cropped:
        LOGGER.warning(
            "of %d of %d pictures the crop leaves out more than %.0f %%, where no defect is seen; train with "
            "--keep_all, or cut them with --tile", cropped, len(left), 100 * MUCH_LEFT_OUT,
        )  # fmt: skip
    return failed


def _much_left_out(model: Judge, image: Image.Image | WorkError) -> bool:
    return isinstance(image, Image.Image) and not model.tiling and model.geometry.left_out(*image.size) > MUCH_LEFT_OUT


def _finish(model: Judge, batch: Sequence[Read], wishes: Wishes, table: Table) -> int:
    """Judge what is gathered, save, write a row each in the order given; how many could not be judged."""
    found = iter(_judge(model, [image for _, image in batch if isinstance(image, Image.Image)]))
    rows, failed = [], 0
    for picture, image in batch:
        result = image if isinstance(image, WorkError) else next(found)
        if isinstance(result, WorkError):
            rows.append({"path": str(picture.path), "error": " ".join(str(result).split())})
            failed += 1
            continue
        name = ""
        if wishes.maps and wishes.out is not None:
            name = _free_name(picture.relative, table.names)
            save(wishes.out, name, image, result, model, wishes.maps)
        rows.append({**_row(picture, result), "saved_as": name})
    table.add(rows)
    if wishes.lines:
        for row in rows:
            print(json.dumps(_as_json(row)), flush=True)  # noqa: T201 standard output is for other programs here
    return failed


def _judge(model: Judge, images: Sequence[Image.Image]) -> list[Result | WorkError]:
    """A result of each; where all at once cannot be judged, one by one, so that only those fail that must."""
    if not images:
        return []
    try:
        return list(model.predict_images(images))
    except (WorkError, MemoryError, RuntimeError) as error:
        if len(images) > 1:
            return [one for image in images for one in _judge(model, [image])]
        reason = "out of memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__
        return [WorkError(reason)]


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
