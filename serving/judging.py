"""One thread that judges: what waits for the same recipe when it is free is judged together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from PIL import Image

from inference.judge import PreparedImage, Result
from inference.predict import PIXELS_AHEAD, memory_in_pixels
from serving.models import Loaded, Shelf, limit_threads
from serving.numbers import Numbers
from serving.recipes import Version
from utils import LOGGER, InputError, WorkError, cores

Prepared = Image.Image | PreparedImage


class QueueIsFull(Exception):
    """As many pictures wait as may."""


@dataclass(frozen=True)
class Judgement:
    """A result, and the version that gave it."""

    version: Version
    result: Result


@dataclass
class _Task:
    recipe: str
    image: Prepared
    future: Future[Judgement] = field(default_factory=Future)


class JudgeQueue:
    """A queue of bounded length before the thread that judges.

    Args:
        shelf: the models.
        bound: most pictures that wait.
        batch_size: most pictures that are judged together.
        numbers: counts batches.
    """

    def __init__(self, shelf: Shelf, bound: int, batch_size: int, numbers: Numbers) -> None:
        self._shelf, self._bound, self._batch_size, self._numbers = shelf, bound, batch_size, numbers
        self._waiting: deque[_Task] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self._thread.start()

    def submit(self, recipe: str, image: Prepared, wait: bool = False) -> Future[Judgement]:
        """Let a picture be judged.

        Args:
            recipe: of the model.
            image: as `Judge.prepare_ahead` returns it.
            wait: for room in the queue, instead of raising.

        Raises:
            QueueIsFull: there is no room, or the service ends.
        """
        task = _Task(recipe, image)
        with self._changed:
            while wait and len(self._waiting) >= self._bound and not self._closed:
                self._changed.wait()
            if self._closed or len(self._waiting) >= self._bound:
                raise QueueIsFull
            self._waiting.append(task)
            self._changed.notify_all()
        return task.future

    def __len__(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Judge what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        limit_threads(cores())
        while batch := self._next_batch():
            try:
                self._judge(batch)
            except BaseException as error:  # the thread has to live on, and nobody may wait for ever
                LOGGER.exception("judging failed")
                _fail(batch, error)
            del batch  # free its pictures before waiting

    def _next_batch(self) -> list[_Task]:
        """What waits for the recipe of the oldest task; [] when the queue is closed and empty."""
        with self._changed:
            while True:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return []
                batch = [task for task in self._take() if task.future.set_running_or_notify_cancel()]
                self._changed.notify_all()
                if batch:
                    return batch

    def _take(self) -> list[_Task]:
        """Take a batch out of the queue; large pictures make it smaller."""
        taken: list[_Task] = []
        kept: list[_Task] = []
        pixels = 0
        for task in self._waiting:
            size = memory_in_pixels(task.image)
            same = not taken or task.recipe == taken[0].recipe
            if same and len(taken) < self._batch_size and (not taken or pixels + size <= PIXELS_AHEAD / 4):
                taken.append(task)
                pixels += size
            else:
                kept.append(task)
        self._waiting = deque(kept)
        return taken

    def _judge(self, batch: list[_Task]) -> None:
        loaded = self._shelf.current(batch[0].recipe)
        self._numbers.count("batches")
        results = _results(loaded, [task.image for task in batch])
        for task, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                task.future.set_exception(result)
            else:
                task.future.set_result(Judgement(loaded.version, result))


def _results(loaded: Loaded, images: Sequence[Prepared]) -> list[Result | Exception]:
    """The result of each image; if they fail together, each is judged alone, so that only the bad ones fail."""
    try:
        return list(loaded.model.predict_images(images))
    except (WorkError, InputError, MemoryError, RuntimeError) as error:
        if len(images) > 1:
            return [result for image in images for result in _results(loaded, [image])]
        reason = "out of memory" if isinstance(error, MemoryError) else str(error) or type(error).__name__
        return [WorkError(reason)]


def _fail(batch: Sequence[_Task], error: BaseException) -> None:
    for task in batch:
        with suppress(Exception):  # it may have its result already
            task.future.set_exception(WorkError(f"judging failed: {error}"))
