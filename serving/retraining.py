"""Learning from what was marked: train a recipe anew, compare old and new, and install what is not worse."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from datasets import DATASETS, MVTecLayout, Sample
from inference import checkpoint
from inference.inspector import load_checkpoint
from inference.thresholds import Thresholds
from serving import comparing
from serving.marked_data import (
    APART,
    LAYOUT_WITH_FOLDERS,
    PLAN,
    Assembly,
    Marked,
    Places,
    marked_pictures,
    parts_before,
    read_plan,
)
from serving.recipes import Version, digest_of
from serving.reference import appearance_of
from serving.store import DATABASE, Store
from training.run import run_seeds
from utils import LOGGER, InputError, WorkError, one_at_a_time, row_name, write_text

RETRAIN, DONE = "retrain", "done.json"
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Wish:
    """What a retraining is asked for.

    Attributes:
        recipe: by name.
        share: of the marked pictures that is kept for the test, in (0, 1).
        force: install the new version even if it is worse.
        data, textures, defects: DATA_PATH, AUG_PATH and --defects of the recipe's training; None as they were.
        device: on which old and new are compared.
        main, net, dataset: options of a training, by name, with their defaults.
    """

    recipe: str
    share: float
    force: bool
    data: Path | None
    textures: str | None
    defects: Path | None
    device: torch.device
    main: Options
    net: Options
    dataset: Options


def open_store(folder: Path, recipe: str) -> tuple[Store, Version]:
    """An existing store, and the active version of a recipe.

    Raises:
        InputError: there is no store, or no such recipe.
        WorkError: the store cannot be used.
    """
    if not (folder / DATABASE).is_file():
        raise InputError(f"--store {folder}: there is no {DATABASE} in it; give the --store of python main.py serve")
    store = Store(folder)
    return store, store.recipes.active(recipe)


def rollback(folder: Path, recipe: str) -> Version:
    """Make the version active that was active before.

    Raises:
        InputError, WorkError: as for `open_store`; there is no version before.
    """
    store, _ = open_store(folder, recipe)
    return store.recipes.undo(recipe)


def retrain(folder: Path, wish: Wish) -> Version:
    """Train a recipe with what was marked, compare, and enter the new version, active if it is not worse.

    A training that was stopped is resumed if nothing else was marked since.

    Raises:
        InputError: the recipe, the marks or the folders do not allow it.
        WorkError: a file is missing, the disk is full, or the training failed.
    """
    store, active = open_store(folder, wish.recipe)
    own = (store.folder / RETRAIN / wish.recipe).absolute()
    own.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(own, "--store"):
        places = find_places(store, wish)
        marked = marked_pictures(store, wish.recipe, wish.share, parts_before(own))
        place = _started(own, places, marked) or _start(own, active, places, marked)
        if (place / DONE).exists():
            return _finished(store, place, wish)
        base = store.recipes.version(wish.recipe, read_plan(place)["base"])
        config = checkpoint.read_plain(store.recipes.checkpoint(base))["config"]
        trained = _train(place, places, config, wish)
        return _enter(store, place, trained, places, wish)


def find_places(store: Store, wish: Wish) -> Places:
    """Where the recipe's own images are: as given, else as the latest retraining or the recipe's training had them.

    Raises:
        InputError: a place is not known or no longer there; the message names the option.
    """
    versions = store.recipes.versions(wish.recipe)
    configs = [checkpoint.read_plain(store.recipes.checkpoint(version)).get("config") or {} for version in versions]
    kept: dict[str, Any] = next((v.figures["retrain"] for v in versions if "retrain" in v.figures), {})
    inside = str((store.folder / RETRAIN).absolute())
    config = next((c for c in configs if not str(c.get("data_path") or "").startswith(inside)), configs[-1])
    data = wish.data or Path(kept.get("data") or config.get("data_path") or "")
    if not data.is_absolute() and wish.data is None:
        raise InputError(f"recipe {wish.recipe} does not say where its training images are; give --data DATA_PATH")
    if not data.is_dir():
        raise InputError(f"the training images of {wish.recipe} are not in {data}; give --data DATA_PATH")
    known = "builtin" if str(config.get("textures", "")).startswith("builtin ") else None
    textures = wish.textures or kept.get("textures") or known
    if textures is None or (textures != "builtin" and not Path(textures).is_dir()):
        reason = "does not say where its textures are" if textures is None else f"has no textures in {textures}"
        raise InputError(f"recipe {wish.recipe} {reason}; give --textures AUG_PATH, a folder or builtin")
    defects = wish.defects or (Path(kept["defects"]) if kept.get("defects") else None)
    if config.get("defects") and (defects is None or not defects.is_dir()):
        raise InputError(f"recipe {wish.recipe} was trained with known defects; give their folder with --defects DIR")
    absolute = textures if textures == "builtin" else str(Path(textures).absolute())
    return Places(config, data.absolute(), absolute, None if defects is None else defects.absolute())


# ----------------------------------------------------------------------------------- start, resume


def _key(places: Places, marked: list[Marked]) -> list[Any]:
    """What a retraining depends on, as JSON gives it back."""
    where = [str(places.data), places.textures, str(places.defects)]
    return [where, [[m.picture.sha256, m.picture.mark, None if m.mask is None else m.mask.name] for m in marked]]


def _started(own: Path, places: Places, marked: list[Marked]) -> Path | None:
    """The latest retraining, if it was started with the same pictures, marks and places."""
    started = sorted(path.parent for path in own.glob(f"*/{PLAN}"))
    return started[-1] if started and read_plan(started[-1])["key"] == _key(places, marked) else None


def _start(own: Path, active: Version, places: Places, marked: list[Marked]) -> Path:
    """Lay out the data of a new retraining; its folder appears when it is complete."""
    for left in own.glob(".*.tmp"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    name = time.strftime("%Y%m%d-%H%M%S")
    while (own / name).exists():
        name += "a"
    half = own / f".{name}.tmp"
    try:
        half.mkdir()
        Assembly(half, places, marked).build()
        parts = {m.picture.sha256: m.part for m in marked}
        write_text(half / PLAN, json.dumps({"base": active.number, "parts": parts, "key": _key(places, marked)}))
        return half.rename(own / name)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


def _finished(store: Store, place: Path, wish: Wish) -> Version:
    """The version of a retraining that is over; with --force it is installed."""
    version = store.recipes.version(wish.recipe, json.loads((place / DONE).read_text(encoding="utf-8"))["version"])
    if wish.force and not version.active:
        return store.recipes.activate(wish.recipe, version.number)
    raise InputError(
        f"recipe {wish.recipe}: nothing was marked since version {version.number} was trained"
        + ("" if version.active else "; --force installs that version")
    )


# ----------------------------------------------------------------------------------- train, compare


def _layout_of(places: Places) -> str:
    return places.dataset if issubclass(DATASETS[places.dataset], MVTecLayout) else LAYOUT_WITH_FOLDERS


def _train(place: Path, places: Places, config: dict[str, Any], wish: Wish) -> Path:
    """Train with the recipe's own settings; returns the checkpoint."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    net = {key: values.get(key, default) for key, default in wish.net.items()}
    net |= {"backbone_names": (config["backbone"],), "weights": (config.get("weights") or "pretrained",)}
    dataset = {key: values.get(key, default) for key, default in wish.dataset.items()}
    defects = place / "defects"
    dataset |= {
        "name": _layout_of(places), "data_path": str(place / "data"), "aug_path": places.textures,
        "subdatasets": (places.class_name,), "defects": str(defects) if defects.is_dir() else None,
        "distribution": 2 + int(config.get("svd", 0)), "fg": int(bool(config.get("foreground"))), "augment": False,
        "num_workers": wish.dataset["num_workers"],
    }  # fmt: skip
    main = {**wish.main, "seed": (int(config.get("seed", 0)),), "results_path": str(place / "results")}
    run_seeds(main, net, dataset)
    row = row_name(dataset["name"], places.class_name)
    found = checkpoint.find_chosen(place / "results" / "models" / "backbone_0" / row)
    if found is None:
        raise WorkError(f"the training in {place / 'results'} has left no checkpoint")
    return found[0]


