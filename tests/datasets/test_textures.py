"""Textures: those of a folder, and the built-in ones."""

import hashlib
import pickle
import socket

import numpy as np
import pytest
from PIL import Image

from datasets.textures import BUILTIN_COUNT, BuiltinTextures, FileTextures, open_textures
from generation import procedural
from utils import InputError


def test_builtin_ones_are_many_distinct_and_depend_on_seed_and_index_alone(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    textures = open_textures("builtin", 3)
    assert len(textures) == BUILTIN_COUNT >= 400
    seen = set()
    for i in range(0, BUILTIN_COUNT, 7):
        picture = textures.read(i)
        assert picture.mode == "RGB"
        assert picture.size == textures.size(i)
        values = np.asarray(picture)
        assert values.std() > 2  # something is on it
        seen.add(hashlib.sha256(values.tobytes()).hexdigest())
    assert len(seen) == len(range(0, BUILTIN_COUNT, 7))
    copy = pickle.loads(pickle.dumps(textures))
    assert len(pickle.dumps(textures)) < 10_000
    for i in (0, 100, BUILTIN_COUNT - 1):
        assert np.array_equal(copy.read(i), textures.read(i))
        assert np.array_equal(BuiltinTextures(3).read(i), textures.read(i))
    assert any(not np.array_equal(BuiltinTextures(4).read(i), textures.read(i)) for i in (0, 100, 200))


def test_every_kind_of_builtin_texture_is_there():
    kinds = [BuiltinTextures(0).name(i).split(": ")[1] for i in range(BUILTIN_COUNT)]
    assert len(set(kinds)) == len(procedural.KINDS) >= 7
    first = {kind: kinds.index(kind) for kind in set(kinds)}
    # two of one kind differ as well, and no kind is another by a second name
    pictures = [np.asarray(BuiltinTextures(0).read(i)) for f in first.values() for i in (f, f + len(first))]
    assert len({p.tobytes() for p in pictures}) == 2 * len(first)


def test_builtin_ones_differ_in_colour_brightness_and_structure():
    pictures = [np.asarray(BuiltinTextures(0).read(i), float) for i in range(0, BUILTIN_COUNT, 9)]
    means = np.array([p.mean((0, 1)) for p in pictures])
    contrasts = np.array([p.mean(2).std() for p in pictures])
    assert means.std(0).min() > 20
    assert np.ptp(contrasts) > 30


def test_the_word_and_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin" / "deep" / ".hidden").mkdir(parents=True)
    for place in ("builtin/deep/a.JPG", "builtin/b.png", "builtin/deep/.hidden/c.png", "builtin/.d.png"):
        Image.new("RGB", (30, 20), (9, 9, 9)).save(tmp_path / place, "PNG")
    (tmp_path / "builtin" / "Thumbs.db").write_bytes(b"x")
    assert isinstance(open_textures("builtin"), BuiltinTextures)
    folder = open_textures("./builtin")
    assert isinstance(folder, FileTextures)
    assert [p.name for p in folder.paths] == ["b.png", "a.JPG"]
    assert folder.size(0) == folder.read(0).size == (30, 20)
    with pytest.raises(InputError, match=r"no such folder; .*the word builtin"):
        open_textures(tmp_path / "nothing")


def test_a_turned_texture_is_measured_as_it_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    textures = open_textures(tmp_path)
    assert textures.size(0) == textures.read(0).size == (20, 40)
