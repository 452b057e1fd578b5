"""`dataset`: the half of a training's command line that describes the data."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from commands.command import CONTEXT, Command
from commands.parameters import (
    AT_LEAST_0,
    AT_LEAST_1,
    BETWEEN_0_AND_1,
    NOT_NEGATIVE,
    OVERLAP,
    SEED,
    SHARE,
    SHARE_BELOW_1,
    SWITCH,
    Finite,
    SizeType,
    TileType,
)
from commands.shared import bits_option, classes_option, max_pixels_option
from datasets.limits import DEFAULT_OVERLAP


def _not_missing(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str:
    if value is None:
        raise click.UsageError("Missing argument 'AUG_PATH': a folder of texture images, or the word builtin")
    return value


@click.command("dataset", cls=Command, context_settings=CONTEXT)
@classes_option
@click.option("--batch_size", default=8, type=AT_LEAST_1, help="Number of images in a batch.")
@click.option(
    "--num_workers",
    default=16,
    type=AT_LEAST_0,
    help="Number of processes that load images; never more than there are cores.",
)
@click.option(
    "--resize",
    default=288,
    type=SizeType(),
    help="Size before the crop: length of the shorter side in pixels, or HxW for both sides. Without this option it is --imagesize if that is larger or HxW.",
)
@click.option(
    "--imagesize",
    default=288,
    type=SizeType(),
    help="Centre crop in pixels: side of a square, or HxW; no larger than --resize.",
)
@click.option(
    "--keep_all",
    is_flag=True,
    help="Resize the whole image to --imagesize without a crop, for parts that are not square.  [default: no]",
)
@click.option(
    "--tile",
    default=None,
    type=TileType("auto"),
    help="Cut large images into tiles whose shorter side has this many of the image's own pixels, each resized to --imagesize; auto: as large as --imagesize. Tests and predict cut in the same way.  [default: whole images]",
)
@click.option(
    "--overlap",
    default=None,
    type=OVERLAP,
    help="Share of a tile that its neighbour covers as well.  [default: 0.25]",
)
@click.option(
    "--cache_gb",
    default=None,
    type=NOT_NEGATIVE,
    help="Memory for decoded images and textures in GB; 0 keeps none.  [default: a quarter of the free memory]",
)
@bits_option
@max_pixels_option
@click.option(
    "--skip_bad",
    is_flag=True,
    help="Leave out images that cannot be read, and list them, instead of stopping.  [default: no]",
)
@click.option(
    "--test_share",
    default=0.2,
    type=BETWEEN_0_AND_1,
    help="With NAME folder, for a class with defects but no good test image: share of the good images kept for the test.",
)
@click.option(
    "--split_seed",
    default=0,
    type=SEED,
    help="Decides which good images --test_share takes; the same for all seeds of a run, so that all test on the same images.",
)
@click.option(
    "--val_share",
    default=None,
    type=SHARE_BELOW_1,
    help="Share of the good training images held out for thresholds and --select val, at least 8 images.  [default: 0.1 with --select val, else 0]",
)
@click.option(
    "--defects",
    default=None,
    type=click.Path(),
    help="Folder of images of known defects, with masks where they exist, to draw instead of textures.  [default: none]",
)
@click.option(
    "--defects_share", default=0.5, type=SHARE, help="Share of the training samples that get one of --defects."
)
@click.option(
    "--roi",
    default=None,
    type=click.Path(),
    help="Region of interest: a PNG of 255 (inspected) and 0 (ignored), or polygons in a file *.json, drawn on a picture of the data set. The model keeps it.  [default: whole images]",
)
@click.option("--rotate_degrees", default=0.0, type=Finite(0, 180), help="Training images: rotate by up to ± this.")
@click.option("--translate", default=0.0, type=SHARE, help="Training images: shift by up to ± this share of the side.")
@click.option("--scale", default=0.0, type=SHARE_BELOW_1, help="Training images: scale by a factor of 1 ± up to this.")
@click.option("--brightness", default=0.0, type=NOT_NEGATIVE, help="Training images: brightness times 1 ± up to this.")
@click.option("--contrast", default=0.0, type=NOT_NEGATIVE, help="Training images: contrast times 1 ± up to this.")
@click.option("--saturation", default=0.0, type=NOT_NEGATIVE, help="Training images: saturation times 1 ± up to this.")
@click.option("--gray", default=0.0, type=SHARE, help="Training images: probability of grayscale.")
@click.option("--hflip", default=0.0, type=SHARE, help="Training images: probability of a horizontal flip.")
@click.option("--vflip", default=0.0, type=SHARE, help="Training images: probability of a vertical flip.")
@click.option(
    "--distribution",
    default=0,
    type=click.IntRange(0, 4),
    help="Variant of a class: 0 as the Excel file says, else judged from its images; 1 judged; 2 manifold; 3 hypersphere; 4 the opposite of the file, else judged.",
)
@click.option("--mean", default=0.5, type=SHARE, help="Mean of the transparency β of synthetic anomalies.")
@click.option("--std", default=0.1, type=NOT_NEGATIVE, help="Standard deviation of β.")
@click.option(
    "--fg",
    default=1,
    type=click.IntRange(0, 2),
    help="Foreground masks: 0 none; 1 from DATA_PATH/fg_mask, or made if there are none; 2 as the Excel file says.",
)
@click.option(
    "--rand_aug",
    default=1,
    type=SWITCH,
    help="Textures: 1 three random operations on each; 0 the augmentation of the images.",
)
@click.option(
    "--downsampling",
    default=None,
    type=AT_LEAST_1,
    help="Stride of the first layer; refused if it contradicts the network.  [default: the network's]",
)
@click.option(
    "--augment",
    is_flag=True,
    help="Light augmentation of training images wherever no option above asks for another: rotation 5°, shift and scale 2 %, brightness, contrast and saturation 10 %.  [default: no]",
)
@click.argument("name")
@click.argument("data_path", type=click.Path())
@click.argument("aug_path", type=click.Path(), required=False, metavar="AUG_PATH", callback=_not_missing)
@click.pass_context
def command(context: click.Context, **options: Any) -> tuple[str, dict[str, Any]]:
    """Options of the data.

    NAME is mvtec, visa, mpdd, wfdd, or folder (or custom) for a layout of your own; DATA_PATH holds a folder for each class;
    AUG_PATH holds texture images (DTD) at any depth, or is the word builtin.
    """
    return "dataset", settle(context, options)


def settle(context: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options with the values that follow from others: the sizes, and with --tile the whole tile.

    Raises:
        click.UsageError: two options contradict each other.
    """
    settled = dict(options)
    resize_is_given = context.get_parameter_source("resize") is not ParameterSource.DEFAULT
    size = settled["imagesize"]
    if settled["tile"] is None:
        if settled["overlap"] is not None:
            raise click.UsageError("--overlap is the overlap of tiles; it needs --tile")
    else:
        if settled["roi"] is not None:
            raise click.UsageError("--roi needs whole images, which --tile cuts; leave one of the two out")
        if resize_is_given:
            raise click.UsageError("--tile cuts tiles from images in their own size; leave --resize out")
        if settled["tile"] == "auto":
            settled["tile"] = size if isinstance(size, int) else min(size)
        settled["keep_all"], settled["resize"] = True, size  # a tile is always seen whole
        settled["overlap"] = DEFAULT_OVERLAP if settled["overlap"] is None else settled["overlap"]
    seen_whole = settled["keep_all"] or not isinstance(size, int)
    if not resize_is_given and (seen_whole or size > settled["resize"]):
        settled["resize"] = size
    return settled
