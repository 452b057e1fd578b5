"""Command line: `python main.py [options] net [options] dataset [options] NAME DATA_PATH AUG_PATH`.

Turns options into settings and runs one loop over the classes.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# How long torch's threads on a CPU spin where they wait for each other: shorter than libgomp would, for the sake of
# other programs on the same cores (benchmarks/spinning.py measures it). libgomp reads it when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import click
from click.core import ParameterSource

from commands.shared import CONTEXT, INTERRUPTED, Finite, bits_option, max_pixels_option
from utils import escape_what_cannot_be_printed

AT_LEAST_0, AT_LEAST_1 = click.IntRange(min=0), click.IntRange(min=1)


def _odd(_context: click.Context, _parameter: click.Parameter, value: int) -> int:
    if value % 2 == 0:
        raise click.BadParameter(f"{value} is even; a patch has a centre only where it is odd: 1, 3, 5, …")
    return value


class SizeType(click.ParamType):
    """`288` or `256x512` (height x width), each side at least 16."""

    name = "size"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What --help shows."""
        return "N|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, int]:
        """A number, or a pair (H, W)."""
        if not isinstance(value, str):
            return value
        sides = value.lower().split("x")
        if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) >= 16 for side in sides):
            self.fail(f"{value!r} is no size; possible: 288, or 256x512 (height x width), at least 16 each", param, ctx)
        return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


class TileType(click.ParamType):
    """Pixels, or one of some words."""

    name = "tile"

    def __init__(self, *words: str) -> None:
        self.words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """What --help shows."""
        return "|".join(("PIXELS", *self.words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """A number from 16 on, or a word."""
        if str(value) in self.words:
            return str(value)
        if not (str(value).isascii() and str(value).isdigit() and int(value) >= 16):
            self.fail(f"{value!r} is no tile; possible: pixels, at least 16, or {', '.join(self.words)}", param, ctx)
        return int(value)


OVERLAP = Finite(0, 0.75)
SHARE = Finite(0, 1)
NOT_NEGATIVE = Finite(min=0)
FLAG = click.IntRange(0, 1)
OVERLAP = Finite(0, 0.75)
DEFAULT_OVERLAP = 0.25


class OneLine(click.Command):
    """A command that ends with one line and the right exit code whatever goes wrong, never with a traceback."""

    stopped = "stopped; the same command goes on where it was"
    less_memory = "--feature_cache off, or a smaller --batch_size, --imagesize or --cache_gb"

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Run; 0 done, 1 failed work, 2 usage, 130 interrupted."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **kwargs)
        escape_what_cannot_be_printed()
        try:
            # click gives an exit code back here (of --help, say) instead of exiting
            code = super().main(*args, standalone_mode=False, **kwargs)
            sys.exit(code if isinstance(code, int) else 0)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help(), err=True)
            sys.exit(error.exit_code)
        except click.NoSuchOption as error:
            _fail(f"{error.format_message()}{self.owner(error.option_name)}", error.exit_code)
        except click.ClickException as error:
            _fail(error.format_message(), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _fail(self.stopped, INTERRUPTED)
        except Exception as error:
            message, code = _explain(error, self.less_memory)
            if message is None:
                raise
            _fail(self.stopped if code == INTERRUPTED else message, code)

    def owner(self, _option: str) -> str:
        """Which other command an option belongs to, as a hint."""
        return ""


class Chain(OneLine, click.Group):
    """The chain of net and dataset. What comes before it, `predict`, is a command of its own.

    In a chain options must stand before arguments, and the chain's own commands end where the next one begins;
    pictures to be judged are given as people give files to any program.
    """

    def main(self, args: Any = None, prog_name: str | None = None, **kwargs: Any) -> Any:
        """Run the chain, or what is no part of it."""
        given = list(sys.argv[1:] if args is None else args)
        before = self._options_before_predict(given)
        if before is not None:
            # those that come later win, as they do within one command
            own = [*before, *given[len(before) + 1 :]]
            return predict_command.main(own, prog_name=f"{prog_name or 'main.py'} predict", **kwargs)
        return super().main(given, prog_name=prog_name, **kwargs)

    def _options_before_predict(self, given: list[str]) -> list[str] | None:
        """The options that stand before the word `predict`; None where that is not the command."""
        if predict_command.name not in given:
            return None
        options = {name: option for command in (self, predict_command) for option in command.params
                   if isinstance(option, click.Option) for name in option.opts}  # fmt: skip
        # only an option's own declaration tells whether the word after it is its value
        every = list({id(option): option for option in options.values()}.values())
        shared = click.Command("main.py", params=every, context_settings={**CONTEXT, "allow_interspersed_args": False})
        try:
            used, left, _ = shared.make_parser(click.Context(shared, **shared.context_settings)).parse_args(list(given))
        except click.UsageError:
            return None  # it is said by the chain
        if left[:1] != [predict_command.name]:
            return None
        taken = {option.name for option in predict_command.params} | {"help"}
        for option in every:
            if option.name in used and option.name not in taken:
                _fail(f"{option.opts[0]} is no option of predict; python main.py predict --help lists those it has", 2)
        return given[: len(given) - len(left)]

    def owner(self, option: str) -> str:
        """Which other command an option belongs to, as a hint."""
        option = option.replace("-", "_").replace("__", "--", 1)
        for command in (self, *self.commands.values()):
            if any(option in parameter.opts for parameter in command.params):
                where = "comes before net and dataset" if command is self else f"belongs to {command.name}"
                return f" {option} {where}."
        return ""


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)


# what torch and OpenCV say where memory lacks, in errors that have no type of their own
NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED", "nsufficient memory")


def _explain(error: Exception, less_memory: str = OneLine.less_memory) -> tuple[str | None, int]:
    """The one line and exit code for an error that is not a bug; (None, 1) for a bug.

    Args:
        error: what ended the command.
        less_memory: options that make the command need less memory.
    """
    import torch

    from utils import InputError, WorkError, describe_os_error

    if isinstance(error, (InputError, WorkError)):
        # an error from a loader's worker carries the worker's traceback; its last line is the message
        text = str(error).strip().splitlines()[-1].removeprefix("utils.")
        text = text.removeprefix("InputError: ").removeprefix("WorkError: ")
        return text, 2 if isinstance(error, InputError) else 1
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in NO_MEMORY):
        return f"out of memory; try {less_memory}", 1
    if isinstance(error, RuntimeError) and "killed by signal: Terminated" in str(error):
        return "stopped", INTERRUPTED  # a stop that was meant for all processes reached a loader's worker first
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return f"a loader's worker died ({str(error).splitlines()[0]}); try fewer --num_workers", 1
    if isinstance(error, OSError):
        return describe_os_error(error), 1
    return None, 1


