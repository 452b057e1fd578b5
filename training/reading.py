"""Everything a run reads, read before it begins: what is damaged is found, and what there is room for is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from datasets import TrainDataset
from datasets.cache import GB, ImageCache, describe_budget
from datasets.check import Problem, check_defects, describe_pages, look_at_pictures, quick_look
from datasets.defects import refuse_test_images
from datasets.depth import find_depth, is_deep, log_depth
from datasets.files import Header, ReadOptions
from datasets.foreground_check import check_foreground
from datasets.geometry import describe_left_out
from datasets.limits import AUTO, FULL_BITS
from datasets.listing import scan_folder
from datasets.masks import describe_masks
from datasets.preloading import Readable, TextureReading, plan_images, plan_textures, read_all
from datasets.textures import FileTextures
from datasets.tiles import TiledTestDataset, describe, refuse_small
from inference import checkpoint
from training import distribution
from training.job import ClassData, KeptTextures, Run
from utils import LOGGER, InputError, WorkError, write_text

# drawn so often that reading each beforehand costs less than reading it when it is first drawn
WORTH_READING = 2


def glance(this: Run, data: ClassData) -> ClassData:
    """Look at the headers of all files of a class; the class without what --skip_bad leaves out.

    Raises:
        WorkError: what would stop the work or spoil its figures.
    """
    _forget_skipped(this, data.row)
    problems, headers = quick_look(data.name, data.train, data.test, data.settings.reading)
    sizes = {path: header.size for path, header in headers.items()}
    for problem in (p for p in problems if p.kind == "train_and_test"):
        LOGGER.warning("%s: %s: the figures will be too good", data.row, problem)
    problems = [p for p in problems if p.kind != "train_and_test"]
    for note in this.layout.notes(data.name):
        LOGGER.warning("%s: %s", data.row, note)
    stop_or_skip(this, f"class {data.row}", problems)
    data = _not_empty(this, replace(data.without(problems), image_sizes=sizes))
    data = _with_depth(this, data, headers)
    if pages := describe_pages(headers):
        LOGGER.warning("%s: %s", data.row, pages)
    named = this.layout.annotations(data.name)  # by the notes of the layout
    if left := scan_folder(this.layout.root / data.name, recursive=True).describe(named):
        LOGGER.info("%s: %s", data.row, left)
    if data.tiling is not None:
        refuse_small(data.train, data.tiling, sizes)
        tiles = len(data.seen(data.train or data.test))
        LOGGER.info("%s: %s", data.row, describe(data.tiling, len(data.train or data.test), tiles))
    elif left_out := describe_left_out(data.settings, sizes.values()):
        LOGGER.warning("%s: %s", data.row, left_out)
    return data


def _with_depth(this: Run, data: ClassData, headers: Mapping[Path, Header]) -> ClassData:
    """The class with the depth of its images: given, as its training was begun with, or found.

    Raises:
        InputError: another one is given than that of the class's model.
    """
    given = this.dataset.get("bits", FULL_BITS)
    if not any(is_deep(header) for header in headers.values()):
        return data
    before = _bits_begun_with(this, data.row)
    if before is not None and given == AUTO:
        given = before
        LOGGER.info("%s: %d bits of 16-bit files are in use, as the model was trained", data.row, before)
    elif before not in (None, given):
        raise InputError(
            f"--bits {given}: class {data.name} was trained with {before}; leave the option out, or give another "
            "--results_path"
        )
    deciding, test = ([sample.path for sample in part] for part in (data.train or data.test, data.test))
    depth = find_depth(given, deciding, test, headers, data.settings.reading)
    log_depth(data.row, depth)
    return replace(data, settings=replace(data.settings, bits=depth.bits))


def _bits_begun_with(this: Run, row: str) -> int | None:
    """The depth of a class's checkpoints; of those made before there was a choice, 16. None without any."""
    for index in range(len(this.nets)):
        folder = this.models / f"backbone_{index}" / row
        for training in (True, False):
            try:
                config = checkpoint.config_of(folder, training)
            except WorkError:  # a damaged one is spoken of where it is to be gone on with
                continue
            if config is not None:
                return int(config.get("bits", FULL_BITS))
    return None


