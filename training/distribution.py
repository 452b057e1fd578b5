"""Manifold or hypersphere: the judge (paper section 3.2 and appendix) and the Excel files of its verdicts.

The files in the project contain the published verdicts and are only read. A run writes its own verdicts under its
results and, if `GLASS_EXCEL_DIR` names a folder, into that folder, which replaces the published files. The file under
the results is never read: the judge gives the same verdict for the same images, and `--distribution 4` would reverse a
verdict that it had reversed before.
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
EXCEL_DIR = Path(os.environ.get("GLASS_EXCEL_DIR") or PUBLISHED_DIR)  # only written to if it is not PUBLISHED_DIR
VERDICTS = "distribution"  # folder in the results
OPPOSITE = 4  # value of --distribution
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
    """Where the Fourier spectrum of a (H, W, 3) BGR image is strong, (289, 289) with frequency 0 at the centre."""
    gray = cv2.cvtColor(cv2.resize(image, (SIZE, SIZE)), cv2.COLOR_BGR2GRAY)
    blurred = cv2.blur(gray, (BLUR, BLUR))
    magnitude = np.abs(np.fft.fftshift(np.fft.fft2(blurred.astype(np.float64))))
    with np.errstate(divide="ignore"):
        return 20 * np.log(magnitude) > SPECTRUM_THRESHOLD


def _verdict(strong: NDArray[np.bool_]) -> int:
    """The verdict from the strong part of a spectrum, (289, 289): hypersphere if it is dense and large."""
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
    """The mean of (H, W, 3) RGB images, truncated to uint8, as BGR.

    Raises:
        InputError: there is no image.
    """
    total, count = 0.0, 0
    for image in images:
        total = total + image.astype(np.float64)
        count += 1
    if not count:
        raise InputError("judging the distribution needs at least one training image")
    return np.ascontiguousarray((total / count).astype(np.uint8)[..., ::-1])


# -------------------------------------------------------------------------------------- Excel file


def excel_path(dataset: str, folder: Path | None = None) -> Path:
    """The data set's file of verdicts in a folder; by default in the folder that verdicts are read from."""
    return (EXCEL_DIR if folder is None else folder) / f"{dataset}_distribution.xlsx"


def _read_table(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    try:
        table = pd.read_excel(path)
    except Exception as error:  # openpyxl, zip and XML errors of a damaged file
        raise WorkError(f"cannot read {path}: {error}; repair or delete it") from error
    if not set(COLUMNS) <= set(table.columns):
        raise WorkError(
            f"{path}: the columns are {', '.join(map(str, table.columns))}, but must include {', '.join(COLUMNS)}"
        )
    return table


def read_flags(dataset: str, row: str) -> tuple[int, int] | None:
    """(Distribution, Foreground) of a row `<dataset>_<class>`; None if the file does not have this row.

    Raises:
        WorkError: the file is damaged, or a value is neither 0 nor 1.
    """
    table = _read_table(excel_path(dataset))
    matching = table[table["Class"] == row]
    if matching.empty:
        return None
    flags = matching["Distribution"].iloc[-1], matching["Foreground"].iloc[-1]
    if not all(flag in (0, 1) for flag in flags):
        raise WorkError(f"{excel_path(dataset)}: {row} has the values {flags[0]} and {flags[1]}; each must be 0 or 1")
    return int(flags[0]), int(flags[1])


def keep_verdict(results: Path, dataset: str, row: str, flag: int, mode: int) -> None:
    """Write a verdict under the results and into the folder that the user named; a failure is only a warning.

    Args:
        results: the results folder.
        dataset: name of the data set.
        row: `<dataset>_<class>`.
        flag: the verdict, 0 or 1.
        mode: value of `--distribution`. With 4 the user's folder does not get it: the next run would reverse it.
    """
    folders = [results / VERDICTS]
    if EXCEL_DIR.resolve() != PUBLISHED_DIR and mode != OPPOSITE:
        folders.append(EXCEL_DIR)
    for folder in folders:
        try:
            write_flag(dataset, row, flag, folder)
        except WorkError as error:
            LOGGER.warning("%s: the verdict (%s) is not saved: %s", row, NAMES[flag], error)


def write_flag(dataset: str, row: str, flag: int, folder: Path) -> None:
    """Write a verdict into the file of a folder and keep its other rows; Foreground = Distribution, as published.

    Raises:
        WorkError: the file is damaged, or cannot be written.
    """
    path = excel_path(dataset, folder)
    with _locked(path):
        table = _read_table(path)
        table = table[table["Class"] != row][COLUMNS]
        new = pd.DataFrame([[row, flag, flag]], columns=COLUMNS)
        table = pd.concat([table, new], ignore_index=True) if len(table) else new
        write_bytes(path, workbook(lambda book: table.to_excel(book, index=False)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A context that one process at a time can enter for a file, so that no row is lost between reading and writing."""
    try:
        import fcntl
    except ImportError:  # not a Unix
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.parent, os.O_RDONLY)  # locks the folder: a lock file would have to stay there
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
    """The variant of a class.

    Attributes:
        svd: 0 manifold, 1 hypersphere.
        foreground: whether foreground masks are used.
        reason: for the variant, for the log.
        verdict: of the judge, if the class was judged.
        fresh: whether this run decided, and not an earlier one that it resumes.
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
        mode: 0 the file's flag; 1 judge; 2 manifold; 3 hypersphere; 4 the opposite of the file's flag. With 0 and 4 the
            class is judged if the file does not have it.
        fg: 0 without foreground masks; 1 with them; 2 as the file says, with them if the file does not have the class.
        svd: the value of `--svd`, which overrides everything.
        flags: of the class in the file.
        judge_class: judges the class; only called if necessary.
        file: name of the file for the reason.
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
    """Whether foreground masks are used, from `--fg` and the flags of the class in the file."""
    return bool(fg == 1 or (fg == 2 and (flags is None or flags[1])))