@click.group(cls=Chain, chain=True, context_settings=CONTEXT)
@click.option(
    "--results_path",
    default="results",
    type=click.Path(file_okay=False),
    help="Where everything that a run leaves behind goes.",
)
@click.option(
    "--gpu",
    type=click.IntRange(min=-1),
    multiple=True,
    help="CUDA device, -1 is the CPU; repeat it to name further choices, the first that is there is used.  [default: 0 if there is one, else -1]",
)
@click.option(
    "--seed",
    default=[0],
    multiple=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Start of every random draw; repeat it for a run each, in RESULTS_PATH/seed_N, and their mean and deviation.",
)
@click.option("--log_group", default="", help="Label of a group of runs, kept in settings.json and TensorBoard.")
@click.option("--log_project", default="", help="Label of the project, kept in settings.json and TensorBoard.")
@click.option("--run_name", default="", help="Label of the run, kept in settings.json and TensorBoard.")
@click.option(
    "--test",
    default="ckpt",
    type=click.Choice(["ckpt", "test"]),
    help="ckpt: train what is not trained yet, then test; test: only test.",
)
@click.option(
    "--models_path",
    default=None,
    type=click.Path(file_okay=False),
    help="Where checkpoints are read and written.  [default: RESULTS_PATH/models]",
)
@click.option(
    "--pictures",
    default="end",
    type=click.Choice(["end", "every_eval"]),
    help="Pictures of the test images: at the end, or of every evaluation in the training too; TensorBoard's as well, which else gets some at the end and at a new best epoch, at most every tenth evaluation.",
)
def main(**options: Any) -> None:
    """GLASS: train on good images of a product, find and outline defects.

    \b
    python main.py [OPTIONS] net [OPTIONS] dataset [OPTIONS] NAME DATA_PATH AUG_PATH
    python main.py net --help       options of the model
    python main.py dataset --help   options of the data
    python main.py predict --help   judge pictures with a trained model
    """


