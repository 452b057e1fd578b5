"""How a trained model judges an image, whichever runtime runs the network. Needs no torch."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets.files import CLIPPED, DARK, DEFAULT, PAGES, ReadOptions
from datasets.geometry import Blend, Geometry, Tiling, batches, pair
from datasets.limits import AUTO, DEFAULT_OVERLAP
from datasets.roi import RegionOfInterest
from inference.loading import ImageSource, open_rgb
from inference.regions import Region, find_regions
from inference.thresholds import Thresholds
from inference.thresholds import normalise as normalise_scores
from reporting.drawing import heatmap, outline
from utils import LOGGER, InputError, WorkError

TILES_AT_ONCE = 8
MOST_PIXELS = 1 << 27  # of an image after resizing


@dataclass(frozen=True)
class PreparedImage:
    """An image together with its network input, see `Judge.prepare_ahead`.

    Attributes:
        picture: the RGB image.
        network_input: what `Judge.prepare` made of it.
    """

    picture: Image.Image
    network_input: Any

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image, in pixels."""
        return self.picture.size


@dataclass(frozen=True)
class Result:
    """What a model finds in an image.

    Attributes:
        score: image score in [0, 1], as in testing.
        normalised: the image score rescaled so that the threshold is at 0.5; nan without a threshold.
        decision: whether the image is defective; None without a threshold.
        map: anomaly map, (h, w) float32 in [0, 1], in the image's own size; 0 where a crop left something out.
        mask: (h, w) bool, where the map is above the pixel threshold; None without a threshold.
        seconds: time taken; of images judged together, the average.
        regions: the connected regions of the mask, highest value first; None without a threshold.
    """

    score: float
    normalised: float
    decision: bool | None
    map: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    seconds: float
    regions: tuple[Region, ...] | None = None


