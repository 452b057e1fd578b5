"""Finding what is wrong with a data set: quickly before a run, or thoroughly as `python main.py check`."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import perlin
from datasets import DATASETS, ImageSettings, Layout, Sample
from datasets.defects import Pair
from datasets.depth import find_depth
from datasets.files import DEFAULT, Header, ReadOptions, read_header, read_rgb
from datasets.geometry import Geometry, describe_left_out
from datasets.limits import AUTO, MAX_PIXELS
from datasets.listing import list_images, scan_folder
from datasets.masks import (
    EMPTY,
    LEVELS,
    LOST,
    describe_masks,
    examine,
    lies_on_stored_pixels,
    read_mask,
    read_mask_of,
    split_masks,
)
from datasets.textures import BUILTIN, list_textures
from datasets.training_set import LEAST_FOREGROUND, prepare_foreground
from utils import InputError, WorkError, cores, printable

Kind = Literal["unreadable", "mask_size", "empty", "same_stem", "train_and_test", "layout"]
Item, Result = TypeVar("Item"), TypeVar("Result")

# other kinds of pixels are decoded at once, as their header does not tell whether they can be
USUAL = re.compile("palette|[1-4]×(1|8|16) bit")
# a core each for decoding. Headers of files at hand need no threads at all, those on a network disk some
THREADS, PEEKING_THREADS = min(16, cores()), 4
AT_ONCE = 16
BLOCKS, BLOCK = 8, 2048
# trial anomalies on a small foreground, and the share of them that must touch it: a training draws 1000 times at most
TRIALS, LEAST_TRIALS = 300, 0.02
COLUMNS = ("class", "train", "test good", "test defective", "size (HxW)", "channels", "masks", "problems")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file (or class: then `path` is its name or folder).

    kind: `unreadable`: cannot be opened, is cut off or no image; `mask_size`: a mask of another size than its image;
    `empty`: a class without images, or a foreground without pixels; `same_stem`: two files of a folder differ in
    their suffix alone;
    `train_and_test`: a test image with the bytes of a training image; `layout`: the layout's own complaint.
    """

    path: Path
    what: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


# ------------------------------------------------------------------------------------------- checks


def quick_check(
    name: str, train: Sequence[Sample], test: Sequence[Sample], reading: ReadOptions = DEFAULT
) -> tuple[list[Problem], dict[Path, tuple[int, int]]]:
    """What is wrong with a class, from headers and file ends; only files that seem cut off are decoded.

    Args:
        name: of the class, for the message.
        train, test: its samples.
        reading: how images are read.

    Returns:
        The problems, and the (width, height) upright of each readable image in pixels.
    """
    problems, headers = quick_look(name, train, test, reading)
    return problems, {path: header.size for path, header in headers.items()}


def quick_look(
    name: str, train: Sequence[Sample], test: Sequence[Sample], reading: ReadOptions = DEFAULT
) -> tuple[list[Problem], dict[Path, Header]]:
    """As `quick_check`, with the whole header of each readable image."""
    problems, headers = _check(name, train, test, _glance, None, reading)
    return problems, {s.path: headers[s.path] for s in (*train, *test) if s.path in headers}


def full_check(
    name: str, train: Sequence[Sample], test: Sequence[Sample], reading: ReadOptions = DEFAULT
) -> tuple[list[Problem], dict[Path, Header]]:
    """As `quick_check`, but everything is decoded, with a progress bar on standard error.

    Returns:
        The problems, and the header of each readable image and mask.
    """
    return _check(name, train, test, _decode, name, reading)


def check_pictures(paths: Sequence[Path], full: str | None = None, reading: ReadOptions = DEFAULT) -> list[Problem]:
    """The unreadable ones among pictures: from headers and file ends, or from all pixels under a bar named `full`."""
    return look_at_pictures(paths, full, reading)[0]


def look_at_pictures(
    paths: Sequence[Path], full: str | None = None, reading: ReadOptions = DEFAULT
) -> tuple[list[Problem], dict[Path, Header]]:
    """As `check_pictures`, with the headers of those that can be read."""
    return _look_at(dict.fromkeys(paths, False), _glance if full is None else _decode, full, reading)