@main.command("net", context_settings=CONTEXT)
@click.option(
    "-b",
    "--backbone_names",
    multiple=True,
    default=["auto"],
    help="Backbone: a published name, timm:NAME, torchvision:NAME or resnet18_half, which comes along; auto: wideresnet50, or resnet18_half where its weights are not to be had; with .seed-N a seed of its own; repeat it for a model each.",
)
@click.option(
    "-le",
    "--layers_to_extract_from",
    multiple=True,
    default=["layer2", "layer3"],
    help="Layer by dotted name, repeatable; with several backbones N.LAYER is for the N-th alone (from 0).",
)
@click.option(
    "--weights",
    multiple=True,
    default=["pretrained"],
    help="Backbone weights: pretrained, random, or the path of a state dict; with several backbones repeatable, one for each.",
)
@click.option(
    "--pretrain_embed_dimension",
    default=None,
    type=AT_LEAST_1,
    help="Length each layer's patch vector is pooled to.  [default: 1536, of resnet18_half 192]",
)
@click.option(
    "--target_embed_dimension",
    default=None,
    type=AT_LEAST_1,
    help="Length of the patch features.  [default: 1536, of resnet18_half 192]",
)
@click.option(
    "--patchsize",
    default=3,
    type=AT_LEAST_1,
    callback=_odd,
    help="Side of the neighbourhood that describes a location, odd.",
)
@click.option("--meta_epochs", default=640, type=AT_LEAST_1, help="Epochs of training.")
@click.option("--eval_epochs", default=1, type=AT_LEAST_1, help="Epochs from one evaluation to the next.")
@click.option("--dsc_layers", default=2, type=AT_LEAST_1, help="Layers of the discriminator.")
@click.option("--dsc_hidden", default=1024, type=AT_LEAST_1, help="Width of the discriminator.")
@click.option(
    "--dsc_margin", default=0.5, type=SHARE, help="Score from which a patch counts as anomalous in p_true and p_fake."
)
@click.option("--train_backbone", is_flag=True, help="Train the backbone too.  [default: no]")
@click.option("--pre_proj", default=1, type=AT_LEAST_0, help="Layers of the projection; 0 is none.")
@click.option("--mining", default=1, type=FLAG, help="1: gradient ascent (GAS); 0: noise alone.")
@click.option("--noise", default=0.015, type=NOT_NEGATIVE, help="Standard deviation of the noise on features.")
@click.option("--radius", default=0.75, type=SHARE, help="Quantile of the distances that is taken as radius.")
@click.option("--p", default=0.5, type=SHARE, help="Share of the easiest patches that the local loss leaves out.")
@click.option(
    "--lr",
    default=0.0001,
    type=Finite(min=0, min_open=True),
    help="Learning rate of the projection; the discriminator's is twice that.",
)
@click.option(
    "--svd",
    default=None,
    type=FLAG,
    help="0 manifold, 1 hypersphere; wins over --distribution.  [default: as --distribution says]",
)
@click.option("--step", default=20, type=AT_LEAST_0, help="Updates of gradient ascent.")
@click.option(
    "--precision",
    default="auto",
    type=click.Choice(["auto", "fp32", "bf16"]),
    help="Of matrix products and kept embeddings, on CUDA of the backbone too; auto is bf16 on CUDA of compute capability 8.0 or more, else fp32.",
)
@click.option(
    "--feature_cache",
    default="auto",
    help="Memory for embeddings of images that stay the same: gigabytes, auto (half of the device's free memory that a training step leaves), off.",
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
    help="Epoch to keep: best on the test set, as published; last; or val, best on good images held out (--val_share) with synthetic defects, where no test image is looked at.",
)
@click.option(
    "--patience",
    default=0,
    type=AT_LEAST_0,
    help="End the training after so many evaluations without a better one; 0 is never. Not with --select last.",
)
@click.option(
    "--false_alarm",
    default=0.01,
    type=Finite(0, 1, max_open=True),
    help="Share of good images that the checkpoint's thresholds may call defective.",
)
@click.option("--limit", default=392, type=AT_LEAST_1, help="An epoch ends once more samples than this were used.")
def net(**options: Any) -> tuple[str, dict[str, Any]]:
    """Options of the model."""
    return "net", options


def _settle_tiles(options: dict[str, Any], resized: bool) -> None:
    """What --tile means for the other options; a tile is always seen whole."""
    if options["tile"] is None:
        if options["overlap"] is not None:
            raise click.UsageError("--overlap is of tiles, and there are none without --tile")
        return
    if resized:
        raise click.UsageError("--tile takes tiles out of the pictures as they are; leave --resize out")
    size = options["imagesize"]
    if options["tile"] == "auto":
        options["tile"] = size if isinstance(size, int) else min(size)
    options["keep_all"], options["resize"] = True, size
    options["overlap"] = DEFAULT_OVERLAP if options["overlap"] is None else options["overlap"]


