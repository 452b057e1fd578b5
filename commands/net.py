"""`net`: the half of a training's command line that describes the model."""

from __future__ import annotations

from typing import Any

import click

from commands.command import CONTEXT, Command
from commands.parameters import AT_LEAST_0, AT_LEAST_1, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_BELOW_1, SWITCH


def _odd(_context: click.Context, _parameter: click.Parameter, value: int) -> int:
    if value % 2 == 0:
        raise click.BadParameter(f"{value} is even; a patch has a centre only if it is odd: 1, 3, 5, …")
    return value


@click.command("net", cls=Command, context_settings=CONTEXT)
@click.option(
    "-b",
    "--backbone_names",
    multiple=True,
    default=["auto"],
    help="Backbone: a published name, timm:NAME, torchvision:NAME, or resnet18_half, whose weights are part of the project; auto: wideresnet50, or resnet18_half if the weights of wideresnet50 cannot be obtained. NAME.seed-N gives a backbone its own seed. Repeat it for a model with each backbone.",
)
@click.option(
    "-le",
    "--layers_to_extract_from",
    multiple=True,
    default=["layer2", "layer3"],
    help="Layer whose features are used, by its dotted name; repeatable. With several backbones, N.LAYER belongs to the N-th alone (from 0).",
)
@click.option(
    "--weights",
    multiple=True,
    default=["pretrained"],
    help="Weights of the backbone: pretrained, random, or the path of a state dict. With several backbones repeat it, once for each.",
)
@click.option(
    "--pretrain_embed_dimension",
    default=None,
    type=AT_LEAST_1,
    help="Length that each layer's patch vector is pooled to.  [default: 1536; 192 for resnet18_half]",
)
@click.option(
    "--target_embed_dimension",
    default=None,
    type=AT_LEAST_1,
    help="Length of the patch features.  [default: 1536; 192 for resnet18_half]",
)
@click.option(
    "--patchsize",
    default=3,
    type=AT_LEAST_1,
    callback=_odd,
    help="Side of the neighbourhood that describes a location; an odd number.",
)
@click.option("--meta_epochs", default=640, type=AT_LEAST_1, help="Number of training epochs.")
@click.option("--eval_epochs", default=1, type=AT_LEAST_1, help="Number of epochs between evaluations.")
@click.option("--dsc_layers", default=2, type=AT_LEAST_1, help="Number of layers of the discriminator.")
@click.option("--dsc_hidden", default=1024, type=AT_LEAST_1, help="Width of the discriminator.")
@click.option(
    "--dsc_margin",
    default=0.5,
    type=SHARE,
    help="Score from which a patch counts as anomalous in p_true and p_fake.",
)
@click.option("--train_backbone", is_flag=True, help="Train the backbone as well.  [default: no]")
@click.option("--pre_proj", default=1, type=AT_LEAST_0, help="Number of layers of the projection; 0 leaves it out.")
@click.option("--mining", default=1, type=SWITCH, help="1: gradient ascent (GAS); 0: noise alone.")
@click.option("--noise", default=0.015, type=NOT_NEGATIVE, help="Standard deviation of the noise added to features.")
@click.option("--radius", default=0.75, type=SHARE, help="Quantile of the distances that is used as the radius.")
@click.option("--p", default=0.5, type=SHARE, help="Share of the easiest patches that the local loss leaves out.")
@click.option(
    "--lr",
    default=0.0001,
    type=POSITIVE,
    help="Learning rate of the projection; that of the discriminator is twice as high.",
)
@click.option(
    "--svd",
    default=None,
    type=SWITCH,
    help="Variant: 0 manifold, 1 hypersphere; overrides --distribution.  [default: as --distribution says]",
)
@click.option("--step", default=20, type=AT_LEAST_0, help="Number of steps of gradient ascent.")
@click.option(
    "--precision",
    default="auto",
    type=click.Choice(["auto", "fp32", "bf16"]),
    help="Precision of matrix products and stored embeddings, on CUDA also of the backbone; auto: bf16 on CUDA with compute capability 8.0 or higher, else fp32.",
)
@click.option(
    "--feature_cache",
    default="auto",
    help="Memory for embeddings of images that do not change: a number of gigabytes, auto (half of the free device memory that a training step leaves), or off.",
)
@click.option(
    "--compile",
    is_flag=True,
    help="Compile parts of the training (torch.compile); needs a C++ compiler.  [default: no]",
)
@click.option(
    "--select",
    default="best",
    type=click.Choice(["best", "last", "val"]),
    help="Epoch to keep: best on the test set, as published; last; or val, the best on held-out good images (--val_share) with synthetic defects, which uses no test image.",
)
@click.option(
    "--patience",
    default=0,
    type=AT_LEAST_0,
    help="End the training after this many evaluations without a better one; 0 never does. Not with --select last.",
)
@click.option(
    "--false_alarm",
    default=0.01,
    type=SHARE_BELOW_1,
    help="Share of good images that the checkpoint's thresholds may call defective.",
)
@click.option("--limit", default=392, type=AT_LEAST_1, help="An epoch ends once more samples than this have been used.")
def command(**options: Any) -> tuple[str, dict[str, Any]]:
    """Options of the model."""
    return "net", options