def glance_at_textures(this: Run) -> None:
    """Look at the headers of all textures; those that cannot be read are left out with --skip_bad."""
    _forget_skipped(this, "textures")
    _forget_skipped(this, "defects")
    if isinstance(this.textures, FileTextures):
        problems, headers = look_at_pictures(this.textures.paths, None, this.textures.reading)
        _leave_out_textures(this, problems)
        depth = find_depth(AUTO, this.textures.paths, [], headers, this.textures.reading)
        log_depth("textures", depth)
        this.textures = FileTextures(this.textures.paths, replace(this.textures.reading, bits=depth.bits))


def read_everything(this: Run, classes: Sequence[ClassData]) -> tuple[list[ClassData], ImageCache]:
    """Read every file that the run will need once.

    Returns:
        The classes without what --skip_bad leaves out, and what is kept of the first one's images.

    Raises:
        InputError: a known defect is shown by a test image.
        WorkError: a file is damaged, or a foreground mask does not fit.
    """
    trains = [this.trains(data) for data in classes]
    if any(trains):
        _read_textures(this, [data for data, one in zip(classes, trains, strict=True) if one])
        _read_defects(this)
    first = plan_cache(this, classes[0])
    kept = []
    for data, one in zip(classes, trains, strict=True):
        data = _read_class(this, data, one, first if data is classes[0] else ImageCache(0))
        if one:
            _check_foreground(this, data)
            refuse_test_images(this.defects_of(data.name), data.test, data.settings.reading)
        kept.append(data)
    return kept, first


def plan_cache(this: Run, data: ClassData) -> ImageCache:
    """Room for what is read of a class. The one of the class before it must be gone by then."""
    textures = _kept_textures(this, data) if this.trains(data) else None
    beneath = None if textures is None else textures.cache
    cache = ImageCache(this.budget - (0 if beneath is None else beneath.used), beneath)
    line = _plan_images(this, cache, data, textures is not None)
    used = cache.used
    if textures is not None:
        line += f", {textures.count} of {len(this.textures)} textures"
        used += textures.cache.used
    budget = describe_budget(this.dataset["cache_gb"], this.budget)
    if line:
        LOGGER.info("%s: keeping %s (%.2f GB; %s)", data.row, line, used / GB, budget)
    cache.allocate()
    return cache


def stop_or_skip(this: Run, what: str, problems: Sequence[Problem], may_skip: bool = True) -> None:
    """Stop at problems, but for unreadable files with --skip_bad, which are listed."""
    skip_bad = may_skip and this.dataset["skip_bad"]
    bad = [p for p in problems if p.kind == "unreadable"]
    stops = [p for p in problems if not (p.kind == "unreadable" and skip_bad)]
    if stops:
        more = f" (and {len(stops) - 1} more; python main.py check lists all)" if len(stops) > 1 else ""
        hint = "; --skip_bad leaves unreadable images out" if may_skip and bad and len(bad) == len(stops) else ""
        raise WorkError(f"{what}: {stops[0]}{more}{hint}")
    if bad:
        listed = this.results / "skipped" / f"{what.removeprefix('class ')}.txt"
        before = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.exists() else []
        lines = list(dict.fromkeys([*before, *(click.format_filename(str(problem)) for problem in bad)]))
        write_text(listed, "".join(f"{line}\n" for line in lines))
        LOGGER.warning("%s: %d unreadable files left out, listed in %s", what, len(bad), listed)


def _forget_skipped(this: Run, what: str) -> None:
    """Take away an earlier run's list of what was left out."""
    if this.training:
        (this.results / "skipped" / f"{what}.txt").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------ classes


def _plan_images(this: Run, cache: ImageCache, data: ClassData, trains: bool) -> str:
    train = data.seen(data.train) if trains else []
    tested = data.test_set(cache)
    line = plan_images(cache, data.settings, train, this.dataset["fg"] > 0, tested.samples, data.image_sizes)
    if isinstance(tested, TiledTestDataset):
        whole = tested.whole
        plan_images(cache, whole.settings, [], False, whole.samples, data.image_sizes)
        line = line.replace("images", "tiles")
    return line


