"""Manifold or hypersphere: the judge (paper section 3.2 and appendix) and the Excel files of its verdicts.

The files that come with the project hold the published verdicts and are only read. What a run judges it writes under
its results, and into the folder that `GLASS_EXCEL_DIR` names, where that is given: such a folder takes the place of the
published files. The file under the results is never read again: the judge says the same of the same images, and
`--distribution 4` would turn round a verdict that is read back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reporting.cells import workbook
from utils import LOGGER, ROOT, InputError, WorkError, write_bytes

MANIFOLD, HYPERSPHERE = 0, 1
NAMES = {MANIFOLD: "manifold", HYPERSPHERE: "hypersphere"}
PUBLISHED_DIR = ROOT / "datasets" / "excel"
EXCEL_DIR = Path(os.environ.get("GLASS_EXCEL_DIR") or PUBLISHED_DIR)  # read, and written to if it is another one
VERDICTS = "distribution"  # folder below the results
OPPOSITE = 4  # --distribution
COLUMNS = ["Class", "Distribution", "Foreground"]

SIZE = 289
CENTRE = SIZE // 2
BLUR = 39
SPECTRUM_THRESHOLD = 170.0
DENSITY_THRESHOLD = 0.21
MIN_RADIUS = 12
MIN_POINTS = 60


def judge(image: NDArray[np.uint8]) -> int:
    """Judge a class by the spectrum of its mean training image.

    Args:
        image: (H, W, 3) BGR.

    Returns:
        0 manifold, 1 hypersphere.
    """
    return _verdict(spectrum(image))


def spectrum(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where the Fourier spectrum of the (H, W, 3) BGR image is strong: (289, 289), lowest frequency in the middle."""
    gray = cv2.cvtColor(cv2.resize(image, (SIZE, SIZE)), cv2.COLOR_BGR2GRAY)
    blurred = cv2.blur(gray, (BLUR, BLUR))
    magnitude = np.abs(np.fft.fftshift(np.fft.fft2(blurred.astype(np.float64))))
    with np.errstate(divide="ignore"):
        return 20 * np.log(magnitude) > SPECTRUM_THRESHOLD


def _verdict(strong: NDArray[np.bool_]) -> int:
    """Dense and large in the spectrum means hypersphere."""
    rows, columns = np.nonzero(strong)
    count = len(rows)
    if not count:
        return MANIFOLD
    dy, dx = rows - CENTRE, columns - CENTRE
    radius = np.hypot(dx, dy).max()
    box = 4 * max(np.abs(dx).max(), 1) * max(np.abs(dy).max(), 1)
    grid = np.arange(2 * SIZE) - CENTRE
    disc = (np.hypot(grid[:, None], grid[None, :]) <= radius).sum() + 1e-10
    dense = count / box > DENSITY_THRESHOLD or count / disc > DENSITY_THRESHOLD
    return HYPERSPHERE if dense and radius > MIN_RADIUS and count > MIN_POINTS else MANIFOLD


