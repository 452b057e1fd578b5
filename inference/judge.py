"""What a model says of a picture, whatever runs the model. Needs no torch."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from datasets.files import CLIPPED, DARK, DEFAULT, PAGES, ReadOptions, as_image, read_rgb
from datasets.geometry import Blend, Geometry, Tiling, batches, pair
from datasets.limits import AUTO, DEFAULT_OVERLAP
from inference.thresholds import Thresholds
from inference.thresholds import normalise as normalise_scores
from reporting.drawing import heatmap, outline
from utils import LOGGER, InputError, WorkError

SMALLEST = 8  # pixels; below that a picture's side tells nothing
TILES_AT_ONCE = 8
MOST_PIXELS = 1 << 27  # of a picture after resizing


@dataclass(frozen=True)
class Prepared:
    """A picture that was read, with what the network gets of it: what `Judge.prepare` made, on whichever thread."""

    picture: Image.Image
    seen: Any

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture, in pixels."""
        return self.picture.size


Picture = str | Path | NDArray[np.uint8] | NDArray[np.uint16] | Image.Image | Prepared


@dataclass(frozen=True)
class Result:
    """What the model says of a picture.

    Attributes:
        score: in [0, 1], as the tester's.
        normalised: the score with the threshold at 0.5; nan without a threshold.
        decision: whether the picture is defective; None without a threshold.
        map: (h, w) float32 in [0, 1], in the picture's own geometry; 0 where a crop left something out.
        mask: (h, w) bool, the map above the pixel threshold; None without one.
        seconds: that it took, its share where several were scored at once.
    """

    score: float
    normalised: float
    decision: bool | None
    map: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    seconds: float


