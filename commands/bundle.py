"""`bundle`: a trained model in one zip file that runs without PyTorch."""

from __future__ import annotations

import shlex
import tempfile
from importlib import metadata
from pathlib import Path

import click

from commands.command import CONTEXT, Command
from commands.parameters import AT_LEAST_1
from commands.scripts import FOLDER, script
from utils import LOGGER, InputError, WorkError, reason_of, setup_logging

PACKAGES = ("onnxruntime", "numpy", "opencv-python-headless", "pillow")  # what onnx/ort.py needs
README = """GLASS: {class_name}

Find and outline defects with this model. It needs Python 3.10 to 3.13 and the folder of GLASS, but no PyTorch.
Run these three lines in that folder:

python3 -m venv .venv-run
.venv-run/bin/pip install {packages}
.venv-run/bin/python onnx/ort.py {name} IMAGES --out judged --save

IMAGES are files or folders. {name} is this zip file as it is: do not unpack it. judged/predictions.csv receives the
results, judged/overlays the pictures. TIFF files also need the packages tifffile and imagecodecs.

model.onnx       the network and its region of interest, from an RGB image to score and anomaly map
thresholds.json  above which an image or a pixel counts as anomalous
regions.json     the smallest region that is listed
manifest.json    the SHA-256 of each file
LICENSE          the licence of GLASS
"""


@click.command("bundle", cls=Command, context_settings=CONTEXT)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="File to write, ending in .zip."
)
@click.option(
    "--weights",
    default=None,
    type=click.Path(),
    help="File of the backbone's weights.  [default: where the training had them]",
)
@click.option(
    "--min_area", default=1, type=AT_LEAST_1, help="Regions with fewer pixels of the image are left out of the list."
)
def command(checkpoint: Path, out: Path, weights: str | None, min_area: int) -> None:
    """Write CHECKPOINT (ckpt_best_<E>.pth, or its folder) as one zip file: graph, thresholds, settings of the regions,
    license, how to run it, and the SHA-256 of each. `python onnx/ort.py` runs it without PyTorch.
    """
    if out.suffix.lower() != ".zip":
        raise InputError(f"--out {out}: a bundle is a zip file; give a name that ends in .zip")
    from inference import bundle  # imports OpenCV
    from inference.inspector import load_checkpoint  # slow to import

    setup_logging()
    model = load_checkpoint(checkpoint, weights=weights)
    export = script("pth2onnx")  # imports torch
    with tempfile.TemporaryDirectory() as temporary:
        path, options = Path(temporary) / bundle.GRAPH, export.GraphOptions()
        export.save(export.export(model, options), export.describe(model, options.outputs, "fp32"), path)
        differences = export.checking.difference(path, model, None, True)
        graph = path.read_bytes()
    if max(differences) > export.TOLERANCE:
        LOGGER.warning("%s gives other results than torch: do not use it before you know the reason", out)
    content = bundle.Bundle(graph, model.thresholds, min_area, model.class_name)
    bundle.write(out, content, {bundle.LICENSE: _licence(), bundle.README: _readme(model.class_name, out.name)})
    LOGGER.info("%s: %.1f MB; largest difference to torch: score %.2g, map %.2g", out, out.stat().st_size / 1e6,
                *differences)  # fmt: skip


def _licence() -> str:
    path = FOLDER.parent / "LICENSE"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise WorkError(f"cannot read {path}: {reason_of(error)}; a bundle carries the licence") from error


def _readme(class_name: str, name: str) -> str:
    """How to run a bundle, with the versions of the packages that it was made and compared with."""
    packages = " ".join(f"{package}=={metadata.version(package)}" for package in PACKAGES)
    return README.format(class_name=class_name or "a model", name=shlex.quote(name), packages=packages)
