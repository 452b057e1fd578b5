"""Decisions on new pictures and what is kept of them: `python main.py predict`, and `onnx/ort.py` without torch."""

from __future__ import annotations

import codecs
import contextlib
import csv
import glob
import io
import itertools
import json
import math
import os
import re
import struct
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

from datasets.geometry import MUCH_LEFT_OUT
from datasets.listing import describe_other_files, scan_folder
from inference.judge import Judge, Prepared, Result, open_picture
from reporting.cells import as_cell, csv_text, path_as_cell, path_from_cell
from reporting.drawing import encode_png
from utils import LOGGER, InputError, WorkError, cores, no_room, progress_bar, reason_of, write_bytes, write_text

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
        pairs = [(Path(name), Path(name).name) for name in listed if name] if given == "-" else _resolve(given)
        for path, relative in pairs:
            place = os.path.abspath(path)
            if not place.startswith(tuple(own)):
                found.setdefault(place, Picture(path, relative))
    if not found:
        raise InputError("no picture is given: files, folders, patterns, or - with a list on standard input")
    return list(found.values())


def listed() -> list[str]:
    """The paths on standard input, see `paths_in`.

    Raises:
        InputError: there is no standard input.
    """
    if sys.stdin is None:
        raise InputError("- reads a list of paths from standard input, which is closed; give files or folders")
    # the bytes themselves: read as text, a carriage return within a name would end it
    return paths_in(sys.stdin.buffer.read() if hasattr(sys.stdin, "buffer") else os.fsencode(sys.stdin.read()))


def paths_in(content: bytes) -> list[str]:
    """The paths in a list as programs write them; a file name need not be text.

    UTF-8 or, as PowerShell writes it, UTF-16. Each path ends with a NUL where there is one at all (`find -print0`), so
    that it may hold line ends; else with a line end of Unix or Windows. Then quotes and blanks around it belong to it
    only where there is a file with such a name.
    """
    text = _decode(content)
    if "\0" in text:
        return [path for path in text.split("\0") if path and path != "\n"]
    return [_unquoted(line) for line in text.split("\n") if line.strip()]


