"""The foreground masks of a class as files, made once for each image."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.base import Sample
from datasets.files import DEFAULT, ReadOptions, read_rgb
from datasets.foreground import EXAMINED, Foreground
from datasets.limits import FULL_BITS
from utils import LOGGER, InputError, WorkError, progress_bar, write_bytes, write_text

VERSION = 1  # of the method: masks of another version are computed again
RECORD, SHEET, TEST_SHEET = "foreground.json", "contact_sheet.png", "contact_sheet_test.png"


def make_masks(
    samples: Sequence[Sample],
    folder: Path,
    show_progress: bool = True,
    announce: bool = True,
    reading: ReadOptions = DEFAULT,
) -> list[Path]:
    """The foreground mask of each training image of a class; those that do not exist yet are made.

    A mask is a PNG of 0 and 255 (everything above 0 is object) of the same size as its image. It is named by the stem
    of the image, preceded by the image's folder where several images have the same stem. `foreground.json` beside the
    masks records which image each was made from, by content: for another image, or by another version of the method,
    it is computed again. If this changes the verdict on the class, all masks are computed again.

    Args:
        samples: good images.
        folder: of the masks of this class, and nothing else.
        show_progress: whether to show a progress bar while masks are made.
        announce: whether to log where the masks are, and which share of an image they keep.
        reading: how the images are read.

    Returns:
        The masks' paths in the order of `samples`.

    Raises:
        InputError: there are no samples.
        WorkError: an image cannot be read, or a mask cannot be written.
    """
    if not samples:
        raise InputError("foreground masks are asked for, but there is no image to make one for")
    paths = [folder / name for name in _mask_names(samples)]
    digests = [_digest(sample.path, reading) for sample in samples]
    record = Record(folder)
    missing = [i for i, path in enumerate(paths) if not record.has(path, digests[i])]
    if missing:
        foreground = fit_samples(samples, reading)
        if record.set_verdict(foreground):
            missing = list(range(len(paths)))
        with record.written_at_end(), progress_bar(len(missing), "img", "foreground", disable=not show_progress) as bar:
            for i in missing:
                mask = foreground.mask(read_rgb(samples[i].path, reading))
                write_png(paths[i], mask.astype(np.uint8) * 255)
                record.add(paths[i], digests[i], float(mask.mean()))
                bar.update(1)
    if announce:
        kept = np.mean([record.kept(path) for path in paths])
        LOGGER.info("foreground masks in %s: %s; they keep %.1f %% of an image", folder, record.reason, 100 * kept)
    return paths


def fit_samples(samples: Sequence[Sample], reading: ReadOptions = DEFAULT) -> Foreground:
    """Learn a class from up to EXAMINED of its good images, evenly chosen.

    Raises:
        InputError: there are no samples.
        WorkError: an image cannot be read.
    """
    return Foreground.fit(read_rgb(samples[i].path, reading) for i in choose_evenly(len(samples), EXAMINED))


def choose_evenly(size: int, count: int) -> list[int]:
    """Indices of up to `count` of `size` images, evenly spaced.

    They are rounded, unlike those of `utils.evenly_chosen`: other images would give other masks than earlier versions.
    """
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(int)).tolist()


def _mask_names(samples: Sequence[Sample]) -> list[str]:
    """`<stem>.png`; after the folder if several images have that stem, and numbered if that is not enough."""
    taken = {Path(SHEET).stem, Path(TEST_SHEET).stem}
    counts = Counter(sample.path.stem.casefold() for sample in samples)  # some file systems ignore the case
    names = []
    for sample in samples:
        stem = sample.path.stem
        if counts[stem.casefold()] > 1 or stem.casefold() in taken:
            stem = f"{sample.path.parent.name}_{stem}"
        name, number = stem, 2
        while name.casefold() in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name.casefold())
        names.append(f"{name}.png")
    return names


def _digest(path: Path, reading: ReadOptions) -> str:
    """Identifies the content of a file, and the bit depth that it is read with."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return digest if reading.bits == FULL_BITS else f"{digest} {reading.bits} bits"
    except OSError as error:
        raise WorkError(f"cannot read image {path}: {error}") from error


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an RGB or gray image.

    Raises:
        WorkError: it cannot be written.
    """
    encoded = io.BytesIO()  # if it wrote to a full disk, Pillow's encoder would raise an error of its own
    Image.fromarray(image).save(encoded, "PNG")
    write_bytes(path, encoded.getvalue())


class Record:
    """`foreground.json` in a folder: the verdict, and which image each mask was made from.

    A file that does not exist, cannot be read, or has another version counts as empty.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD
        self._verdict: dict[str, Any] = {}
        self._images: dict[str, dict[str, Any]] = {}
        try:
            text = json.loads(self.path.read_text(encoding="utf-8"))
            if text["version"] == VERSION:
                images = {
                    name: {"sha256": str(entry["sha256"]), "kept": float(entry["kept"])}
                    for name, entry in text["images"].items()
                }
                self._verdict = {"fills_image": bool(text["fills_image"]), "reason": str(text["reason"])}
                self._images = images
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return

    @property
    def reason(self) -> str:
        """The verdict and why, one line."""
        return self._verdict["reason"]

    def has(self, path: Path, digest: str) -> bool:
        """Whether a mask exists and was made from an image with this digest."""
        return self._images.get(path.name, {}).get("sha256") == digest and path.is_file()

    def kept(self, path: Path) -> float:
        """The share of its image that a mask keeps."""
        return self._images[path.name]["kept"]

    def set_verdict(self, foreground: Foreground) -> bool:
        """Set the verdict; returns whether it differs from the previous one, which makes all masks invalid."""
        before = self._verdict.get("fills_image", foreground.fills_image)
        self._verdict = {"fills_image": foreground.fills_image, "reason": foreground.reason}
        if before == foreground.fills_image:
            return False
        self._images = {}
        return True

    def add(self, path: Path, digest: str, kept: float) -> None:
        """Record a mask that was written."""
        self._images[path.name] = {"sha256": digest, "kept": round(kept, 6)}

    @contextmanager
    def written_at_end(self) -> Iterator[None]:
        """Write the file at the end, even of an interrupted run, which keeps the masks that it made.

        Raises:
            WorkError: it cannot be written.
        """
        try:
            yield
        finally:
            text = json.dumps({"version": VERSION, **self._verdict, "images": self._images}, indent=1)
            write_text(self.path, text + "\n")
