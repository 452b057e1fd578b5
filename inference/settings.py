"""The settings of a model: one dataclass from which the signature of `GLASS.load`, the checks, the values kept in
checkpoints and the options of `python main.py net` are derived. Needs no torch.
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
MOST_LR = 1e30  # Adam's first step is a multiple of the rate and must be a number in float32
SAME = object()  # the command line has the default of the field


@dataclass(frozen=True)
class Option:
    """How a setting may be given.

    Attributes:
        help: one line for the command line and the table of options.
        low, high: the range of a number; None is unbounded.
        open_low, open_high: whether the bound itself is excluded.
        choices: the possible words; empty for a setting that is not one of several words.
        cli_default: on the command line, where it differs from the field's.
        from_command_line: whether `python main.py net` has an option for it.
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
        """Why a value is not possible; None where it is."""
        if self.choices:
            return None if value in self.choices else f"{name} {value!r}: possible are {', '.join(self.choices)}"
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


@dataclass(frozen=True)
class Settings:
    """How a model is built and trained; names and defaults are the paper's.

    `layers_to_extract_from` are dotted names of the backbone's modules, `input_shape` is (3, H, W). `seed` starts the
    weights of A and D and the noise. `backbone`, `weights` and `backbone_hash` describe the network that the model was
    built with: its name, where its weights come from, and a digest of them.
    """

    layers_to_extract_from: tuple[str, ...]
    input_shape: tuple[int, int, int]
    pretrain_embed_dimension: int = _size(
        "Length that each layer's patch vector is pooled to.  [default: 1536; 192 for resnet18_half]"
    )
    target_embed_dimension: int = _size("Length of the patch features.  [default: 1536; 192 for resnet18_half]")
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
    limit: int = _setting(392, "An epoch ends once more samples than this have been used.", low=1)
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
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images that the network sees."""
        return self.input_shape[1:]

    def plain(self) -> dict[str, Any]:
        """The values as a checkpoint keeps them, with lists in place of tuples."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def of_config(cls, config: Mapping[str, Any], **others: Any) -> Settings:
        """The settings that a checkpoint's `config` holds, with `others` in place of some of them."""
        names = {setting.name for setting in fields(cls)}
        return cls(**{name: value for name, value in config.items() if name in names} | others)

    @classmethod
    def options(cls) -> list[tuple[Field, Option]]:
        """The settings that `python main.py net` has an option for, in the order of its help."""
        known = [(setting, setting.metadata.get("option")) for setting in fields(cls)]
        return [(setting, option) for setting, option in known if option is not None and option.from_command_line]

    @staticmethod
    def check(values: Mapping[str, Any]) -> None:
        """Refuse values that cannot work with any backbone.

        Args:
            values: settings by name; None stands for one that is not decided yet.

        Raises:
            InputError: names the setting and what would work.
        """
        if values["patchsize"] < 1 or values["patchsize"] % 2 == 0:
            raise InputError(f"patchsize {values['patchsize']}: must be odd (1, 3, 5, …), so that a patch has a centre")
        for setting, option in Settings.options():
            value = values.get(setting.name)
            if value is not None and (message := option.refusal(setting.name, value)):
                raise InputError(message)
        if values["lr"] > MOST_LR:
            raise InputError(f"lr {values['lr']:g}: must be at most {MOST_LR:g}; the published rate is 0.0001")
        if values["patience"] and values["select"] == "last":
            raise InputError("--patience needs figures to compare, --select last uses none; give --select val or best")
        check_feature_cache(values["feature_cache"])


def check_feature_cache(value: str) -> None:
    """Refuse a `--feature_cache` that is neither auto nor off nor a number of gigabytes.

    Raises:
        InputError: says what is possible.
    """
    if value not in (AUTO, OFF) and not gigabytes(value) >= 0:
        raise InputError(f"--feature_cache {value}: possible are auto, off, or gigabytes, 0 or more")


def gigabytes(value: str) -> float:
    """The number in a text; −1 of a text that is no number."""
    try:
        return float(value)
    except ValueError:
        return -1.0


def as_json_has_it(value: Any) -> Any:
    """A value of the settings with lists in place of tuples, which JSON does not have."""
    return (
        [as_json_has_it(item) for item in value]
        if isinstance(value, Sequence) and not isinstance(value, str)
        else value
    )
