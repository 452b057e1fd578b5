"""The report of `python main.py check`: a table of the classes, what is wrong with them, and what is unusual."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import DATASETS
from datasets.base import Layout, Sample
from datasets.check import Problem, describe_pages, full_check, in_threads, look_at_pictures, show_hxw
from datasets.depth import find_depth
from datasets.files import ReadOptions
from datasets.foreground_check import check_foreground
from datasets.geometry import Geometry, describe_left_out
from datasets.headers import Header
from datasets.limits import AUTO, MAX_PIXELS
from datasets.listing import list_images, scan_folder
from datasets.masks import EMPTY, LEVELS, LOST, describe_masks, examine, read_mask, split_masks
from datasets.settings import ImageSettings
from datasets.textures import BUILTIN, list_textures
from utils import InputError, WorkError, printable

COLUMNS = ("class", "train", "test good", "test defective", "size (HxW)", "channels", "masks", "problems")


class CheckReport(NamedTuple):
    """The result of `check_dataset`."""

    rows: list[Sequence[str]]  # the table of the classes, its header first
    textures: str  # a line about the textures, "" without texture files
    problems: list[Problem]
    notes: list[str]  # what is unusual, but may be intended

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
    """The problems and notes of a folder of textures."""
    problems, headers = look_at_pictures(textures, "textures", reading)
    depth = find_depth(AUTO, textures, [], headers, reading)
    notes = [f"textures: {line}" for line in (*depth.lines, *depth.warnings)]
    if not_taken := scan_folder(folder, recursive=True).describe():
        notes.append(f"textures: {not_taken}")
    return problems, notes


def _check_class(
    layout: Layout, name: str, bits: int | str, reading: ReadOptions
) -> tuple[tuple[str, ...], list[Problem], list[str]]:
    """The row of a class in the table, its problems, and notes."""
    train, test, complaints = _samples(layout, name)
    problems, headers = full_check(name, train, test, reading)
    if len(complaints) == 2:  # neither part could be listed: then the class is not necessarily empty
        problems, complaints = [], list(dict.fromkeys(complaints))
    problems = complaints + problems + _check_foreground(layout, name, train, headers, reading)
    images = [headers[path] for path in dict.fromkeys(s.path for s in (*train, *test)) if path in headers]
    row = _row(name, train, test, images, len(problems))
    bad = {problem.path for problem in problems}
    masked = [s for s in test if s.is_anomaly and s.mask and bad.isdisjoint((s.mask, s.path))]
    good = [s for s in (*train, *test) if not s.is_anomaly]
    notes = [] if complaints else _notes_on_masks(layout, name, masked, reading) + _marks_on_good(good, reading)
    if left_out := describe_left_out(Geometry(), [header.size for header in images]):
        notes.append(f"{name}: unless told otherwise {left_out}")
    notes += _notes_on_files(name, train, test, headers, bits, reading)
    reported = [] if complaints else layout.annotations(name)  # by the notes of the layout
    if not_taken := scan_folder(layout.root / name, recursive=True).describe(reported):
        notes.append(f"{name}: {not_taken}")
    return row, problems, notes


def _row(
    name: str, train: Sequence[Sample], test: Sequence[Sample], images: Sequence[Header], problems: int
) -> tuple[str, ...]:
    """The row of a class, given the headers of its readable images and the number of its problems."""
    defective = [sample for sample in test if sample.is_anomaly]
    masks = sum(sample.mask is not None for sample in defective)
    channels = ", ".join(sorted({header.pixels for header in images}))
    counts = (len(train), len(test) - len(defective), len(defective))
    return (
        printable(name),
        *map(str, counts),
        _sizes(images),
        channels or "-",
        f"{masks}/{len(defective)}",
        str(problems),
    )


def _notes_on_files(
    name: str, train: Sequence[Sample], test: Sequence[Sample], headers: Mapping[Path, Header], bits: int | str,
    reading: ReadOptions,
) -> list[str]:  # fmt: skip
    """What is worth knowing about the image files of a class: their bit depth, and further pages."""
    readable = {s.path: headers[s.path] for s in (*train, *test) if s.path in headers}
    # without a training set, as in MAD-man, there are only the test images to decide by
    deciding = [s.path for s in train or test]
    depth = find_depth(bits, deciding, [s.path for s in test], readable, reading)
    notes = [f"{name}: {line}" for line in (*depth.lines, *depth.warnings)]
    if pages := describe_pages(readable):
        notes.append(f"{name}: {pages}")
    return notes


def _notes_on_masks(layout: Layout, name: str, masked: Sequence[Sample], reading: ReadOptions) -> list[str]:
    """What is suspicious about the masks of a class."""
    notes = [f"{path}: a mask that belongs to no image" for path in layout.unused_masks(name)]
    lossy = [s.mask for s in masked if s.mask.suffix.lower() in (".jpg", ".jpeg")]
    if lossy:
        notes.append(f"{lossy[0]}: a lossy mask (JPEG); all above 0 counts as defect, including what the loss adds")
    remarks: dict[str, list[Path]] = defaultdict(list)
    settings = ImageSettings().for_class(layout, name)

    def look(sample: Sample) -> tuple[list[str], bool]:
        marked, suspicious = examine(sample.mask, sample.path, reading)
        return suspicious, bool(marked.any() and not settings.transform_mask(marked).any())

    for sample, (suspicious, lost) in zip(masked, in_threads(look, masked, f"{name}: masks"), strict=True):
        for kind in suspicious:
            if kind == EMPTY:
                notes.append(f"{sample.mask}: marks no pixel, though {sample.path} counts as defective")
            elif kind != LEVELS or sample.mask not in lossy:
                remarks[kind].append(sample.mask)
        if lost:
            remarks[LOST].append(sample.mask)
    return notes + [f"{name}: a mask {line}" for line in describe_masks(remarks)] + layout.notes(name)


def _marks_on_good(good: Sequence[Sample], reading: ReadOptions) -> list[str]:
    """Good images with a mask beside them that marks pixels."""
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
    """The training and test samples of a class, and the errors that the layout raises."""
    folder, complaints = layout.root / name, []
    parts: list[list[Sample]] = []
    for part in (layout.test, layout.train):
        try:
            parts.append(part(name))
        except InputError as error:
            parts.append([])
            complaints.append(Problem(folder, str(error), "layout"))
    test, train = parts
    test_only = (folder / "test").is_dir() and not (folder / "train").is_dir()  # as in MAD-man
    return train, test, [] if test and test_only else complaints


def _sizes(headers: Sequence[Header]) -> str:
    """The size of all images, or the least and the largest of each side."""
    if not headers:
        return "-"
    widths, heights = zip(*(header.size for header in headers), strict=True)
    least, largest = show_hxw((min(widths), min(heights))), show_hxw((max(widths), max(heights)))
    return least if least == largest else f"{least}–{largest}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
