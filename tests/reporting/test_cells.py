"""Tables that other programs open: no text is a formula, no name breaks a row; and links that work."""

import csv
import io
import os
import re
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import openpyxl
import pandas as pd
import pytest
from helpers import Brightness
from PIL import Image

from inference import predict
from inference.table import parse_rows
from reporting import cells, compare, drawing, page, tables
from training import distribution, run
from utils import WorkError

ODD = ["=1+1", "+1", "-x", "@a", "\tx", "\rx", "\nx", "＝1", "'=1", "''-1", "'a", "a", "", "a\rb", "a\nb", "a,b", 'a"b']


@pytest.mark.parametrize("text", ODD)
def test_text_in_cells_is_no_formula_and_can_be_restored(text):
    cell, path = cells.as_cell(text), cells.path_as_cell(text)
    assert not re.match(r"[=+\-@\t\r\n＝＋－＠]", cell + path)
    assert cells.from_cell(cell) == text
    assert cells.path_from_cell(path) == text
    assert os.path.abspath(path) == os.path.abspath(text)


def test_line_ends_in_cells_do_not_break_rows():
    rows = [["a", "b"], *([text, "x"] for text in ODD)]
    text = cells.csv_text(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
    assert pd.read_csv(io.BytesIO(text.encode()), keep_default_na=False).a.tolist() == ODD
    assert cells.csv_text([["plain", 1.5, None]]) == "plain,1.5,\n"


def test_predictions_for_odd_file_names_are_whole_rows_and_made_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1", "-x", "@a", "+b", "cr\rcr", "\rx", "new\nline", "\tt", "'=1", "a,b", 'q"q', "a", "a\r", "e\r\nf"]
    for name in names:
        Image.new("RGB", (32, 32)).save(Path(f"{name}.png"))
    Path("=empty.png").touch()
    pictures = [predict.InputImage(Path(f"{name}.png"), f"{name}.png") for name in (*names, "=empty")]
    wishes = predict.PredictionOptions(tmp_path / "o", "npy", False, 4)
    for go_on in (False, True):
        assert predict.predict(Brightness(), pictures, wishes, go_on) == 1
        with (tmp_path / "o/predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [os.path.normpath(row["path"]) for row in rows] == [f"{name}.png" for name in (*names, "=empty")]
        assert not [v for row in rows for v in row.values() if v[:1] in tuple("=+-@\t\r\n")]
        assert all(os.path.exists(row["path"]) for row in rows)
        assert all((tmp_path / "o/maps" / f"{row['saved_as']}.npy").exists() for row in rows[:-1])
        assert len({row["saved_as"] for row in rows}) == len(rows)
    assert pd.read_csv(tmp_path / "o/predictions.csv").path.tolist() == [row["path"] for row in rows]


def test_a_table_saved_by_a_spreadsheet_can_be_continued(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    pictures, wishes = predict.find_pictures([str(tmp_path)]), predict.PredictionOptions(tmp_path / "o", "", False, 4)
    predict.predict(Brightness(), pictures, wishes)
    path = tmp_path / "o/predictions.csv"
    before = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + before.replace(b"\n", b"\r\n"))
    predict.predict(Brightness(), pictures, wishes, True)
    assert path.read_bytes() == before
    # a row that a name tore is judged again
    path.write_bytes(before + b"b\rb.png,1,1,1,1,,\n" + before.splitlines()[1].replace(b"a.png", b"c.png") + b"\n")
    assert [row[0][-5:] for row in parse_rows(path.read_bytes().decode())] == ["path", "a.png", "c.png"]
    predict.predict(Brightness(), pictures, wishes, True)
    assert path.read_bytes().count(b"\n") == 3
    for foreign in ("path\rscore\n", "my notes", "path,score\n"):
        path.write_text(foreign)
        with pytest.raises(WorkError, match="is not a table that this command wrote"):
            predict.predict(Brightness(), pictures, wishes, True)
        assert path.read_bytes().decode() == foreign


def image_row(path):
    return {"path": path, "label": 0, "score": -0.1, "normalised_score": 0.5, "decision": None, "mask_area": 0.0}


def test_tables_of_a_run_hold_no_formulas_and_whole_rows(tmp_path):
    figures = dict.fromkeys(tables.COLUMNS, -0.1)
    names = ["=1+1", "-x", "cr\rcr", "new\nline", "'=1", "plain"]
    tables.write_results(tmp_path, {"@before": figures})
    table = tables.write_results(tmp_path, dict.fromkeys(names, figures))
    back = tables.read_rows(tmp_path / "results.csv")
    assert list(back.index) == list(table.index) == ["@before", *names, tables.MEAN]
    assert (back.image_auroc == -0.1).all()
    text = (tmp_path / "results.csv").read_text()
    assert "\n'=1+1,-0.1," in text
    per_image = {"=1": [image_row("=d/a.png"), image_row("-e/\r.png")], "plain": [image_row("/abs/\rb.png")]}
    tables.write_per_image(tmp_path, per_image)
    images = pd.read_csv(tmp_path / "per_image.csv")
    assert images.path.tolist() == ["./=d/a.png", "./-e/\r.png", "/abs/\rb.png"]
    assert images["class"].tolist() == ["'=1", "'=1", "plain"]
    assert images.score.tolist() == [-0.1] * 3
    settings = {"arguments": {"main": {"run_name": "=cmd|' /C calc'!A0", "note": "#N/A", "lr": -1}}}
    tables.write_workbook(tmp_path, table, settings, per_image)
    book = openpyxl.load_workbook(tmp_path / "results.xlsx")
    found = {cell.value: cell for sheet in book for row in sheet.iter_rows() for cell in row}
    for value in ("=1+1", "=cmd|' /C calc'!A0", "=d/a.png", "#N/A"):
        assert found[value].data_type == "s"
    assert found["=1+1"].quotePrefix
    assert found[-0.1].data_type == "n"


def test_a_verdict_on_a_class_with_an_odd_name_is_text(tmp_path):
    for row in ("=x", "=y", "plain"):
        distribution.write_flag("folder", row, 1, distribution.EXCEL_DIR)
    assert distribution.read_flags("folder", "=x") == (1, 1)
    sheet = openpyxl.load_workbook(distribution.excel_path("folder")).active
    assert [row[0].data_type for row in sheet.iter_rows(min_row=2)] == ["s", "s", "s"]


def test_a_split_of_odd_file_names_has_whole_rows(tmp_path):
    held_out = [SimpleNamespace(path=Path("=d/cr\r.png")), SimpleNamespace(path=Path("d/new\nline.png"))]
    train = [SimpleNamespace(path=Path("@eaDir/a.png"))]
    one_run = SimpleNamespace(
        training=True, dataset={"val_share": 0, "split_seed": 0}, main={"seed": 0}, results=tmp_path, net={}
    )
    run.Classes(one_run, 0.0)._write_split(SimpleNamespace(row="x", name="x", train=train, held_out=held_out))
    table = pd.read_csv(tmp_path / "splits/x.csv")
    assert table.path.tolist() == ["./=d/cr\r.png", "d/new\nline.png", "./@eaDir/a.png"]


def test_links_of_a_comparison_lead_to_the_reports(tmp_path):
    names = ["a b", "50% off?#x", 'q"<b>', "a:b", "ü&amp;", os.fsdecode(b"caf\xe9")]
    for name in names:
        folder = tmp_path / name
        tables.write_results(folder, {"folder_x": dict.fromkeys(tables.COLUMNS, 0.5)})
        (folder / page.FILE).touch()
    html = compare.render(compare.read_runs([tmp_path / name for name in names]), "t", tmp_path)
    links = re.findall(r'<a href="([^"]*)"', html)
    assert all(re.fullmatch(r"[\w./%~-]+", link, re.ASCII) for link in links)
    assert [unquote(link, errors="surrogateescape") for link in links] == [f"{name}/{page.FILE}" for name in names]
    compare.compare([tmp_path / name for name in names], tmp_path / "c.html")
    assert (tmp_path / "c.html").read_text(encoding="utf-8").count("<a href") == len(names)


def test_pictures_of_test_images_get_names_that_can_be_written(tmp_path):
    taken = set()
    names = {drawing.picture_name(f"/d/{'檢' * 80}/{'b' * 249}{i}.png", taken) for i in range(3)}
    assert len(names) == 3
    for name in names:
        drawing.save_image(tmp_path / name, np.zeros((2, 2), np.uint8))
    assert drawing.picture_name("/d/broken/000.png", taken) == "broken_000.png"
