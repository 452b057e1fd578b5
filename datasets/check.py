"""Finding what is wrong with the files of a class: quickly before a training, or by decoding all of them."""

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
from typing import Literal, TypeVar

from datasets.base import Sample
from datasets.defects import Pair
from datasets.files import DEFAULT, ReadOptions, read_header, read_rgb
from datasets.headers import Header
from datasets.listing import list_images
from datasets.masks import lies_on_stored_pixels, read_mask
from utils import WorkError, cores, progress_bar, refuse_former_command

Kind = Literal["unreadable", "mask_size", "empty", "same_stem", "train_and_test", "layout"]
Item, Result = TypeVar("Item"), TypeVar("Result")

# other kinds of pixels are decoded even by the quick check, since their header does not tell whether they can be
USUAL_PIXELS = re.compile("palette|[1-4]×(1|8|16) bit")
# a core each for decoding. Headers of local files need no threads at all, those on a network file system some
DECODING_THREADS, HEADER_THREADS = min(16, cores()), 4
AT_ONCE = 16  # files that a thread takes at a time, where a file takes next to no time
BLOCKS, BLOCK = 8, 2048  # of a file that are compared first; bytes


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file, or with a class.

    Attributes:
        path: the file; for a class, its name or folder.
        what: the problem, as the end of a sentence about the path.
        kind: `unreadable`: the file cannot be opened, is cut off, or not an image; `mask_size`: the mask has another
            size than its image; `empty`: the class has no images, or the foreground no pixels; `same_stem`: two files
            of a folder differ in their suffix only; `train_and_test`: the test image has the same bytes as a training
            image; `layout`: an error raised by the layout.
    """

    path: Path
    what: str
    kind: Kind

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def quick_check(
    name: str, train: Sequence[Sample], test: Sequence[Sample], reading: ReadOptions = DEFAULT
) -> tuple[list[Problem], dict[Path, tuple[int, int]]]:
    """What is wrong with a class, by headers and the ends of files; only files that seem to be cut off are decoded.

    Args:
        name: of the class, for messages.
        train, test: its samples.
        reading: how images are read.

    Returns:
        The problems, and (width, height) in pixels, upright, of each readable image.
    """
    problems, headers = quick_look(name, train, test, reading)
    return problems, {path: header.size for path, header in headers.items()}


def quick_look(
    name: str, train: Sequence[Sample], test: Sequence[Sample], reading: ReadOptions = DEFAULT
) -> tuple[list[Problem], dict[Path, Header]]:
    """As `quick_check`, but with the whole header of each readable image."""
    problems, headers = _check(name, train, test, _look_at_header, None, reading)
    return problems, {s.path: headers[s.path] for s in (*train, *test) if s.path in headers}


def full_check(
    name: str, train: Sequence[Sample], test: Sequence[Sample], reading: ReadOptions = DEFAULT
) -> tuple[list[Problem], dict[Path, Header]]:
    """As `quick_check`, but all files are decoded, under a progress bar on standard error.

    Returns:
        The problems, and the header of each readable image and mask.
    """
    return _check(name, train, test, _decode, name, reading)


def check_pictures(paths: Sequence[Path], full: str | None = None, reading: ReadOptions = DEFAULT) -> list[Problem]:
    """The unreadable ones among images: by headers and file ends, or by all pixels, under a bar named `full`."""
    return look_at_pictures(paths, full, reading)[0]


def look_at_pictures(
    paths: Sequence[Path], full: str | None = None, reading: ReadOptions = DEFAULT
) -> tuple[list[Problem], dict[Path, Header]]:
    """As `check_pictures`, with the headers of those that can be read."""
    return _look_at(dict.fromkeys(paths, False), _look_at_header if full is None else _decode, full, reading)


def check_defects(pairs: Sequence[Pair], reading: ReadOptions = DEFAULT) -> list[Problem]:
    """What is wrong with known defects and their masks, read in full: unreadable, or a mask of another size."""
    files = {picture: False for picture, _ in pairs} | {mask: True for _, mask in pairs if mask is not None}
    problems, headers = _look_at(files, _decode, "known defects", reading)
    return problems + _mask_sizes([Sample(picture, "defect", mask) for picture, mask in pairs], headers, reading)


def reason_without_path(error: WorkError, path: Path) -> str:
    """The message of an error in reading an image, without the path that a `Problem` states anyway."""
    return str(error).removeprefix(f"cannot read image {path}: ")


def drop_bad(samples: Iterable[Sample], problems: Iterable[Problem]) -> list[Sample]:
    """The samples without those whose image or mask is unreadable; other problems do not exclude a sample."""
    unreadable = {problem.path for problem in problems if problem.kind == "unreadable"}
    return [s for s in samples if s.path not in unreadable and s.mask not in unreadable]


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
    """The unreadable files, and the headers of the others. `files` maps a path to whether it is a mask."""

    def try_one(path: Path) -> Header | Problem:
        try:
            return look(path, files[path], reading)
        except WorkError as error:
            return Problem(path, f"cannot be read: {reason_without_path(error, path)}", "unreadable")

    results = dict(zip(files, in_threads(try_one, list(files), bar), strict=True))
    problems = [r for r in results.values() if isinstance(r, Problem)]
    return problems, {path: r for path, r in results.items() if isinstance(r, Header)}


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], bar: str | None = None) -> list[Result]:
    """The results of `work` for each item, in order.

    Args:
        work: called from several threads.
        items: its arguments.
        bar: description of the progress bar. Without one, each call is assumed to take next to no time, and threads
            take many items at once.
    """
    at_once, threads = (AT_ONCE, HEADER_THREADS) if bar is None else (1, DECODING_THREADS)
    parts = [items[i : i + at_once] for i in range(0, len(items), at_once)]
    progress = progress_bar(len(items), "file", bar or "", disable=bar is None)
    results: list[Result] = []
    with ThreadPoolExecutor(threads) as pool, progress:
        for part in pool.map(lambda part: [work(item) for item in part], parts):
            results += part
            progress.update(len(part))
    return results


def _look_at_header(path: Path, is_mask: bool, reading: ReadOptions) -> Header:
    if path.is_dir():
        return _look_into(path, _look_at_header, reading)
    header = read_header(path, reading)
    return _decode(path, is_mask, reading) if header.suspect or not USUAL_PIXELS.fullmatch(header.pixels) else header


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
    """The header of several masks of one image, which lie in a folder."""
    headers = [look(path, True, reading) for path in list_images(folder)]
    if len({header.size for header in headers}) > 1:
        raise WorkError(f"cannot read image {folder}: the masks in it have different sizes")
    return headers[0]


# --------------------------------------------------------------------------------- kinds of problems


def _mask_sizes(samples: Sequence[Sample], headers: dict[Path, Header], reading: ReadOptions) -> list[Problem]:
    problems = []
    for sample in samples:
        image, mask = headers.get(sample.path), headers.get(sample.mask) if sample.mask else None
        if image and mask and image.size != mask.size:
            if lies_on_stored_pixels(sample.mask, mask.size[::-1], sample.path, reading):
                continue
            what = (
                f"the mask has {show_hxw(mask.size)} pixels (HxW), its image {sample.path} has {show_hxw(image.size)}"
            )
            problems.append(Problem(sample.mask, what, "mask_size"))
    return problems


def _same_stems(samples: Sequence[Sample]) -> list[Problem]:
    """Images in one folder that differ in their suffix only, and masks beside which another one would fit as well."""
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
                ambiguity = f"another {what} of the same name is beside it: {names}; which one counts is not clear"
                problems.append(Problem(first, ambiguity, "same_stem"))
    return problems


def _in_both(train: Sequence[Path], test: Sequence[Path]) -> list[Problem]:
    """Test images that have the same bytes as a training image."""
    same: dict[object, Path] = {}
    keys: dict[Path, object] = {}
    # each comparison is more expensive than the one before, and has fewer files left to compare
    for key_of in (os.path.getsize, _some_bytes, _all_bytes):
        paths = list(dict.fromkeys((*train, *test)))
        keys = dict(zip(paths, in_threads(key_of, paths), strict=True))
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
    """A digest of blocks from head to tail, because images with the same background differ in the middle only."""
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


def describe_pages(headers: Mapping[Path, Header]) -> str:
    """One line about files that contain several images; "" if there are none."""
    several = [path for path, header in headers.items() if header.pages > 1]
    if not several:
        return ""
    first = several[0]
    return f"{len(several)} files have several pages, such as {first} ({headers[first].pages}); the first one is read"


def show_hxw(size: tuple[int, int]) -> str:
    """A (width, height) as HxW."""
    return f"{size[1]}x{size[0]}"


if (
    __name__ == "__main__"
):  # it was a command once; a script that still calls it must not go on
    sys.exit(refuse_former_command("check"))