def check_defects(pairs: Sequence[Pair], reading: ReadOptions = DEFAULT) -> list[Problem]:
    """What is wrong with known defects and their masks, read in full: unreadable, or a mask of another size."""
    files = {picture: False for picture, _ in pairs} | {mask: True for _, mask in pairs if mask is not None}
    problems, headers = _look_at(files, _decode, "known defects", reading)
    return problems + _mask_sizes([Sample(picture, "defect", mask) for picture, mask in pairs], headers, reading)


def check_foreground(
    masks: Sequence[Path],
    samples: Sequence[Sample],
    sizes: Mapping[Path, tuple[int, int]],
    name: str,
    settings: ImageSettings | None = None,
    tiled: bool = False,
    reading: ReadOptions = DEFAULT,
) -> list[Problem]:
    """What is wrong with the foreground masks of training images: unreadable, of another shape, or empty.

    Args:
        masks: one a sample.
        sizes: (width, height) of the samples' images.
        name: of the class, for the bar.
        settings: preprocessing of a training, after which a mask must leave room for an anomaly.
        tiled: whether the training images are cut into tiles, by their own pixels.
        reading: how masks are read.
    """
    fits = None if settings is None or tiled else _Room(settings)

    def try_one(pair: tuple[Path, Sample]) -> Problem | None:
        path, sample = pair
        try:
            mask = read_mask_of(path, sample.path, scaled=True, reading=reading)
        except WorkError as error:
            return Problem(path, f"cannot be read: {_reason(error, path)}", "unreadable")
        width, height = sizes.get(sample.path, (mask.shape[1], mask.shape[0]))
        factor = mask.shape[1] / width
        if abs(mask.shape[0] - height * factor) > max(1, factor):
            what = f"the foreground mask has {_hxw(mask.shape[::-1])} pixels (HxW), its image {sample.path} has "
            return Problem(path, f"{what}{_hxw((width, height))}: another shape", "mask_size")
        if tiled and mask.shape != (height, width):
            what = f"the foreground mask has {_hxw(mask.shape[::-1])} pixels (HxW), its image {sample.path} has "
            return Problem(path, f"{what}{_hxw((width, height))}; with --tile it must be as large", "mask_size")
        if not mask.any():
            return Problem(path, "the foreground mask is empty", "empty")
        left = None if fits is None else fits.what_lacks(prepare_foreground(path, sample, settings))
        return None if left is None else Problem(path, left, "empty")

    found = _in_threads(try_one, list(zip(masks, samples, strict=True)), f"{name}: foreground")
    return [problem for problem in found if problem is not None]


def leave_out_small(
    masks: Sequence[Path], samples: Sequence[Sample], sizes: Mapping[Path, tuple[int, int]], settings: ImageSettings
) -> list[Path | None]:
    """Foreground masks that were made, None in place of one of which the crop leaves no room for an anomaly.

    Args:
        masks: one a sample.
        sizes: (width, height) of the samples' images.
        settings: preprocessing of the training.
    """
    fits = _Room(settings)

    def try_one(pair: tuple[Path, Sample]) -> Path | None:
        path, sample = pair
        if not settings.left_out(*sizes[sample.path]):
            return path
        return path if fits.what_lacks(prepare_foreground(path, sample, settings)) is None else None

    return _in_threads(try_one, list(zip(masks, samples, strict=True)))


