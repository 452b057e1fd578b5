"""The images that a prediction run saves: overlay, raw anomaly map and mask of each input image."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.inputs import SAVED
from inference.judge import Judge, Result
from reporting.drawing import encode_png
from utils import WorkError, no_room, reason_of, write_bytes


def make_folders(out: Path, masks: bool) -> None:
    """Make the folders before the first image is judged, because a failure here would affect every image.

    Args:
        out: output folder.
        masks: whether masks are saved, which takes a threshold.

    Raises:
        WorkError: a folder cannot be made.
    """
    for name in SAVED if masks else SAVED[:-1]:
        try:
            (out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(f"cannot make the folder {out / name}: {reason_of(error)}") from error


def free_name(relative: str, taken: set[str]) -> str:
    """The path without its suffix, with a number if that is in `taken`; the name is added to `taken`."""
    stem, number = relative.rpartition(".")[0] or relative, 2
    name = stem
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    taken.add(name)
    return name


def save_result(folder: Path, name: str, image: Image.Image, result: Result, model: Judge, map_format: str) -> None:
    """Save overlay, raw map and mask of an image, in the image's own size: all of them, or none.

    Args:
        folder: gets overlays/, maps/ and masks/.
        name: of the files, without suffix.
        image: the RGB image that was judged.
        result: of the image.
        model: that judged it; it draws the overlay.
        map_format: `tiff` (float32) or `npy`.

    Raises:
        WorkError: one of them cannot be made or written.
    """
    overlay, mask = folder / "overlays" / f"{name}.png", folder / "masks" / f"{name}.png"
    try:
        contents = {
            overlay: encode_png(overlay, model.overlay(image, result)),
            folder / "maps" / f"{name}.{map_format}": _encode_map(result.map, map_format),
        }
        if result.mask is not None:
            contents[mask] = encode_png(mask, result.mask.astype(np.uint8) * 255)
    except MemoryError as error:
        raise WorkError(f"cannot save {name}: out of memory") from error
    except (cv2.error, OSError, ValueError, struct.error) as error:
        raise WorkError(f"cannot save {name}: {reason_of(error)}") from error
    written: list[Path] = []
    try:
        for path, content in contents.items():
            write_bytes(path, content)
            written.append(path)
    except WorkError:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _encode_map(anomaly_map: NDArray[np.float32], map_format: str) -> bytes:
    """Encode a map in memory, because libraries that write files themselves report a full disk in their own ways."""
    encoded = io.BytesIO()
    if map_format == "npy":
        np.save(encoded, anomaly_map)
    else:
        Image.fromarray(anomaly_map).save(encoded, "TIFF", compression="tiff_adobe_deflate")
    return encoded.getvalue()


def affects_every_image(out: Path, error: WorkError) -> bool:
    """Whether no other image could be saved either, as on a full disk; otherwise only this image's name or size fails.

    Args:
        out: output folder.
        error: that saving an image failed with.
    """
    folders = (out / name for name in SAVED)
    return no_room(error) or not all(os.access(f, os.W_OK | os.X_OK) for f in folders if f.exists())
