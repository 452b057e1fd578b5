"""A training: what comes before `net` and `dataset`, and what runs once both are read."""

from __future__ import annotations

from typing import Any

import click

from commands import net
from commands.parameters import FOLDER, SEED
from commands.shared import GPU

OPTIONS = [
    click.Option(
        ["--results_path"], default="results", type=FOLDER, help="Folder for everything that a run leaves behind."
    ),
    click.Option(["--gpu"], **GPU),
    click.Option(
        ["--seed"],
        default=[0],
        multiple=True,
        type=SEED,
        help="Seed of every random draw. Repeat it for one run per seed, each in RESULTS_PATH/seed_N, and their mean and standard deviation.",
    ),
    click.Option(["--log_group"], default="", help="Label of a group of runs, kept in settings.json and TensorBoard."),
    click.Option(["--log_project"], default="", help="Label of the project, kept in settings.json and TensorBoard."),
    click.Option(["--run_name"], default="", help="Label of the run, kept in settings.json and TensorBoard."),
    click.Option(
        ["--test"],
        default="ckpt",
        type=click.Choice(["ckpt", "test"]),
        help="ckpt: train the classes that are not trained yet, then test all; test: only test.",
    ),
    click.Option(
        ["--models_path"],
        default=None,
        type=FOLDER,
        help="Folder that checkpoints are read from and written to.  [default: RESULTS_PATH/models]",
    ),
    click.Option(
        ["--pictures"],
        default="end",
        type=click.Choice(["end", "every_eval"]),
        help="When to save pictures of the test images: at the end, or also at every evaluation during training. With end, TensorBoard gets a few at a new best epoch too, at most at every tenth evaluation.",
    ),
]
ONE_EACH = "one dataset command is needed, and at most one net: [OPTIONS] net … dataset … NAME DATA_PATH AUG_PATH"


@click.pass_context
def train(context: click.Context, parts: list[tuple[str, dict[str, Any]]], **options: Any) -> None:
    """Train and test with the settings of both halves of the chain; without `net` with its defaults."""
    names = [name for name, _ in parts]
    if names.count("dataset") != 1 or names.count("net") > 1:
        raise click.UsageError(ONE_EACH)
    settings = dict(parts)
    if "net" not in settings:
        _, settings["net"] = net.command.invoke(net.command.make_context("net", [], parent=context))
    from training.run import run_seeds  # slow to import

    run_seeds(options, settings["net"], settings["dataset"])
