"""The state of a training in its folder: saved, resumed, and refused where it does not fit the present settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from inference import checkpoint
from inference.checkpoint import load_parts
from inference.settings import as_json_has_it
from training import saving
from training.record import Record
from utils import LOGGER, InputError, WorkError

if TYPE_CHECKING:
    from glass import GLASS

# settings that may change between the start of a training and its resumption; `weights` is a path, and what it holds
# is compared by `backbone_hash`
FREE_ON_RESUME = frozenset(
    {
        "max_pixels",
        "meta_epochs",
        "eval_epochs",
        "weights",
        "precision",
        "feature_cache",
        "compile",
        "patience",
        "false_alarm",
        "image_size",
        "data_path",
        "data_images",
        "verdict",
    }
)
# settings that choose the good images kept for the test: with other values a test would use images of the training
OF_SPLIT = ("split_seed", "test_share")
# settings that a test must share with the training, or its scores would mean nothing
NEEDED_ALIKE = (
    *OF_SPLIT,
    "backbone",
    "backbone_hash",
    "layers_to_extract_from",
    "pretrain_embed_dimension",
    "target_embed_dimension",
    "patchsize",
    "dsc_layers",
    "dsc_hidden",
    "pre_proj",
    "input_shape",
    "resize",
    "keep_all",
    "tile",
    "overlap",
)
EPOCHS_APART = 1_000_003  # seeds of epochs are this far apart from those of other seeds


class TrainingState:
    """A model's training as its folder, `model.model_dir`, holds it.

    Raises:
        InputError: the model has no folder yet.
    """

    def __init__(self, model: GLASS, name: str) -> None:
        if model.model_dir is None:
            raise InputError("set_model_dir comes before trainer")
        self.model, self.name, self.folder = model, name, model.model_dir
        self.saver = saving.Saver(self.folder)
        self._started: Record | None = None  # the record of the training whose state the model holds

    @property
    def latest(self) -> Path:
        """Where the state lies from which a training goes on."""
        return self.folder / checkpoint.LATEST

    def is_over(self, record: Record) -> bool:
        """Whether there is nothing left to train."""
        return record.is_over(self.model.settings.meta_epochs, self.model.settings.patience)

    def start(self) -> Record:
        """Load the state of an unfinished training, or save that of a new one: from then on its settings are fixed."""
        if self._started is None:
            record = self._resume()
            if not self.latest.exists() and not self.is_over(record):
                self.save_epoch(record, False)
            self._started = record
        return Record.of(self._started.plain())

    def leave(self) -> None:
        """The model's weights move away from the state that `start` loaded."""
        self._started = None

    def save_epoch(self, record: Record, is_best: bool) -> None:
        """Keep the best epoch, and save what a resumption needs, as soon as it is due (see `saving.Saver`)."""
        best = weights_of(self.model, record.best) if is_best else None
        self.saver.put({**weights_of(self.model, record.last or {}), **self._training_state(record)}, best)

    def conclude(self) -> None:
        """Save what is waiting; where no epoch has been chosen, keep the latest."""
        self.saver.flush()
        kept = saving.keep_latest(self.folder)
        if kept is not None and self.model.settings.select != "last":
            LOGGER.info("%s: no checkpoint of a chosen epoch exists: the latest, %d, is kept", self.name, kept[1])

    def _training_state(self, record: Record) -> dict[str, Any]:
        return {
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.model.optimisers.items()},
            "random_state": self.model.generator.get_state(),
            "record": record.plain(),
        }

    def _resume(self) -> Record:
        """The record of the training, with its state loaded into the model where it is not over."""
        best = checkpoint.find_best(self.folder)
        anew = _train_anew(self.folder)
        if not self.latest.exists():
            if best is None:
                return Record()
            LOGGER.info("%s: %s is already trained (without a %s); %s", self.name, best[0], checkpoint.LATEST, anew)
            return Record(epoch=self.model.settings.meta_epochs, best={"epoch": best[1]})
        saved = checkpoint.read_latest(self.folder)
        if not isinstance(saved.get("record"), dict):
            raise WorkError(f"{self.latest} cannot be resumed, since it holds weights alone; {anew}")
        refuse_other_settings(saved.get("config", {}), self.model)
        record = Record.of(saved["record"])
        if self.is_over(record):
            LOGGER.info("%s: training was finished before (epochs: %d), skipped; %s", self.name, record.epoch, anew)
            self.conclude()
            return record
        return self._load()

    def _load(self) -> Record:
        # to the CPU: the optimisers move to the device what belongs there and leave their counts of steps where they
        # are; on the device, each step would wait for them once per parameter
        state = load_weights(self.model, self.latest, checkpoint.load(self.latest))
        record = Record.of(state["record"])
        for key, optimiser in self.model.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][key])
        self._resume_noise(state["random_state"], record.epoch)
        saving.remove_other_bests(self.folder, record.best["epoch"] if record.best else None)
        if record.epoch:
            epochs = self.model.settings.meta_epochs
            LOGGER.info("%s: resumed after %d of %d epochs", self.name, record.epoch, epochs)
        return record

    def _resume_noise(self, saved: Tensor, epoch: int) -> None:
        """Continue the generator's sequence; a state saved on another kind of device cannot be continued."""
        generator = self.model.generator
        if saved.numel() == generator.get_state().numel():
            generator.set_state(saved.cpu())
            return
        generator.manual_seed(self.model.settings.seed * EPOCHS_APART + epoch)
        LOGGER.info(
            "%s: the training was started on another kind of device than %s, which draws other random numbers: the "
            "figures of further epochs differ from those of a training on one device", self.name, self.model.device,
        )  # fmt: skip


