"""The state of a training in its folder: saved, resumed, and refused if it does not fit the present settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from inference import checkpoint, inspected
from inference.checkpoint import load_parts
from inference.settings import CONSTANT, PUBLISHED, as_json_has_it
from training import saving
from training.record import Record
from utils import LOGGER, InputError, WorkError

if TYPE_CHECKING:
    from glass import GLASS

# settings that may change before a training is resumed; `weights` is a path, and `backbone_hash` compares its content
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
# settings that choose the good images for the test: with other values, a test would use images of the training
OF_SPLIT = ("split_seed", "test_share")
# settings that must be the same in the training and in the test, or the scores would be meaningless
NEEDED_ALIKE = (
    *OF_SPLIT,
    "backbone",
    "backbone_hash",
    "layers_to_extract_from",
    "pretrain_embed_dimension",
    "target_embed_dimension",
    "pooling",
    "patchsize",
    "dsc_layers",
    "dsc_hidden",
    "pre_proj",
    "memory",
    "input_shape",
    "resize",
    "keep_all",
    "tile",
    "overlap",
)
# settings that checkpoints of earlier versions do not contain: the values that they stand for
OF_BEFORE = {
    "pooling": PUBLISHED, "schedule": CONSTANT, "average": 0.0, "ascent_share": 1.0, "local_share": 1.0, "memory": 0,
    "epoch_samples": 0, "local_kept": 0, "roi": None,
}  # fmt: skip
EPOCHS_APART = 1_000_003  # distance between the seeds of the epochs of two runs with consecutive seeds


class TrainingState:
    """The training of a model, as stored in its folder `model.model_dir`.

    Args:
        model: of the class, with its folder.
        name: of the class, for messages.

    Raises:
        InputError: the model has no folder yet.
    """

    def __init__(self, model: GLASS, name: str) -> None:
        if model.model_dir is None:
            raise InputError("the model has no folder for checkpoints; call set_model_dir before trainer")
        self.model, self.name, self.folder = model, name, model.model_dir
        self.saver = saving.Saver(self.folder)
        self._started: Record | None = None  # the record of the training whose state the model holds

    @property
    def latest(self) -> Path:
        """The path of the state from which a training is resumed."""
        return self.folder / checkpoint.LATEST

    def is_over(self, record: Record) -> bool:
        """Whether there is nothing left to train."""
        return record.is_over(self.model.settings.meta_epochs, self.model.settings.patience)

    def start(self) -> Record:
        """Load the state of an unfinished training, or save that of a new one, which fixes its settings."""
        if self._started is None:
            record = self._resume()
            if not self.latest.exists() and not self.is_over(record):
                self.save_epoch(record, False)
            self._started = record
        return Record.of(self._started.plain())

    def leave(self) -> None:
        """Note that the model's weights will no longer be those that `start` loaded."""
        self._started = None

    def save_epoch(self, record: Record, is_best: bool) -> None:
        """Save the state, and with `is_best` the chosen checkpoint, as soon as a write is due (see `saving.Saver`)."""
        best = weights_of(self.model, record.best) if is_best else None
        self.saver.put({**weights_of(self.model, record.last or {}), **self._training_state(record)}, best)

    def conclude(self) -> None:
        """Write the state that waits in memory; if no epoch has been chosen, keep the latest."""
        self.saver.flush()
        kept = saving.keep_latest(self.folder)
        if kept is not None and self.model.settings.select != "last":
            LOGGER.info("%s: no epoch has been chosen, so the latest, %d, is kept", self.name, kept[1])

    def _training_state(self, record: Record) -> dict[str, Any]:
        return {
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.model.optimisers.items()},
            "random_state": self.model.generator.get_state(),
            "record": record.plain(),
            **({"in_training": self.model.averaged.training_state()} if self.model.averaged else {}),
        }

    def _resume(self) -> Record:
        """The record of the training, with its state loaded into the model if it is not over."""
        best = checkpoint.find_best(self.folder)
        hint = _train_again(self.folder)
        if not self.latest.exists():
            if best is None:
                return Record()
            LOGGER.info("%s: %s is already trained (no %s beside it); %s", self.name, best[0], checkpoint.LATEST, hint)
            return Record(epoch=self.model.settings.meta_epochs, best={"epoch": best[1]})
        saved = checkpoint.read_latest(self.folder)
        if not isinstance(saved.get("record"), dict):
            raise WorkError(f"{self.latest} cannot be resumed, since it only holds weights; {hint}")
        refuse_other_settings(saved.get("config", {}), self.model)
        record = Record.of(saved["record"])
        if self.is_over(record):
            LOGGER.info("%s: training finished before (epochs: %d), skipped; %s", self.name, record.epoch, hint)
            self.conclude()
            return record
        return self._load()

    def _load(self) -> Record:
        # to the CPU: the optimisers move their state to the device except for the step counts, for which every step
        # would have to wait if they were on the device
        state = load_weights(self.model, self.latest, checkpoint.load(self.latest))
        record = Record.of(state["record"])
        if self.model.averaged is not None:
            self.model.averaged.resume(state["in_training"])
        for key, optimiser in self.model.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][key])
        self._resume_noise(state["random_state"], record.epoch)
        saving.remove_other_bests(self.folder, record.best["epoch"] if record.best else None)
        if record.epoch:
            epochs = self.model.settings.meta_epochs
            LOGGER.info("%s: resumed after %d of %d epochs", self.name, record.epoch, epochs)
        return record

    def _resume_noise(self, saved: Tensor, epoch: int) -> None:
        """Restore the generator of the noise; the state from another kind of device cannot be restored."""
        generator = self.model.generator
        if saved.numel() == generator.get_state().numel():
            generator.set_state(saved.cpu())
            return
        generator.manual_seed(self.model.settings.seed * EPOCHS_APART + epoch)
        LOGGER.info(
            "%s: the training was started on another kind of device than %s, which draws other random numbers: the "
            "results of further epochs differ from those of a training on one device", self.name, self.model.device,
        )  # fmt: skip


