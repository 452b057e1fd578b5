"""One run: from the command line's settings to results, class by class."""

from __future__ import annotations

import copy
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

import backbones
import embedded
from datasets import DATASETS, EpochSampler, ImageSettings, TrainDataset, make_loader
from datasets.cache import ImageCache, cache_budget
from datasets.defects import Defects, digest, list_defects
from datasets.foreground_check import leave_out_small
from datasets.foreground_masks import make_masks
from datasets.geometry import Tiling, show_size
from datasets.loaders import end_workers
from datasets.textures import open_textures
from datasets.training_set import CentreDataset
from datasets.validation import GoodImages, ValidationDataset, hold_out
from glass import GLASS, METRICS
from inference import checkpoint
from inference.thresholds import HELD_OUT, TRAINING
from reporting import compare, page
from reporting import tables as report
from reporting import tensorboard as tensorboard_log
from reporting.cells import csv_text, path_as_cell
from reporting.drawing import save_image
from training import distribution, earlier, reading
from training.distribution import Decision
from training.job import ClassData, Net, Options, Run
from utils import (
    LOGGER,
    InputError,
    WorkError,
    choose_device,
    fix_seeds,
    make_folder,
    one_at_a_time,
    printable,
    row_name,
    setup_logging,
    write_bytes,
)  # fmt: skip

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "opencv-python-headless", "pillow")
DIMENSIONS = ("pretrain_embed_dimension", "target_embed_dimension")
VALIDATED = 400  # tiles that choose an epoch
EXAMPLES = 60  # pictures that are looked at where there is no test
NOT_FOR_GLASS = frozenset({"backbone_names", "layers_to_extract_from", "weights", "svd"})


