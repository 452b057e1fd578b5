"""Folders and labels that mean good images, whatever they are called; lists of VisA as people write them."""

import shutil

import pytest
from PIL import Image

from datasets import FolderLayout, MVTecLayout, VisALayout
from datasets.base import is_good
from tools import script
from utils import InputError


def fill(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("L", (4, 4), number).save(folder / f"{number}.png")


def counts(layout, name="cap"):
    """Images to train on, good ones to test, defective ones."""
    test = layout.test(name)
    return len(layout.train(name)), sum(not s.is_anomaly for s in test), sum(s.is_anomaly for s in test)


@pytest.mark.parametrize("good", ["good", "Good", "ok", "OK", "normal", "NORMAL"])
def test_every_name_of_good_in_every_form(tmp_path, good):
    fill(tmp_path / "a/cap" / "train" / good, 6)
    fill(tmp_path / "a/cap" / "test" / good, 3)
    fill(tmp_path / "a/cap" / "test" / "ko", 2)
    for layout in (MVTecLayout(tmp_path / "a"), FolderLayout(tmp_path / "a")):
        assert layout.choose([]) == ["cap"]
        assert counts(layout) == (6, 3, 2)
        assert {s.kind for s in layout.test("cap")} == {"good", "ko"}
        assert layout.notes("cap") == []
    fill(tmp_path / "b/cap" / good, 9)
    fill(tmp_path / "b/cap" / "NG", 2)
    layout = FolderLayout(tmp_path / "b")
    train, held, bad = counts(layout)
    assert (train + held, bad) == (9, 2)
    with pytest.raises(InputError, match="is the folder of one class"):
        FolderLayout(tmp_path / "b/cap").choose([])


def test_training_and_test_may_use_different_names(tmp_path):
    fill(tmp_path / "cap/train/good", 6)
    fill(tmp_path / "cap/test/ok", 3)
    fill(tmp_path / "cap/test/bad", 2)
    assert counts(FolderLayout(tmp_path)) == counts(MVTecLayout(tmp_path)) == (6, 3, 2)


@pytest.mark.parametrize("place", ["cap", "cap/train", "cap/test"])
def test_two_names_of_good_side_by_side_are_refused(tmp_path, place):
    if place != "cap":
        fill(tmp_path / "cap/train/good", 6)
    for name in ("good", "OK"):
        if not (tmp_path / place / name).exists():
            fill(tmp_path / place / name, 2)
    for kind in (FolderLayout, MVTecLayout)[: 1 if place == "cap" else 2]:
        part = kind(tmp_path).train if place == "cap/train" else kind(tmp_path).test
        with pytest.raises(InputError, match=r"holds OK and good, which both mean good images; put all of them into"):
            part("cap")
    for path in (tmp_path / place / "OK").iterdir():
        path.unlink()
    assert counts(FolderLayout(tmp_path))[0]  # an empty folder takes nothing away


def test_a_folder_whose_name_says_nothing_is_refused(tmp_path):
    fill(tmp_path / "cap/good", 6)
    fill(tmp_path / "cap/val", 2)
    with pytest.raises(
        InputError, match=r"class cap: the name of .*val does not say whether its images are good or defec"
    ):
        FolderLayout(tmp_path).test("cap")
    shutil.rmtree(tmp_path / "cap/val")
    assert counts(FolderLayout(tmp_path)) == (6, 0, 0)


def test_what_sounds_like_good_is_not(tmp_path):
    assert not any(map(is_good, ("abnormal", "not good", "ok2", "NG", "okay", "")))
    fill(tmp_path / "cap/good", 6)
    fill(tmp_path / "cap/abnormal", 2)
    assert counts(FolderLayout(tmp_path))[2] == 2


def test_the_export_measures_by_the_same_names(tmp_path):
    checking = script("pth2onnx").checking
    assert [checking.is_defective(tmp_path / f"{name}/0.png", tmp_path) for name in ("OK", "good", "ko")] == [0, 0, 1]


# -------------------------------------------------------------------------------------------- VisA

HEAD = ["object", "split", "label", "image", "mask"]


def rows(train_anomaly=False):
    found = [["cap", "train" if i < 4 else "test", "normal", f"N/{i}.png", ""] for i in range(6)]
    found += [["cap", "test", "anomaly", f"A/{i}.png", f"M/{i}.png"] for i in range(3)]
    if train_anomaly:
        found[6][1] = "train"
    return found


@pytest.fixture
def root(tmp_path):
    for folder, count in (("N", 6), ("A", 3), ("M", 3), ("split_csv", 0)):
        fill(tmp_path / folder, count)
    return tmp_path


def write(root, lines, encoding="utf-8", separator=",", end="\n", more=""):
    text = "".join(separator.join(line) + end for line in lines) + more
    (root / "split_csv/1cls.csv").write_bytes(text.encode(encoding))
    return VisALayout(root)


def each(change):
    return [HEAD, *([change(i, cell) for i, cell in enumerate(row)] for row in rows())]


FORMS = {
    "plain": {"lines": [HEAD, *rows()]},
    "bom": {"lines": [HEAD, *rows()], "encoding": "utf-8-sig", "end": "\r\n", "more": ",,,,\r\n\r\n , ,,,\r\n"},
    "utf16": {"lines": [HEAD, *rows()], "encoding": "utf-16"},
    "utf16 without a mark": {"lines": [HEAD, *rows()], "encoding": "utf-16-be"},
    "semicolons": {"lines": [HEAD, *rows()], "separator": ";"},
    "tabs": {"lines": [HEAD, *rows()], "separator": "\t"},
    "quotes": {"lines": [[f'"{cell}"' for cell in row] for row in [HEAD, *rows()]], "separator": ";"},
    "spaces": {"lines": [[f" {cell} " for cell in row] for row in [HEAD, *rows()]]},
    "Normal": {"lines": each(lambda i, cell: cell.capitalize() if i in (1, 2) else cell)},
    "NORMAL ": {"lines": each(lambda i, cell: f"{cell.upper()} " if i == 2 else cell)},
    "good": {"lines": each(lambda i, cell: cell.replace("normal", "good"))},
    "backslashes": {"lines": each(lambda i, cell: cell.replace("/", "\\"))},
    "further columns": {"lines": [["id", *HEAD], *(["7", *row] for row in rows())]},
    "Header": {"lines": [[name.title() for name in HEAD], *rows()]},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_list_as_people_write_it(root, form):
    layout = write(root, **FORMS[form])
    assert layout.classes() == ["cap"]
    assert counts(layout) == (4, 2, 3)
    assert sum(s.mask is not None for s in layout.test("cap")) == 3
    assert layout.notes("cap") == []


def test_anomalies_of_the_training_split_are_tested(root):
    layout = write(root, [HEAD, *rows(train_anomaly=True), ["cap", "val", "normal", "N/0.png", ""]])
    assert counts(layout) == (4, 2, 3)
    assert {s.kind for s in layout.train("cap")} == {"good"}
    table = root / "split_csv/1cls.csv"
    assert layout.notes("cap") == [
        f"1 rows with split train in {table} are anomalies: they are moved to the test set",
        f"1 rows in {table} are not used: their split is val",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["cap", "test", "", "N/0.png", ""], "row 2 has no label: cap,test,,N/0.png,"),
        (["", "test", "normal", "N/0.png", ""], "row 2 has no object"),
        (["cap", "train", "normal"], "row 2 has no image: cap,train,normal"),
        (["cap", "train", "normal", "N/77.png", ""], r"names .*N/77\.png, which is not there"),
        (["cap", "train", "anomaly", "A/0.png", ""], "class cap: no normal row with split train in"),
    ],
)
def test_a_row_that_cannot_be_used_is_one_line(root, line, message):
    with pytest.raises(InputError, match=message) as raised:
        write(root, [HEAD, line]).train("cap")
    assert "\n" not in str(raised.value)


def test_a_table_in_another_encoding_is_one_line(root):
    (root / "split_csv/1cls.csv").write_bytes("object,split,label,image,mask\nMüll,train,…".encode("cp1252"))
    with pytest.raises(InputError, match=r"neither in UTF-8 nor in UTF-16: .*; save it as UTF-8"):
        VisALayout(root)
