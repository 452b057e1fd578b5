"""The README's first picture, from what `shell/run-demo.sh` leaves: `python -m tools.showcase DATA RESULTS OUT`."""

from __future__ import annotations

from pathlib import Path

import click
import cv2
import numpy as np
from numpy.typing import NDArray

from commands.command import CONTEXT, Command
from inference.inspector import Inspector, load_checkpoint
from inference.judge import open_picture
from inference.thresholds import normalise
from reporting.drawing import heatmap, outline
from utils import write_atomically

SHOWN = (
    ("plate", "missing_screw/000"), ("wall", "chipped/001"), ("plate", "broken_seal/001"), ("wall", "stain/000"),
    ("plate", "stain/000"), ("wall", "scratch/000"),
)  # fmt: skip
SIDE, GAP = 150, 4
COLUMNS = 2  # of examples side by side


def panels(model: Inspector, picture: Path, mask: Path) -> NDArray[np.uint8]:
    """Picture, truth, anomaly map and decision side by side, BGR."""
    result = model.predict_image(picture)
    plain = cv2.cvtColor(np.asarray(open_picture(picture)), cv2.COLOR_RGB2BGR)
    decided = plain.copy()
    outline(decided, result.mask, 2)
    parts = [plain, cv2.imread(str(mask)), heatmap(normalise(result.map, model.thresholds.pixel)), decided]
    return np.hstack([_framed(part) for part in parts])


def _framed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(small, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255))


@click.command("showcase", cls=Command, context_settings=CONTEXT)
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("results", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
def main(data: Path, results: Path, out: Path) -> None:
    """Write the picture."""
    folder = results / "models" / "backbone_0"
    models = {name: load_checkpoint(folder / f"folder_{name}") for name in {name for name, _ in SHOWN}}
    made = [
        panels(models[name], data / name / "test" / f"{one}.png", data / name / "ground_truth" / f"{one}_mask.png")
        for name, one in SHOWN
    ]
    rows = [np.hstack(made[i : i + COLUMNS]) for i in range(0, len(made), COLUMNS)]
    encoded = cv2.imencode(".jpg", np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    write_atomically(out, lambda temporary: temporary.write_bytes(encoded.tobytes()))


if __name__ == "__main__":
    main()
