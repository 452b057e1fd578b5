"""From a file that arrived to what is recorded of it, for requests and watched folders alike."""

from __future__ import annotations

import base64
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from PIL import Image

from inference.judge import PreparedImage, Result
from inference.predict import PIXELS_AHEAD, memory_in_pixels
from inference.regions import MOST_LISTED
from serving import views
from serving.appearance import Appearance, measure
from serving.journal import File
from serving.judging import Judgement, JudgeQueue, Prepared, QueueIsFull
from serving.models import Shelf
from serving.numbers import Numbers
from serving.pictures import Judged, Source
from serving.refusal import Refusal
from serving.signals import Signals
from serving.store import Store
from serving.uploads import BUSY, Limits, Upload, check_size, decode, kind_of
from utils import WorkError


@dataclass(frozen=True)
class Ready:
    """A picture that is decoded and prepared for the network.

    Attributes:
        upload: the file.
        suffix: that its content asks for.
        image: for the model.
        appearance: figures of it.
    """

    upload: Upload
    suffix: str
    image: Prepared
    appearance: Appearance

    @property
    def picture(self) -> Image.Image:
        """The RGB image."""
        return self.image.picture if isinstance(self.image, PreparedImage) else self.image

    @property
    def pixels(self) -> int:
        """The memory it takes, as a number of RGB pixels."""
        return memory_in_pixels(self.image)


@dataclass(frozen=True)
class Wanted:
    """Which images an answer is to hold: `map`, `png` or `tiff`; `overlay`. Empty for none."""

    map: str = ""
    overlay: bool = False


class Work:
    """What is done with a picture before and after it is judged.

    Args:
        store: for what is judged.
        shelf: the models.
        queue: before the thread that judges.
        limits: of a picture.
        signals: told of each result.
        numbers: counts.
        keeps: whether pictures are kept in the store.
    """

    def __init__(
        self, store: Store, shelf: Shelf, queue: JudgeQueue, limits: Limits, signals: Signals, numbers: Numbers,
        keeps: bool,
    ) -> None:  # fmt: skip
        self.store, self.shelf, self.queue, self.limits, self.numbers = store, shelf, queue, limits, numbers
        self._signals, self._keeps = signals, keeps
        self.kept = views.Kept()
        self._lock, self._pixels = threading.Lock(), 0  # of pictures in memory

    def prepare(self, recipe: str, upload: Upload, bounded: bool = True) -> Ready:
        """Decode a picture and prepare it for the model of a recipe.

        Args:
            recipe: of the model.
            upload: the file.
            bounded: refuse when too many pixels are in memory; the caller has to `release` what it was given.

        Raises:
            Refusal: it is not a picture (415), damaged (422), too large (413), or too much is under way (503).
        """
        if not upload.content:
            raise Refusal(422, "the file is empty")
        suffix = kind_of(upload.content)
        expected = check_size(upload.content, self.limits.pixels)
        if bounded:
            self._reserve(expected)
        try:
            model = self.shelf.model(recipe)
            picture = decode(upload.content, model.reading.bits, self.limits.pixels)
            try:
                ready = Ready(upload, suffix, model.prepare_ahead(picture), measure(picture))
            except WorkError as error:
                raise Refusal(422, f"the picture cannot be judged: {error}") from error
        except BaseException:
            if bounded:
                self._give_back(expected)
            raise
        if bounded:
            with self._lock:
                self._pixels += ready.pixels - expected
        return ready

    def release(self, ready: Ready) -> None:
        """Let go of a picture's memory."""
        self._give_back(ready.pixels)

    def submit(self, recipe: str, ready: Ready, wait: bool = False) -> Future[Judgement]:
        """Let a picture be judged.

        Raises:
            Refusal: 503, the queue is full.
        """
        try:
            return self.queue.submit(recipe, ready.image, wait)
        except QueueIsFull as error:
            raise Refusal(503, BUSY, retry_after=1) from error

    def record(
        self, recipe: str, ready: Ready, judgement: Judgement, source: Source, file: File | None = None
    ) -> tuple[int | None, dict[str, Any]]:
        """Keep a judged picture, and tell of it: all of it, or after an error nothing.

        Args:
            recipe: that judged it.
            ready: the picture.
            judgement: of it.
            source: where it came from.
            file: of a watched folder, to be entered in the journal.

        Returns:
            Its id in the store, or None; and the result as plain values.

        Raises:
            WorkError: it cannot be written.
        """
        judged = _judged(recipe, ready, judgement, source)
        plain = {
            key: getattr(judged, key)
            for key in ("score", "normalised", "decision", "regions", "width", "height", "milliseconds")
        }
        number = None
        with self.store.transaction():
            if self._keeps:
                number = self.store.pictures.add(judged, ready.upload.content, ready.suffix)
            event = {"recipe": recipe, "version": judged.version, "picture": number, "name": judged.name} | plain
            if file is not None:
                self.store.journal.enter(file, judged.decision or "", event)
            told = self._signals.keep(event | {"source": source, "time": judged.received})
        self._signals.tell(told)
        if number is not None:
            self.store.pictures.let_go()
            self.kept.put(number, judged.version, judgement.result)
        self.numbers.count("pictures", recipe=recipe, decision=judged.decision or "none", source=source)
        self.numbers.count("judging_seconds", judgement.result.seconds)
        return number, {"name": judged.name, "id": number} | plain

    def images(self, recipe: str, ready: Ready, result: Result, wanted: Wanted) -> dict[str, str]:
        """The images that an answer is to hold, in base64, by key."""
        images: dict[str, bytes] = {}
        if wanted.map:
            images["map"] = views.map_tiff(result) if wanted.map == "tiff" else views.map_png(result)
        if wanted.overlay:
            images["overlay"] = views.overlay_png(self.shelf.model(recipe), ready.picture, result)
        return {key: base64.b64encode(value).decode() for key, value in images.items()}

    def _reserve(self, pixels: int) -> None:
        with self._lock:
            if self._pixels and self._pixels + pixels > PIXELS_AHEAD:
                raise Refusal(503, BUSY, retry_after=1)
            self._pixels += pixels

    def _give_back(self, pixels: int) -> None:
        with self._lock:
            self._pixels -= pixels


def _judged(recipe: str, ready: Ready, judgement: Judgement, source: Source) -> Judged:
    version, result = judgement.version, judgement.result
    normalised = version.normalise(result.score)
    return Judged(
        recipe=recipe,
        version=version.number,
        sha256=ready.upload.sha256,
        name=ready.upload.name,
        received=time.time(),
        source=source,
        width=ready.picture.width,
        height=ready.picture.height,
        score=result.score,  # not rounded: it is compared with thresholds later
        normalised=normalised,
        decision=version.decide(result.score),
        milliseconds=round(1000 * result.seconds, 3),
        regions=[region.plain() for region in (result.regions or ())[:MOST_LISTED]],
        **{key: round(value, 6) for key, value in ready.appearance._asdict().items()},
    )
