"""The service as a whole: what it is made of, and its start and end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import torch

from inference.judge import Result
from serving.judging import JudgeQueue
from serving.models import Shelf, find_checkpoints, register
from serving.mqtt import Publisher
from serving.numbers import Numbers, memory_bytes
from serving.pictures import Picture, Source
from serving.refusal import Refusal
from serving.signals import Signals
from serving.store import Store
from serving.uploads import Admission, Limits, Upload
from serving.watch import Folder, Watcher
from serving.webhook import Sender
from serving.work import Wanted, Work
from utils import InputError, WorkError, cores

Answer = TypeVar("Answer")
BODIES_AT_ONCE = 4  # of the largest size; smaller ones are more


@dataclass(frozen=True)
class Options:
    """What a service is made with; see `python main.py serve --help`.

    Attributes:
        models: checkpoints, or folders that hold some; () serves what the store has.
        store: its folder.
        keep: most pictures without a mark.
        queue: most pictures that wait.
        batch_size: pictures judged together.
        max_mb: of a request, in 10⁶ bytes.
        max_pixels: of a picture.
        min_area: smallest number of pixels of a region.
        device: of the models.
        weights: file of the backbone's weights, or None.
        precision: of the models.
        watch: `DIR` or `NAME=DIR`.
        move: whether watched files are moved.
        poll: whether watched folders are looked through instead of asking the system for changes.
        webhook, secret: URL, and what its messages are signed with; None and "".
        mqtt: address of the broker; None.
    """

    models: Sequence[Path]
    store: Path
    keep: int
    queue: int
    batch_size: int
    max_mb: float
    max_pixels: int
    min_area: int
    device: torch.device
    weights: str | None
    precision: str
    watch: Sequence[str] = ()
    move: bool = False
    poll: bool = False
    webhook: str | None = None
    secret: str = ""
    mqtt: str | None = None


class Service:
    """Store, models, queue and signals together.

    Args:
        options: of the command.

    Raises:
        InputError: the options cannot work.
        WorkError: the store or a model cannot be used.
    """

    def __init__(self, options: Options) -> None:
        checkpoints = find_checkpoints(options.models)
        self.store = Store(options.store, options.keep)
        self.store.sweep()
        register(self.store, checkpoints)
        names = self.store.recipes.names()
        if not names:
            raise InputError(
                f"nothing to serve: give --models, or a --store that has recipes ({options.store} has none)"
            )
        loading = {
            "device": options.device, "weights": options.weights, "precision": options.precision,
            "max_pixels": options.max_pixels,
            "min_area": options.min_area,
        }  # fmt: skip
        self.numbers = Numbers()
        self.shelf = Shelf(self.store, sorted(checkpoints) or names, loading)
        self.folders = [Folder.of(text, self.shelf.names(), options.move) for text in options.watch]
        self.limits = Limits(int(options.max_mb * 1e6), options.max_pixels)
        self.admission = Admission(options.queue, BODIES_AT_ONCE * self.limits.body)
        self.queue = JudgeQueue(self.shelf, options.queue, options.batch_size, self.numbers)
        webhook = Sender(self.store, options.webhook, options.secret, self.numbers) if options.webhook else None
        broker = Publisher(options.mqtt, self.numbers) if options.mqtt else None
        self.signals = Signals(self.store, self.numbers, webhook, broker)
        self.work = Work(
            self.store, self.shelf, self.queue, self.limits, self.signals, self.numbers, keeps=options.keep > 0
        )
        self._watchers = [Watcher(folder, self.work, options.batch_size, options.poll) for folder in self.folders]
        self._threads: anyio.CapacityLimiter | None = None

    def start(self) -> None:
        """Begin to watch folders."""
        for watcher in self._watchers:
            watcher.start()

    def close(self) -> None:
        """Finish what is under way, and end."""
        for watcher in self._watchers:
            watcher.close()
        self.queue.close()
        self.signals.close()
        self.store.close()

    async def run(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        """Call a function in a thread, of which there are few."""
        if self._threads is None:  # belongs to the event loop
            self._threads = anyio.CapacityLimiter(max(4, cores()))
        return await anyio.to_thread.run_sync(function, *arguments, limiter=self._threads)

    def check_recipe(self, name: str) -> str:
        """The name of a recipe that is served.

        Raises:
            Refusal: 404.
        """
        if name not in self.shelf.names():
            raise Refusal(404, f"no recipe {name!r}; there are: {', '.join(self.shelf.names())}")
        return name

    async def judge(self, recipe: str, upload: Upload, source: Source, wanted: Wanted) -> tuple[int, dict[str, Any]]:
        """Judge and record a picture.

        Returns:
            The number of the version, and the answer.

        Raises:
            Refusal: it cannot be judged.
            WorkError: it cannot be recorded.
        """
        ready = await self.run(self.work.prepare, recipe, upload)
        try:
            try:
                judgement = await asyncio.wrap_future(self.work.submit(recipe, ready))
            except WorkError as error:
                raise Refusal(422, f"the picture cannot be judged: {error}") from error
            _, answer = await self.run(self.work.record, recipe, ready, judgement, source)
            if wanted.map or wanted.overlay:
                answer |= await self.run(self.work.images, recipe, ready, judgement.result, wanted)
            return judgement.version.number, answer
        finally:
            self.work.release(ready)

    async def result(self, picture: Picture) -> tuple[int, Result]:
        """The result of a picture of the store, kept or computed anew with the active version; and its number.

        Raises:
            Refusal: its recipe is not served, it is gone, or too much is under way.
        """
        self.check_recipe(picture.recipe)
        active = await self.run(self.store.recipes.active, picture.recipe)
        for number in (picture.version, active.number):
            if (kept := self.work.kept.get(picture.id, number)) is not None:
                return number, kept
        upload = Upload(picture.name, await self.run(self.content, picture))
        ready = await self.run(self.work.prepare, picture.recipe, upload)
        try:
            judgement = await asyncio.wrap_future(self.work.submit(picture.recipe, ready))
        finally:
            self.work.release(ready)
        number = await self.run(self._same_weights, picture, judgement.version.number)
        self.work.kept.put(picture.id, number, judgement.result)
        return number, judgement.result

    def content(self, picture: Picture) -> bytes:
        """The file of a picture as it was received.

        Raises:
            Refusal: 404, it is gone.
        """
        try:
            return self.store.pictures.path(picture).read_bytes()
        except OSError as error:
            raise Refusal(404, f"the file of picture {picture.id} is gone") from error

    def gauges(self) -> dict[str, float]:
        """Values of the moment, for `Numbers.text`."""
        return {
            "queue": len(self.queue), "webhook_waiting": len(self.store.outbox), "memory_bytes": memory_bytes(),
        }  # fmt: skip

    def _same_weights(self, picture: Picture, number: int) -> int:
        """The number of the picture's own version if it gives the same result as another one, else that one's."""
        versions = self.store.recipes
        own, other = versions.version(picture.recipe, picture.version), versions.version(picture.recipe, number)
        return own.number if own.digest == other.digest else other.number