def run_seeds(main: Options, net: Options, dataset: Options) -> None:
    """As `run`; with several seeds one run each in a folder of its own, and mean and deviation above them."""
    seeds = list(main["seed"])
    if len(seeds) == 1:
        run({**main, "seed": seeds[0]}, net, dataset)
        return
    twice = [seed for seed in seeds if seeds.count(seed) > 1]
    if twice:
        raise InputError(f"--seed {twice[0]} is given twice")
    results = _folder_of_results(main)
    for seed in seeds:  # what is damaged of the last one is known before the first one trains
        models = Path(main["models_path"]) if main["models_path"] else results
        earlier.check_seed(results / f"seed_{seed}", models / f"seed_{seed}", seed, dataset)
    if (results / "models").exists():
        raise InputError(f"{results} holds a run with a single seed; take another --results_path for several")
    for seed in seeds:
        own = {**main, "seed": seed, "results_path": str(results / f"seed_{seed}")}
        if main["models_path"]:
            own["models_path"] = str(Path(main["models_path"]) / f"seed_{seed}")
        setup_logging()
        LOGGER.info("seed %d, run %d of %d", seed, seeds.index(seed) + 1, len(seeds))
        run(own, net, dataset)
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
        InputError: something given cannot work.
        WorkError: something failed on the way.
    """
    setup_logging()
    started = time.monotonic()
    results = _folder_of_results(main)
    if not (results / "models").exists() and any(results.glob("seed_*/models")):
        raise InputError(
            f"{results} holds runs with several seeds, of which it has the mean; give the same seeds again, or another "
            "--results_path"
        )
    with one_at_a_time(results):
        _run(main, net, {**dataset, "val_share": _val_share(net, dataset)}, started)


def _run(main: Options, net: Options, dataset: Options, started: float) -> None:
    this = _prepare(main, net, dataset)
    net, dataset = this.net, this.dataset
    names = this.layout.choose(dataset["subdatasets"])
    classes = [reading.glance(this, _class_data(this, name)) for name in names]
    rows = [_row_of(this, data, one_net) for data in classes for one_net in this.nets]
    report_page = earlier.check_results(this.results, rows if this.training else ())
    for data in classes:
        _check_class(this, data)
    models = [_check_net(this, one_net) for one_net in this.nets]
    classes = earlier.refuse_other_data(this, classes)
    classes, cache = reading.read_everything(this, classes)
    for data in classes:
        _check_settings_of_before(this, data, models)
    del models
    for data in classes:
        _write_split(this, data)
    if not (this.results / report.SETTINGS).exists():  # that of an earlier run stays until this one has done something
        _write_settings(this, started)
    for index_of_class, data in enumerate(classes):
        if index_of_class:
            cache = None  # or both would be in memory
            cache = reading.plan_cache(this, data)
        decision = _decide(this, data) if this.training else None
        masks = _foreground(this, data, decision)
        for index, one_net in enumerate(this.nets):
            row = _row_of(this, data, one_net)
            figures = _run_class(this, data, one_net, index, row, decision, masks, cache)
            if figures is not None:
                this.rows[row] = figures
                table = report.write_results(this.results, this.rows)
            _write_settings(this, started)
            report_page.write()
    if this.rows:
        LOGGER.info("results in %s\n%s", this.results, report.format_table(table))
    if this.rows and this.training:
        for select in dict.fromkeys(config.get("select", "best") for config in this.configs.values()):
            LOGGER.info("%s; last_* columns hold the last epoch's figures", page.CHOSEN[select])
    LOGGER.info("report: %s", this.results / page.FILE)


# ---------------------------------------------------------------------------------------- checking


def _folder_of_results(main: Options) -> Path:
    """The folder of --results_path, made where it is not there."""
    where_models_go = "models_path" if main["models_path"] else "results_path"
    if main["test"] == "ckpt" and any("\ud800" <= c <= "\udfff" for c in main[where_models_go]):
        raise InputError(
            f"--{where_models_go} {printable(main[where_models_go])}: the name is not UTF-8, and TensorBoard cannot "
            "write there; give another"
        )
    return make_folder(Path(main["results_path"]), "--results_path")


def _prepare(main: Options, net: Options, dataset: Options) -> Run:
    if dataset["name"] not in DATASETS:
        raise InputError(f"unknown data set {dataset['name']!r}; possible: {', '.join(DATASETS)}")
    results = _folder_of_results(main)
    device = choose_device(main["gpu"])
    fix_seeds(main["seed"])
    layout = DATASETS[dataset["name"]](dataset["data_path"], dataset["split_seed"], dataset["test_share"])
    classes = layout.choose(dataset["subdatasets"])
    ImageSettings.of(dataset)
    GLASS.check_settings({**net, **{key: net[key] or backbones.DEFAULT_DIMENSION for key in DIMENSIONS}})
    training = main["test"] == "ckpt"
    textures = open_textures(dataset["aug_path"], main["seed"], ImageSettings.of(dataset).reading) if training else None
    defects = list_defects(dataset["defects"]) if training and dataset["defects"] else []
    models = Path(main["models_path"]) if main["models_path"] else results / "models"
    weights = _weights_of(net)
    rows = _rows_of(dataset["name"], classes)
    loaded: dict[str, nn.Module] = {}
    chosen = [
        _name_of_auto(given, source, [models / f"backbone_{i}" / row for row in rows], loaded)
        for i, (given, source) in enumerate(zip(net["backbone_names"], weights, strict=True))
    ]
    net = {**net, "backbone_names": chosen}
    names = [backbones.split_seed(name) for name in chosen]
    layers = _layers_of(net["layers_to_extract_from"], len(names))
    for name, _ in names:
        backbones.resolve(name)
    if "random" in weights:
        LOGGER.warning("backbone weights are random: expect poor results")
    nets = []
    for given, (name, own), used, source in zip(chosen, names, layers, weights, strict=True):
        seed = main["seed"] if own is None else own
        # the seed is of random weights alone
        known = loaded.get(name) if source == "pretrained" else None
        nets.append(Net(given, backbones.load(name, source, seed) if known is None else known, used, seed))
    budget = cache_budget(dataset["cache_gb"])
    this = Run(main, net, dataset, device, results, models, layout, nets, textures, defects, budget)
    reading.glance_at_textures(this)
    return this


def _rows_of(dataset: str, classes: Sequence[str]) -> list[str]:
    """What tables and folders call the classes."""
    rows = [row_name(dataset, name) for name in classes]
    twice = [row for row in rows if rows.count(row) > 1]
    if twice:
        raise InputError(
            f"two classes would both be called {twice[0]} in the results; rename the folder of one of them"
        )
    return rows


def _weights_of(net: Options) -> list[str]:
    """--weights of each backbone."""
    given, count = list(net["weights"]), len(net["backbone_names"])
    weights = given if len(given) > 1 else given * count
    if len(weights) != count:
        raise InputError(f"{len(weights)} --weights for {count} backbones; give one for all or one for each")
    return weights


def _name_of_auto(given: str, weights: str, folders: Sequence[Path], loaded: dict[str, nn.Module] | None = None) -> str:
    """The backbone that `auto` stands for, said why; a training under way in `folders` keeps the one it has.

    A network that had to be loaded for that stays in `loaded`.
    """
    name, seed = backbones.split_seed(given)
    if name != backbones.AUTO:
        return given
    if weights != "pretrained":
        raise InputError(f"--weights {weights} are of which network? Give its name with -b")
    chosen, why = _begun_with(folders) or (backbones.choose() if loaded is None else backbones.choose(loaded))
    LOGGER.info("backbone %s: %s", chosen, why)
    return chosen if seed is None else f"{chosen}.seed-{seed}"


def _begun_with(folders: Sequence[Path]) -> tuple[str, str] | None:
    for path in (path for folder in folders for path in sorted(folder.glob("ckpt*.pth"))):
        try:
            config = checkpoint.read_plain(path).get("config")
        except WorkError:  # a damaged one is spoken of where it is to be gone on with
            continue
        name = config.get("backbone") if isinstance(config, dict) else None
        if name in (backbones.PREFERRED, embedded.NAME):
            return name, f"as the training in {path.parent} was begun"
    return None


def _val_share(net: Options, dataset: Options) -> float:
    """--val_share, or what goes without it."""
    given = dataset["val_share"]
    if net["select"] == "val" and given == 0:
        raise InputError("--select val needs images held out, --val_share is 0; leave it out for 0.1")
    return (0.1 if net["select"] == "val" else 0.0) if given is None else given


def _layers_of(given: Sequence[str], count: int) -> list[list[str]]:
    """Layers of each backbone; with several, `N.LAYER` is for the N-th alone."""
    if count == 1:
        return [list(given)]
    layers: list[list[str]] = [[] for _ in range(count)]
    for layer in given:
        match = re.fullmatch(r"(\d+)\.(.+)", layer)
        if match and int(match[1]) >= count:
            raise InputError(f"-le {layer}: there are only backbones 0 to {count - 1}")
        for i in [int(match[1])] if match else range(count):
            layers[i].append(match[2] if match else layer)
    return layers


def _class_data(this: Run, name: str) -> ClassData:
    test = this.layout.test(name)
    if not this.training and not test:
        raise InputError(f"class {name}: {this.layout.root} has no test image of it")
    train = this.layout.train(name) if this.training else []
    settings = ImageSettings.of(this.dataset).for_class(this.layout, name)
    row, held_out = row_name(this.dataset["name"], name), this.layout.held_out(name)
    if held_out and not this.training and not _trained_with_split(this, row):
        # what the layout would hold out here was trained on, or is nothing that anyone asked to be tested
        held = {sample.path for sample in held_out}
        test, held_out = [sample for sample in test if sample.path not in held], []
    tile = this.dataset["tile"]
    tiling = None if tile is None else Tiling.of(settings, tile, this.dataset["overlap"])
    return ClassData(name, row, train, test, settings, held_out, tiling=tiling)


def _trained_with_split(this: Run, row: str) -> bool:
    """Whether the checkpoint to be tested is of a training that held out good images."""
    chosen = checkpoint.find_chosen(this.models / "backbone_0" / row)
    return bool(chosen) and "split_seed" in checkpoint.read_plain(chosen[0]).get("config", {})


def _check_class(this: Run, data: ClassData) -> None:
    """Find out before the first class what would stop the last."""
    earlier.refuse_other_splits(this, data)
    for index in range(len(this.nets)):
        _check_folder(this, data, this.models / f"backbone_{index}" / data.row)
    if not this.training:
        return
    flags = distribution.read_flags(this.dataset["name"], data.row)
    if distribution.wants_foreground(this.dataset["fg"], flags):
        this.layout.foreground(data.name, data.train)


def _check_folder(this: Run, data: ClassData, folder: Path) -> None:
    """Find out whether a class's checkpoints can be read and written."""
    if this.training:
        earlier.check_place(folder)
    elif checkpoint.find_chosen(folder) is None:
        raise InputError(f"no ckpt_best_*.pth in {folder}: train the class first, or give --models_path")
    try:
        trained = not this.training or this.is_trained(folder)
    except WorkError:  # it says what to do about it
        trained = False
    earlier.check_checkpoints(folder, trained)