class Judge(ABC):
    """Judges images, whole or in tiles. A subclass runs the network.

    Attributes:
        geometry: which part of an image the network sees, and at which size.
        thresholds: above which an image score or a pixel is anomalous; None if the model has none.
        tiling: how images are cut into tiles; None judges each image as a whole.
        tiles_at_once: of one image, in memory.
        min_area: smallest region of a result, in pixels of the image.
        roi: the region of interest, which the network keeps to; None inspects everything.
        class_name: of the training, `<dataset>_<class>`.
        reading: how image files are read, with the bit depth of the training.
    """

    geometry: Geometry
    thresholds: Thresholds | None
    tiling: Tiling | None = None
    tiles_at_once: int = TILES_AT_ONCE
    min_area: int = 1
    roi: RegionOfInterest | None = None
    class_name: str = ""
    reading: ReadOptions = DEFAULT
    _notes_given: frozenset[str] = frozenset()

    def identity(self) -> dict[str, Any]:
        """Plain values that are the same for one model in every runtime; rows of others do not fit beside its own."""
        thresholds = self.thresholds.plain() if self.thresholds else {}
        thresholds.pop("data", None)  # identifies the calibration images, not the model
        plain = {key: None if value != value else value for key, value in thresholds.items()}
        tiles = {"tile": list(self.tiling.tile), "overlap": self.tiling.overlap} if self.tiling else {}
        regions = {"min_area": self.min_area} if self.min_area > 1 else {}
        roi = {"roi": self.roi.plain()} if self.roi else {}
        return {"class_name": self.class_name, "thresholds": plain, **tiles, **regions, **roi}

    @abstractmethod
    def score_pictures(
        self, pictures: Sequence[Image.Image | PreparedImage]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """RGB images → image scores (B,) and anomaly maps (B, H, W) of the part that the network sees."""

    def prepare(self, picture: Image.Image) -> Any:
        """The network input for an RGB image; the image itself for a network that takes images as they are."""
        return picture

    def prepare_ahead(self, picture: Image.Image) -> Image.Image | PreparedImage:
        """Do the work on an image that needs no network, so that another thread can do it in advance.

        Images that are judged in tiles are returned as they are: all their tiles at once would take too much memory.

        Raises:
            WorkError: the image is too long and narrow.
        """
        if self.tiling is not None:
            return picture
        _refuse_narrow(picture, self.geometry)
        network_input = self.prepare(picture)
        return picture if network_input is picture else PreparedImage(picture, network_input)

    def predict_image(self, image: ImageSource | PreparedImage) -> Result:
        """Judge an image.

        Args:
            image: a file; an array of (h, w, 3) RGB or (h, w) gray, uint8 or uint16; or a PIL image. 16-bit values are
                read with the bit depth of the training.

        Raises:
            InputError: it is none of these.
            WorkError: the file cannot be read, or the image cannot be judged.
        """
        return self.predict_images([image])[0]

    def predict_images(self, images: Sequence[ImageSource | PreparedImage]) -> list[Result]:
        """Judge several images together, which is faster; see `predict_image`."""
        started = time.perf_counter()
        pictures = [image if isinstance(image, PreparedImage) else open_rgb(image, self.reading) for image in images]
        if not pictures:
            return []
        self._warn_once([_rgb_of(picture) for picture in pictures])
        if self.tiling is not None:
            results = [self._judge_tiles(_rgb_of(picture), self.tiling) for picture in pictures]
        else:
            for picture in pictures:
                _refuse_narrow(picture, self.geometry)
                if self.roi is not None:
                    self.roi.refuse_other(picture.size)
            scores, maps = self._finite_scores(pictures)
            placed = (self._place(seen, p.size) for seen, p in zip(maps, pictures, strict=True))
            results = [self.result(*pair) for pair in zip(scores.tolist(), placed, strict=True)]
        seconds = (time.perf_counter() - started) / len(results)
        return [replace(result, seconds=seconds) for result in results]

    def _place(self, seen: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        """The map of what the network saw on an image of `size` (width, height), 0 outside the region of interest."""
        placed = self.geometry.place(seen, size)
        return placed if self.roi is None else placed * self.roi.on(size)

    def _finite_scores(
        self, pictures: Sequence[Image.Image | PreparedImage]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`score_pictures`; a score of NaN exceeds no threshold and would make the image look good.

        Raises:
            WorkError: a score is not finite.
        """
        scores, maps = self.score_pictures(pictures)
        if not np.isfinite(scores).all():
            raise WorkError("the model gives a score that is not finite (NaN or infinity): its weights are damaged")
        return scores, maps

    def _warn_once(self, pictures: Sequence[Image.Image]) -> None:
        """Warn about properties of the files, each for the first file that has it."""
        for picture in pictures:
            for key in {CLIPPED, PAGES, DARK} & picture.info.keys() - self._notes_given:
                self._notes_given |= {key}
                if key == CLIPPED:
                    LOGGER.warning(
                        "an image holds the value %d, but the model was trained with %d bits, where white is %d: "
                        "brighter values are clipped, in this and in other images", picture.info[key],
                        self.reading.bits, (1 << self.reading.bits) - 1,
                    )  # fmt: skip
                elif key == DARK:
                    LOGGER.warning(
                        "a 16-bit image has no value above %d, so that it looks dark to the model, which takes 65535 "
                        "for white; if the camera has fewer bits, train with its images", picture.info[key],
                    )  # fmt: skip
                else:
                    LOGGER.warning("a file has %d pages; of every such file the first is judged", picture.info[key])

    def _judge_tiles(self, picture: Image.Image, tiling: Tiling) -> Result:
        """The highest score of an image's tiles, and their maps blended into one.

        Besides the image and its map, no more than `tiles_at_once` tiles are in memory.
        """
        pixels = np.asarray(picture)
        height, width = pixels.shape[:2]
        blend, score = Blend(tiling, width, height), 0.0
        for boxes in batches(tiling.boxes(width, height), self.tiles_at_once):
            scores, maps = self._finite_scores([Image.fromarray(tiling.cut(pixels, box)) for box in boxes])
            score = max(score, float(scores.max()))
            for box, tile_map in zip(boxes, maps, strict=True):
                blend.add(box, tile_map)
        return self.result(score, blend.finish())

    def result(self, score: float, anomaly_map: NDArray[np.float32], seconds: float = 0.0) -> Result:
        """The result for an image score and an anomaly map in the image's own size."""
        if self.thresholds is None:
            return Result(score, float("nan"), None, anomaly_map, None, seconds)
        normalised = float(normalise_scores(score, self.thresholds.image))
        decision, mask = score > self.thresholds.image, anomaly_map > self.thresholds.pixel
        regions = find_regions(anomaly_map, mask, self.min_area)
        return Result(score, normalised, decision, anomaly_map, mask, seconds, regions)

    def overlay(self, image: Image.Image, result: Result) -> NDArray[np.uint8]:
        """The image under its heatmap, with the outline of what is above the pixel threshold, (h, w, 3) BGR.

        The colours show the map rescaled so that the pixel threshold is at 0.5, or the plain map without a threshold.
        """
        plain = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR)
        shown = result.map if self.thresholds is None else normalise_scores(result.map, self.thresholds.pixel)
        drawn = cv2.addWeighted(plain, 0.55, heatmap(shown), 0.45, 0)
        if result.mask is not None:
            outline(drawn, result.mask, max(1, round(min(plain.shape[:2]) / 250)))
        return drawn


def _rgb_of(picture: Image.Image | PreparedImage) -> Image.Image:
    return picture.picture if isinstance(picture, PreparedImage) else picture


def _refuse_narrow(picture: Image.Image | PreparedImage, geometry: Geometry) -> None:
    height, width = geometry.resized_size(*picture.size)
    if height * width > MOST_PIXELS:
        raise WorkError(
            f"an image of {picture.size[0]}x{picture.size[1]} pixels is too long and narrow: with its shorter side "
            f"resized to {geometry.resize}, it would have {width}x{height}"
        )


def refuse_tiles(roi: RegionOfInterest | None, tiling: Tiling | None) -> None:
    """Refuse tiles for a model with a region of interest, which is where it is in whole images only.

    Raises:
        InputError: there are both.
    """
    if roi is not None and tiling is not None:
        raise InputError("--tile: the model was trained with --roi, which needs whole images; leave --tile out")


def choose_tiling(config: dict[str, Any], tile: str | int | None, overlap: float | None) -> Tiling | None:
    """How a model cuts images into tiles; None judges whole images.

    Args:
        config: of the checkpoint or the graph.
        tile: shorter side in pixels; `auto` is the size of the part that the network sees of a training image; `off`
            judges whole images; None is as in the training.
        overlap: share of a tile, in [0, 0.75]; None is as in the training, or a quarter.

    Raises:
        InputError: `tile` is none of these, there are no tiles to overlap, or the size of the training images is
            unknown.
    """
    geometry, trained_tile = Geometry.of_config(config), config.get("tile")
    if tile is None and not trained_tile:
        if overlap is not None:
            raise InputError(f"--overlap {overlap:g} applies to tiles, and there are none without --tile")
        return None
    if str(tile) == "off":
        if overlap is not None:
            raise InputError(f"--overlap {overlap:g} applies to tiles, and --tile off makes none")
        if trained_tile:
            LOGGER.warning(
                "--tile off: the model was trained on tiles of %s pixels, so its scores will mean little", trained_tile
            )
        return None
    side = trained_tile if tile is None else tile
    if str(side) == AUTO:
        if not trained_tile:
            return _tiling_as_trained(geometry, config.get("image_size"), overlap)
        side = trained_tile
    if not (str(side).isascii() and str(side).isdigit()):
        raise InputError(f"--tile {tile!r}: possible are a number of pixels, {AUTO} and off")
    overlap = config.get("overlap") if overlap is None else overlap
    if trained_tile and int(side) != trained_tile:
        LOGGER.warning("--tile %s: the model was trained on tiles of %s pixels", side, trained_tile)
    return Tiling.of(geometry, int(side), DEFAULT_OVERLAP if overlap is None else overlap)


def _tiling_as_trained(geometry: Geometry, image_size: Sequence[int] | None, overlap: float | None) -> Tiling:
    """Tiles, in image pixels, as large as the part that the network saw of a training image.

    Args:
        geometry: of the training.
        image_size: (width, height) of the training images, in pixels.
        overlap: share of a tile.
    """
    if not image_size:
        raise InputError(f"--tile {AUTO}: the model does not record the size of its training images; give pixels")
    width, height = image_size
    resized, seen, resized_whole = geometry.resized_size(width, height), geometry.size, pair(geometry.resize)
    # one scale for each axis, because a whole image may have been squeezed
    scales = height / resized[0], width / resized[1]
    tile, box = (
        tuple(round(k * side) for k, side in zip(scales, sides, strict=True)) for sides in (seen, resized_whole)
    )
    return Tiling(tile, box, DEFAULT_OVERLAP if overlap is None else overlap)
