"""The queue before the model: batches, its bound, errors of single pictures, its end."""

import threading

import numpy as np
import pytest
from helpers import Brightness, noise_image

from serving.judging import JudgeQueue, QueueIsFull
from serving.models import Loaded
from serving.numbers import Numbers
from serving.recipes import Version
from utils import WorkError


class Shelf:
    """Models that need no checkpoint; they wait until they may judge, and note what they are given together."""

    def __init__(self, fail=lambda picture: False):
        self.batches, self.go, self.fail = [], threading.Event(), fail

    def current(self, recipe):
        shelf = self

        class Model(Brightness):
            def score_pictures(self, pictures):
                shelf.go.wait(10)
                shelf.batches.append((recipe, len(pictures)))
                if any(shelf.fail(picture) for picture in pictures):
                    raise RuntimeError("bad picture")
                return super().score_pictures(pictures)

        version = Version(recipe, 1, "", "", 0.5, 0.5, 0.0, "first", {}, True)
        return Loaded(version, Model())


@pytest.fixture
def picture():
    return noise_image(40, 40)


def test_what_waits_is_judged_together_by_recipe(picture):
    shelf = Shelf()
    queue = JudgeQueue(shelf, 20, 4, Numbers())
    first = queue.submit("a", picture)
    while len(queue):
        pass
    others = [queue.submit(recipe, picture) for recipe in "abaaaab"]
    shelf.go.set()
    scores = {future.result(10).result.score for future in (first, *others)}
    assert len(scores) == 1
    assert shelf.batches == [("a", 1), ("a", 4), ("b", 2), ("a", 1)]
    queue.close()


def test_full_queue_refuses_or_waits(picture):
    shelf = Shelf()
    queue = JudgeQueue(shelf, 2, 1, Numbers())
    futures = [queue.submit("a", picture)]
    while len(queue):
        pass
    futures += [queue.submit("a", picture), queue.submit("a", picture)]
    with pytest.raises(QueueIsFull):
        queue.submit("a", picture)
    waiting = threading.Thread(target=lambda: futures.append(queue.submit("a", picture, wait=True)))
    waiting.start()
    shelf.go.set()
    waiting.join(10)
    assert [future.result(10).version.recipe for future in futures] == ["a"] * 4
    queue.close()


def test_one_bad_picture_does_not_spoil_the_others(picture):
    shelf = Shelf(fail=lambda p: np.asarray(p).max() == 0)
    queue = JudgeQueue(shelf, 9, 8, Numbers())
    black = noise_image(40, 40).point(lambda _: 0)
    futures = [queue.submit("a", p) for p in (picture, black, picture)]
    shelf.go.set()
    assert futures[0].result(10).result.score == futures[2].result(10).result.score
    with pytest.raises(WorkError, match="bad picture"):
        futures[1].result(10)
    queue.close()


def test_the_end_judges_what_waits(picture):
    shelf = Shelf()
    queue = JudgeQueue(shelf, 9, 1, Numbers())
    futures = [queue.submit("a", picture) for _ in range(5)]
    futures[3].cancel()
    shelf.go.set()
    queue.close()
    assert [future.done() for future in futures] == [True] * 5
    assert sum(not future.cancelled() for future in futures) == 4
    with pytest.raises(QueueIsFull):
        queue.submit("a", picture)
