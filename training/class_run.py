"""One class with one backbone: its model, its training, its test, and its record for the report."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset

import backbones
from datasets import EpochSampler, ImageSettings, TrainDataset, make_loader
from datasets.cache import ImageCache
from datasets.defects import Defects, digest
from datasets.loaders import end_workers
from datasets.roi import refuse_other_proportions
from datasets.training_set import CentreDataset
from datasets.validation import GoodImages, ValidationDataset, hold_out
from glass import GLASS
from inference import checkpoint
from inference.features import DIMENSIONS
from inference.inspected import Inspected, inspected_pixels
from inference.settings import CHANNELS, Settings
from inference.thresholds import HELD_OUT, TRAINING
from reporting import class_record, tensorboard
from training import distribution
from training.calibration import calibrate
from training.distribution import Decision
from training.evaluation import METRICS, NEIGHBOURS, Tested, metrics_line
from training.job import ClassData, Net, Run
from training.neighbours import neighbour_figures
from training.record import Record
from training.state import TrainingState
from training.testing import last_figures, score_chosen, test
from training.trainer import Loaders, Trainer
from utils import LOGGER, evenly_chosen, printable

VALIDATED_TILES = 400  # most tiles that an evaluation for the choice of the epoch uses
EXAMPLES = 60  # images that are scored for the report of a class without a test set


def build(run: Run, net: Net, svd: int) -> GLASS:
    """A model with a backbone of the run and untrained heads."""
    name = backbones.split_seed(net.name)[0]
    values = {option.name: run.net[option.name] for option, _ in Settings.options()}
    values["pooling"] = values["pooling"] or backbones.default_pooling(name)
    if values["pooling"] != CHANNELS:  # whose dimensions follow from the layers
        default = backbones.default_dimension(name)
        values |= {dimension: default for dimension in DIMENSIONS if values[dimension] is None}
    return GLASS(run.device).load(
        backbone=net.backbone,
        layers_to_extract_from=net.layers,
        device=run.device,
        input_shape=(3, *ImageSettings.of(run.dataset).size),
        **values | {"seed": net.seed, "svd": svd},
    )


def describe(run: Run, data: ClassData, model: GLASS, folder: Path, decision: Decision | None) -> None:
    """Give a model the variant, the folders and the settings of a class, which its checkpoints will contain.

    Args:
        run: with the options.
        data: the class.
        model: with one of the backbones.
        folder: of the checkpoints of all classes with this backbone.
        decision: the variant; None for a test without training.
    """
    model.svd = decision.svd if decision else 0
    model.set_model_dir(folder, data.row)
    model.results_path = run.results if len(run.nets) == 1 else run.results / folder.name
    model.pictures = run.main["pictures"]
    model.extra_config = {
        "class_name": data.row, **asdict(data.settings),
        "batch_size": run.dataset["batch_size"], "distribution": run.dataset["distribution"],
        "fg": run.dataset["fg"], "foreground": bool(decision and decision.foreground),
        "defects": digest(run.defects_of(data.name), data.settings.reading),
        "defects_share": run.dataset["defects_share"],
        "val_share": run.dataset["val_share"], "image_size": list(data.median_size),
        "tile": run.dataset["tile"], "overlap": run.dataset["overlap"] if data.tiling else None,
    }  # fmt: skip
    if decision is not None:
        files = run.inventory_of(data, decision.foreground)
        model.extra_config |= {"data": files.digest, "data_path": printable(files.root), "data_images": files.images}
        model.extra_config["verdict"] = decision.verdict
    if run.roi is not None:
        model.features.inspected = Inspected(run.roi, data.settings, model.segmentor, model.grid)
        model.extra_config["roi"] = run.roi.plain()
    if run.textures is not None:
        model.extra_config["textures"] = run.textures.digest()
    if data.held_out:  # with other values a test would use images of the training
        model.extra_config |= {"split_seed": run.dataset["split_seed"], "test_share": run.dataset["test_share"]}


class ClassRun:
    """Trains one class with one backbone, unless only a test is requested, and tests it.

    Args:
        run: with the options.
        data: the class.
        index: of the backbone.
        decision: the variant; None for a test without training.
        masks: foreground masks of the training images; None allows anomalies anywhere.
        cache: of the images.
    """

    def __init__(
        self, run: Run, data: ClassData, index: int, decision: Decision | None, masks: list[Path | None] | None,
        cache: ImageCache,
    ) -> None:  # fmt: skip
        self.run, self.data, self.net, self.folder = run, data, run.nets[index], run.folder(index)
        self.row, self.masks, self.cache, self.decision = run.row_of(data, self.net), masks, cache, decision
        self.model = build(run, self.net, decision.svd if decision else 0)
        describe(run, data, self.model, self.folder, decision)
        self.config: dict[str, Any] = self.model.config  # replaced by that of the chosen checkpoint

    def work(self) -> dict[str, Any] | None:
        """Train and test the class; returns its row of results, None if there is nothing to test."""
        test_loader = self._test_loader()
        record, examples = None, None
        if self.decision is not None:
            self._warn_of_unused_options()
            record, examples = self._start_and_train(test_loader)
        best = checkpoint.find_chosen(self.model.model_dir)
        state = checkpoint.read_plain(best[0]) if best else {}
        self.config = state.get("config") or self.model.config
        before = {} if record else class_record.read_existing(self.run.results, self.row) or {}
        history = record.history if record else before.get("history", [])
        if test_loader is None:
            which = " of the last epoch" if self.run.training and self.run.net["select"] == "best" else ""
            path = best[0] if best else self.folder
            LOGGER.info("%s: no test images, nothing to test; the model%s is %s", self.data.row, which, path)
            shown = before.get("looked_at") if examples is None else self._score_examples(examples)
            class_record.save(
                self.run.results, self.row, class_record.of_untested(state, history, best[1] if best else None, shown)
            )
            return None
        return self._test(test_loader, record, history)

    def _test(self, test_loader: DataLoader, record: Record | None, history: list[dict[str, Any]]) -> dict[str, Any]:
        if saved := self.config.get("roi"):  # of the checkpoint, where this run has no --roi
            refuse_other_proportions(tuple(saved["size"]), self.data.image_sizes)
        tested = test(self.model, test_loader, self.data.row)
        figures = tested.figures
        self._log_defects_outside(tested)
        last = last_figures(self.model, test_loader, record) if record and record.epoch else {}
        if last:
            figures |= {"last_epoch": record.epoch - 1, **{f"last_{name}": last[name] for name in METRICS}}
        best_epoch, line = figures["best_epoch"], metrics_line(figures)
        LOGGER.info("%s: the kept epoch, %d, on the test set: %s", self.data.row, best_epoch, line)
        if self.run.net["baseline"]:
            figures |= self._neighbour_figures(test_loader)
        # whole images are shown even if they were tested in tiles
        shown = getattr(test_loader.dataset, "whole", test_loader.dataset)
        select = self.config.get("select", "best")
        class_record.save(
            self.run.results, self.row, class_record.of_tested(tested, shown, history, self.run.main["seed"], select)
        )
        return figures

    def _log_defects_outside(self, tested: Tested) -> None:
        """Log how many defective images have no defect in the region of interest."""
        outside = sum(sample.is_anomaly for sample in self.data.test) - int(tested.predictions.labels.sum())
        if outside:
            LOGGER.info(
                "%s: %d test images have their defect outside the region of interest: they count as good",
                self.data.row, outside,
            )  # fmt: skip

    def _neighbour_figures(self, test_loader: DataLoader) -> dict[str, float]:
        """The figures of nearest neighbours; {} with a warning where there can be none."""
        if self.model.settings.train_backbone:  # its features are no longer those from before the training
            LOGGER.warning("%s: --baseline has no effect with --train_backbone, which changes the features", self.row)
            return {}
        if not self.data.train:
            LOGGER.warning("%s: --baseline has no effect without training images", self.row)
            return {}
        figures = neighbour_figures(self.model, self._training_images(), test_loader)
        without = {name.removeprefix(NEIGHBOURS): value for name, value in figures.items()}
        LOGGER.info("%s: nearest neighbours without training: %s", self.data.row, metrics_line(without))
        return figures

    def _training_images(self) -> DataLoader:
        """The good images that the training uses, or used, without augmentation."""
        share, seed = self.run.dataset["val_share"], self.run.main["seed"]
        if not self.run.training:
            share = self.config.get("val_share", share)
        excluded = set(hold_out(self.data.train, share, seed, self.data.name))
        used = [i for i in range(len(self.data.train)) if i not in excluded]
        return self._in_order(GoodImages(self._good_images(used, None)))

    def _score_examples(self, examples: Dataset) -> dict[str, Any]:
        """A record of images that the thresholds come from, for a class without test images."""
        chosen = Subset(examples, evenly_chosen(len(examples), EXAMPLES))
        tested = score_chosen(self.model, self._in_order(chosen), self.data.row)
        return class_record.of_examples(tested, chosen, self.run.main["seed"])

    # ------------------------------------------------------------------------------------- training

    def _start_and_train(self, test_loader: DataLoader | None) -> tuple[Record, Dataset]:
        """Train on all good images except those held out, then determine thresholds.

        Returns:
            The record, and the images that the thresholds come from.
        """
        state = TrainingState(self.model, self.data.row)
        decision, dataset = self.decision, self.run.dataset
        if decision.verdict is not None and decision.fresh:
            state.start()  # stores the variant in the state, so that the file written next cannot change it
            distribution.keep_verdict(
                self.run.results, dataset["name"], self.data.row, decision.verdict, dataset["distribution"]
            )
        held_out = hold_out(self.data.train, dataset["val_share"], self.run.main["seed"], self.data.name)
        excluded = set(held_out)
        defects = self._known_defects()
        train_set = self._good_images([i for i in range(len(self.data.train)) if i not in excluded], defects)
        val_set = self._good_images(held_out, defects)
        loaders = self._loaders(train_set, test_loader, val_set if held_out else None)
        self._label_board()
        started = state.start()
        files = self.run.inventory_of(self.data, self.model.extra_config["foreground"])
        if not state.is_over(started):
            files.save(self.model.model_dir)
        record = Record.of(Trainer(self.model, loaders, self.data.row, state).train())
        for loader in (loaders.train, loaders.test, loaders.val):
            end_workers(loader)
        self.run.trained |= record.epoch > started.epoch
        # a checkpoint that was there without its training's state may have been trained on any of the images
        best = checkpoint.find_best(self.model.model_dir)
        config = checkpoint.read_plain(best[0]).get("config", {})
        is_held_out = bool(held_out) and config.get("val_share") == dataset["val_share"]
        good = self._images_for_thresholds(loaders, train_set, val_set, is_held_out)
        used = files.only({sample.path for sample in (val_set if is_held_out else train_set).samples})
        calibrate(self.model, good, self.data.row, HELD_OUT if is_held_out else TRAINING, used.digest)
        return record, (loaders.val if is_held_out else good).dataset

    def _images_for_thresholds(
        self, loaders: Loaders, train_set: TrainDataset, val_set: TrainDataset, is_held_out: bool
    ) -> DataLoader:
        if not is_held_out:
            return self._in_order(GoodImages(train_set))
        # of tiles, all good ones are used, and none with defects, since there would be too many maps
        return loaders.val if self.data.tiling is None else self._in_order(GoodImages(val_set))

    def _good_images(self, indices: Sequence[int], defects: Defects | None) -> TrainDataset:
        """A training set of some of the class's training images."""
        run, data = self.run, self.data
        samples, masks = data.seen([data.train[i] for i in indices]), None
        if self.masks:  # the mask of a tile is cut from the mask of its image
            by_path = {data.train[i].path: self.masks[i] for i in indices}
            masks = [by_path[sample.path] for sample in samples]
        return TrainDataset(
            samples, data.settings, run.textures, self.model.grid, masks, self.net.seed, self.cache, defects,
            inspected_pixels(run.roi, data.settings) if run.roi else None,
        )  # fmt: skip

    def _loaders(
        self, train_set: TrainDataset, test_loader: DataLoader | None, val_set: TrainDataset | None
    ) -> Loaders:
        batch, workers = self.run.dataset["batch_size"], self.run.dataset["num_workers"]
        val_loader = None
        if val_set is not None:
            val_loader = self._in_order(ValidationDataset(_thinned(val_set)), self.run.net["select"] == "val")
        # an epoch ends once more than `limit` samples have been used
        most = (self.run.net["limit"] // batch + 1) * batch
        sampler = EpochSampler(len(train_set), self.net.seed, most, least=self.run.net["epoch_samples"])
        pin = self.run.device.type == "cuda"
        loader = make_loader(train_set, batch, workers, sampler, pin_memory=pin)
        in_order = EpochSampler(len(train_set), self.net.seed, shuffle=False)
        centre_loader = make_loader(
            CentreDataset(train_set), batch, workers, in_order, keep_workers=False, pin_memory=pin
        )
        return Loaders(loader, test_loader, centre_loader, val_loader)

    def _known_defects(self) -> Defects | None:
        """The known defects of the class, at the scale of its training images."""
        pairs, data = self.run.defects_of(self.data.name), self.data
        if not pairs:
            if self.run.defects:
                LOGGER.info("%s: --defects holds none of this class", data.row)
            return None
        size = data.tiling.tile[::-1] if data.tiling else data.median_size
        defects = Defects(pairs, data.settings, self.run.dataset["defects_share"], size, bool(data.tiling))
        LOGGER.info("%s: %s", data.row, defects.describe())
        return defects

    def _label_board(self) -> None:
        """Write the labels of the run into TensorBoard, once."""
        labels = {key: self.run.main[key] for key in ("log_project", "log_group", "run_name") if self.run.main[key]}
        if labels and not (self.model.model_dir / checkpoint.LATEST).exists():
            folder = self.model.model_dir / "tb"
            with tensorboard.open_board(folder) as board, tensorboard.writing(folder):
                board.add_text("run", printable(", ".join(f"{key} {value}" for key, value in labels.items())))

    # -------------------------------------------------------------------------------------- testing

    def _test_loader(self) -> DataLoader | None:
        if not self.data.test:
            return None
        _log_missing_truth(self.data)
        return self._in_order(self.data.test_set(self.cache), keep_workers=True)

    def _in_order(self, dataset: Dataset, keep_workers: bool = False) -> DataLoader:
        """A loader of images to score; `keep_workers` if it is read more than once."""
        batch, workers = self.run.dataset["batch_size"], self.run.dataset["num_workers"]
        pin = self.run.device.type == "cuda"
        return make_loader(dataset, batch, workers, keep_workers=keep_workers, pin_memory=pin)

    def _warn_of_unused_options(self) -> None:
        """Warn of options that have no effect on this class."""
        row, net, pictures = self.data.row, self.run.net, self.run.main["pictures"]
        if net["patience"] and net["select"] == "best" and not self.data.test:
            LOGGER.warning("%s: --patience has no effect without test images; --select val needs none", row)
        if pictures == "every_eval" and net["select"] == "val":
            LOGGER.warning(
                "%s: --pictures every_eval shows images of the validation set, only in TensorBoard: the training uses "
                "no test image", row,
            )  # fmt: skip
        elif pictures == "every_eval" and not self.data.test:
            LOGGER.warning("%s: --pictures every_eval has no effect: the training uses no test image", row)


def _thinned(val_set: TrainDataset) -> TrainDataset:
    """At most `VALIDATED_TILES` tiles, evenly chosen: there may be thousands, and an evaluation keeps all maps."""
    if len(val_set) <= VALIDATED_TILES or val_set.samples[0].box is None:
        return val_set
    chosen = evenly_chosen(len(val_set), VALIDATED_TILES)
    thinned = copy.copy(val_set)
    thinned.samples = [val_set.samples[i] for i in chosen]
    thinned.masks = val_set.masks and [val_set.masks[i] for i in chosen]
    return thinned


def _log_missing_truth(data: ClassData) -> None:
    """Log which metrics the test set does not allow."""
    kinds = {sample.is_anomaly for sample in data.test}
    if len(kinds) == 1:
        kind = "defective" if kinds == {True} else "good"
        LOGGER.info("%s: all test images are %s: image metrics will be nan", data.row, kind)
    unknown = sum(sample.is_anomaly and sample.mask is None for sample in data.test)
    if unknown:
        LOGGER.info("%s: %d defective test images have no mask: left out of the pixel metrics", data.row, unknown)
