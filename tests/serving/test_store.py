"""The store: versions and undo, pictures up to a bound, marks, what another program or version left."""

import sqlite3
import threading

import pytest

from serving.journal import File
from serving.pictures import Filter, Judged
from serving.schema import SCHEMA
from serving.store import DATABASE, Store
from utils import InputError, WorkError


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "ckpt_best_3.pth"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def store(tmp_path, checkpoint):
    store = Store(tmp_path / "store", keep=3)
    store.recipes.add("cap", checkpoint, 0.5, 0.5, "first")
    yield store
    store.close()


def judged(score=0.3, **others):
    values = dict(
        recipe="cap", version=1, sha256="0" * 64, name="a.png", received=1.0, source="http", width=8, height=9,
        score=score, normalised=score, decision="good", milliseconds=2.0,
        regions=[{"box": [1, 2, 3, 4], "area": 5, "centre": [2.5, 4.0], "highest": 0.9}], brightness=0.5, contrast=0.2,
        sharpness=0.1,
    )  # fmt: skip
    return Judged(**values | others)


def add(store, *scores):
    numbers = [store.pictures.add(judged(score), b"content", ".png") for score in scores]
    store.pictures.let_go()
    return numbers


def test_versions_are_numbered_and_only_one_is_active(store, checkpoint):
    second = store.recipes.set_thresholds("cap", 0.4, 0.6)
    assert (second.number, second.origin, second.active) == (2, "threshold", True)
    assert [v.active for v in store.recipes.versions("cap")] == [True, False]
    assert second.checkpoint == store.recipes.version("cap", 1).checkpoint
    checkpoint.write_bytes(b"others")
    third = store.recipes.add("cap", checkpoint, 0.1, 0.2, "retrained", {"auroc": 0.9}, activate=False)
    assert store.recipes.active("cap") == second
    assert store.recipes.checkpoint(third).read_bytes() == b"others"
    assert third.figures == {"auroc": 0.9}


def test_undo_goes_back_through_what_was_active(store):
    for low in (0.1, 0.2, 0.3):
        store.recipes.set_thresholds("cap", low, 0.6)
    store.recipes.activate("cap", 2)
    assert [store.recipes.undo("cap").number for _ in range(4)] == [4, 3, 2, 1]
    with pytest.raises(InputError, match="nothing to undo"):
        store.recipes.undo("cap")
    assert len(store.recipes.versions("cap")) == 4


@pytest.mark.parametrize(("score", "decision"), [(0.4, "good"), (0.41, "unsure"), (0.6, "unsure"), (0.61, "defective")])
def test_decision_between_the_thresholds(store, score, decision):
    version = store.recipes.set_thresholds("cap", 0.4, 0.6)
    assert version.decide(score) == decision


@pytest.mark.parametrize(
    ("pair", "line"),
    [((0.6, 0.4), "unsure 0.6 is above"), ((-0.1, 0.4), "from 0 to 1"), ((0.1, float("nan")), "from 0 to 1")],
)
def test_thresholds_that_cannot_work(store, pair, line):
    with pytest.raises(InputError, match=line):
        store.recipes.set_thresholds("cap", *pair)
    assert len(store.recipes.versions("cap")) == 1


def test_unknown_recipe_names_those_that_exist(store):
    with pytest.raises(InputError, match="there are: cap"):
        store.recipes.active("lid")


def test_pictures_beyond_the_bound_go_but_marked_ones_stay(store):
    first, second = add(store, 0.1, 0.2)
    store.marks.put([first], "defective", b"mask")
    mask = store.folder / store.pictures.get(first).mask
    others = add(store, 0.3, 0.4, 0.5)
    kept = [p.id for p in store.pictures.page(Filter("cap"), "oldest")[0]]
    assert kept == [first, *others]
    with pytest.raises(InputError):
        store.pictures.get(second)
    assert len(list((store.folder / "pictures").rglob("*.png"))) == 4
    assert mask.read_bytes() == b"mask"
    store.marks.put([first], None)  # without its mark it is the oldest that goes
    add(store, 0.6)
    assert not mask.exists()
    assert store.pictures.count(Filter()) == 3