def _decode(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return content.decode("utf-32", "replace")
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    for encoding, high in (("utf-16-le", content[1::2]), ("utf-16-be", content[::2])):
        # without a mark: of most characters one byte of two is 0, always the same one
        if high.count(0) > len(high) / 2:
            text = content.decode(encoding, "replace")
            # names of one character with a NUL behind each look the same, but give neither a line end nor a dot
            if "\n" in text or "." in text:
                return text
    return os.fsdecode(content.removeprefix(codecs.BOM_UTF8))


def _unquoted(line: str) -> str:
    """A line's path: the line itself where there is such a file, else without what was put around it."""
    possible = [line, line.removesuffix("\r")]
    bare = line.strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'":
        inside = bare[1:-1]
        # a quote within is doubled in CSV, and follows a backslash in `ls --quoting-style=c`
        possible += [inside, inside.replace(bare[0] * 2, bare[0]), re.sub(r"\\(.)", r"\1", inside)]
        likely = inside
    else:
        likely = line.removesuffix("\r")
        possible.append(bare)
    return next((path for path in possible if os.path.lexists(path)), likely)


def _resolve(given: str) -> list[tuple[Path, str]]:
    """The pictures that an input stands for, each with its path relative to the folder given."""
    path = Path(given)
    if os.path.isdir(given):
        listing = scan_folder(path, recursive=True)
        inside = [(p, p.relative_to(path).as_posix()) for p in listing.images]
        if not inside:
            raise InputError(
                f"{path}: the folder holds no picture of a kind that is read, at any depth{describe_other_files(path)}"
            )
        if left := listing.describe():
            LOGGER.info("%s: %s", path, left)
        return inside
    if os.path.isfile(given):
        return [(path, path.name)]
    matches = [Path(p) for p in sorted(glob.glob(given, recursive=True)) if os.path.isfile(p)]
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
        self._file: BinaryIO | None = None
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
            self._file = path.open("ab", buffering=0)
            if not path.stat().st_size:
                self._append([COLUMNS])
        except OSError as error:
            raise WorkError(f"--out {folder} cannot be written to: {reason_of(error)}; give another") from error

    def _keep_what_is_done(self, path: Path, saving: bool) -> None:
        """Leave out rows with errors, to be tried again, and a last one that was cut off."""
        text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        whole = text[: text.rfind("\n") + 1]
        rows = _rows_in(whole)
        begun = rows[:1] == [list(COLUMNS)] if whole else ",".join(COLUMNS).startswith(text)
        if not begun:
            raise WorkError(f"{path} is no table of predictions of this command; give another --out, or move it away")
        named = [dict(zip(COLUMNS, row, strict=True)) for row in rows[1:] if len(row) == len(COLUMNS)]
        kept = [row for row in named if not row["error"] and row["score"] and (row["saved_as"] or not saving)]
        self.done = {os.path.abspath(row["path"]) for row in kept}
        self.names = {path_from_cell(row["saved_as"]) for row in kept if row["saved_as"]}
        content = csv_text([COLUMNS, *(_cells(row) for row in kept)])
        write_bytes(path, content.encode("utf-8", "surrogateescape"))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows, all at once."""
        if self._file is None:
            return
        try:
            self._append([_cells(row) for row in rows])
        except OSError as error:
            raise WorkError(f"cannot write {self._file.name}: {reason_of(error)}") from error

    def _append(self, rows: Sequence[Sequence[Any]]) -> None:
        """All of them, or none where the disk is full."""
        left = memoryview(csv_text(rows).encode("utf-8", "surrogateescape"))
        before = os.fstat(self._file.fileno()).st_size
        try:
            while left:  # a nearly full disk takes a part at first
                left = left[self._file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise

    def close(self) -> None:
        """No more rows."""
        if self._file is not None:
            self._file.close()


def _rows_in(text: str) -> list[list[str]]:
    """The rows of a CSV file; one that a carriage return of a name tore, as earlier versions left them, is left out."""
    reader, rows = csv.reader(io.StringIO(text)), []
    while True:
        try:
            rows.append(next(reader))
        except csv.Error:
            continue
        except StopIteration:
            return [row for row in rows if row]


def _cells(row: dict[str, Any]) -> list[Any]:
    """A row in the order of the columns, where no text is a formula."""
    safe = {"path": path_as_cell, "saved_as": path_as_cell, "error": as_cell}
    values = {column: row.get(column, "") for column in COLUMNS}
    return [safe[column](value) if column in safe else value for column, value in values.items()]


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
    """Overlay, raw map and mask of a picture, in its own geometry: all of them or none.

    Args:
        folder: gets overlays/, maps/ and masks/.
        kind: of the map, `tiff` (float32) or `npy`.

    Raises:
        WorkError: one of them cannot be made or written.
    """
    overlay, mask = folder / "overlays" / f"{name}.png", folder / "masks" / f"{name}.png"
    try:
        contents = {
            overlay: encode_png(overlay, model.overlay(image, result)),
            folder / "maps" / f"{name}.{kind}": _encode_map(result.map, kind),
        }
        if result.mask is not None:
            contents[mask] = encode_png(mask, result.mask.astype(np.uint8) * 255)
    except MemoryError as error:
        raise WorkError(f"cannot save {name}: out of memory") from error
    except (cv2.error, OSError, ValueError, struct.error) as error:
        raise WorkError(f"cannot save {name}: {reason_of(error)}") from error
    written: list[Path] = []
    try:
        for path, content in contents.items():
            write_bytes(path, content)
            written.append(path)
    except WorkError:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _encode_map(anomaly_map: np.ndarray, kind: str) -> bytes:
    """In memory, since libraries that write to a file themselves have errors of their own for a full disk."""
    encoded = io.BytesIO()
    if kind == "npy":
        np.save(encoded, anomaly_map)
    else:
        Image.fromarray(anomaly_map).save(encoded, "TIFF", compression="tiff_adobe_deflate")
    return encoded.getvalue()


def _make_folders(out: Path, masks: bool) -> None:
    """Of what is saved: what is wrong with one of them is wrong for every picture, and is said before the first."""
    for name in SAVED if masks else SAVED[:-1]:
        try:
            (out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(f"cannot make the folder {out / name}: {reason_of(error)}") from error


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


Read = tuple[Picture, Image.Image | Prepared | WorkError]


def _read(model: Judge, path: Path) -> Image.Image | Prepared:
    """A picture as far as it can be got ready without the network."""
    image = open_picture(path, model.reading)
    try:
        return model.prepare_ahead(image)
    except Exception:  # it fails again where it is judged, and is told there
        return image


def _pixels(image: Image.Image | Prepared | WorkError) -> int:
    """How much memory a picture takes, in RGB pixels, with what was prepared of it."""
    if isinstance(image, WorkError):
        return 0
    return image.size[0] * image.size[1] + (image.seen.nbytes // 3 if isinstance(image, Prepared) else 0)


def _ahead(model: Judge, pictures: Sequence[Picture], count: int) -> Iterator[Read]:
    """Each picture ready to be judged, or why it cannot be; a few in the background, the fewer the larger they are."""
    with ThreadPoolExecutor(max(1, min(4, cores()))) as pool:
        waiting: deque[tuple[Picture, Future]] = deque()
        left, most = iter(pictures), 1  # how large they are, the first one tells
        while True:
            for picture in itertools.islice(left, max(0, most - len(waiting))):
                waiting.append((picture, pool.submit(_read, model, picture.path)))
            if not waiting:
                return
            picture, reading = waiting.popleft()
            try:
                image: Image.Image | Prepared | WorkError = reading.result()
                most = max(1, min(count, PIXELS_AHEAD // _pixels(image)))
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
        if wishes.maps and wishes.out is not None:
            _make_folders(wishes.out, masks=model.thresholds is not None)
        batch: list[Read] = []
        for picture, image in _ahead(model, left, AHEAD * together):
            batch.append((picture, image))
            cropped += _much_left_out(model, image)
            if len(batch) == together or sum(_pixels(i) for _, i in batch) > PIXELS_AHEAD / 4:
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


def _much_left_out(model: Judge, image: Image.Image | Prepared | WorkError) -> bool:
    if isinstance(image, WorkError) or model.tiling:
        return False
    return model.geometry.left_out(*image.size) > MUCH_LEFT_OUT


def _finish(model: Judge, batch: Sequence[Read], wishes: Wishes, table: Table) -> int:
    """Judge what is gathered, save, write a row each in the order given; how many could not be judged or saved.

    Raises:
        WorkError: nothing more can be written; the rows before that are.
    """
    found = iter(_judge(model, [image for _, image in batch if not isinstance(image, WorkError)]))
    rows, failed, end = [], 0, None
    for picture, image in batch:
        result = image if isinstance(image, WorkError) else next(found)
        name = ""
        if wishes.maps and wishes.out is not None and not isinstance(result, WorkError):
            try:
                name = _save_as_free_name(picture, image, result, model, wishes, table)
            except WorkError as error:
                if _hits_every_picture(wishes.out, error):
                    end = error
                    break
                result = error
        if isinstance(result, WorkError):
            rows.append({"path": str(picture.path), "error": " ".join(str(result).split())})
            failed += 1
        else:
            rows.append({**_row(picture, result), "saved_as": name})
    table.add(rows)
    if wishes.lines:
        _print_lines(rows)
    if end is not None:
        raise end
    return failed


def _save_as_free_name(
    picture: Picture, image: Image.Image | Prepared, result: Result, model: Judge, wishes: Wishes, table: Table
) -> str:
    """Save what is wished of a picture; its name."""
    name = _free_name(picture.relative, table.names)
    try:
        pixels = image.picture if isinstance(image, Prepared) else image
        save(wishes.out, name, pixels, result, model, wishes.maps)
    except WorkError:
        table.names.discard(name)
        raise
    return name


def _hits_every_picture(out: Path, error: WorkError) -> bool:
    """Whether no other picture could be saved either, as on a full disk; else it is this one's name or size."""
    folders = (out / name for name in SAVED)
    return no_room(error) or not all(os.access(f, os.W_OK | os.X_OK) for f in folders if f.exists())


def _print_lines(rows: Sequence[dict[str, Any]]) -> None:
    try:
        for row in rows:
            print(json.dumps(_as_json(row)), flush=True)  # noqa: T201 standard output is for other programs here
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            # Python would try once more to write what is left as it ends, and print that it failed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read has had enough
            raise
        raise WorkError(f"cannot write to standard output: {reason_of(error)}") from error


def _judge(model: Judge, images: Sequence[Image.Image | Prepared]) -> list[Result | WorkError]:
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
    path, error = _valid_utf8(row["path"]), _valid_utf8(row["error"] or "")
    return {"path": path, **numbers, "decision": decision, "error": error or None}


def _valid_utf8(text: str) -> str:
    """A text with a file name in it, which need not be UTF-8, as text that is."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
