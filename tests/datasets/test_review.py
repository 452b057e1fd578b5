"""What a data set contains without being used is reported, and what is refused is refused for the right reason."""

import json
import os

import pytest
from helpers import cli
from PIL import Image

from datasets import FolderLayout, MVTecLayout, VisALayout
from datasets.listing import scan_folder
from inference.inputs import find_pictures, parse_path_list
from inference.predict import as_json
from utils import InputError


def fill(folder, count, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.new("L", (4, 4), number).save(folder / f"{number}.png")


@pytest.mark.parametrize("linked", [False, True])
def test_images_in_folders_inside_a_kind_are_named(tmp_path, linked):
    data, cap = tmp_path / "data", tmp_path / "data/cap"
    fill(cap / "train/good", 3)
    fill(cap / "test/good", 2, 10)
    fill(cap / "test/bad", 2, 20)
    places = [cap / "train/good/line2", cap / "test/good/line2", cap / "test/bad/deep"]
    for number, place in enumerate(places):
        real = tmp_path / f"elsewhere{number}" if linked else place
        fill(real, 2, 30 + 10 * number)
        if linked:
            place.symlink_to(real)
    for layout in (MVTecLayout(data), FolderLayout(data)):
        notes = layout.notes("cap")
        assert len(notes) == 3
        for place in places:
            assert sum(f"2 images in folders inside {place.parent} are not used" in note for note in notes) == 1


def test_a_link_back_to_its_own_kind_adds_nothing(tmp_path):
    fill(tmp_path / "cap/train/good", 3)
    (tmp_path / "cap/train/good/again").symlink_to(tmp_path / "cap/train/good")
    assert MVTecLayout(tmp_path).notes("cap") == []


def test_images_in_folders_inside_the_kinds_of_the_second_form_are_named(tmp_path):
    fill(tmp_path / "cap/good", 3)
    fill(tmp_path / "cap/good/line2", 1, 10)
    fill(tmp_path / "cap/scratch/deep", 1, 20)
    notes = FolderLayout(tmp_path).notes("cap")
    assert [note.split(" are not")[0] for note in notes] == [
        f"1 images in folders inside {tmp_path / 'cap' / kind}" for kind in ("good", "scratch")
    ]


def test_images_deep_in_folders_beside_those_of_a_plain_class_are_named(tmp_path):
    fill(tmp_path / "cap", 3)
    fill(tmp_path / "cap/line2/day1", 1, 10)
    assert FolderLayout(tmp_path).notes("cap") == [f"the images in {tmp_path / 'cap/line2'} are not used"]


@pytest.mark.parametrize("good", ["Normal", "good"])
def test_images_beside_the_folder_of_good_ones_are_named(tmp_path, good):
    fill(tmp_path / "c", 2)
    fill(tmp_path / "c" / good, 3, 10)
    layout = FolderLayout(tmp_path)
    assert len(layout.train("c")) == 3
    assert layout.notes("c") == [f"the images in {tmp_path / 'c'} are not used"]


@pytest.mark.parametrize("name", ["normal", "ok"])
def test_a_class_may_be_called_as_good_images_are(tmp_path, name):
    fill(tmp_path / "bottle/train/good", 3)
    fill(tmp_path / name / "train/good", 3)
    assert FolderLayout(tmp_path).choose([]) == sorted(["bottle", name])


@pytest.mark.parametrize("good", ["good", "good/deep"])
def test_the_folder_of_one_class_is_still_told(tmp_path, good):
    fill(tmp_path / good, 3)
    fill(tmp_path / "bad", 3)
    with pytest.raises(InputError, match="is the folder of one class"):
        FolderLayout(tmp_path).choose([])


def test_links_into_one_another_give_each_picture_once(tmp_path):
    fill(tmp_path / "x", 1)
    fill(tmp_path / "x/sub", 2, 10)
    (tmp_path / "t").mkdir()
    (tmp_path / "t/a").symlink_to(tmp_path / "x/sub")
    (tmp_path / "t/b").symlink_to(tmp_path / "x")
    assert [path.name for path in scan_folder(tmp_path / "t", recursive=True).images] == ["10.png", "11.png", "0.png"]


def test_annotations_behind_a_link_are_named_once(tmp_path):
    data, cap = tmp_path / "data", tmp_path / "data/cap"
    fill(cap / "train/good", 3)
    fill(tmp_path / "labels", 0)
    (tmp_path / "labels/0.json").write_text("{}")
    (cap / "labels").symlink_to(tmp_path / "labels")
    (cap / "notes.doc").write_text("")
    said = cli("check", "custom", data).stdout
    assert said.count("annotation files (.json)") == 1
    assert f"the first is {cap / 'labels/0.json'}" in said
    assert "files not taken: 1 .doc\n" in said


def visa(folder, text):
    (folder / "split_csv").mkdir()
    (folder / "split_csv/1cls.csv").write_text(text)
    fill(folder / "cap", 1)
    return VisALayout(folder)


@pytest.mark.parametrize("empty", ["\n", "\r\n\n", ",,,,\n"])
def test_a_table_may_begin_with_an_empty_line(tmp_path, empty):
    layout = visa(tmp_path, f"{empty}object,split,label,image,mask\ncap,train,normal,cap/0.png,\n")
    assert len(layout.train("cap")) == 1


def test_a_split_that_is_not_known_is_named(tmp_path):
    layout = visa(tmp_path, "object,split,label,image,mask\ncap,Training,normal,cap/0.png,\n")
    with pytest.raises(InputError, match="it has rows with split Training, known are train and test"):
        layout.train("cap")


def test_a_folder_without_pictures_is_refused_without_a_list_of_formats(tmp_path):
    with pytest.raises(InputError, match="no image of a supported format"):
        find_pictures([str(tmp_path)])


def test_names_of_one_character_each_ended_by_nul_are_no_utf_16():
    assert parse_path_list(b"a\0b\0") == ["a", "b"]
    assert parse_path_list("a.png".encode("utf-16-le")) == ["a.png"]
    assert parse_path_list("a\r\nb\r\n".encode("utf-16-be")) == ["a", "b"]


def test_an_error_that_names_a_file_becomes_valid_text():
    path = os.fsdecode(b"a\xff.png")
    row = as_json({"path": path, "error": f"cannot read image {path}: ×"})
    json.dumps(row, ensure_ascii=False).encode("utf-8")
    assert row["path"] == "a\ufffd.png"
    assert row["error"] == "cannot read image a\ufffd.png: ×"
    assert as_json({"path": path, "error": ""})["error"] is None