def weights_of(model: GLASS, figures: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint of the model holds, with the metrics of its epoch."""
    state = {"discriminator": model.discriminator.state_dict(), "config": model.config, "metrics": dict(figures)}
    if model.pre_projection is not None:
        state["pre_projection"] = model.pre_projection.state_dict()
    if model.settings.train_backbone:
        state["backbone"] = model.features.aggregator.backbone.state_dict()
    return state


def load_weights(model: GLASS, path: Path, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Load A and D (and a trained backbone) from a checkpoint of ours or of the published code.

    Args:
        model: gets the weights.
        path: the checkpoint.
        state: its content, where it has been read already.

    Returns:
        The content of the checkpoint.

    Raises:
        WorkError: no checkpoint, or one of a model of another shape.
    """
    state = checkpoint.load(path, model.device) if state is None else state
    backbone = model.features.aggregator.backbone if model.settings.train_backbone else None
    load_parts(path, state, model.discriminator, model.pre_projection, backbone)
    return state


# ------------------------------------------------------------------------------- settings of before


def _train_anew(folder: Path) -> str:
    return f"delete {folder} to train again"


def check_settings_of_before(model: GLASS, name: str, test: bool) -> None:
    """Whether a training in the model's folder can be continued, or its checkpoint tested, with these settings.

    Raises:
        InputError: they are not those of the training.
        WorkError: a checkpoint is damaged.
    """
    if test:
        path, _ = chosen_checkpoint(model, name)
        refuse_other_scores(checkpoint.read_plain(path).get("config", {}), model.config, path)
    elif latest := checkpoint.read_latest(model.model_dir):
        refuse_other_settings(latest.get("config", {}), model)


def chosen_checkpoint(model: GLASS, name: str) -> tuple[Path, int]:
    """The checkpoint that the class is tested with, and its epoch.

    Raises:
        WorkError: there is none.
    """
    chosen = checkpoint.find_chosen(model.model_dir) if model.model_dir else None
    if chosen is None:
        raise WorkError(f"{name}: no ckpt_best_*.pth in {model.model_dir}; train it first, or give --models_path")
    return chosen


def refuse_other_settings(saved: Mapping[str, Any], model: GLASS) -> None:
    """Stop where a training was started with other settings.

    Args:
        saved: the settings that it was started with.
        model: has the present ones, and the folder.

    Raises:
        InputError: names the settings.
    """
    config = model.config
    other = [
        f"{key} was {saved[key]}, is {config.get(key)}{_hint(key, saved)}"
        for key in saved
        if key not in FREE_ON_RESUME and as_json_has_it(config.get(key)) != as_json_has_it(saved[key])
    ]
    if other:
        latest = model.model_dir / checkpoint.LATEST
        raise InputError(f"{latest} was made with other settings ({'; '.join(other)}); {_train_anew(model.model_dir)}")


def refuse_other_scores(
    saved: Mapping[str, Any], config: Mapping[str, Any], path: Path, keys: Sequence[str] = NEEDED_ALIKE
) -> None:
    """Stop where a checkpoint was trained with other settings than a test needs.

    Some of these settings would spoil a test without a sign; the others would only give a message about shapes.

    Raises:
        InputError: names the setting.
    """
    for key in keys:
        if key in saved and as_json_has_it(saved[key]) != as_json_has_it(config.get(key)):
            raise InputError(
                f"{path} was trained with {key} {saved[key]}, given is {config.get(key)}{_hint(key, saved)}"
            )


def refuse_other_split(saved: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Stop where a checkpoint's training kept other good images for the test.

    Args:
        saved: settings of the checkpoint at `path`.
        config: the present ones, with the keys of `OF_SPLIT`.

    Raises:
        InputError: says which option to give.
    """
    refuse_other_scores(saved, config, path, OF_SPLIT)


def _hint(key: str, saved: Mapping[str, Any]) -> str:
    return f" (give --{key} {saved[key]})" if key in OF_SPLIT else ""
