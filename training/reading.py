"""Reading all files of a run before it trains: damaged files are found, and images are kept as far as memory allows."""

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
from datasets.roi import refuse_other_proportions
from datasets.textures import FileTextures
from datasets.tiles import TiledTestDataset, describe, refuse_small
from inference import checkpoint
from training import distribution
from training.job import ClassData, KeptTextures, Run
from utils import LOGGER, InputError, WorkError, write_text

# draws per built-in texture from which computing all of them beforehand takes less time than on demand
WORTH_READING = 2


class Reader:
    """Reads the files of a run, class by class, and stops at damaged ones."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def glance(self, data: ClassData) -> ClassData:
        """Check the headers of all files of a class.

        Returns:
            The class without the files that --skip_bad leaves out.

        Raises:
            WorkError: a problem would stop the run or falsify its results.
        """
        self._forget_skipped(data.row)
        problems, headers = quick_look(data.name, data.train, data.test, data.settings.reading)
        sizes = {path: header.size for path, header in headers.items()}
        for problem in (p for p in problems if p.kind == "train_and_test"):
            LOGGER.warning("%s: %s: the metrics will be too good", data.row, problem)
        problems = [p for p in problems if p.kind != "train_and_test"]
        for note in self.run.layout.notes(data.name):
            LOGGER.warning("%s: %s", data.row, note)
        self.stop_or_skip(f"class {data.row}", problems)
        data = self._not_empty(replace(data.without(problems), image_sizes=sizes))
        data = self._with_depth(data, headers)
        if pages := describe_pages(headers):
            LOGGER.warning("%s: %s", data.row, pages)
        noted = self.run.layout.annotations(data.name)  # the layout's notes name these already
        if unused := scan_folder(self.run.layout.root / data.name, recursive=True).describe(noted):
            LOGGER.info("%s: %s", data.row, unused)
        if self.run.roi is not None:
            refuse_other_proportions(self.run.roi.size, sizes)
        if data.tiling is not None:
            refuse_small(data.train, data.tiling, sizes)
            tiles = len(data.seen(data.train or data.test))
            LOGGER.info("%s: %s", data.row, describe(data.tiling, len(data.train or data.test), tiles))
        elif left_out := describe_left_out(data.settings, sizes.values()):
            LOGGER.warning("%s: %s", data.row, left_out)
        return data

    def _with_depth(self, data: ClassData, headers: Mapping[Path, Header]) -> ClassData:
        """The class with the depth of its images: as given, as in its earlier training, or detected.

        Raises:
            InputError: the given depth differs from that of the class's model.
        """
        bits = self.run.dataset.get("bits", FULL_BITS)
        if not any(is_deep(header) for header in headers.values()):
            return data
        trained_bits = self._bits_of_training(data.row)
        if trained_bits is not None and bits == AUTO:
            bits = trained_bits
            LOGGER.info("%s: %d bits of 16-bit files are in use, as the model was trained", data.row, trained_bits)
        elif trained_bits not in (None, bits):
            raise InputError(
                f"--bits {bits}: class {data.name} was trained with {trained_bits}; omit the option, or give another "
                "--results_path"
            )
        deciding, test = ([sample.path for sample in part] for part in (data.train or data.test, data.test))
        depth = find_depth(bits, deciding, test, headers, data.settings.reading)
        log_depth(data.row, depth)
        return replace(data, settings=replace(data.settings, bits=depth.bits))

    def _bits_of_training(self, row: str) -> int | None:
        """The depth that a class was trained with, 16 if an earlier version trained it; None without checkpoints."""
        for index in range(len(self.run.nets)):
            folder = self.run.folder(index) / row
            for training in (True, False):
                try:
                    config = checkpoint.config_of(folder, training)
                except WorkError:  # a damaged checkpoint is reported when it is used
                    continue
                if config is not None:
                    return int(config.get("bits", FULL_BITS))
        return None

    def glance_at_textures(self) -> None:
        """Check the headers of all textures; --skip_bad leaves out those that cannot be read."""
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
        """Read every file that the run will need.

        Returns:
            The classes without the files that --skip_bad leaves out, and the cache of the first class.

        Raises:
            InputError: a test image shows a known defect.
            WorkError: a file is damaged, or a foreground mask does not fit its image.
        """
        trains = [self.run.trains(data) for data in classes]
        if any(trains):
            self._read_textures([data for data, is_trained in zip(classes, trains, strict=True) if is_trained])
            self._read_defects()
        first = self.plan_cache(classes[0])
        kept = []
        for data, is_trained in zip(classes, trains, strict=True):
            data = self._read_class(data, is_trained, first if data is classes[0] else ImageCache(0))
            if is_trained:
                self._check_foreground(data)
                refuse_test_images(self.run.defects_of(data.name), data.test, data.settings.reading)
            kept.append(data)
        return kept, first

    def plan_cache(self, data: ClassData) -> ImageCache:
        """A cache for the images of a class. The caller must have released the cache of the class before."""
        textures = self._kept_textures(data) if self.run.trains(data) else None
        texture_cache = None if textures is None else textures.cache
        cache = ImageCache(self.run.budget - (0 if texture_cache is None else texture_cache.used), texture_cache)
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
        """Stop if there are problems; with --skip_bad, unreadable files are only listed.

        Args:
            what: the files belong to, for messages: `class ROW`, `textures` or `defects`.
            problems: of the files.
            may_skip: whether --skip_bad applies to these files.

        Raises:
            WorkError: there is a problem that stops the run.
        """
        skip_bad = may_skip and self.run.dataset["skip_bad"]
        unreadable = [p for p in problems if p.kind == "unreadable"]
        fatal = [p for p in problems if not (p.kind == "unreadable" and skip_bad)]
        if fatal:
            more = f" (and {len(fatal) - 1} more; python main.py check lists all)" if len(fatal) > 1 else ""
            skippable = may_skip and unreadable and len(unreadable) == len(fatal)
            hint = "; --skip_bad leaves unreadable images out" if skippable else ""
            raise WorkError(f"{what}: {fatal[0]}{more}{hint}")
        if unreadable:
            path = self.run.results / "skipped" / f"{what.removeprefix('class ')}.txt"
            before = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
            lines = list(dict.fromkeys([*before, *(click.format_filename(str(problem)) for problem in unreadable)]))
            write_text(path, "".join(f"{line}\n" for line in lines))
            LOGGER.warning("%s: %d unreadable files left out, listed in %s", what, len(unreadable), path)

    def _forget_skipped(self, what: str) -> None:
        """Remove the list of files that an earlier run left out."""
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
        # a test alone has training images only for --baseline
        reads_train = trains or (not self.run.training and bool(data.train))
        train, tested = data.seen(data.train) if reads_train else [], data.test_set(cache)
        sets: list[Readable] = [tested]
        if isinstance(tested, TiledTestDataset):
            sets.append(tested.whole)
        if reads_train:
            sets.insert(0, TrainDataset(train, data.settings, self.run.textures, (1, 1), cache=cache))
        samples = [sample for readable in sets for sample in readable.samples]
        problems, mask_remarks = {}, {}
        for index, error in read_all(sets, self.run.dataset["num_workers"], data.row, mask_remarks).items():
            path = samples[index].path
            problems[path] = Problem(path, error.removeprefix(f"cannot read image {path}: "), "unreadable")
        problems = list(problems.values())
        _warn_of_masks(data, {samples[index].mask: remarks for index, remarks in mask_remarks.items()})
        self.stop_or_skip(f"class {data.row}", problems)
        return self._not_empty(data.without(problems))

    def _not_empty(self, data: ClassData) -> ClassData:
        if self.run.training and not data.train:
            raise WorkError(f"class {data.name}: no training image is left")
        if not self.run.training and not data.test:
            raise WorkError(f"class {data.name}: no test image is left")
        return data

    def _check_foreground(self, data: ClassData) -> None:
        """Check the user's foreground masks if they will be used."""
        flags = distribution.read_flags(self.run.dataset["name"], data.row)
        masks = self.run.layout.foreground(data.name, data.train)
        if masks and distribution.wants_foreground(self.run.dataset["fg"], flags):
            tiled, settings = data.tiling is not None, data.settings
            problems = check_foreground(
                masks, data.train, data.image_sizes, data.row, settings, tiled, reading=settings.reading
            )
            self.stop_or_skip(f"class {data.row}", problems, may_skip=False)

    def _kept_textures(self, data: ClassData) -> KeptTextures:
        """The textures in memory, at the size of a class."""
        resize = data.settings.resize
        if self.run.kept_textures is None or self.run.kept_textures.resize != resize:
            self.run.kept_textures = None  # releases the memory that the new cache needs
            cache = ImageCache(self.run.texture_room)
            count = plan_textures(cache, data.settings, self.run.textures)
            cache.allocate()
            self.run.kept_textures = KeptTextures(resize, cache, count)
        return self.run.kept_textures

    def _read_textures(self, unfinished: Sequence[ClassData]) -> None:
        """Read all textures that are files, since one may be damaged; compute built-in ones if that saves time."""
        room = []
        for data in unfinished:
            images = ImageCache(self.run.budget)
            self._plan_images(images, data, True)
            room.append(self.run.budget - images.used)
        self.run.texture_room = min(room)  # the images of the largest class have priority
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
        """Check that known defects can be read and that their masks fit."""
        if not self.run.defects:
            return
        problems = check_defects(self.run.defects, ReadOptions(max_pixels=self.run.dataset["max_pixels"]))
        self.stop_or_skip("defects", problems)
        bad = {problem.path for problem in problems}
        kept = [pair for pair in self.run.defects if bad.isdisjoint(pair)]
        if not kept:
            raise InputError(f"--defects {self.run.dataset['defects']}: no image is left")
        self.run.defects = kept


def _warn_of_masks(data: ClassData, mask_remarks: Mapping[Path, Sequence[str]]) -> None:
    """Warn of masks of test images that look wrong."""
    by_remark: dict[str, list[Path]] = {}
    for path, remarks in sorted(mask_remarks.items()):
        for remark in remarks:
            by_remark.setdefault(remark, []).append(path)
    for line in describe_masks(by_remark):
        LOGGER.warning("%s: a mask %s", data.row, line)