def weights_of(model: GLASS, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint of the model, with the metrics of its epoch."""
    discriminator, projection = model.scoring_parts
    state = {"discriminator": discriminator.state_dict(), "config": model.config, "metrics": dict(figures)}
    if projection is not None:
        state["pre_projection"] = projection.state_dict()
    memory = model.features.memory
    if memory is not None and memory.ready:
        state["memory"] = memory.plain()
    if model.features.inspected is not None:
        state["roi"] = model.features.inspected.plain()
    if model.settings.train_backbone:
        state["backbone"] = model.features.aggregator.backbone.state_dict()
    return state


def load_weights(model: GLASS, path: Path, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """Load A and D, and a trained backbone, from a checkpoint of this project or of the published code.

    Args:
        model: receives the weights.
        path: of the checkpoint.
        state: its content, if it has already been read.

    Returns:
        The content of the checkpoint.

    Raises:
        InputError: there is no such file.
        WorkError: it is not a checkpoint, or belongs to a model of another shape.
    """
    state = checkpoint.load(path, model.device) if state is None else state
    backbone = model.features.aggregator.backbone if model.settings.train_backbone else None
    load_parts(path, state, model.discriminator, model.pre_projection, backbone)
    if model.features.memory is not None and "memory" in state:  # not before the first epoch
        model.features.memory.restore(checkpoint.memory_of(path, state))
    if model.averaged is not None:
        model.averaged.restart()
    roi = checkpoint.roi_of(path, state)
    model.features.inspected = inspected.restore(roi, state.get("config", {}), model.segmentor, model.grid)
    return state


# ------------------------------------------------------------------------------- earlier settings


def _train_again(folder: Path) -> str:
    return f"delete {folder} to train again"


def check_settings_of_before(model: GLASS, name: str, test: bool) -> None:
    """Check that the training in the model's folder can be resumed, or its checkpoint tested, with these settings.

    Args:
        model: with the present settings and the folder.
        name: of the class, for messages.
        test: whether the checkpoint is to be tested.

    Raises:
        InputError: the training had other settings.
        WorkError: a checkpoint is damaged.
    """
    if test:
        path, _ = chosen_checkpoint(model, name)
        saved = checkpoint.read_plain(path).get("config", {})
        refuse_other_scores(saved, model.config, path)
        if model.config.get("roi"):  # otherwise that of the checkpoint is used
            refuse_other_scores(saved, model.config, path, ("roi",))
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
    """Stop if a training was started with other settings.

    Args:
        saved: the settings that it was started with.
        model: with the present settings and the folder.

    Raises:
        InputError: the message names the settings.
    """
    config, saved = model.config, {**OF_BEFORE, **saved}
    # with another number of epochs, the rates of all steps would be others
    free = FREE_ON_RESUME if config["schedule"] == CONSTANT else FREE_ON_RESUME - {"meta_epochs"}
    changed = [
        f"{key} was {saved[key]}, is {config.get(key)}{_hint(key, saved)}"
        for key in saved
        if key not in free and as_json_has_it(config.get(key)) != as_json_has_it(saved[key])
    ]
    if changed:
        latest, hint = model.model_dir / checkpoint.LATEST, _train_again(model.model_dir)
        raise InputError(f"{latest} was made with other settings ({'; '.join(changed)}); {hint}")


def refuse_other_scores(
    saved: Mapping[str, Any], config: Mapping[str, Any], path: Path, keys: Sequence[str] = NEEDED_ALIKE
) -> None:
    """Stop if a checkpoint was trained with settings other than those of the test.

    Some of these settings would falsify the scores silently; the others would cause errors about shapes.

    Args:
        saved: settings of the checkpoint.
        config: the present settings.
        path: of the checkpoint, for the message.
        keys: of the settings to compare.

    Raises:
        InputError: the message names the setting.
    """
    saved = {**OF_BEFORE, **saved}
    for key in keys:
        if key in saved and as_json_has_it(saved[key]) != as_json_has_it(config.get(key)):
            raise InputError(
                f"{path} was trained with {key} {saved[key]}, but {config.get(key)} is given{_hint(key, saved)}"
            )


def refuse_other_split(saved: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> None:
    """Stop if the training of a checkpoint kept other good images for the test.

    Args:
        saved: settings of the checkpoint.
        config: the present settings, with the keys of `OF_SPLIT`.
        path: of the checkpoint, for the message.

    Raises:
        InputError: the message says which option to give.
    """
    refuse_other_scores(saved, config, path, OF_SPLIT)


def _hint(key: str, saved: Mapping[str, Any]) -> str:
    return f" (give --{key} {saved[key]})" if key in OF_SPLIT else ""