def mean_image(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Mean of (H, W, 3) RGB images, truncated to uint8, as BGR."""
    total, count = 0.0, 0
    for image in images:
        total = total + image.astype(np.float64)
        count += 1
    if not count:
        raise InputError("no image to judge the distribution by")
    return np.ascontiguousarray((total / count).astype(np.uint8)[..., ::-1])


# -------------------------------------------------------------------------------------- Excel file


def excel_path(dataset: str, folder: Path | None = None) -> Path:
    """The data set's file of verdicts in a folder, by default where verdicts are read from."""
    return (EXCEL_DIR if folder is None else folder) / f"{dataset}_distribution.xlsx"


def _read_table(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    try:
        table = pd.read_excel(path)
    except Exception as error:  # openpyxl, zip and XML errors of a damaged file
        raise WorkError(f"cannot read {path}: {error}; mend or delete it") from error
    if not set(COLUMNS) <= set(table.columns):
        raise WorkError(f"{path}: columns are {', '.join(map(str, table.columns))}, must be {', '.join(COLUMNS)}")
    return table


def read_flags(dataset: str, row: str) -> tuple[int, int] | None:
    """(Distribution, Foreground) of a row `<dataset>_<class>`; None where it has none."""
    table = _read_table(excel_path(dataset))
    found = table[table["Class"] == row]
    if found.empty:
        return None
    flags = found["Distribution"].iloc[-1], found["Foreground"].iloc[-1]
    if not all(flag in (0, 1) for flag in flags):
        raise WorkError(f"{excel_path(dataset)}: {row} has {flags[0]}, {flags[1]}, must be 0 or 1 each")
    return int(flags[0]), int(flags[1])


def keep_verdict(results: Path, dataset: str, row: str, flag: int, mode: int) -> None:
    """Write a verdict under the results, and into the folder that the user named; a warning where that fails.

    Args:
        results: the run's results folder.
        flag: the verdict.
        mode: `--distribution`. What 4 judges stays out of the user's folder, or the next run would turn it round.
    """
    folders = [results / VERDICTS]
    if EXCEL_DIR.resolve() != PUBLISHED_DIR and mode != OPPOSITE:
        folders.append(EXCEL_DIR)
    for folder in folders:
        try:
            write_flag(dataset, row, flag, folder)
        except WorkError as error:
            LOGGER.warning("%s: the verdict (%s) is not kept: %s", row, NAMES[flag], error)


def write_flag(dataset: str, row: str, flag: int, folder: Path) -> None:
    """Put a verdict into a folder's file beside the other rows; Foreground = Distribution, as published.

    Raises:
        WorkError: the file is damaged, or cannot be written.
    """
    path = excel_path(dataset, folder)
    with _alone(path):
        table = _read_table(path)
        table = table[table["Class"] != row][COLUMNS]
        new = pd.DataFrame([[row, flag, flag]], columns=COLUMNS)
        table = pd.concat([table, new], ignore_index=True) if len(table) else new
        write_bytes(path, workbook(lambda book: table.to_excel(book, index=False)))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Other processes that want to change the file wait outside: between reading and writing, a row would be lost."""
    try:
        import fcntl
    except ImportError:  # not a Unix
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.parent, os.O_RDONLY)  # the folder itself: a file for the lock would have to stay there
    except OSError as error:
        raise WorkError(f"cannot write {path}: {error}") from error
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# ---------------------------------------------------------------------------------------- decision


@dataclass(frozen=True)
class Decision:
    """Variant, whether there are foreground masks, and why; the verdict where the class was judged for it.

    fresh: whether it is decided by this run, and not by an earlier one that is gone on with.
    """

    svd: int
    foreground: bool
    reason: str
    verdict: int | None = None
    fresh: bool = True


def decide(
    mode: int,
    fg: int,
    svd: int | None,
    flags: tuple[int, int] | None,
    judge_class: Callable[[], int],
    file: Path | str = "the Excel file",
) -> Decision:
    """Turn `--distribution`, `--fg` and `--svd` into the variant of a class.

    Args:
        mode: 0 the file's flag, judged where there is none; 1 judge; 2 manifold; 3 hypersphere; 4 the opposite of
            the file's flag, judged where there is none.
        fg: 0 no foreground masks; 1 with; 2 as the file says, with where there is no row.
        svd: a given `--svd`, which wins over everything.
        flags: the file's row.
        judge_class: judges the class; called only where it is needed.
        file: what the reason calls the file.
    """
    verdict = None
    if svd is not None:
        variant, reason = svd, "--svd"
    elif mode in (2, 3):
        variant, reason = mode - 2, f"--distribution {mode}"
    elif mode == 1 or flags is None:
        variant = verdict = judge_class()
        reason = "judged by the mean training image"
    else:
        variant = flags[0] if mode == 0 else 1 - flags[0]
        reason = f"from {file}" if mode == 0 else f"the opposite of {file}"
    return Decision(variant, wants_foreground(fg, flags), reason, verdict)


def wants_foreground(fg: int, flags: tuple[int, int] | None) -> bool:
    """Whether `--fg` asks for foreground masks, given the file's row."""
    return bool(fg == 1 or (fg == 2 and (flags is None or flags[1])))
