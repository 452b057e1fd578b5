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
from datasets.files import ReadOptions
from datasets.foreground_check import check_foreground
from datasets.geometry import describe_left_out
from datasets.headers import Header
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


class Reader:
    """Reads what a run needs, class by class, and stops at what is damaged."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def glance(self, data: ClassData) -> ClassData:
        """Look at the headers of all files of a class; the class without what --skip_bad leaves out.

        Raises:
            WorkError: what would stop the work or spoil its figures.
        """
        self._forget_skipped(data.row)
        problems, headers = quick_look(data.name, data.train, data.test, data.settings.reading)
        sizes = {path: header.size for path, header in headers.items()}
        for problem in (p for p in problems if p.kind == "train_and_test"):
            LOGGER.warning("%s: %s: the figures will be too good", data.row, problem)
        problems = [p for p in problems if p.kind != "train_and_test"]
        for note in self.run.layout.notes(data.name):
            LOGGER.warning("%s: %s", data.row, note)
        self.stop_or_skip(f"class {data.row}", problems)
        data = self._not_empty(replace(data.without(problems), image_sizes=sizes))
        data = self._with_depth(data, headers)
        if pages := describe_pages(headers):
            LOGGER.warning("%s: %s", data.row, pages)
        named = self.run.layout.annotations(data.name)  # by the notes of the layout
        if left := scan_folder(self.run.layout.root / data.name, recursive=True).describe(named):
            LOGGER.info("%s: %s", data.row, left)
        if data.tiling is not None:
            refuse_small(data.train, data.tiling, sizes)
            tiles = len(data.seen(data.train or data.test))
            LOGGER.info("%s: %s", data.row, describe(data.tiling, len(data.train or data.test), tiles))
        elif left_out := describe_left_out(data.settings, sizes.values()):
            LOGGER.warning("%s: %s", data.row, left_out)
        return data

    def _with_depth(self, data: ClassData, headers: Mapping[Path, Header]) -> ClassData:
        """The class with the depth of its images: given, as its training was begun with, or found.

        Raises:
            InputError: another one is given than that of the class's model.
        """
        given = self.run.dataset.get("bits", FULL_BITS)
        if not any(is_deep(header) for header in headers.values()):
            return data
        before = self._bits_begun_with(data.row)
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

    def _bits_begun_with(self, row: str) -> int | None:
        """The depth of a class's checkpoints; of those made before there was a choice, 16. None without any."""
        for index in range(len(self.run.nets)):
            folder = self.run.folder(index) / row
            for training in (True, False):
                try:
                    config = checkpoint.config_of(folder, training)
                except WorkError:  # a damaged one is spoken of where it is to be gone on with
                    continue
                if config is not None:
                    return int(config.get("bits", FULL_BITS))
        return None

    def glance_at_textures(self) -> None:
        """Look at the headers of all textures; those that cannot be read are left out with --skip_bad."""
        self._forget_skipped("textures")
        self._forget_skipped("defects")
        if isinstance(self.run.textures, FileTextures):
            problems, headers = look_at_pictures(self.run.textures.paths, None, self.run.textures.reading)
            self._leave_out_textures(problems)
            depth = find_depth(AUTO, self.run.textures.paths, [], headers, self.run.textures.reading)
            log_depth("textures", depth)
            self.run.textures = FileTextures(
                self.run.textures.paths, replace(self.run.textures.reading, bits=depth.bits)
            )

    def read_everything(self, classes: Sequence[ClassData]) -> tuple[list[ClassData], ImageCache]:
        """Read every file that the run will need once.

        Returns:
            The classes without what --skip_bad leaves out, and what is kept of the first one's images.

        Raises:
            InputError: a known defect is shown by a test image.
            WorkError: a file is damaged, or a foreground mask does not fit.
        """
        trains = [self.run.trains(data) for data in classes]
        if any(trains):
            self._read_textures([data for data, one in zip(classes, trains, strict=True) if one])
            self._read_defects()
        first = self.plan_cache(classes[0])
        kept = []
        for data, one in zip(classes, trains, strict=True):
            data = self._read_class(data, one, first if data is classes[0] else ImageCache(0))
            if one:
                self._check_foreground(data)
                refuse_test_images(self.run.defects_of(data.name), data.test, data.settings.reading)
            kept.append(data)
        return kept, first

    def plan_cache(self, data: ClassData) -> ImageCache:
        """Room for what is read of a class. The one of the class before it must be gone by then."""
        textures = self._kept_textures(data) if self.run.trains(data) else None
        beneath = None if textures is None else textures.cache
        cache = ImageCache(self.run.budget - (0 if beneath is None else beneath.used), beneath)
        line = self._plan_images(cache, data, textures is not None)
        used = cache.used
        if textures is not None:
            line += f", {textures.count} of {len(self.run.textures)} textures"
            used += textures.cache.used
        budget = describe_budget(self.run.dataset["cache_gb"], self.run.budget)
        if line:
            LOGGER.info("%s: keeping %s (%.2f GB; %s)", data.row, line, used / GB, budget)
        cache.allocate()
        return cache

    def stop_or_skip(self, what: str, problems: Sequence[Problem], may_skip: bool = True) -> None:
        """Stop at problems, but for unreadable files with --skip_bad, which are listed."""
        skip_bad = may_skip and self.run.dataset["skip_bad"]
        bad = [p for p in problems if p.kind == "unreadable"]
        stops = [p for p in problems if not (p.kind == "unreadable" and skip_bad)]
        if stops:
            more = f" (and {len(stops) - 1} more; python main.py check lists all)" if len(stops) > 1 else ""
            hint = "; --skip_bad leaves unreadable images out" if may_skip and bad and len(bad) == len(stops) else ""
            raise WorkError(f"{what}: {stops[0]}{more}{hint}")
        if bad:
            listed = self.run.results / "skipped" / f"{what.removeprefix('class ')}.txt"
            before = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.exists() else []
            lines = list(dict.fromkeys([*before, *(click.format_filename(str(problem)) for problem in bad)]))
            write_text(listed, "".join(f"{line}\n" for line in lines))
            LOGGER.warning("%s: %d unreadable files left out, listed in %s", what, len(bad), listed)

    def _forget_skipped(self, what: str) -> None:
        """Take away an earlier run's list of what was left out."""
        if self.run.training:
            (self.run.results / "skipped" / f"{what}.txt").unlink(missing_ok=True)

    def _plan_images(self, cache: ImageCache, data: ClassData, trains: bool) -> str:
        train = data.seen(data.train) if trains else []
        tested = data.test_set(cache)
        line = plan_images(cache, data.settings, train, self.run.dataset["fg"] > 0, tested.samples, data.image_sizes)
        if isinstance(tested, TiledTestDataset):
            whole = tested.whole
            plan_images(cache, whole.settings, [], False, whole.samples, data.image_sizes)
            line = line.replace("images", "tiles")
        return line

    def _read_class(self, data: ClassData, trains: bool, cache: ImageCache) -> ClassData:
        train, tested = data.seen(data.train) if trains else [], data.test_set(cache)
        sets: list[Readable] = [tested]
        if isinstance(tested, TiledTestDataset):
            sets.append(tested.whole)
        if trains:
            sets.insert(0, TrainDataset(train, data.settings, self.run.textures, (1, 1), cache=cache))
        samples, problems, strange = [sample for one in sets for sample in one.samples], {}, {}
        for index, error in read_all(sets, self.run.dataset["num_workers"], data.row, strange).items():
            path = samples[index].path
            problems[path] = Problem(path, error.removeprefix(f"cannot read image {path}: "), "unreadable")
        problems = list(problems.values())
        _say_of_masks(data, {samples[index].mask: remarks for index, remarks in strange.items()})
        self.stop_or_skip(f"class {data.row}", problems)
        return self._not_empty(data.without(problems))

    def _not_empty(self, data: ClassData) -> ClassData:
        if self.run.training and not data.train:
            raise WorkError(f"class {data.name}: no training image is left")
        if not self.run.training and not data.test:
            raise WorkError(f"class {data.name}: no test image is left")
        return data

    def _check_foreground(self, data: ClassData) -> None:
        """The user's foreground masks, where they will be used."""
        flags = distribution.read_flags(self.run.dataset["name"], data.row)
        masks = self.run.layout.foreground(data.name, data.train)
        if masks and distribution.wants_foreground(self.run.dataset["fg"], flags):
            tiled, settings = data.tiling is not None, data.settings
            problems = check_foreground(
                masks, data.train, data.image_sizes, data.row, settings, tiled, reading=settings.reading
            )
            self.stop_or_skip(f"class {data.row}", problems, may_skip=False)

    def _kept_textures(self, data: ClassData) -> KeptTextures:
        """What is kept of the textures at the size of a class."""
        resize = data.settings.resize
        if self.run.kept_textures is None or self.run.kept_textures.resize != resize:
            self.run.kept_textures = None  # its memory is needed for the new one
            cache = ImageCache(self.run.texture_room)
            count = plan_textures(cache, data.settings, self.run.textures)
            cache.allocate()
            self.run.kept_textures = KeptTextures(resize, cache, count)
        return self.run.kept_textures

    def _read_textures(self, unfinished: Sequence[ClassData]) -> None:
        """Files all, as one may be damaged; built-in ones where they are drawn so often that it pays."""
        room = []
        for data in unfinished:
            images = ImageCache(self.run.budget)
            self._plan_images(images, data, True)
            room.append(self.run.budget - images.used)
        self.run.texture_room = min(room)  # the images of the largest class come first
        kept = self._kept_textures(unfinished[0])
        draws = sum(min(len(data.train), self.run.net["limit"]) for data in unfinished) * self.run.net["meta_epochs"]
        if isinstance(self.run.textures, FileTextures):
            count = len(self.run.textures)
        else:
            count = kept.count if draws >= WORTH_READING * len(self.run.textures) else 0
        train = TrainDataset([], unfinished[0].settings, self.run.textures, (1, 1), cache=kept.cache)
        errors = read_all([TextureReading(train, count)], self.run.dataset["num_workers"], "textures") if count else {}
        problems = []
        for index, error in errors.items():
            path = Path(self.run.textures.name(index))
            problems.append(Problem(path, error.removeprefix(f"cannot read image {path}: "), "unreadable"))
        self._leave_out_textures(problems)

    def _leave_out_textures(self, problems: Sequence[Problem]) -> None:
        self.stop_or_skip("textures", problems)
        if problems:
            bad = {problem.path for problem in problems}
            kept = [path for path in self.run.textures.paths if path not in bad]
            if not kept:
                raise WorkError(f"AUG_PATH {self.run.dataset['aug_path']}: no texture is left")
            self.run.textures = FileTextures(kept, self.run.textures.reading)

    def _read_defects(self) -> None:
        """Known defects: readable, with masks that fit."""
        if not self.run.defects:
            return
        problems = check_defects(self.run.defects, ReadOptions(max_pixels=self.run.dataset["max_pixels"]))
        self.stop_or_skip("defects", problems)
        bad = {problem.path for problem in problems}
        kept = [pair for pair in self.run.defects if bad.isdisjoint(pair)]
        if not kept:
            raise InputError(f"--defects {self.run.dataset['defects']}: no picture is left")
        self.run.defects = kept


def _say_of_masks(data: ClassData, strange: Mapping[Path, Sequence[str]]) -> None:
    """What is strange about the masks of the test images."""
    by_kind: dict[str, list[Path]] = {}
    for path, remarks in sorted(strange.items()):
        for remark in remarks:
            by_kind.setdefault(remark, []).append(path)
    for line in describe_masks(by_kind):
        LOGGER.warning("%s: a mask %s", data.row, line)