def _read_class(this: Run, data: ClassData, trains: bool, cache: ImageCache) -> ClassData:
    train, tested = data.seen(data.train) if trains else [], data.test_set(cache)
    sets: list[Readable] = [tested]
    if isinstance(tested, TiledTestDataset):
        sets.append(tested.whole)
    if trains:
        sets.insert(0, TrainDataset(train, data.settings, this.textures, (1, 1), cache=cache))
    samples, problems, strange = [sample for one in sets for sample in one.samples], {}, {}
    for index, error in read_all(sets, this.dataset["num_workers"], data.row, strange).items():
        path = samples[index].path
        problems[path] = Problem(path, error.removeprefix(f"cannot read image {path}: "), "unreadable")
    problems = list(problems.values())
    _say_of_masks(data, {samples[index].mask: remarks for index, remarks in strange.items()})
    stop_or_skip(this, f"class {data.row}", problems)
    return _not_empty(this, data.without(problems))


def _say_of_masks(data: ClassData, strange: Mapping[Path, Sequence[str]]) -> None:
    """What is strange about the masks of the test images."""
    by_kind: dict[str, list[Path]] = {}
    for path, remarks in sorted(strange.items()):
        for remark in remarks:
            by_kind.setdefault(remark, []).append(path)
    for line in describe_masks(by_kind):
        LOGGER.warning("%s: a mask %s", data.row, line)


def _not_empty(this: Run, data: ClassData) -> ClassData:
    if this.training and not data.train:
        raise WorkError(f"class {data.name}: no training image is left")
    if not this.training and not data.test:
        raise WorkError(f"class {data.name}: no test image is left")
    return data


def _check_foreground(this: Run, data: ClassData) -> None:
    """The user's foreground masks, where they will be used."""
    flags = distribution.read_flags(this.dataset["name"], data.row)
    masks = this.layout.foreground(data.name, data.train)
    if masks and distribution.wants_foreground(this.dataset["fg"], flags):
        tiled, settings = data.tiling is not None, data.settings
        problems = check_foreground(
            masks, data.train, data.image_sizes, data.row, settings, tiled, reading=settings.reading
        )
        stop_or_skip(this, f"class {data.row}", problems, may_skip=False)


# ----------------------------------------------------------------------------- textures and defects


def _kept_textures(this: Run, data: ClassData) -> KeptTextures:
    """What is kept of the textures at the size of a class."""
    resize = data.settings.resize
    if this.kept_textures is None or this.kept_textures.resize != resize:
        this.kept_textures = None  # its memory is needed for the new one
        cache = ImageCache(this.texture_room)
        count = plan_textures(cache, data.settings, this.textures)
        cache.allocate()
        this.kept_textures = KeptTextures(resize, cache, count)
    return this.kept_textures


def _read_textures(this: Run, unfinished: Sequence[ClassData]) -> None:
    """Files all, as one may be damaged; built-in ones where they are drawn so often that it pays."""
    room = []
    for data in unfinished:
        images = ImageCache(this.budget)
        _plan_images(this, images, data, True)
        room.append(this.budget - images.used)
    this.texture_room = min(room)  # the images of the largest class come first
    kept = _kept_textures(this, unfinished[0])
    draws = sum(min(len(data.train), this.net["limit"]) for data in unfinished) * this.net["meta_epochs"]
    if isinstance(this.textures, FileTextures):
        count = len(this.textures)
    else:
        count = kept.count if draws >= WORTH_READING * len(this.textures) else 0
    train = TrainDataset([], unfinished[0].settings, this.textures, (1, 1), cache=kept.cache)
    errors = read_all([TextureReading(train, count)], this.dataset["num_workers"], "textures") if count else {}
    problems = []
    for index, error in errors.items():
        path = Path(this.textures.name(index))
        problems.append(Problem(path, error.removeprefix(f"cannot read image {path}: "), "unreadable"))
    _leave_out_textures(this, problems)


def _leave_out_textures(this: Run, problems: Sequence[Problem]) -> None:
    stop_or_skip(this, "textures", problems)
    if problems:
        bad = {problem.path for problem in problems}
        kept = [path for path in this.textures.paths if path not in bad]
        if not kept:
            raise WorkError(f"AUG_PATH {this.dataset['aug_path']}: no texture is left")
        this.textures = FileTextures(kept, this.textures.reading)


def _read_defects(this: Run) -> None:
    """Known defects: readable, with masks that fit."""
    if not this.defects:
        return
    problems = check_defects(this.defects, ReadOptions(max_pixels=this.dataset["max_pixels"]))
    stop_or_skip(this, "defects", problems)
    bad = {problem.path for problem in problems}
    kept = [pair for pair in this.defects if bad.isdisjoint(pair)]
    if not kept:
        raise InputError(f"--defects {this.dataset['defects']}: no picture is left")
    this.defects = kept
