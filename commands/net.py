"""`net`: the half of a training's command line that describes the model. Its options come from `Settings`."""

from __future__ import annotations

from dataclasses import Field
from typing import Any

import click
from click.core import ParameterSource

from commands.command import CONTEXT, Command
from commands.parameters import Finite
from inference.settings import FAST, SAME, Option, Settings

PUBLISHED, QUICK = RECIPES = ("published", "fast")
OWN_OPTIONS = [
    click.Option(
        ["--recipe"],
        default=PUBLISHED,
        type=click.Choice(RECIPES),
        help="Defaults of the other options: published, those of the paper; fast, a training of minutes on a CPU with "
        "efficientnet_lite0 and a memory of patches, which goes beyond the paper (docs/training.md lists them).",
    ),
    click.Option(
        ["--baseline/--no_baseline"],
        default=False,
        help="Also test nearest neighbours on the same features, which need no training; their figures have the prefix nn_.",
    ),
    click.Option(
        ["-b", "--backbone_names"],
        multiple=True,
        default=["auto"],
        help="Backbone: a published name, timm:NAME, torchvision:NAME, or efficientnet_lite0, whose weights are installed with the project; auto: wideresnet50, or efficientnet_lite0 if the weights of wideresnet50 cannot be obtained. NAME.seed-N gives a backbone its own seed. Repeat it for a model with each backbone.",
    ),
    click.Option(
        ["-le", "--layers_to_extract_from"],
        multiple=True,
        default=["layer2", "layer3"],
        help="Layer whose features are used, by its dotted name; repeatable. With several backbones, N.LAYER belongs to the N-th alone (from 0).",
    ),
    click.Option(
        ["--weights"],
        multiple=True,
        default=["pretrained"],
        help="Weights of the backbone: pretrained, random, or the path of a state dict. With several backbones repeat it, once for each.",
    ),
]


def _odd(_context: click.Context, _parameter: click.Parameter, value: int) -> int:
    if value % 2 == 0:
        raise click.BadParameter(f"{value} is even; a patch has a centre only if it is odd: 1, 3, 5, …")
    return value


def _type_of(option: Option, default: Any) -> click.ParamType | None:
    if option.choices:
        return click.Choice(option.choices)
    if isinstance(default, float):
        return Finite(option.low, option.high, min_open=option.open_low, max_open=option.open_high)
    return None if isinstance(default, str) else click.IntRange(option.low, option.high)


def _option_of(setting: Field, option: Option) -> click.Option:
    default = setting.default if option.cli_default is SAME else option.cli_default
    if setting.default is False:
        return click.Option([f"--{setting.name}"], is_flag=True, help=option.help)
    callback = _odd if setting.name == "patchsize" else None
    return click.Option(
        [f"--{setting.name}"], default=default, type=_type_of(option, setting.default), callback=callback,
        help=option.help,
    )  # fmt: skip


@click.command(
    "net",
    cls=Command,
    context_settings=CONTEXT,
    params=[*OWN_OPTIONS, *(_option_of(setting, option) for setting, option in Settings.options())],
)
@click.pass_context
def command(context: click.Context, recipe: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """Options of the model."""
    if recipe == QUICK:
        defaults = {**FAST, "backbone_names": ("efficientnet_lite0",), "baseline": True}
        given = {name for name in defaults if context.get_parameter_source(name) != ParameterSource.DEFAULT}
        options |= {name: value for name, value in defaults.items() if name not in given}
    return "net", options