class _Room:
    """Whether synthetic anomalies find a place on a foreground mask that was resized and cropped."""

    def __init__(self, settings: ImageSettings) -> None:
        self._size, self._lock, self._tried = settings.size, Lock(), None

    def what_lacks(self, foreground: NDArray[np.bool_]) -> str | None:
        """What is wrong with a mask (H, W), None where nothing is."""
        what = "no synthetic anomaly fits in it; widen it, or give --keep_all, or --fg 0 for anomalies everywhere"
        if not foreground.any():
            return f"resizing and crop leave nothing of the foreground mask: {what}"
        share = float(foreground.mean())
        if share >= LEAST_FOREGROUND or self._often(foreground) >= LEAST_TRIALS * TRIALS:
            return None
        return f"resizing and crop leave {share:.3%} of an image of the foreground mask: {what}"

    def _often(self, foreground: NDArray[np.bool_]) -> int:
        """How many of `TRIALS` anomalies touch it."""
        with self._lock:  # the same for all masks of a class
            if self._tried is None:
                rng = np.random.default_rng(0)
                self._tried = [np.packbits(perlin.perlin_mask(rng, self._size)) for _ in range(TRIALS)]
        packed = np.packbits(foreground)
        return sum(bool((tried & packed).any()) for tried in self._tried)


def _reason(error: WorkError, path: Path) -> str:
    return str(error).removeprefix(f"cannot read image {path}: ")


def drop_bad(samples: Iterable[Sample], problems: Iterable[Problem]) -> list[Sample]:
    """The samples without those whose image or mask is unreadable. Other problems leave a sample in."""
    bad = {p.path for p in problems if p.kind == "unreadable"}
    return [s for s in samples if s.path not in bad and s.mask not in bad]


Look = Callable[[Path, bool, ReadOptions], Header]


def _check(
    name: str, train: Sequence[Sample], test: Sequence[Sample], look: Look, bar: str | None, reading: ReadOptions
) -> tuple[list[Problem], dict[Path, Header]]:
    samples = (*train, *test)
    if not samples:
        return [Problem(Path(name), "the class has no training image and no test image", "empty")], {}
    files = {s.path: False for s in samples} | {s.mask: True for s in samples if s.mask is not None}
    problems, headers = _look_at(files, look, bar, reading)
    problems += _mask_sizes(samples, headers, reading)
    problems += _same_stems(samples)
    problems += _in_both([s.path for s in train if s.path in headers], [s.path for s in test if s.path in headers])
    return problems, headers


def _look_at(
    files: dict[Path, bool], look: Look, bar: str | None, reading: ReadOptions
) -> tuple[list[Problem], dict[Path, Header]]:
    """Unreadable files and the headers of the others. `files`: path → whether it is a mask."""

    def try_one(path: Path) -> Header | Problem:
        try:
            return look(path, files[path], reading)
        except WorkError as error:
            return Problem(path, f"cannot be read: {_reason(error, path)}", "unreadable")

    results = dict(zip(files, _in_threads(try_one, list(files), bar), strict=True))
    problems = [r for r in results.values() if isinstance(r, Problem)]
    return problems, {path: r for path, r in results.items() if isinstance(r, Header)}


def _in_threads(work: Callable[[Item], Result], items: Sequence[Item], bar: str | None = None) -> list[Result]:
    """The results in order: one by one under a bar, many at once without, where each takes next to no time."""
    at_once, threads = (AT_ONCE, PEEKING_THREADS) if bar is None else (1, THREADS)
    parts = [items[i : i + at_once] for i in range(0, len(items), at_once)]
    shown = tqdm(
        total=len(items), desc=bar, unit="file", disable=bar is None, dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )  # fmt: skip
    results: list[Result] = []
    with ThreadPoolExecutor(threads) as pool, shown:
        for part in pool.map(lambda part: [work(item) for item in part], parts):
            results += part
            shown.update(len(part))
    return results


def _glance(path: Path, is_mask: bool, reading: ReadOptions) -> Header:
    if path.is_dir():
        return _look_into(path, _glance, reading)
    header = read_header(path, reading)
    return _decode(path, is_mask, reading) if header.suspect or not USUAL.fullmatch(header.pixels) else header


def _decode(path: Path, is_mask: bool, reading: ReadOptions) -> Header:
    if path.is_dir():
        return _look_into(path, _decode, reading)
    header = read_header(path, reading)
    if is_mask:
        height, width = read_mask(path, reading).shape
    else:
        width, height = read_rgb(path, reading).size
    return replace(header, size=(width, height), suspect=False)


