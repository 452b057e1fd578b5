"""Train a recipe of a store anew with what was marked, compare old and new, and install what is not worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from commands import dataset, net, train
from commands.command import CONTEXT, DONE, Command
from commands.parameters import AT_LEAST_0, SHARE_BELOW_1
from commands.shared import GPU
from utils import LOGGER, choose_device, setup_logging


@click.command(
    "retrain",
    cls=Command,
    context_settings=CONTEXT,
    stopped="stopped; the same command goes on where it was",
)
@click.option("--store", required=True, type=click.Path(path_type=Path), help="Folder of the store of serve.")
@click.option("--recipe", required=True, help="Name of the recipe in the store.")
@click.option(
    "--test_share",
    default=0.3,
    type=SHARE_BELOW_1,
    help="Share of the marked pictures that is kept for the test and never trained on.",
)
@click.option("--force", is_flag=True, help="Install the new version even if it is worse.  [default: no]")
@click.option("--rollback", is_flag=True, help="Only install the version again that was active before.  [default: no]")
@click.option(
    "--data", default=None, type=click.Path(path_type=Path), help="DATA_PATH of the recipe.  [default: as it was]"
)
@click.option("--textures", default=None, type=click.Path(), help="AUG_PATH of the recipe.  [default: as it was]")
@click.option(
    "--defects",
    default=None,
    type=click.Path(path_type=Path),
    help="Folder of known defects that the recipe was trained with.  [default: as it was]",
)
@click.option(
    "--num_workers", default=16, type=AT_LEAST_0, help="Number of processes that load images; at most as many as cores."
)
@click.option("--gpu", **GPU)
def command(store: Path, recipe: str, rollback: bool, **options: Any) -> int:
    """Train a recipe with the pictures that were marked, and install it if it is not worse on the same test set."""
    if rollback and (options["force"] or options["data"] or options["textures"] or options["defects"]):
        raise click.UsageError("--rollback trains nothing; give it without --force, --data, --textures and --defects")
    from serving import retraining  # slow to import

    setup_logging()
    if rollback:
        version = retraining.rollback(store, recipe)
        LOGGER.info("%s: version %d judges from now on", recipe, version.number)
        return DONE
    main = {option.name: option.get_default(click.Context(command)) for option in train.OPTIONS}
    defaults = [
        {p.name: p.get_default(click.Context(c)) for p in c.params if isinstance(p, click.Option)}
        for c in (net.command, dataset.command)
    ]
    defaults[0].pop("recipe")
    defaults[1]["num_workers"] = options["num_workers"]
    wish = retraining.Wish(
        recipe, options["test_share"], options["force"], options["data"], options["textures"], options["defects"],
        choose_device(options["gpu"]), {**main, "gpu": options["gpu"]}, *defaults,
    )  # fmt: skip
    retraining.retrain(store, wish)
    return DONE