class Judge(ABC):
    """Judges pictures, whole or in tiles, with a network that a subclass runs.

    Attributes:
        geometry: which part of a picture the network sees, and how large.
        thresholds: above which score and pixel something is defective; None of a model without.
        tiling: how large pictures are cut; None judges every picture whole.
        tiles_at_once: of one picture, in memory.
        class_name: what it was trained on, as `<dataset>_<class>`.
        reading: how pictures are read, with the depth of the training.
    """

    geometry: Geometry
    thresholds: Thresholds | None
    tiling: Tiling | None = None
    tiles_at_once: int = TILES_AT_ONCE
    class_name: str = ""
    reading: ReadOptions = DEFAULT
    _said: frozenset[str] = frozenset()

    def identity(self) -> dict[str, Any]:
        """Plain values in which two ways to run one model agree, and two models hardly will."""
        thresholds = self.thresholds.plain() if self.thresholds else {}
        thresholds.pop("data", None)  # tells which images they come from, not what they are
        plain = {key: None if value != value else value for key, value in thresholds.items()}
        tiles = {"tile": list(self.tiling.tile), "overlap": self.tiling.overlap} if self.tiling else {}
        return {"class_name": self.class_name, "thresholds": plain, **tiles}

    @abstractmethod
    def score_pictures(
        self, pictures: Sequence[Image.Image | Prepared]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """RGB pictures → scores (B,) and maps (B, H, W) of what the network saw of them."""

    def prepare(self, picture: Image.Image) -> Any:
        """What the network gets of a picture; of a network that takes pictures as they are, the picture itself."""
        return picture

    def prepare_ahead(self, picture: Image.Image) -> Image.Image | Prepared:
        """Do the part of the work on a picture that needs no network, so that another thread can do it beforehand.

        Of a picture that is judged in tiles nothing is done: all of them at once would take too much memory.
        """
        if self.tiling is not None:
            return picture
        _refuse_narrow(picture, self.geometry)
        seen = self.prepare(picture)
        return picture if seen is picture else Prepared(picture, seen)

    def predict_image(self, image: Picture) -> Result:
        """Judge a picture.

        Args:
            image: a file; or (h, w, 3) RGB or (h, w) gray, uint8 or uint16; or a PIL image. 16 bits are read with
                the depth of the training.

        Raises:
            InputError: no such array.
            WorkError: the file cannot be read.
        """
        return self.predict_images([image])[0]

    def predict_images(self, images: Sequence[Picture]) -> list[Result]:
        """Judge several at once, which is faster; see `predict_image`."""
        started = time.perf_counter()
        pictures = [image if isinstance(image, Prepared) else open_picture(image, self.reading) for image in images]
        if not pictures:
            return []
        self._say_once([one.picture if isinstance(one, Prepared) else one for one in pictures])
        for picture in pictures if self.tiling is None else ():
            _refuse_narrow(picture, self.geometry)
        if self.tiling is not None:
            found = [self._in_tiles(picture, self.tiling) for picture in pictures]
        else:
            scores, maps = self._scored(pictures)
            placed = (self.geometry.place(one, p.size) for one, p in zip(maps, pictures, strict=True))
            found = [self.result(score, one) for score, one in zip(scores.tolist(), placed, strict=True)]
        seconds = (time.perf_counter() - started) / max(1, len(found))
        return [replace(one, seconds=seconds) for one in found]

    def _scored(self, pictures: Sequence[Image.Image]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `score_pictures`; a score that is no number exceeds no threshold, and must not pass for a good picture's.

        Raises:
            WorkError: a score is not finite.
        """
        scores, maps = self.score_pictures(pictures)
        if not np.isfinite(scores).all():
            raise WorkError("the model gives a score that is not finite (NaN or infinity): its weights are damaged")
        return scores, maps

    def _say_once(self, pictures: Sequence[Image.Image]) -> None:
        """What is to be known of the files, of the first one alone."""
        for picture in pictures:
            for key in {CLIPPED, PAGES, DARK} & picture.info.keys() - self._said:
                self._said |= {key}
                if key == CLIPPED:
                    LOGGER.warning(
                        "a picture holds the value %d, but the model was trained with %d bits, where white is %d: what "
                        "is brighter is clipped, here and in others", picture.info[key], self.reading.bits,
                        (1 << self.reading.bits) - 1,
                    )  # fmt: skip
                elif key == DARK:
                    LOGGER.warning(
                        "a picture of 16 bits has no value above %d, so that it looks dark to the model, which takes "
                        "65535 for white; if its camera has fewer bits, train with its pictures", picture.info[key],
                    )  # fmt: skip
                else:
                    LOGGER.warning("a file has %d pages; of this one and others the first is judged", picture.info[key])

    def _in_tiles(self, picture: Image.Image | Prepared, tiling: Tiling) -> Result:
        picture = picture.picture if isinstance(picture, Prepared) else picture
        score, anomaly_map = self.score_tiles(np.asarray(picture), tiling)
        return self.result(score, anomaly_map)

    def score_tiles(self, pixels: NDArray[np.uint8], tiling: Tiling) -> tuple[float, NDArray[np.float32]]:
        """The highest score of a picture's tiles, and their maps put together, (h, w).

        Besides the picture and its map there is never more in memory than a few tiles.
        """
        height, width = pixels.shape[:2]
        blend, score = Blend(tiling, width, height), 0.0
        for boxes in batches(tiling.boxes(width, height), self.tiles_at_once):
            scores, maps = self._scored([Image.fromarray(tiling.cut(pixels, box)) for box in boxes])
            score = max(score, float(scores.max()))
            for box, one in zip(boxes, maps, strict=True):
                blend.add(box, one)
        return score, blend.finish()

    def result(self, score: float, anomaly_map: NDArray[np.float32], seconds: float = 0.0) -> Result:
        """A result from a score and a map in the picture's geometry."""
        if self.thresholds is None:
            return Result(score, float("nan"), None, anomaly_map, None, seconds)
        normalised = float(normalise_scores(score, self.thresholds.image))
        decision, mask = score > self.thresholds.image, anomaly_map > self.thresholds.pixel
        return Result(score, normalised, decision, anomaly_map, mask, seconds)

    def overlay(self, image: Image.Image, result: Result) -> NDArray[np.uint8]:
        """The picture with the heatmap over it, and the outline of what is above the threshold, (h, w, 3) BGR.

        The colours are of the map normalised so that the pixel threshold is at 0.5, or of the plain map without one.
        """
        plain = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
        shown = result.map if self.thresholds is None else normalise_scores(result.map, self.thresholds.pixel)
        drawn = cv2.addWeighted(plain, 0.55, heatmap(shown), 0.45, 0)
        if result.mask is not None:
            outline(drawn, result.mask, max(1, round(min(plain.shape[:2]) / 250)))
        return drawn


def open_picture(image: Picture, reading: ReadOptions = DEFAULT) -> Image.Image:
    """An RGB picture from whatever `Judge.predict_image` takes."""
    if isinstance(image, Image.Image):
        picture = _upright_rgb(image, reading.bits)
    elif isinstance(image, np.ndarray):
        picture = _of_array(image, reading.bits)
    elif isinstance(image, (str, os.PathLike)):
        picture = read_rgb(Path(image), reading)
    else:
        raise InputError(
            f"{type(image).__name__} is not a picture; possible: a path, a PIL image, or a NumPy array of (h, w, 3) "
            "RGB or (h, w) gray"
        )
    if min(picture.size) < SMALLEST:
        raise WorkError(f"a picture of {picture.size[0]}x{picture.size[1]} pixels is too small to be judged")
    return picture


def _of_array(values: NDArray[Any], bits: int) -> Image.Image:
    right_shape = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (1, 3))
    if values.dtype not in (np.uint8, np.uint16) or not right_shape or not values.size:
        raise InputError(
            f"an array of {values.dtype} and shape {values.shape} is no picture; possible: uint8 or uint16 of "
            "(h, w, 3) RGB or (h, w) gray"
        )
    gray = values.ndim == 2 or values.shape[2] == 1
    picture = as_image(values.reshape(values.shape[:2]) if gray else values, bits)
    return _converted(picture)


def _converted(image: Image.Image) -> Image.Image:
    """In RGB, with what is to be said of its file."""
    said = {key: value for key, value in image.info.items() if key in (CLIPPED, PAGES, DARK)}
    converted = image.convert("RGB")
    converted.info |= said
    return converted


def _upright_rgb(image: Image.Image, bits: int) -> Image.Image:
    """A PIL picture as `datasets.files.read_rgb` would give its file; one that is RGB already is not copied."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise WorkError(f"the picture cannot be read: {error}") from error
    if image.mode.startswith("I;16"):
        image = as_image(np.asarray(image, np.uint16), bits)
    elif image.mode in ("I", "F"):
        raise InputError(f"a PIL image of mode {image.mode} has no range known to be white; give 8 or 16 bits")
    upright = ImageOps.exif_transpose(image) if image.getexif() else image
    return upright if upright.mode == "RGB" else _converted(upright)


def _refuse_narrow(picture: Image.Image | Prepared, geometry: Geometry) -> None:
    height, width = geometry.resized_size(*picture.size)
    if height * width > MOST_PIXELS:
        raise WorkError(
            f"a picture of {picture.size[0]}x{picture.size[1]} pixels is too long and narrow: its shorter side brought "
            f"to {geometry.resize}, it would have {width}x{height}"
        )


def choose_tiling(config: dict[str, Any], tile: str | int | None, overlap: float | None) -> Tiling | None:
    """How a model is to see large pictures.

    Args:
        config: what its checkpoint or graph tells of itself.
        tile: pixels; `auto` as large as what the model was trained on; `off`; None as trained.
        overlap: share of a tile; None as trained, or a quarter.

    Raises:
        InputError: neither a number nor one of the words, or the model does not know what it was trained on.
    """
    geometry, trained = Geometry.of_config(config), config.get("tile")
    if tile is None and not trained:
        if overlap is not None:
            raise InputError("--overlap is of tiles, and there are none without --tile")
        return None
    if str(tile) == "off":
        if overlap is not None:
            raise InputError("--overlap is of tiles, and --tile off takes none")
        if trained:
            LOGGER.warning(
                "--tile off: the model was trained on tiles of %s pixels, its scores will mean little", trained
            )
        return None
    side = trained if tile is None else tile
    if str(side) == AUTO:
        if not trained:
            return _as_in_training(geometry, config.get("image_size"), overlap)
        side = trained
    if not (str(side).isascii() and str(side).isdigit()):
        raise InputError(f"--tile {tile!r}: possible are a number of pixels, {AUTO} and off")
    given = config.get("overlap") if overlap is None else overlap
    if trained and int(side) != trained:
        LOGGER.warning("--tile %s: the model was trained on tiles of %s pixels", side, trained)
    return Tiling.of(geometry, int(side)) if given is None else Tiling.of(geometry, int(side), given)


def _as_in_training(geometry: Geometry, image_size: Sequence[int] | None, overlap: float | None) -> Tiling:
    """Tiles, in their own pixels, as large as what was seen of the training's pictures (width, height)."""
    if not image_size:
        raise InputError(f"--tile {AUTO}: the model does not say how large its training's pictures were; give pixels")
    width, height = image_size
    resized, seen, cut = geometry.resized_size(width, height), geometry.size, pair(geometry.resize)
    # each axis by itself: a whole picture may have been squeezed
    scales = height / resized[0], width / resized[1]
    tile, box = (tuple(round(k * side) for k, side in zip(scales, sides, strict=True)) for sides in (seen, cut))
    return Tiling(tile, box, DEFAULT_OVERLAP if overlap is None else overlap)