def _look_into(folder: Path, look: Look, reading: ReadOptions) -> Header:
    """The masks of one image, which lie in a folder."""
    headers = [look(path, True, reading) for path in list_images(folder)]
    if len({header.size for header in headers}) > 1:
        raise WorkError(f"cannot read image {folder}: the masks in it have different sizes")
    return headers[0]


# ------------------------------------------------------------------------------- kinds of problems


def _mask_sizes(samples: Sequence[Sample], headers: dict[Path, Header], reading: ReadOptions) -> list[Problem]:
    problems = []
    for sample in samples:
        image, mask = headers.get(sample.path), headers.get(sample.mask) if sample.mask else None
        if image and mask and image.size != mask.size:
            if lies_on_stored_pixels(sample.mask, mask.size[::-1], sample.path, reading):
                continue
            what = f"the mask has {_hxw(mask.size)} pixels (HxW), its image {sample.path} has {_hxw(image.size)}"
            problems.append(Problem(sample.mask, what, "mask_size"))
    return problems


def _same_stems(samples: Sequence[Sample]) -> list[Problem]:
    """Images of one folder that differ in their suffix alone, and masks beside which another would fit as well."""
    images = {s.path for s in samples}
    masks = {s.mask for s in samples if s.mask is not None}
    beside = {path for folder in {m.parent for m in masks} for path in list_images(folder)} - images
    problems = []
    for paths, wanted, what in ((images, images, "image"), (masks | beside, masks, "mask")):
        groups = defaultdict(list)
        for path in sorted(paths):
            groups[path.parent, path.stem].append(path)
        for first, *others in groups.values():
            if others and not wanted.isdisjoint((first, *others)):
                names = ", ".join(path.name for path in others)
                said = f"another {what} of the same name is beside it: {names}; which one counts is not clear"
                problems.append(Problem(first, said, "same_stem"))
    return problems


def _in_both(train: Sequence[Path], test: Sequence[Path]) -> list[Problem]:
    """Test images with the bytes of a training image."""
    same: dict[object, Path] = {}
    keys: dict[Path, object] = {}
    # each look is dearer than the one before and has fewer files left to look at
    for look in (os.path.getsize, _some_bytes, _all_bytes):
        paths = list(dict.fromkeys((*train, *test)))
        keys = dict(zip(paths, _in_threads(look, paths), strict=True))
        in_test = {keys[path] for path in test}
        same = {keys[path]: path for path in reversed(train) if keys[path] in in_test}
        train = [path for path in train if keys[path] in same]
        test = [path for path in test if keys[path] in same]
    problems = []
    for path in dict.fromkeys(test):
        twin = same[keys[path]]
        what = (
            "is in train and in test"
            if twin == path
            else f"the test image has the same bytes as the training image {twin}"
        )
        problems.append(Problem(path, what, "train_and_test"))
    return problems