def _test_set(place: Path, places: Places) -> list[Sample]:
    """The test set of the recipe, then the marked pictures that are kept for the test."""
    own = DATASETS[_layout_of(places)](place / "data", 0, 0.2).test(places.class_name)
    apart = place / APART
    return own + (MVTecLayout(apart).test(places.class_name) if apart.is_dir() else [])


def _enter(store: Store, place: Path, trained: Path, places: Places, wish: Wish) -> Version:
    """Compare the new checkpoint with the active version, and enter it."""
    active = store.recipes.active(wish.recipe)
    thresholds = Thresholds.of(checkpoint.read_plain(trained).get("thresholds"))
    image = None if thresholds is None else min(max(thresholds.image, 0.0), 1.0)
    samples = _test_set(place, places)
    candidate = replace(active, unsure=image, defective=image, digest=digest_of(trained))
    model = load_checkpoint(trained, wish.device)
    old = comparing.Scored(load_checkpoint(store.recipes.checkpoint(active), wish.device), active, samples)
    new = comparing.Scored(model, candidate, samples)
    names = [sample.path.resolve().name for sample in samples]
    comparison = {
        "old": old.figures, "new": new.figures, "old_version": active.number,
        "pictures": comparing.rows(samples, names, old, new),
    }  # fmt: skip
    page = comparing.write_page(place, samples, comparison, model)
    reference = {
        "good": [score for score, s in zip(new.scores, samples, strict=True) if not s.is_anomaly],
        "defective": [score for score, s in zip(new.scores, samples, strict=True) if s.is_anomaly],
    }
    train = DATASETS[_layout_of(places)](place / "data", 0, 0.2).train(places.class_name)
    reference |= appearance_of([sample.path for sample in train], places.reading)
    used = {"data": str(places.data), "textures": places.textures}
    used |= {"defects": None if places.defects is None else str(places.defects), "folder": place.name}
    figures = {"reference": reference, "comparison": comparison, "retrain": used}
    reason = comparing.worse(old.figures, new.figures)
    install = reason is None or wish.force
    version = store.recipes.add(wish.recipe, trained, image, image, "retrained", figures, activate=install)
    write_text(place / DONE, json.dumps({"version": version.number}))
    _report(version, active, old, new, reason, page)
    return version


def _report(
    version: Version, before: Version, old: comparing.Scored, new: comparing.Scored, reason: str | None, page: Path
) -> None:
    for number, figures in ((before.number, old.figures), (version.number, new.figures)):
        said = ", ".join(f"{key} {comparing.shown(value)}" for key, value in figures.items())
        LOGGER.info("version %d: %s", number, said)
    LOGGER.info("pictures that they decide differently: %s", page)
    if version.active:
        LOGGER.info(
            "%s: version %d judges from now on%s; --rollback brings back version %d", version.recipe, version.number,
            f", although it is worse: {reason}" if reason else "", before.number,
        )  # fmt: skip
    else:
        LOGGER.warning(
            "%s: version %d is kept, but not installed: %s; --force installs it", version.recipe, version.number, reason
        )
