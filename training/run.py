"""One run: from the options of the command line to results, class by class."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from datasets import ImageSettings, Sample
from datasets.cache import ImageCache
from datasets.foreground_check import leave_out_small
from datasets.foreground_masks import make_masks
from datasets.geometry import Tiling, show_size
from datasets.validation import hold_out
from glass import GLASS
from inference import checkpoint
from reporting import compare, page
from reporting import tables as report
from reporting.cells import csv_text, path_as_cell
from reporting.drawing import save_image
from training import distribution, earlier
from training.class_run import ClassRun, build, describe
from training.distribution import Decision
from training.job import ClassData, Net, Options, Run
from training.preparing import folder_of_results, prepare
from training.reading import Reader
from training.state import check_settings_of_before
from utils import LOGGER, InputError, WorkError, one_at_a_time, row_name, setup_logging, write_bytes

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "opencv-python-headless", "pillow")


def run_seeds(main: Options, net: Options, dataset: Options) -> None:
    """Run once per seed; several seeds get a folder each, and mean and standard deviation are written above them.

    Args:
        main, net, dataset: options of the three commands, by name.

    Raises:
        InputError: an option cannot work.
        WorkError: the run failed.
    """
    seeds = list(main["seed"])
    if len(seeds) == 1:
        run({**main, "seed": seeds[0]}, net, dataset)
        return
    duplicates = [seed for seed in seeds if seeds.count(seed) > 1]
    if duplicates:
        raise InputError(f"--seed {duplicates[0]} is given twice; give each seed once")
    results = folder_of_results(main)
    for seed in seeds:  # all seeds first: damage in the folder of the last one is reported before the first one trains
        models = Path(main["models_path"]) if main["models_path"] else results
        earlier.check_seed(results / f"seed_{seed}", models / f"seed_{seed}", seed, dataset)
    if (results / "models").exists():
        raise InputError(f"{results} holds a run with a single seed; give another --results_path for several seeds")
    for seed in seeds:
        seed_options = {**main, "seed": seed, "results_path": str(results / f"seed_{seed}")}
        if main["models_path"]:
            seed_options["models_path"] = str(Path(main["models_path"]) / f"seed_{seed}")
        setup_logging()
        LOGGER.info("seed %d, run %d of %d", seed, seeds.index(seed) + 1, len(seeds))
        run(seed_options, net, dataset)
    folders = [results / f"seed_{seed}" for seed in seeds]
    if any((folder / "results.csv").exists() for folder in folders):
        table = report.write_seeds(results, folders)
        compare.write_seeds(results, folders)
        LOGGER.info("mean ± deviation of seeds %s in %s\n%s", ", ".join(map(str, seeds)), results, table)
        LOGGER.info("report: %s", results / page.FILE)


def run(main: Options, net: Options, dataset: Options) -> None:
    """Check everything that can be checked, then train and test class by class.

    Args:
        main, net, dataset: options of the three commands, by name.

    Raises:
        InputError: an option cannot work.
        WorkError: the run failed.
    """
    setup_logging()
    started = time.monotonic()
    results = folder_of_results(main)
    if not (results / "models").exists() and any(results.glob("seed_*/models")):
        raise InputError(
            f"{results} holds runs with several seeds and their mean; give the same seeds again, or another "
            "--results_path"
        )
    with one_at_a_time(results):
        Classes(prepare(main, net, dataset), started).work()


class Classes:
    """Checks and reads the classes of a run, then trains and tests them one after another.

    Args:
        run: with the options and the backbones.
        started: time at which the run started, from `time.monotonic`.
    """

    def __init__(self, run: Run, started: float) -> None:
        self.run, self.started, self.reader = run, started, Reader(run)
        self._table: pd.DataFrame | None = None  # results.csv as this run has written it

    def work(self) -> None:
        """Do the whole run; tables, settings and report are written after each class."""
        run, reader = self.run, self.reader
        reader.glance_at_textures()
        names = run.layout.choose(run.dataset["subdatasets"])
        classes = [reader.glance(self._class_data(name)) for name in names]
        rows = [run.row_of(data, net) for data in classes for net in run.nets]
        report_page = earlier.check_results(run.results, rows if run.training else ())
        classes, cache = self._check_and_read(classes)
        for data in classes:
            self._write_split(data)
        if not (run.results / report.SETTINGS).exists():  # settings of an earlier run stay until there are new results
            self._write_settings()
        for position, data in enumerate(classes):
            if position:
                cache = None  # otherwise there would be two caches in memory
                cache = reader.plan_cache(data)
            decision = self._decide(data) if run.training else None
            masks = self._foreground(data, decision)
            for index in range(len(run.nets)):
                self._work_on(data, index, decision, masks, cache)
                report_page.write()
        self._log_results()

    def _work_on(
        self, data: ClassData, index: int, decision: Decision | None, masks: list[Path | None] | None, cache: ImageCache
    ) -> None:
        """Train and test one class with one backbone; its model and its cache are let go of at the end."""
        run = self.run
        class_run = ClassRun(run, data, index, decision, masks, cache)
        figures = class_run.work()
        run.configs[f"{run.folder(index).name}/{data.row}"] = class_run.config
        if figures is not None:
            run.rows[run.row_of(data, run.nets[index])] = figures
            self._table = report.write_results(run.results, run.rows)
        self._write_settings()

    def _log_results(self) -> None:
        run = self.run
        if self._table is not None:
            LOGGER.info("results in %s\n%s", run.results, report.format_table(self._table))
        if self._table is not None and run.training:
            for select in dict.fromkeys(config.get("select", "best") for config in run.configs.values()):
                LOGGER.info("%s; last_* columns hold the last epoch's figures", page.CHOSEN[select])
        LOGGER.info("report: %s", run.results / page.FILE)

    # ------------------------------------------------------------------------------------- checking

    def _check_and_read(self, classes: list[ClassData]) -> tuple[list[ClassData], ImageCache]:
        """Do all checks before the first class is trained, and read every file once.

        Returns:
            The classes without the files that --skip_bad leaves out, and the cache of the first class.
        """
        run, before = self.run, earlier.EarlierTrainings(self.run)
        for data in classes:
            before.refuse_other_splits(data)
            for index in range(len(run.nets)):
                self._check_folder(run.folder(index) / data.row)
            flags = distribution.read_flags(run.dataset["name"], data.row) if run.training else None
            if run.training and distribution.wants_foreground(run.dataset["fg"], flags):
                run.layout.foreground(data.name, data.train)
        models = [self._check_net(net) for net in run.nets]
        classes, cache = self.reader.read_everything(before.refuse_other_data(classes))
        for data in classes:
            self._check_settings_of_before(data, models)
        return classes, cache

    def _class_data(self, name: str) -> ClassData:
        run, layout = self.run, self.run.layout
        test = layout.test(name)
        if not run.training and not test:
            raise InputError(f"class {name}: {layout.root} has no test image of it, so there is nothing to test")
        train = layout.train(name) if run.training else self._train_of_baseline(name)
        settings = ImageSettings.of(run.dataset).for_class(layout, name)
        row, held_out = row_name(run.dataset["name"], name), layout.held_out(name)
        if held_out and not run.training and not self._trained_with_split(row):
            # the training may have used the images that the layout would hold out now
            held_out_paths = {sample.path for sample in held_out}
            test, held_out = [sample for sample in test if sample.path not in held_out_paths], []
        tile = run.dataset["tile"]
        tiling = None if tile is None else Tiling.of(settings, tile, run.dataset["overlap"])
        return ClassData(name, row, train, test, settings, held_out, tiling=tiling)

    def _train_of_baseline(self, name: str) -> list[Sample]:
        """The training images that a test alone compares with; [] without --baseline, or if they are not there."""
        if not self.run.net["baseline"]:
            return []
        try:
            return self.run.layout.train(name)
        except InputError as error:
            LOGGER.info("%s", error)
            return []

    def _trained_with_split(self, row: str) -> bool:
        """Whether the training of the checkpoint to be tested held out good images."""
        chosen = checkpoint.find_chosen(self.run.folder(0) / row)
        return bool(chosen) and "split_seed" in checkpoint.read_plain(chosen[0]).get("config", {})

    def _check_folder(self, folder: Path) -> None:
        """Check that the checkpoints of a class can be read and written."""
        if self.run.training:
            earlier.check_place(folder)
        elif checkpoint.find_chosen(folder) is None:
            raise InputError(f"no ckpt_best_*.pth in {folder}: train the class first, or give --models_path")
        try:
            trained = not self.run.training or self.run.is_trained(folder)
        except WorkError:  # reported when the checkpoint is verified
            trained = False
        earlier.check_checkpoints(folder, trained)

    def _check_net(self, net: Net) -> GLASS:
        """Build the model once before the first class, so that settings that cannot work are reported at once."""
        run, model = self.run, build(self.run, net, svd=0)
        size, stride = ImageSettings.of(run.dataset).size, run.dataset["downsampling"]
        sides = zip(size, model.grid, strict=True)
        if stride is not None and not all(cells in (side // stride, -(-side // stride)) for side, cells in sides):
            raise InputError(
                f"--downsampling {stride} contradicts backbone {net.name!r}, whose layer {net.layers[0]} has a grid of "
                f"{model.grid[0]}x{model.grid[1]} at --imagesize {show_size(run.dataset['imagesize'])}; "
                "omit the option"
            )
        return model

    def _check_settings_of_before(self, data: ClassData, models: Sequence[GLASS]) -> None:
        """Check that trainings can be resumed, or checkpoints tested, with the present settings."""
        run = self.run
        for index, model in enumerate(models):
            folder = run.folder(index)
            # a test uses the chosen checkpoint, even if the state beside it is damaged
            latest = checkpoint.read_latest(folder / data.row) if run.training else None
            saved = (latest or {}).get("config", {})
            svd = saved.get("svd", 0) if run.net["svd"] is None else run.net["svd"]
            describe(run, data, model, folder, Decision(svd, bool(saved.get("foreground")), ""))
            check_settings_of_before(model, data.row, test=not run.training)

    def _write_split(self, data: ClassData) -> None:
        """List the good images that this run keeps out of the training."""
        run = self.run
        if not run.training:
            return
        val = hold_out(data.train, run.dataset["val_share"], run.main["seed"], data.name)
        if not (val or data.held_out):
            return
        excluded = set(val)
        train = [sample for i, sample in enumerate(data.train) if i not in excluded]
        validation = [data.train[i] for i in val]
        parts = (("test", data.held_out), ("validation", validation), ("train", train))
        rows = [(path_as_cell(str(sample.path)), part) for part, samples in parts for sample in samples]
        path = run.results / "splits" / f"{data.row}.csv"
        # the list of a finished class stays: checkpoints of earlier versions do not tell whether the images changed
        if not (path.exists() and run.finished(data)):
            # a file name may not be UTF-8: its bytes are written unchanged
            write_bytes(path, csv_text([("path", "part"), *rows]).encode("utf-8", "surrogateescape"))
        if data.held_out:
            LOGGER.info(
                "%s: no good test image is given: %d of the good images are kept out of the training for the test "
                "(--split_seed %d), listed in %s", data.row, len(data.held_out), run.dataset["split_seed"], path,
            )  # fmt: skip
        if val:
            LOGGER.info(
                "%s: %d of %d good images are held out of the training for thresholds%s, listed in %s", data.row,
                len(val), len(data.train), " and the choice of the epoch" if run.net["select"] == "val" else "", path,
            )  # fmt: skip

    # ---------------------------------------------------------------------------------- the variant

    def _decide(self, data: ClassData) -> Decision:
        """The variant of a class.

        A training that was started with the same --distribution and --fg keeps its variant: a file in GLASS_EXCEL_DIR
        may contain the verdict that was written at its start, and `--fg 2` would follow it.
        """
        run, dataset = self.run, self.run.dataset
        started = self._started_with(run.folder(0) / data.row)
        if started is not None:
            decision = Decision(
                started["svd"], started["foreground"], "as the training was started", started.get("verdict"),
                fresh=False,
            )  # fmt: skip
            LOGGER.info("%s: %s (%s)", data.row, distribution.NAMES[decision.svd], decision.reason)
            return decision
        decision = distribution.decide(
            dataset["distribution"],
            dataset["fg"],
            run.net["svd"],
            distribution.read_flags(dataset["name"], data.row),
            lambda: self._judge(data),
            distribution.excel_path(dataset["name"]),
        )
        LOGGER.info(
            "%s: %s (%s)%s", data.row, distribution.NAMES[decision.svd], decision.reason,
            ", with foreground masks" if decision.foreground else "",
        )  # fmt: skip
        return decision

    def _started_with(self, model_dir: Path) -> dict[str, Any] | None:
        """The settings of the training in the folder of a class; None if it was started with other options."""
        config = (checkpoint.read_latest(model_dir) or {}).get("config", {})
        options = {key: self.run.dataset[key] for key in ("distribution", "fg")}
        same = {key: config.get(key) for key in options} == options and self.run.net["svd"] in (None, config["svd"])
        return config if same else None

    def _judge(self, data: ClassData) -> int:
        """Judge the class by its mean training image, resized without a crop; saves the image and its spectrum."""
        # the size from the options, even for classes with a size of their own
        settings, reading = ImageSettings.of(self.run.dataset), data.settings.reading
        mean = distribution.mean_image(settings.straight(sample.read(reading)) for sample in data.seen(data.train))
        flag = distribution.judge(mean)
        spectrum = distribution.spectrum(mean).astype(np.uint8) * 255
        save_image(self.run.results / "judge" / "avg" / str(flag) / f"{data.row}.png", mean)
        save_image(self.run.results / "judge" / "fft" / str(flag) / f"{data.row}.png", spectrum)
        return flag

    def _foreground(self, data: ClassData, decision: Decision | None) -> list[Path | None] | None:
        """The foreground mask of each training image: the user's, or masks computed and saved under the results.

        An entry is None if the crop leaves nothing of the mask: then anomalies may be anywhere in that image.
        """
        run = self.run
        if decision is None or not decision.foreground or (run.finished(data) and not run.dataset["val_share"]):
            return None
        of_user = run.layout.foreground(data.name, data.train)
        if of_user is not None:
            return of_user
        masks = make_masks(data.train, run.results / "foreground" / data.row, reading=data.settings.reading)
        if data.tiling is not None:
            return masks
        kept = leave_out_small(masks, data.train, data.image_sizes, data.settings)
        if lost := [sample.path for sample, mask in zip(data.train, kept, strict=True) if mask is None]:
            LOGGER.warning(
                "%s: the crop leaves (almost) nothing of the object in %d images, the first is %s: anomalies are "
                "placed anywhere on them; --keep_all shows the model the whole image", data.row, len(lost), lost[0],
            )  # fmt: skip
        return kept

    # ------------------------------------------------------------------------------------- settings

    def _write_settings(self) -> None:
        """Write settings.json: effective arguments, versions, device, duration so far.

        A run that trained nothing keeps the settings of the training and adds a note of itself.
        """
        run = self.run
        written = datetime.now(timezone.utc).isoformat(timespec="seconds")
        before = report.read_settings(run.results)
        if before and not run.trained:
            call = {"command": sys.argv, "written": written}
            calls = [later for later in before.get("later_calls", []) if later["written"] != run.noted]
            run.noted = written
            report.write_settings(run.results, {**before, "later_calls": [*calls, call]})
            return
        cuda = run.device.type == "cuda"
        name = torch.cuda.get_device_name(run.device) if cuda else platform.processor() or "cpu"
        arguments = {
            "main": {**run.main, "models_path": str(run.models)},
            "net": dict(run.net),
            "dataset": dict(run.dataset),
        }
        versions = {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}
        report.write_settings(
            run.results,
            {
                "command": sys.argv,
                "arguments": arguments,
                "models": run.configs,
                "versions": versions,
                "device": {"kind": str(run.device), "name": name, "threads": torch.get_num_threads()},
                "written": written,
                "duration_seconds": round(time.monotonic() - self.started, 1),
            },
        )
