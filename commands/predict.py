"""`predict`: decisions on new images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from commands.command import CONTEXT, DONE, FAILED, Command
from commands.parameters import AT_LEAST_1, FOLDER, OVERLAP, TileType
from commands.shared import GPU
from utils import LOGGER, choose_device, setup_logging


@click.command(
    "predict",
    cls=Command,
    context_settings=CONTEXT,
    stopped="stopped; with --continue the same command goes on where it was",
    less_memory="a smaller --batch_size, or --tile",
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--checkpoint",
    required=True,
    type=click.Path(),
    help="A checkpoint ckpt_best_<E>.pth, or the folder that holds it.",
)
@click.option("--out", default=None, type=FOLDER, help="Folder for predictions.csv and for what --save saves.")
@click.option(
    "--save",
    is_flag=True,
    help="Save overlays, raw anomaly maps and masks, each as large as its image.  [default: no]",
)
@click.option(
    "--maps", default="tiff", type=click.Choice(["tiff", "npy"]), help="Format of the raw anomaly maps, float32."
)
@click.option(
    "--json", "json_lines", is_flag=True, help="Print a JSON object for each image on standard output.  [default: no]"
)
@click.option(
    "--continue",
    "continued",
    is_flag=True,
    help="Continue the predictions.csv in --out; images that failed are tried again.  [default: no]",
)
@click.option(
    "--weights",
    default=None,
    type=click.Path(),
    help="File of the backbone's weights.  [default: where the training had them]",
)
@click.option("--batch_size", default=8, type=AT_LEAST_1, help="Number of images in a batch.")
@click.option(
    "--tile",
    default=None,
    type=TileType("auto", "off"),
    help="Cut images into tiles whose shorter side has this many of the image's own pixels; auto: as much as the model saw of a training image; off: whole images.  [default: as trained]",
)
@click.option(
    "--overlap",
    default=None,
    type=OVERLAP,
    help="Share of a tile that its neighbour covers as well.  [default: as trained, or 0.25]",
)
@click.option(
    "--max_pixels",
    default=None,
    type=AT_LEAST_1,
    help="Refuse an image with more pixels, which would fill the memory.  [default: as trained, or 500000000]",
)
@click.option(
    "--min_area",
    default=1,
    type=AT_LEAST_1,
    help="Leave regions with fewer pixels of the image out of the list; score, decision and mask stay as they are.",
)
@click.option("--gpu", **GPU)
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["auto", "fp32", "bf16"]),
    help="Precision of the network's arithmetic.",
)
def command(inputs: tuple[str, ...], **options: Any) -> int:
    """Judge images: files, folders (at any depth), patterns, or - for a list of paths on standard input.

    Needs nothing but the checkpoint of a training and the weights of its backbone. The exit code is 1 if an image could
    not be judged; all others are.
    """
    _check(options)
    from inference.inspector import load_checkpoint  # slow to import
    from inference.predict import FILE, PredictionOptions, find_pictures, paths_from_stdin, predict

    setup_logging()
    out = Path(options["out"]) if options["out"] else None
    images = find_pictures(inputs, paths_from_stdin() if "-" in inputs else (), out)
    model_options = {key: options[key] for key in ("weights", "precision", "tile", "overlap", "max_pixels", "min_area")}
    model = load_checkpoint(options["checkpoint"], choose_device(options["gpu"]), **model_options)
    map_format = options["maps"] if options["save"] else ""
    wanted = PredictionOptions(out, map_format, options["json_lines"], options["batch_size"])
    if model.thresholds is None:
        LOGGER.warning("the checkpoint has no threshold: scores without decisions")
    failed = predict(model, images, wanted, options["continued"])
    if not failed:
        return DONE
    where = f"; {out / FILE} says why" if out else ""
    click.echo(f"Error: {failed} of {len(images)} images could not be judged{where}", err=True)
    return FAILED


def _check(options: dict[str, Any]) -> None:
    """Refuse options that contradict each other."""
    if options["out"] is None and not options["json_lines"]:
        raise click.UsageError("give --out DIR for a table, --json for lines on standard output, or both")
    if options["save"] and options["out"] is None:
        raise click.UsageError("--save needs --out DIR")
    if options["continued"] and options["out"] is None:
        raise click.UsageError("--continue needs the --out DIR of the run to continue")
