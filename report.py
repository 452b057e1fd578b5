"""What a run leaves for people: CSV and Excel tables, its settings, pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from errors import WorkError
from utils import IMAGENET_MEAN, IMAGENET_STD, LOGGER, write_atomically, write_text

ROW_NAMES = "Row Names"
COLUMNS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro", "best_epoch")
MEAN = "Mean"
UNKNOWN_GRAY = 128


# ------------------------------------------------------------------------------------------ tables


def write_results(folder: Path, rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Write results.csv and results.xlsx: a row a class, last their mean.

    Rows of other classes that lie there from earlier runs are kept.

    Args:
        folder: the results folder.
        rows: row name → figures, the metrics in [0, 1].

    Returns:
        The table as written, without rounding.
    """
    path = folder / "results.csv"
    table = pd.DataFrame.from_dict({name: dict(figures) for name, figures in rows.items()}, orient="index")
    before = _read_rows(path)
    order = dict.fromkeys((*table.columns, *before.columns))  # what is joined below comes out sorted
    earlier, same = before[~before.index.isin([*rows, MEAN])], before[before.index.isin(list(rows))]
    if len(earlier):
        if len(rows) == 1:  # once a run
            LOGGER.info("%s: kept the rows of earlier runs: %s", path, ", ".join(earlier.index))
        table = pd.concat([earlier, table])
    if len(same):  # a test alone has no figures of the last epoch: those of its training stay
        table = table.combine_first(same[[c for c in same.columns if c not in COLUMNS]]).reindex(table.index)
    further = [c for c in order if c not in COLUMNS]
    table = table.reindex(columns=[*COLUMNS, *further])
    table.loc[MEAN] = table.mean(numeric_only=True)
    table.index.name = ROW_NAMES
    write_atomically(path, lambda temporary: table.to_csv(temporary, na_rep="nan", float_format="%.6g"))
    write_atomically(
        folder / "results.xlsx", lambda temporary: table.to_excel(temporary, sheet_name="results", na_rep="nan")
    )
    return table


def _read_rows(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    try:
        return pd.read_csv(path, index_col=ROW_NAMES)
    except (ValueError, OSError, KeyError) as error:
        raise WorkError(f"cannot read {path} of an earlier run: {error}; move it away") from error


def format_table(table: pd.DataFrame) -> str:
    """The published columns of the results in percent, for people."""
    shown = (100 * table[list(COLUMNS[:-1])]).map(lambda v: "–" if math.isnan(v) else f"{v:.2f}")
    shown[COLUMNS[-1]] = ["" if name == MEAN else f"{v:.0f}" for name, v in table[COLUMNS[-1]].items()]
    return shown.to_string()


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write settings.json."""
    write_text(folder / "settings.json", json.dumps(settings, indent=1, default=str) + "\n")


# ---------------------------------------------------------------------------------------- pictures


def picture_name(image_path: str, taken: set[str]) -> str:
    """`…/test/broken/000.png` → `broken_000.png`; with a number where that is in `taken`, which grows by it."""
    path = Path(image_path or "image")
    stem = f"{path.parent.name}_{path.stem}".lstrip("_")
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}_{number}.png", number + 1
    taken.add(name)
    return name


def to_bgr(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Normalised (3, H, W) → (H, W, 3) BGR uint8."""
    rgb = image.transpose(1, 2, 0) * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    return np.ascontiguousarray((rgb.clip(0, 1) * 255).round().astype(np.uint8)[..., ::-1])


def save_picture(
    path: Path, image: NDArray[np.float32], mask: NDArray[np.int8], anomaly_map: NDArray[np.float32]
) -> None:
    """Write image | truth | heatmap, side by side.

    Args:
        path: .png file.
        image: normalised (3, H, W).
        mask: (H, W); > 0 is shown white, < 0 (not known) gray.
        anomaly_map: (H, W) in [0, 1]; blue is 0, red is 1, in every picture alike.
    """
    truth = np.where(mask < 0, UNKNOWN_GRAY, np.where(mask > 0, 255, 0)).astype(np.uint8)
    heat = cv2.applyColorMap((anomaly_map.clip(0, 1) * 255).astype(np.uint8), cv2.COLORMAP_JET)
    save_image(path, np.hstack([to_bgr(image), cv2.cvtColor(truth, cv2.COLOR_GRAY2BGR), heat]))


def save_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write a BGR or gray picture beside, then rename.

    Raises:
        WorkError: it cannot be written.
    """
    done, data = cv2.imencode(".png", image)
    if not done:
        raise WorkError(f"cannot encode {path}")
    write_atomically(path, lambda temporary: temporary.write_bytes(data.tobytes()))