def test_pages_continue_where_they_ended(store):
    numbers = add(store, 0.5, 0.1, 0.5)
    for order, expected in (("newest", [2, 1, 0]), ("highest", [2, 0, 1]), ("lowest", [1, 0, 2])):
        found, cursor = [], None
        while True:
            page, cursor = store.pictures.page(Filter("cap"), order, cursor, 1)
            found += [picture.id for picture in page]
            if cursor is None:
                break
        assert found == [numbers[i] for i in expected]
    with pytest.raises(InputError, match="cursor"):
        store.pictures.page(Filter(), cursor="x'; --")
    with pytest.raises(InputError, match="order"):
        store.pictures.page(Filter(), order="id; --")


def test_picture_comes_back_as_it_was_put(store):
    picture = store.pictures.get(add(store, 0.1)[0])
    assert picture.regions == judged().regions
    assert store.pictures.path(picture).read_bytes() == b"content"
    assert store.pictures.values(Filter("cap"), ["score", "sharpness"], 5) == {"score": [0.1], "sharpness": [0.1]}


def test_marks_filter_and_undo(store):
    a, b, c = add(store, 0.1, 0.2, 0.3)
    store.marks.put([a, b], "good")
    store.marks.put([b], "defective")
    marked = {mark: [p.id for p in store.pictures.page(Filter(mark=mark))[0]] for mark in ("good", "any", "none")}
    assert marked == {"good": [a], "any": [b, a], "none": [c]}
    assert store.marks.undo("cap") == [b]
    assert store.pictures.get(b).mark == "good"
    assert store.marks.undo("cap") == [a, b]
    assert store.pictures.get(b).mark is None
    with pytest.raises(InputError, match="no mark"):
        store.marks.undo("cap")


def test_marking_is_all_or_nothing(store):
    (a,) = add(store, 0.1)
    with pytest.raises(InputError, match="no picture 99"):
        store.marks.put([a, 99], "good")
    assert store.pictures.get(a).mark is None
    with pytest.raises(InputError, match="possible are"):
        store.marks.put([a], "bad")
    with pytest.raises(InputError, match="belongs to one"):
        store.marks.put([a], "good", b"mask")


def test_journal_and_outbox(store):
    file = File("/in", "a.png", 5, 6)
    store.journal.enter(file, "good", {"score": 0.1})
    assert store.journal.find(file).result == {"score": 0.1}
    assert [entry.file for entry in store.journal.unfinished("/in")] == [file]
    store.journal.finish(file)
    assert store.journal.unfinished("/in") == []
    assert store.journal.find(File("/in", "a.png", 5, 7)) is None
    store.journal.forget("/in", set())
    assert store.journal.find(file) is None
    store.outbox.bound = 2
    assert [store.outbox.put({"n": n}) for n in range(3)] == [0, 0, 1]
    message = store.outbox.due(2e9)
    assert message.body == '{"n": 1}'
    store.outbox.retry(message, 3e9)
    assert store.outbox.due(2e9).body == '{"n": 2}'


def test_transaction_is_dropped_after_an_error(store):
    with pytest.raises(KeyError), store.transaction():
        store.pictures.add(judged(), b"content", ".png")
        raise KeyError
    assert store.pictures.count(Filter()) == 0


def test_several_processes_and_threads_share_a_store(store):
    other = Store(store.folder, keep=100)
    threads = [threading.Thread(target=add, args=(s, *[0.1] * 20)) for s in (other, store, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert 3 <= store.pictures.count(Filter()) <= 60
    assert len({p.file for p in other.pictures.iterate(Filter())}) == other.pictures.count(Filter())
    other.close()


def test_newer_store_is_refused(tmp_path):
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA + 1}")
    with pytest.raises(WorkError, match=f"newer version.*schema {SCHEMA + 1}"):
        Store(tmp_path)


@pytest.mark.parametrize("kind", ["text", "other"])
def test_what_is_no_store_is_refused(tmp_path, kind):
    if kind == "text":
        (tmp_path / DATABASE).write_bytes(b"no database" * 100)
    else:
        with sqlite3.connect(tmp_path / DATABASE) as connection:
            connection.execute("CREATE TABLE other (a)")
    with pytest.raises(WorkError, match="give another --store"):
        Store(tmp_path)


def test_leftovers_are_swept(store, monkeypatch):
    (number,) = add(store, 0.1)
    (store.folder / "pictures" / "orphan.png").write_bytes(b"x")
    assert store.sweep() == 0  # a process may be about to enter it
    monkeypatch.setattr("serving.store.LEFTOVER", -1)
    assert store.sweep() == 1
    assert store.pictures.path(store.pictures.get(number)).exists()
