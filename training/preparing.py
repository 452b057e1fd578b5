"""From the options of the command line to a run, with all checks that need no file of a class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

import backbones
from datasets import DATASETS, ImageSettings
from datasets.cache import cache_budget
from datasets.defects import list_defects
from datasets.roi import read_roi
from datasets.textures import open_textures
from inference import checkpoint
from inference.settings import Settings
from training.job import Net, Options, Run
from utils import LOGGER, InputError, WorkError, choose_device, fix_seeds, make_folder, printable, row_name


def folder_of_results(main: Options) -> Path:
    """The folder of --results_path, created if it does not exist."""
    option = "models_path" if main["models_path"] else "results_path"
    if main["test"] == "ckpt" and any("\ud800" <= character <= "\udfff" for character in main[option]):
        raise InputError(
            f"--{option} {printable(main[option])}: the name is not UTF-8, and TensorBoard cannot write there; give "
            "another"
        )
    return make_folder(Path(main["results_path"]), "--results_path")


def prepare(main: Options, net: Options, dataset: Options) -> Run:
    """Check the options and load the backbones of a run.

    Args:
        main, net, dataset: options of the three commands, by name.

    Raises:
        InputError: an option cannot work.
        WorkError: weights are not available.
    """
    if dataset["name"] not in DATASETS:
        raise InputError(f"unknown data set {dataset['name']!r}; possible: {', '.join(DATASETS)}")
    results = folder_of_results(main)
    device = choose_device(main["gpu"])
    fix_seeds(main["seed"])
    dataset = {**dataset, "val_share": _val_share(net, dataset)}
    layout = DATASETS[dataset["name"]](dataset["data_path"], dataset["split_seed"], dataset["test_share"])
    classes = layout.choose(dataset["subdatasets"])
    settings = ImageSettings.of(dataset)
    Settings.check(net)
    training = main["test"] == "ckpt"
    roi = read_roi(Path(dataset["roi"]), dataset["max_pixels"]) if dataset.get("roi") else None
    textures = open_textures(dataset["aug_path"], main["seed"], settings.reading) if training else None
    defects = list_defects(dataset["defects"]) if training and dataset["defects"] else []
    models = Path(main["models_path"]) if main["models_path"] else results / "models"
    rows = _rows_of(dataset["name"], classes)
    chosen, nets = _nets(main, net, models, rows)
    budget = cache_budget(dataset["cache_gb"])
    net = {**net, "backbone_names": chosen}
    return Run(main, net, dataset, device, results, models, layout, nets, textures, defects, budget, roi=roi)


def _nets(main: Options, net: Options, models: Path, rows: Sequence[str]) -> tuple[list[str], list[Net]]:
    """The names of the backbones, with `auto` replaced by its choice, and the networks."""
    weights = _weights_of(net)
    loaded: dict[str, nn.Module] = {}
    chosen = [
        name_of_auto(name, source, [models / f"backbone_{i}" / row for row in rows], loaded)
        for i, (name, source) in enumerate(zip(net["backbone_names"], weights, strict=True))
    ]
    names = [backbones.split_seed(name) for name in chosen]
    layers = _layers_of(net["layers_to_extract_from"], len(names))
    for name, _ in names:
        backbones.resolve(name)
    if "random" in weights:
        LOGGER.warning("backbone weights are random: expect poor results")
    nets = []
    for full_name, (name, seed), used, source in zip(chosen, names, layers, weights, strict=True):
        seed = main["seed"] if seed is None else seed
        # only random weights depend on the seed, so a pretrained network is loaded once
        network = loaded.get(name) if source == "pretrained" else None
        nets.append(Net(full_name, backbones.load(name, source, seed) if network is None else network, used, seed))
    return chosen, nets


def _rows_of(dataset: str, classes: Sequence[str]) -> list[str]:
    """The names of the classes in tables and folders."""
    rows = [row_name(dataset, name) for name in classes]
    duplicates = [row for row in rows if rows.count(row) > 1]
    if duplicates:
        raise InputError(
            f"two classes would both be called {duplicates[0]} in the results; rename the folder of one of them"
        )
    return rows


def _weights_of(net: Options) -> list[str]:
    """The value of --weights for each backbone."""
    weights, count = list(net["weights"]), len(net["backbone_names"])
    weights = weights if len(weights) > 1 else weights * count
    if len(weights) != count:
        raise InputError(f"{len(weights)} --weights for {count} backbones; give one for all or one for each")
    return weights


def name_of_auto(
    backbone: str, weights: str, folders: Sequence[Path], loaded: dict[str, nn.Module] | None = None
) -> str:
    """The backbone that `auto` stands for; the reason goes to the log. Other names are returned as they are.

    Args:
        backbone: the value of -b.
        weights: the value of --weights for it.
        folders: of the classes; a training in one of them keeps its backbone.
        loaded: networks by name; a network that had to be loaded for the decision is added.

    Raises:
        InputError: weights are given, but no backbone.
    """
    name, seed = backbones.split_seed(backbone)
    if name != backbones.AUTO:
        return backbone
    if weights != "pretrained":
        raise InputError(f"--weights {weights}: the network that they belong to is not given; name it with -b")
    chosen, reason = _started_with(folders) or (backbones.choose() if loaded is None else backbones.choose(loaded))
    LOGGER.info("backbone %s: %s", chosen, reason)
    return chosen if seed is None else f"{chosen}.seed-{seed}"


def _started_with(folders: Sequence[Path]) -> tuple[str, str] | None:
    """The backbone of a training in one of the folders, if `auto` could stand for it, and the reason."""
    for path in (path for folder in folders for path in sorted(folder.glob("ckpt*.pth"))):
        try:
            config = checkpoint.read_plain(path).get("config")
        except WorkError:  # a damaged checkpoint is reported when it is used
            continue
        name = config.get("backbone") if isinstance(config, dict) else None
        if name in (backbones.PREFERRED, backbones.EMBEDDED, *backbones.REMOVED):  # a removed one says what to do
            return name, f"as the training in {path.parent} was started"
    return None


def _val_share(net: Options, dataset: Options) -> float:
    """The value of --val_share, or its default."""
    share = dataset["val_share"]
    if net["select"] == "val" and share == 0:
        raise InputError("--select val needs images held out, but --val_share is 0; omit it for the default, 0.1")
    return (0.1 if net["select"] == "val" else 0.0) if share is None else share


def _layers_of(layers: Sequence[str], count: int) -> list[list[str]]:
    """The layers of each backbone; with several backbones, `N.LAYER` is only for the N-th."""
    if count == 1:
        return [list(layers)]
    by_backbone: list[list[str]] = [[] for _ in range(count)]
    for layer in layers:
        match = re.fullmatch(r"(\d+)\.(.+)", layer)
        if match and int(match[1]) >= count:
            raise InputError(f"-le {layer}: the backbones have numbers from 0 to {count - 1}; give one of them")
        for i in [int(match[1])] if match else range(count):
            by_backbone[i].append(match[2] if match else layer)
    return by_backbone