def _row_of(this: Run, data: ClassData, net: Net) -> str:
    """What a class is called in the results, with one of several backbones."""
    return data.row if len(this.nets) == 1 else f"{data.row} {net.name}"


def _check_settings_of_before(this: Run, data: ClassData, models: Sequence[GLASS]) -> None:
    """Refuse to go on with, or to test, what was trained with other settings, before the first class is begun."""
    for index, model in enumerate(models):
        folder = this.models / f"backbone_{index}"
        # a test takes what was chosen, whatever became of the state beside it
        saved = ((checkpoint.read_latest(folder / data.row) if this.training else None) or {}).get("config", {})
        svd = saved.get("svd", 0) if this.net["svd"] is None else this.net["svd"]  # else as decided when it was begun
        _describe(this, data, model, folder, Decision(svd, bool(saved.get("foreground")), ""))
        model.check_settings_of_before(test=not this.training)


def _write_split(this: Run, data: ClassData) -> None:
    """Which good images were kept out of the training, where nobody but this run decided that."""
    if not this.training:
        return
    val = hold_out(data.train, this.dataset["val_share"], this.main["seed"], data.name)
    if not (val or data.held_out):
        return
    train = [sample for i, sample in enumerate(data.train) if i not in set(val)]
    validation = [data.train[i] for i in val]
    parts = (("test", data.held_out), ("validation", validation), ("train", train))
    rows = [(path_as_cell(str(sample.path)), part) for part, samples in parts for sample in samples]
    listed = this.results / "splits" / f"{data.row}.csv"
    # the list of a finished class stays: a checkpoint of an earlier version does not tell whether the images changed
    if not (listed.exists() and this.finished(data)):
        # a file name need not be text: written as it is
        write_bytes(listed, csv_text([("path", "part"), *rows]).encode("utf-8", "surrogateescape"))
    if data.held_out:
        LOGGER.info(
            "%s: no good test image is given: %d of the good images are kept out of the training for the test "
            "(--split_seed %d), listed in %s", data.row, len(data.held_out), this.dataset["split_seed"], listed,
        )  # fmt: skip
    if val:
        LOGGER.info(
            "%s: %d of %d good images are held out of the training for thresholds%s, listed in %s", data.row, len(val),
            len(data.train), " and the choice of the epoch" if this.net["select"] == "val" else "", listed,
        )  # fmt: skip


