"""`serve`: a trained model on the line."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from commands.command import CONTEXT, DONE, Command
from commands.parameters import AT_LEAST_0, AT_LEAST_1, Finite
from commands.shared import GPU
from utils import InputError, choose_device, setup_logging

NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "watchfiles": "watchfiles",
}


@click.command(
    "serve", cls=Command, context_settings=CONTEXT, less_memory="a smaller --batch_size, --queue or --max_mb"
)
@click.option(
    "--models",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A checkpoint ckpt_best_<E>.pth, or a folder that holds some at any depth; repeatable. Each is a recipe, named after its class.  [default: the recipes in the store]",
)
@click.option("--host", default="127.0.0.1", help="Address to listen on; any but this machine's own needs --token.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@click.option(
    "--store",
    default=Path("results/store"),
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for what is judged and marked, and for the versions of the recipes.",
)
@click.option(
    "--keep", default=10_000, type=AT_LEAST_0, help="Most pictures without a mark in the store; 0 keeps none."
)
@click.option(
    "--token",
    default="",
    envvar="GLASS_TOKEN",
    help="Secret that every request but that of /api/v1/health needs; better in the environment, as GLASS_TOKEN.  [default: none]",
)
@click.option("--queue", default=64, type=AT_LEAST_1, help="Most pictures that wait; more are refused (503).")
@click.option("--batch_size", default=8, type=AT_LEAST_1, help="Most pictures that are judged together.")
@click.option("--max_mb", default=50.0, type=Finite(min=0, min_open=True), help="Refuse a request with more megabytes.")
@click.option("--max_pixels", default=50_000_000, type=AT_LEAST_1, help="Refuse a picture with more pixels.")
@click.option("--min_area", default=1, type=AT_LEAST_1, help="Leave out regions with fewer pixels of the picture.")
@click.option(
    "--watch",
    multiple=True,
    help="Folder whose new pictures are judged, DIR or, with several recipes, NAME=DIR; repeatable.  [default: none]",
)
@click.option(
    "--move",
    is_flag=True,
    help="Move watched pictures to good, unsure, defective or broken beside the folder, instead of writing a JSON file beside each.  [default: no]",
)
@click.option(
    "--poll",
    is_flag=True,
    help="Look through watched folders instead of asking the system for changes, as network shares need.  [default: no]",
)
@click.option("--webhook", default=None, help="URL that gets each result as signed JSON.  [default: none]")
@click.option(
    "--webhook_secret",
    default="",
    envvar="GLASS_WEBHOOK_SECRET",
    help="What the messages are signed with (HMAC-SHA256); better in the environment, as GLASS_WEBHOOK_SECRET.  [default: none]",
)
@click.option(
    "--mqtt", default=None, help="Broker that gets each result: HOST, HOST:PORT or mqtts://HOST:PORT.  [default: none]"
)
@click.option(
    "--weights",
    default=None,
    type=click.Path(),
    help="File of the backbone's weights.  [default: where the training had them]",
)
@click.option("--gpu", **GPU)
@click.option(
    "--precision",
    default="fp32",
    type=click.Choice(["auto", "fp32", "bf16"]),
    help="Precision of the network's arithmetic.",
)
def command(**options: Any) -> int:
    """Judge pictures that arrive by HTTP or in a folder, and keep them in a store for review.

    Needs the packages of requirements/serve.txt. SIGTERM and Ctrl-C finish what is under way.
    """
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise InputError(
            f"serve needs {', '.join(missing)}, which is not installed: pip install -r requirements/serve.txt"
        )
    from serving.server import Address, check, serve  # slow to import, and an extra
    from serving.service import Options

    setup_logging()
    address = Address(options["host"], options["port"], options["token"])
    check(address, options["webhook"], options["webhook_secret"])
    if options["move"] and not options["watch"]:
        raise click.UsageError("--move moves watched pictures; it needs --watch DIR")
    wanted = Options(
        **{
            key: options[key]
            for key in (
                "models", "store", "keep", "queue", "batch_size", "max_mb", "max_pixels", "min_area", "weights",
                "precision", "watch", "move", "poll", "webhook", "mqtt",
            )
        },
        secret=options["webhook_secret"],
        device=choose_device(options["gpu"]),
    )  # fmt: skip
    serve(wanted, address)
    return DONE
