"""The settings of a model, in one dataclass that defines the arguments of `GLASS.load`, their checks, the values in
checkpoints and the options of `python main.py net`. This module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from utils import InputError

AUTO, OFF = "auto", "off"
SELECTIONS = ("best", "last", "val")
PRECISION_NAMES = ("fp32", "bf16")
CONSTANT, ONE_CYCLE = SCHEDULES = ("constant", "one_cycle")
PUBLISHED, CHANNELS = POOLINGS = ("published", "channels")
MAX_LR = 1e30  # Adam's first step is proportional to the learning rate and must not overflow in float32
SAME = object()  # the command line uses the default of the field


@dataclass(frozen=True)
class Option:
    """The allowed values of a setting, and its option on the command line.

    Attributes:
        help: one line for the command line and the table of options.
        low, high: range of a number; None means no limit.
        open_low, open_high: whether the limit itself is excluded.
        choices: the allowed words; empty for a setting that is not a choice of words.
        cli_default: default on the command line, if it differs from the default of the field.
        from_command_line: whether `python main.py net` has an option for the setting.
    """

    help: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    cli_default: Any = SAME
    from_command_line: bool = True

    def refusal(self, name: str, value: Any) -> str | None:
        """Why a value is not allowed; None if it is."""
        if self.choices:
            return None if value in self.choices else f"{name} {value!r}: must be one of {', '.join(self.choices)}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} {value}: must be a finite number"
        if self.low is not None and (value < self.low or (self.open_low and value == self.low)):
            return f"{name} {value:g}: must be {'more than' if self.open_low else 'at least'} {self.low:g}"
        if self.high is not None and (value > self.high or (self.open_high and value == self.high)):
            return f"{name} {value:g}: must be {'less than' if self.open_high else 'at most'} {self.high:g}"
        return None


def _setting(default: Any, help: str, **option: Any) -> Any:
    return field(default=default, metadata={"option": Option(help, **option)})


def _internal(default: Any) -> Any:
    return field(default=default, metadata={"option": Option("", from_command_line=False)})


def _size(help: str) -> Any:
    return field(metadata={"option": Option(help, low=1, cli_default=None)})


# `--recipe fast`: what reaches good results within minutes on a CPU. Measured on six classes, see docs/figures.md;
# options that are given have priority.
FAST: dict[str, Any] = {
    "svd": 0,
    "lr": 1e-3,
    "schedule": ONE_CYCLE,
    "average": 0.98,
    "ascent_share": 0.125,
    "local_share": 0.5,
    "dsc_hidden": 256,
    "memory": 8000,
    "local_kept": 800,
    "meta_epochs": 60,
    "epoch_samples": 200,
    "eval_epochs": 20,
    "select": "last",
}


@dataclass(frozen=True)
class Settings:
    """How a model is built and trained; names and defaults are those of the paper.

    `layers_to_extract_from` are dotted names of the backbone's modules, and `input_shape` is (3, H, W). `seed` is the
    seed of the initial weights of A and D and of the noise. With the `pooling` `channels`, both dimensions are the
    number of channels of the layers, and may be None until the backbone is known. `backbone`, `weights` and
    `backbone_hash` describe the network that the model was built with: its name, the source of its weights, and a
    digest of them.
    """

    layers_to_extract_from: tuple[str, ...]
    input_shape: tuple[int, int, int]
    pretrain_embed_dimension: int | None = _size(
        "Length that each layer's patch vector is pooled to.  [default: 1536; with --pooling channels the number of "
        "channels]"
    )
    target_embed_dimension: int | None = _size(
        "Length of the patch features.  [default: 1536; with --pooling channels the number of channels]"
    )
    pooling: str = _setting(
        PUBLISHED,
        (
            "How neighbourhoods become patch features: published, as in the paper, also averages over neighbouring "
            "channels; channels keeps all channels of all layers apart.  [default: published; channels for "
            "efficientnet_lite0]"
        ),
        choices=POOLINGS,
        cli_default=None,
    )
    patchsize: int = _setting(3, "Side of the neighbourhood that describes a location; an odd number.", low=1)
    meta_epochs: int = _setting(640, "Number of training epochs.", low=1)
    eval_epochs: int = _setting(1, "Number of epochs between evaluations.", low=1)
    dsc_layers: int = _setting(2, "Number of layers of the discriminator.", low=1)
    dsc_hidden: int = _setting(1024, "Width of the discriminator.", low=1)
    dsc_margin: float = _setting(
        0.5, "Score from which a patch counts as anomalous in p_true and p_fake.", low=0, high=1
    )
    train_backbone: bool = _setting(False, "Train the backbone as well.  [default: no]")
    pre_proj: int = _setting(1, "Number of layers of the projection; 0 leaves it out.", low=0)
    mining: int = _setting(1, "1: gradient ascent (GAS); 0: noise alone.", low=0, high=1)
    noise: float = _setting(0.015, "Standard deviation of the noise added to features.", low=0)
    radius: float = _setting(0.75, "Quantile of the distances that is used as the radius.", low=0, high=1)
    p: float = _setting(0.5, "Share of the easiest patches that the local loss leaves out.", low=0, high=1)
    lr: float = _setting(
        1e-4, "Learning rate of the projection; that of the discriminator is twice as high.", low=0, open_low=True
    )
    svd: int = _setting(
        0,
        "Variant: 0 manifold, 1 hypersphere; overrides --distribution.  [default: as --distribution says]",
        low=0,
        high=1,
        cli_default=None,
    )
    step: int = _setting(20, "Number of steps of gradient ascent.", low=0)
    ascent_share: float = _setting(
        1.0,
        "Share of the locations that noise and gradient ascent use in a step, drawn anew for each; 1 is published.",
        low=0,
        high=1,
        open_low=True,
    )
    local_share: float = _setting(
        1.0,
        "Share of the locations of the images with local anomalies that a step uses, likewise; 1 is published.",
        low=0,
        high=1,
        open_low=True,
    )
    schedule: str = _setting(
        CONSTANT,
        (
            "Learning rate in the course of the training: constant, as published, or one_cycle, which rises to --lr "
            "and then falls to 0 with the last epoch."
        ),
        choices=SCHEDULES,
    )
    average: float = _setting(
        0.0,
        "Score with an exponential average of the weights, with this decay per step; 0, as published, does not.",
        low=0,
        high=1,
        open_high=True,
    )
    memory: int = _setting(
        0,
        "Number of patches of the training set in a memory: each patch is judged by its difference from the nearest of "
        "them, and by its distance. 0, as published, has none.",
        low=0,
    )
    local_kept: int = _setting(
        0,
        "Draw local anomalies for this many images before the training, and keep their features in memory: all epochs "
        "use these. 0, as published, draws new ones in each epoch.",
        low=0,
    )
    limit: int = _setting(392, "An epoch ends once more samples than this have been used.", low=1)
    epoch_samples: int = _setting(
        0,
        "An epoch has at least as many samples; a smaller training set is gone through several times. 0, as published, "
        "once.",
        low=0,
    )
    seed: int = _internal(0)
    precision: str = _setting(
        "fp32",
        (
            "Precision of matrix products and stored embeddings, on CUDA also of the backbone; auto: bf16 on"
            " CUDA with compute capability 8.0 or higher, else fp32."
        ),
        choices=(AUTO, *PRECISION_NAMES),
        cli_default=AUTO,
    )
    feature_cache: str = _setting(
        AUTO,
        (
            "Memory for embeddings of images that do not change: a number of gigabytes, auto (half of the "
            "free device memory that a training step leaves), or off."
        ),
    )
    compile: bool = _setting(
        False, "Compile parts of the training (torch.compile); needs a C++ compiler.  [default: no]"
    )
    select: str = _setting(
        "best",
        (
            "Epoch to keep: best on the test set, as published; last; or val, the best on held-out good "
            "images (--val_share) with synthetic defects, which uses no test image."
        ),
        choices=SELECTIONS,
    )
    patience: int = _setting(
        0,
        ("End the training after this many evaluations without a better one; 0 never does. Not with --select last."),
        low=0,
    )
    false_alarm: float = _setting(
        0.01,
        "Share of good images that the checkpoint's thresholds may call defective.",
        low=0,
        high=1,
        open_high=True,
    )
    backbone: str = _internal("")
    weights: str = _internal("")
    backbone_hash: str = _internal("")

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers_to_extract_from", tuple(self.layers_to_extract_from))
        object.__setattr__(self, "input_shape", tuple(self.input_shape))

    @property
    def feature_width(self) -> int:
        """Length of the features that A and D see."""
        return 2 * self.target_embed_dimension + 1 if self.memory else self.target_embed_dimension

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images that the network sees."""
        return self.input_shape[1:]

    def plain(self) -> dict[str, Any]:
        """The values as a checkpoint stores them, with lists in place of tuples."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def of_config(cls, config: Mapping[str, Any], **others: Any) -> Settings:
        """The settings in the `config` of a checkpoint; `others` replace some of them."""
        names = {setting.name for setting in fields(cls)}
        return cls(**{name: value for name, value in config.items() if name in names} | others)

    @classmethod
    def options(cls) -> list[tuple[Field, Option]]:
        """The settings that are options of `python main.py net`, in the order of its help."""
        pairs = [(setting, setting.metadata.get("option")) for setting in fields(cls)]
        return [(setting, option) for setting, option in pairs if option is not None and option.from_command_line]

    @classmethod
    def names_for_load(cls) -> set[str]:
        """The settings that a caller of `GLASS.load` may give; what describes the backbone comes from the backbone."""
        return {setting.name for setting in fields(cls)} - {"backbone", "weights", "backbone_hash"}

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        """Check values that do not depend on the backbone.

        Args:
            values: settings by name; None stands for a setting that is not decided yet.

        Raises:
            InputError: a value cannot work; the message names the setting and what would work.
        """
        if values["patchsize"] < 1 or values["patchsize"] % 2 == 0:
            raise InputError(f"patchsize {values['patchsize']}: must be odd (1, 3, 5, …), so that a patch has a centre")
        for setting, option in Settings.options():
            value = values.get(setting.name)
            if value is not None and (message := option.refusal(setting.name, value)):
                raise InputError(message)
        if values["lr"] > MAX_LR:
            raise InputError(f"lr {values['lr']:g}: must be at most {MAX_LR:g}; the published rate is 0.0001")
        if values["epoch_samples"] > values["limit"]:
            raise InputError(
                f"--epoch_samples {values['epoch_samples']} is more than --limit {values['limit']}, which ends an epoch"
            )
        if values["patience"] and values["select"] == "last":
            raise InputError(
                "--patience needs metrics to compare, but --select last uses none; give --select val or best"
            )
        if values.get("memory") and values["train_backbone"]:
            raise InputError("--memory keeps features, which a backbone in training changes; omit --train_backbone")
        if values.get("local_kept") and values["train_backbone"]:
            raise InputError("--local_kept keeps features, which a backbone in training changes; omit --train_backbone")
        check_feature_cache(values["feature_cache"])


def check_feature_cache(value: str) -> None:
    """Check the value of `--feature_cache`.

    Raises:
        InputError: it is neither auto nor off nor a number of gigabytes.
    """
    if value not in (AUTO, OFF) and not gigabytes(value) >= 0:
        raise InputError(f"--feature_cache {value}: must be auto, off, or a number of gigabytes, at least 0")


def gigabytes(value: str) -> float:
    """The number of gigabytes in a text; −1 if the text is not a number."""
    try:
        return float(value)
    except ValueError:
        return -1.0


def as_json_has_it(value: Any) -> Any:
    """A value of the settings as it is after a round trip through JSON: with lists in place of tuples."""
    return (
        [as_json_has_it(item) for item in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
    )