def _not_missing(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str:
    if value is None:
        raise click.UsageError("Missing argument 'AUG_PATH': a folder of texture pictures, or the word builtin")
    return value


@main.command("dataset", context_settings=CONTEXT)
@click.option("-d", "--subdatasets", multiple=True, help="Class, repeatable.  [default: all that are found]")
@click.option("--batch_size", default=8, type=AT_LEAST_1, help="Images a batch.")
@click.option(
    "--num_workers", default=16, type=AT_LEAST_0, help="Processes that load images; never more than cores are used."
)
@click.option(
    "--resize",
    default=288,
    type=SizeType(),
    help="Before the crop: length of the shorter side in pixels, or HxW for both. Not given, it is --imagesize where that is larger or HxW.",
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
    help="Cut large pictures into tiles with this shorter side, in their own pixels, each resized to --imagesize; auto: as large as --imagesize. Tests, and predict, cut alike.  [default: whole pictures]",
)
@click.option(
    "--overlap", default=None, type=OVERLAP, help="Share of a tile that its neighbour covers too.  [default: 0.25]"
)
@click.option(
    "--cache_gb",
    default=None,
    type=NOT_NEGATIVE,
    help="Memory for decoded images and textures, in GB; 0 keeps none.  [default: a quarter of what is free]",
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
    type=Finite(0, 1, min_open=True, max_open=True),
    help="NAME folder, where there are defects but no good test image: share of the good images kept for the test.",
)
@click.option(
    "--split_seed",
    default=0,
    type=click.IntRange(0, 2**32 - 1),
    help="Which good images --test_share takes; the same for all seeds of a run, so that all test on the same images.",
)
@click.option(
    "--val_share",
    default=None,
    type=Finite(0, 1, max_open=True),
    help="Share of the good training images held out for thresholds and --select val, at least 8 images.  [default: 0.1 with --select val, else 0]",
)
@click.option(
    "--defects",
    default=None,
    type=click.Path(),
    help="Folder of pictures of known defects, with masks where there are any, to draw in place of textures.  [default: none]",
)
@click.option(
    "--defects_share", default=0.5, type=SHARE, help="Share of the training samples that get one of --defects."
)
@click.option("--rotate_degrees", default=0.0, type=Finite(0, 180), help="Training images: rotate by up to ± this.")
@click.option("--translate", default=0.0, type=SHARE, help="Training images: shift by up to ± this share of the side.")
@click.option(
    "--scale", default=0.0, type=Finite(0, 1, max_open=True), help="Training images: scale by 1 ± up to this."
)
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
    help="Variant: 0 from the Excel file, else judged; 1 judged; 2 manifold; 3 hypersphere; 4 opposite of the file, else judged.",
)
@click.option("--mean", default=0.5, type=SHARE, help="Mean of the transparency β of synthetic anomalies.")
@click.option("--std", default=0.1, type=NOT_NEGATIVE, help="Standard deviation of β.")
@click.option(
    "--fg",
    default=1,
    type=click.IntRange(0, 2),
    help="Foreground masks: 0 none; 1 from DATA_PATH/fg_mask, made where none lies there; 2 as the Excel file says.",
)
@click.option(
    "--rand_aug",
    default=1,
    type=FLAG,
    help="1: three random operations on each texture; 0: the image's own augmentation.",
)
@click.option(
    "--downsampling",
    default=None,
    type=AT_LEAST_1,
    help="Stride of the first layer; refused where it contradicts the network.  [default: the network's]",
)
@click.option(
    "--augment",
    is_flag=True,
    help="Light augmentation of training images wherever no option above asks for one: rotation 5°, shift and scale 2 %, brightness, contrast, saturation 10 %.  [default: no]",
)
@click.argument("name")
@click.argument("data_path", type=click.Path())
@click.argument("aug_path", type=click.Path(), required=False, metavar="AUG_PATH", callback=_not_missing)
def dataset(**options: Any) -> tuple[str, dict[str, Any]]:
    """Options of the data.

    NAME is mvtec, visa, mpdd, wfdd, or folder (or custom) for a layout of your own; DATA_PATH holds a folder a class;
    AUG_PATH holds texture pictures (DTD) at any depth, or is the word builtin.
    """
    given = click.get_current_context().get_parameter_source("resize") is not ParameterSource.DEFAULT
    _settle_tiles(options, given)
    whole = options["keep_all"] or not isinstance(options["imagesize"], int)
    if not given and (whole or options["imagesize"] > options["resize"]):
        options["resize"] = options["imagesize"]
    return "dataset", options