def _some_bytes(path: Path) -> bytes:
    """Blocks from head to tail. Of pictures with one background those in the middle differ."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= BLOCKS * BLOCK:
            return file.read()
        blocks = []
        for i in range(BLOCKS):
            file.seek((size - BLOCK) * i // (BLOCKS - 1))
            blocks.append(file.read(BLOCK))
        return hashlib.sha256(b"".join(blocks)).digest()


def _all_bytes(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


# ------------------------------------------------------------------------------- a whole data set


class CheckReport(NamedTuple):
    """What `check_dataset` found."""

    rows: list[Sequence[str]]  # a table of the classes, its head first
    textures: str  # "" without texture files
    problems: list[Problem]
    notes: list[str]  # what is unusual but may be meant

    def lines(self) -> list[str]:
        """The report as text."""
        return [
            *_table(self.rows).splitlines(),
            *([self.textures] if self.textures else []),
            f"problems: {len(self.problems)}",
            *map(str, self.problems),
            *(f"note: {note}" for note in self.notes),
        ]


def check_dataset(
    name: str,
    data_path: str,
    aug_path: str | None = None,
    classes: Sequence[str] = (),
    bits: int | str = AUTO,
    max_pixels: int = MAX_PIXELS,
) -> CheckReport:
    """Read every image and mask of a data set, with progress bars on standard error.

    Args:
        name: of the layout, a key of `DATASETS`.
        data_path: its folder.
        aug_path: folder of texture images, or the word builtin; None checks none.
        classes: to check; all where none is named.
        bits: used in 16-bit files, or `auto`.
        max_pixels: an image with more is a problem.

    Raises:
        InputError: there is no such layout, folder or class.
    """
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}; possible: {', '.join(DATASETS)}")
    layout = DATASETS[name](data_path)
    chosen = layout.choose(classes)
    textures = list_textures(aug_path) if aug_path and aug_path != BUILTIN else []
    reading = ReadOptions(max_pixels=max_pixels)
    report = CheckReport([COLUMNS], f"textures: {len(textures)} files, problems: " if textures else "", [], [])
    for class_name in chosen:
        row, problems, notes = _check_class(layout, class_name, bits, reading)
        report.rows.append(row)
        report.problems.extend(problems)
        report.notes.extend(notes)
    if not textures:
        return report
    problems, notes = _check_textures(Path(aug_path), textures, reading)
    report.problems.extend(problems)
    report.notes.extend(notes)
    return report._replace(textures=f"{report.textures}{len(problems)}")


def _check_textures(folder: Path, textures: Sequence[Path], reading: ReadOptions) -> tuple[list[Problem], list[str]]:
    problems, headers = look_at_pictures(textures, "textures", reading)
    depth = find_depth(AUTO, textures, [], headers, reading)
    notes = [f"textures: {line}" for line in (*depth.lines, *depth.warnings)]
    if left := scan_folder(folder, recursive=True).describe():
        notes.append(f"textures: {left}")
    return problems, notes


def _check_class(
    layout: Layout, name: str, bits: int | str, reading: ReadOptions
) -> tuple[tuple[str, ...], list[Problem], list[str]]:
    """A row of the table, the problems, and what is strange but may be meant."""
    train, test, complaints = _samples(layout, name)
    problems, headers = full_check(name, train, test, reading)
    if len(complaints) == 2:  # what could not be listed need not be empty
        problems, complaints = [], list(dict.fromkeys(complaints))
    problems = complaints + problems + _check_foreground(layout, name, train, headers, reading)
    defective = [s for s in test if s.is_anomaly]
    images = [headers[path] for path in dict.fromkeys(s.path for s in (*train, *test)) if path in headers]
    channels = ", ".join(sorted({header.pixels for header in images}))
    masks = sum(s.mask is not None for s in defective)
    counts = (len(train), len(test) - len(defective), len(defective))
    masked = f"{masks}/{len(defective)}"
    row = (printable(name), *map(str, counts), _sizes(images), channels or "-", masked, str(len(problems)))
    bad = {problem.path for problem in problems}
    masked = [s for s in defective if s.mask and bad.isdisjoint((s.mask, s.path))]
    good = [s for s in (*train, *test) if not s.is_anomaly]
    notes = [] if complaints else _notes(layout, name, masked, reading) + _marks_on_good(good, reading)
    if left_out := describe_left_out(Geometry(), [header.size for header in images]):
        notes.append(f"{name}: unless told otherwise {left_out}")
    notes += _notes_of_files(layout, name, train, test, headers, bits, reading)
    named = [] if complaints else layout.annotations(name)  # by the notes of the layout
    if left := scan_folder(layout.root / name, recursive=True).describe(named):
        notes.append(f"{name}: {left}")
    return row, problems, notes


def _notes_of_files(
    layout: Layout, name: str, train: Sequence[Sample], test: Sequence[Sample], headers: Mapping[Path, Header],
    bits: int | str, reading: ReadOptions,
) -> list[str]:  # fmt: skip
    """What is to be known of the files of a class: their depth, and further pages."""
    own = {s.path: headers[s.path] for s in (*train, *test) if s.path in headers}
    # without a training, as of MAD-man, the test images are all there is to go by
    deciding = [s.path for s in train or test]
    depth = find_depth(bits, deciding, [s.path for s in test], own, reading)
    notes = [f"{name}: {line}" for line in (*depth.lines, *depth.warnings)]
    if pages := describe_pages(own):
        notes.append(f"{name}: {pages}")
    return notes


def describe_pages(headers: Mapping[Path, Header]) -> str:
    """Which files hold several pictures, "" where none does."""
    several = [path for path, header in headers.items() if header.pages > 1]
    if not several:
        return ""
    return (
        f"{len(several)} files have several pages, as {several[0]} ({headers[several[0]].pages}); the first one is read"
    )


def _notes(layout: Layout, name: str, masked: Sequence[Sample], reading: ReadOptions) -> list[str]:
    """What is strange about the masks of a class."""
    notes = [f"{path}: a mask that belongs to no image" for path in layout.unused_masks(name)]
    lossy = [s.mask for s in masked if s.mask.suffix.lower() in (".jpg", ".jpeg")]
    if lossy:
        notes.append(f"{lossy[0]}: a mask with loss (JPEG); all above 0 counts as defect, also what the loss adds")
    remarks: dict[str, list[Path]] = defaultdict(list)
    settings = ImageSettings().for_class(layout, name)

    def look(sample: Sample) -> tuple[list[str], bool]:
        marked, strange = examine(sample.mask, sample.path, reading)
        return strange, bool(marked.any() and not settings.transform_mask(marked).any())

    for sample, (strange, lost) in zip(masked, _in_threads(look, masked, f"{name}: masks"), strict=True):
        for kind in strange:
            if kind == EMPTY:
                notes.append(f"{sample.mask}: marks no pixel, though {sample.path} counts as defective")
            elif kind != LEVELS or sample.mask not in lossy:
                remarks[kind].append(sample.mask)
        if lost:
            remarks[LOST].append(sample.mask)
    return notes + [f"{name}: a mask {line}" for line in describe_masks(remarks)] + layout.notes(name)


def _marks_on_good(good: Sequence[Sample], reading: ReadOptions) -> list[str]:
    """Good images with a mask beside them that marks something."""
    notes = []
    for folder in dict.fromkeys(sample.path.parent for sample in good):
        for mask in split_masks(list_images(folder))[1].values():
            try:
                marked = read_mask(mask, reading).any()
            except WorkError as error:
                notes.append(str(error))
            else:
                notes += [f"{mask}: marks pixels, though its image counts as good"] * bool(marked)
    return notes


def _check_foreground(
    layout: Layout, name: str, train: Sequence[Sample], headers: Mapping[Path, Header], reading: ReadOptions
) -> list[Problem]:
    try:
        masks = layout.foreground(name, train)
    except InputError as error:
        return [Problem(layout.root / "fg_mask" / name, str(error), "layout")]
    sizes = {path: header.size for path, header in headers.items()}
    return check_foreground(masks, train, sizes, name, reading=reading) if masks else []


def _samples(layout: Layout, name: str) -> tuple[list[Sample], list[Sample], list[Problem]]:
    """Training and test samples of a class, and what the layout complains of."""
    folder, complaints = layout.root / name, []
    parts: list[list[Sample]] = []
    for part in (layout.test, layout.train):
        try:
            parts.append(part(name))
        except InputError as error:
            parts.append([])
            complaints.append(Problem(folder, str(error), "layout"))
    test, train = parts
    only_test = (folder / "test").is_dir() and not (folder / "train").is_dir()  # as in MAD-man, to be tested only
    return train, test, [] if test and only_test else complaints


def _sizes(headers: Sequence[Header]) -> str:
    """One size, or from the least to the largest of each side."""
    if not headers:
        return "-"
    widths, heights = zip(*(header.size for header in headers), strict=True)
    least, most = _hxw((min(widths), min(heights))), _hxw((max(widths), max(heights)))
    return least if least == most else f"{least}–{most}"


def _hxw(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