def _check_net(this: Run, net: Net) -> GLASS:
    """Build the model once before the first class, so that what cannot work is said at once."""
    model = _build(this, net, svd=0)
    size, stride = ImageSettings.of(this.dataset).size, this.dataset["downsampling"]
    sides = zip(size, model.grid, strict=True)
    if stride is not None and not all(cells in (side // stride, -(-side // stride)) for side, cells in sides):
        raise InputError(
            f"--downsampling {stride} contradicts backbone {net.name!r}, whose layer {net.layers[0]} has a grid of "
            f"{model.grid[0]}x{model.grid[1]} at --imagesize {show_size(this.dataset['imagesize'])}; "
            "leave the option out"
        )
    return model


def _build(this: Run, net: Net, svd: int) -> GLASS:
    size = ImageSettings.of(this.dataset).size
    return GLASS(this.device).load(
        backbone=net.backbone,
        layers_to_extract_from=net.layers,
        device=this.device,
        input_shape=(3, *size),
        seed=net.seed,
        svd=svd,
        **{key: value for key, value in this.net.items() if key not in NOT_FOR_GLASS} | _dimensions(this, net),
    )


def _dimensions(this: Run, net: Net) -> dict[str, int]:
    """Lengths of the embeddings, as asked for or as the backbone's own."""
    default = backbones.default_dimension(backbones.split_seed(net.name)[0])
    return {key: default if this.net[key] is None else this.net[key] for key in DIMENSIONS}


# ----------------------------------------------------------------------------------------- a class


def _foreground(this: Run, data: ClassData, decision: Decision | None) -> list[Path | None] | None:
    """The foreground mask of each training image: the user's, else ones made and kept under the results.

    None in place of one that was made, and of which the crop leaves nothing: anomalies may lie anywhere there.
    """
    if decision is None or not decision.foreground or (this.finished(data) and not this.dataset["val_share"]):
        return None
    given = this.layout.foreground(data.name, data.train)
    if given is not None:
        return given
    made = make_masks(data.train, this.results / "foreground" / data.row, reading=data.settings.reading)
    if data.tiling is not None:
        return made
    kept = leave_out_small(made, data.train, data.image_sizes, data.settings)
    if lost := [sample.path for sample, mask in zip(data.train, kept, strict=True) if mask is None]:
        LOGGER.warning(
            "%s: the crop leaves (almost) nothing of the object in %d images, the first is %s: anomalies are placed "
            "anywhere on them; --keep_all shows the model the whole image", data.row, len(lost), lost[0],
        )  # fmt: skip
    return kept


def _run_class(
    this: Run,
    data: ClassData,
    net: Net,
    index: int,
    row: str,
    decision: Decision | None,
    masks: list[Path | None] | None,
    cache: ImageCache,
) -> dict[str, Any] | None:
    """Train where asked for and test one class; its row of results, None where there is nothing to test."""
    folder = this.models / f"backbone_{index}"
    model = _model(this, data, net, folder, decision)
    test_loader = _test_loader(this, data, cache)
    record, examples = None, None
    if decision is not None:
        _say_what_does_nothing(this, data)
        if decision.verdict is not None and decision.fresh:
            model.start(data.row)  # from here on the training knows its variant by itself, whatever a file says
            distribution.keep_verdict(
                this.results, this.dataset["name"], data.row, decision.verdict, this.dataset["distribution"]
            )
        record, examples = _train(this, data, net, model, test_loader, masks, cache)
    best = checkpoint.find_chosen(model.model_dir)
    state = checkpoint.read_plain(best[0]) if best else {}
    this.configs[f"{folder.name}/{data.row}"] = state.get("config") or model.config
    before = {} if record else page.read_history(this.results, row) or {}
    history = (record or before).get("history", [])
    if test_loader is None:
        kept = " of the last epoch" if this.training and this.net["select"] == "best" else ""
        LOGGER.info(
            "%s: no test images, nothing to test; the model%s is %s", data.row, kept, best[0] if best else folder
        )
        shown = before.get("looked_at") if examples is None else _look_at(this, data, model, examples)
        page.save_class(this.results, row, page.untested(state, history, best[1] if best else None, shown))
        return None
    tested = model.test(test_loader, data.row)
    figures = tested.figures
    last = model.last_figures(test_loader, record) if record and record["epoch"] else {}
    if last:
        figures |= {"last_epoch": record["epoch"] - 1, **{f"last_{m}": last[m] for m in METRICS}}
    LOGGER.info("%s: the kept epoch, %d, on the test set: %s", data.row, figures["best_epoch"], _in_percent(figures))
    select = this.configs[f"{folder.name}/{data.row}"].get("select", "best")
    page.save_class(this.results, row, page.tested(tested, _shown_of(test_loader), history, this.main["seed"], select))
    return figures


def _look_at(this: Run, data: ClassData, model: GLASS, examples: Dataset) -> dict[str, Any]:
    """Of a class without test images: what the model makes of the pictures that its thresholds come from."""
    chosen = np.unique(np.linspace(0, len(examples) - 1, min(len(examples), EXAMPLES)).astype(int)).tolist()
    some = Subset(examples, chosen)
    return page.looked_at(model.look_at(_in_order(this, some), data.row), some, this.main["seed"])


def _model(this: Run, data: ClassData, net: Net, folder: Path, decision: Decision | None) -> GLASS:
    """The model of a class, with all that its checkpoints are to tell."""
    model = _build(this, net, decision.svd if decision else 0)
    _describe(this, data, model, folder, decision)
    return model


def _describe(this: Run, data: ClassData, model: GLASS, folder: Path, decision: Decision | None) -> None:
    """Give a model everything of a class but its weights."""
    model.svd = decision.svd if decision else 0
    model.set_model_dir(folder, data.row)
    model.results_path = this.results if len(this.nets) == 1 else this.results / folder.name
    model.pictures = this.main["pictures"]
    model.extra_config = {
        "class_name": data.row, **asdict(data.settings),
        "batch_size": this.dataset["batch_size"], "distribution": this.dataset["distribution"],
        "fg": this.dataset["fg"], "foreground": bool(decision and decision.foreground),
        "defects": digest(this.defects_of(data.name), data.settings.reading),
        "defects_share": this.dataset["defects_share"],
        "val_share": this.dataset["val_share"], "image_size": list(data.median_size),
        "tile": this.dataset["tile"], "overlap": this.dataset["overlap"] if data.tiling else None,
    }  # fmt: skip
    if decision is not None:
        files = earlier.inventory_of(this, data, decision.foreground)
        model.extra_config |= {"data": files.digest, "data_path": printable(files.root), "data_images": files.images}
        model.extra_config["verdict"] = decision.verdict
    if this.textures is not None:
        model.extra_config["textures"] = this.textures.digest()
    if data.held_out:  # another choice would test on images of the training
        model.extra_config |= {"split_seed": this.dataset["split_seed"], "test_share": this.dataset["test_share"]}


def _test_loader(this: Run, data: ClassData, cache: ImageCache) -> DataLoader | None:
    if not data.test:
        return None
    _say_what_lacks(data)
    return _in_order(this, data.test_set(cache), keep_workers=True)


def _shown_of(loader: DataLoader) -> Dataset:
    """The test pictures as they are shown: whole, though they may have been tested in tiles."""
    return getattr(loader.dataset, "whole", loader.dataset)


def _in_order(this: Run, dataset: Dataset, keep_workers: bool = False) -> DataLoader:
    """A loader of images to be scored; `keep_workers` where it is read more than once."""
    pin = this.device.type == "cuda"
    return make_loader(
        dataset, this.dataset["batch_size"], this.dataset["num_workers"], keep_workers=keep_workers, pin_memory=pin
    )


def _decide(this: Run, data: ClassData) -> Decision:
    """The variant of a class.

    A training under way with the same --distribution and --fg keeps the one it was started with: a file that
    GLASS_EXCEL_DIR names may hold the verdict that was written then, which `--fg 2` would follow.
    """
    dataset = this.dataset["name"]
    started = _started_with(this, this.models / "backbone_0" / data.row)
    if started is not None:
        decision = Decision(
            started["svd"], started["foreground"], "as the training was started", started.get("verdict"), fresh=False
        )
        LOGGER.info("%s: %s (%s)", data.row, distribution.NAMES[decision.svd], decision.reason)
        return decision
    decision = distribution.decide(
        this.dataset["distribution"],
        this.dataset["fg"],
        this.net["svd"],
        distribution.read_flags(dataset, data.row),
        lambda: _judge(this, data),
        distribution.excel_path(dataset),
    )
    LOGGER.info(
        "%s: %s (%s)%s", data.row, distribution.NAMES[decision.svd], decision.reason,
        ", with foreground masks" if decision.foreground else "",
    )  # fmt: skip
    return decision


def _started_with(this: Run, model_dir: Path) -> dict[str, Any] | None:
    """The settings of the training in a class's folder, where there is one asked for in the same way."""
    config = (checkpoint.read_latest(model_dir) or {}).get("config", {})
    asked = {key: this.dataset[key] for key in ("distribution", "fg")}
    same = {key: config.get(key) for key in asked} == asked and this.net["svd"] in (None, config["svd"])
    return config if same else None


def _judge(this: Run, data: ClassData) -> int:
    """Judge the class by its mean training image, resized straight; keep pictures."""
    # the special size of some classes does not count here
    settings = ImageSettings.of(this.dataset)
    reading_options = data.settings.reading
    mean = distribution.mean_image(settings.straight(sample.read(reading_options)) for sample in data.seen(data.train))
    flag = distribution.judge(mean)
    spectrum = distribution.spectrum(mean).astype(np.uint8) * 255
    save_image(this.results / "judge" / "avg" / str(flag) / f"{data.row}.png", mean)
    save_image(this.results / "judge" / "fft" / str(flag) / f"{data.row}.png", spectrum)
    return flag


def _train(
    this: Run,
    data: ClassData,
    net: Net,
    model: GLASS,
    test_loader: DataLoader | None,
    masks: list[Path | None] | None,
    cache: ImageCache,
) -> tuple[dict[str, Any], Dataset]:
    """Train on all good images but those held out, then find thresholds; the record, and the images they come from."""
    batch, workers = this.dataset["batch_size"], this.dataset["num_workers"]
    defects = _defects(this, data)

    def good_images(which: Sequence[int]) -> TrainDataset:
        samples, of_them = data.seen([data.train[i] for i in which]), None
        if masks:  # a tile's lies in that of its picture
            by_path = {data.train[i].path: masks[i] for i in which}
            of_them = [by_path[sample.path] for sample in samples]
        return TrainDataset(samples, data.settings, this.textures, model.grid, of_them, net.seed, cache, defects)

    val = hold_out(data.train, this.dataset["val_share"], this.main["seed"], data.name)
    train_set = good_images([i for i in range(len(data.train)) if i not in set(val)])
    val_set = good_images(val)
    val_loader = _in_order(this, ValidationDataset(_thinned(val_set)), this.net["select"] == "val") if val else None
    # an epoch ends once more than `limit` samples were used
    sampler = EpochSampler(len(train_set), net.seed, (this.net["limit"] // batch + 1) * batch)
    pin = this.device.type == "cuda"
    loader = make_loader(train_set, batch, workers, sampler, pin_memory=pin)
    everything = EpochSampler(len(train_set), net.seed, shuffle=False)
    centre_loader = make_loader(
        CentreDataset(train_set), batch, workers, everything, keep_workers=False, pin_memory=pin
    )
    _label_board(this, model, data)
    begun = model.start(data.row)
    done_before, files = begun["epoch"], earlier.inventory_of(this, data, model.extra_config["foreground"])
    if not model.finished(begun):
        files.save(model.model_dir)
    record = model.trainer(loader, test_loader, data.row, centre_loader, val_loader)
    for one in (loader, test_loader, val_loader):
        end_workers(one)
    this.trained |= record["epoch"] > done_before
    best = checkpoint.find_best(model.model_dir)
    # a checkpoint that lay there without its training's state may have been trained on any of the images
    held = bool(val) and checkpoint.read_plain(best[0]).get("config", {}).get("val_share") == this.dataset["val_share"]
    # of tiles all good ones count, and none with defects: their maps would be many
    whole = val_loader if data.tiling is None else _in_order(this, GoodImages(val_set))
    good = whole if held else _in_order(this, GoodImages(train_set))
    used = files.only({sample.path for sample in (val_set if held else train_set).samples})
    model.calibrate(good, data.row, HELD_OUT if held else TRAINING, used.digest)
    return record, (val_loader if held else good).dataset


def _thinned(val_set: TrainDataset) -> TrainDataset:
    """At most `VALIDATED` of them, evenly chosen: tiles may be thousands, and each keeps its map."""
    chosen = np.unique(np.linspace(0, len(val_set) - 1, min(len(val_set), VALIDATED)).astype(int))
    if len(chosen) == len(val_set) or val_set.samples[0].box is None:
        return val_set
    thin = copy.copy(val_set)
    thin.samples = [val_set.samples[i] for i in chosen]
    thin.masks = val_set.masks and [val_set.masks[i] for i in chosen]
    return thin


def _defects(this: Run, data: ClassData) -> Defects | None:
    """The known defects of a class, at the scale of its training images."""
    pairs = this.defects_of(data.name)
    if not pairs:
        if this.defects:
            LOGGER.info("%s: --defects holds none of this class", data.row)
        return None
    size = data.tiling.tile[::-1] if data.tiling else data.median_size
    defects = Defects(pairs, data.settings, this.dataset["defects_share"], size, bool(data.tiling))
    LOGGER.info("%s: %s", data.row, defects.describe())
    return defects


def _label_board(this: Run, model: GLASS, data: ClassData) -> None:
    labels = {key: this.main[key] for key in ("log_project", "log_group", "run_name") if this.main[key]}
    if labels and not (model.model_dir / checkpoint.LATEST).exists():
        folder = model.model_dir / "tb"
        with tensorboard_log.open_board(folder) as board, tensorboard_log.writing(folder):
            board.add_text("run", printable(", ".join(f"{key} {value}" for key, value in labels.items())))


def _say_what_does_nothing(this: Run, data: ClassData) -> None:
    """Options that have no effect on this class."""
    if this.net["patience"] and this.net["select"] == "best" and not data.test:
        LOGGER.warning("%s: --patience does nothing without test images; --select val needs none", data.row)
    if this.main["pictures"] == "every_eval" and this.net["select"] == "val":
        LOGGER.warning(
            "%s: --pictures every_eval shows images of the validation set in TensorBoard alone: no test image is "
            "looked at in the training", data.row,
        )  # fmt: skip
    elif this.main["pictures"] == "every_eval" and not data.test:
        LOGGER.warning("%s: --pictures every_eval does nothing: no test image is looked at in the training", data.row)


def _say_what_lacks(data: ClassData) -> None:
    kinds = {sample.is_anomaly for sample in data.test}
    if len(kinds) == 1:
        kind = "defective" if kinds == {True} else "good"
        LOGGER.info("%s: all test images are %s: image metrics will be nan", data.row, kind)
    unknown = sum(sample.is_anomaly and sample.mask is None for sample in data.test)
    if unknown:
        LOGGER.info("%s: %d defective test images have no mask: left out of the pixel metrics", data.row, unknown)


def _in_percent(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {100 * figures[name]:.2f}" for name in METRICS)


# ---------------------------------------------------------------------------------------- settings


def _write_settings(this: Run, started: float) -> None:
    """settings.json: effective arguments, versions, device, duration so far.

    A call that trained nothing leaves those of the training, and is noted beside them.
    """
    device = torch.cuda.get_device_name(this.device) if this.device.type == "cuda" else platform.processor() or "cpu"
    written = datetime.now(timezone.utc).isoformat(timespec="seconds")
    before = report.read_settings(this.results)
    if before and not this.trained:
        call = {"command": sys.argv, "written": written}
        calls = [one for one in before.get("later_calls", []) if one["written"] != this.begun]
        this.begun = written
        report.write_settings(this.results, {**before, "later_calls": [*calls, call]})
        return
    report.write_settings(
        this.results,
        {
            "command": sys.argv,
            "arguments": {
                "main": {**this.main, "models_path": str(this.models)},
                "net": dict(this.net),
                "dataset": dict(this.dataset),
            },
            "models": this.configs,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "device": {"kind": str(this.device), "name": device, "threads": torch.get_num_threads()},
            "written": written,
            "duration_seconds": round(time.monotonic() - started, 1),
        },
    )