@main.result_callback()
@click.pass_context
def _after(context: click.Context, parts: list[tuple[str, dict[str, Any]]], **options: Any) -> None:
    kinds = [kind for kind, _ in parts]
    if kinds.count("dataset") != 1 or kinds.count("net") > 1:
        raise click.UsageError(
            "one dataset command is needed, and at most one net: [OPTIONS] net … dataset … NAME DATA_PATH AUG_PATH"
        )
    given = dict(parts)
    if "net" not in given:
        given["net"] = net.make_context("net", [], parent=context).params
    from training.run import run_seeds  # torch and its kin take seconds to import, --help should not

    run_seeds(options, given["net"], given["dataset"])


class Predict(OneLine):
    """The command `predict`."""

    stopped = "stopped; with --continue the same command goes on where it was"
    less_memory = "a smaller --batch_size, or --tile"


@click.command("predict", cls=Predict, context_settings=CONTEXT)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--checkpoint", required=True, type=click.Path(), help="ckpt_best_<E>.pth, or the folder it lies in.")
@click.option(
    "--out", default=None, type=click.Path(file_okay=False), help="Folder of predictions.csv and what --save saves."
)
@click.option(
    "--save", is_flag=True, help="Save overlays, raw maps and masks, in the pictures' own geometry.  [default: no]"
)
@click.option("--maps", default="tiff", type=click.Choice(["tiff", "npy"]), help="Format of the raw maps, float32.")
@click.option(
    "--json", "lines", is_flag=True, help="Print one JSON object a picture on standard output.  [default: no]"
)
@click.option(
    "--continue",
    "go_on",
    is_flag=True,
    help="Go on with the predictions.csv in --out; what failed is tried again.  [default: no]",
)
@click.option(
    "--weights",
    default=None,
    type=click.Path(),
    help="File of the backbone's weights.  [default: where the training had them]",
)
@click.option("--batch_size", default=8, type=AT_LEAST_1, help="Pictures judged at once.")
@click.option(
    "--tile",
    default=None,
    type=TileType("auto", "off"),
    help="Cut pictures into tiles with this shorter side, in their own pixels; auto: as large as what was seen of a training picture.  [default: as trained]",
)
@click.option(
    "--overlap",
    default=None,
    type=OVERLAP,
    help="Share of a tile that its neighbour covers too.  [default: as trained, or 0.25]",
)
@click.option(
    "--max_pixels",
    default=None,
    type=AT_LEAST_1,
    help="A picture with more pixels is refused, as it would fill the memory.  [default: as trained, or 500000000]",
)
@click.option(
    "--gpu",
    type=click.IntRange(min=-1),
    multiple=True,
    help="CUDA device, -1 is the CPU; repeatable.  [default: 0 if there is one, else -1]",
)
@click.option(
    "--precision", default="fp32", type=click.Choice(["auto", "fp32", "bf16"]), help="Of the network's arithmetic."
)
def predict_command(inputs: tuple[str, ...], **options: Any) -> int:
    """Judge pictures: files, folders (at any depth), patterns, or - for a list of paths on standard input.

    Needs nothing but the checkpoint of a training, and its backbone's weights. Exit code 1 where a picture could not be
    judged; all others are.
    """
    if options["out"] is None and not options["lines"]:
        raise click.UsageError("give --out DIR for a table, --json for lines on standard output, or both")
    if options["save"] and options["out"] is None:
        raise click.UsageError("--save needs --out DIR")
    if options["go_on"] and options["out"] is None:
        raise click.UsageError("--continue needs the --out DIR to go on with")
    from inference.inspector import load_checkpoint
    from inference.predict import FILE, Path, PredictionOptions, find_pictures, paths_from_stdin, predict
    from utils import LOGGER, choose_device, setup_logging

    setup_logging()
    out = Path(options["out"]) if options["out"] else None
    pictures = find_pictures(inputs, paths_from_stdin() if "-" in inputs else (), out)
    device = choose_device(options["gpu"])
    how = {key: options[key] for key in ("weights", "precision", "tile", "overlap", "max_pixels")}
    model = load_checkpoint(options["checkpoint"], device, **how)
    wanted = PredictionOptions(out, options["maps"] if options["save"] else "", options["lines"], options["batch_size"])
    if model.thresholds is None:
        LOGGER.warning("the checkpoint has no threshold: scores without decisions")
    failed = predict(model, pictures, wanted, options["go_on"])
    if failed:
        where = f"; {out / FILE} says why" if out else ""
        click.echo(f"Error: {failed} of {len(pictures)} pictures could not be judged{where}", err=True)
    return 1 if failed else 0


if __name__ == "__main__":
    main(prog_name="python main.py")
