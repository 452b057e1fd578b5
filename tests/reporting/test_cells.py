"""Tables that other programs open: text that is no formula, names that tear no row, links that lead somewhere."""

import csv
import io
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import openpyxl
import pandas as pd
import pytest
from PIL import Image
from test_saving import Brightness

from inference import predict
from reporting import cells, compare, page
from reporting import tables as report
from training import distribution, run
from utils import InputError, WorkError

ODD = ["=1+1", "+1", "-x", "@a", "\tx", "\rx", "\nx", "＝1", "'=1", "''-1", "'a", "a", "", "a\rb", "a\nb", "a,b", 'a"b']


@pytest.mark.parametrize("text", ODD)
def test_text_in_cells_is_no_formula_and_comes_back(text):
    cell, path = cells.as_cell(text), cells.path_as_cell(text)
    assert not re.match(r"[=+\-@\t\r\n＝＋－＠]", cell + path)
    assert cells.from_cell(cell) == text
    assert cells.path_from_cell(path) == text
    assert os.path.abspath(path) == os.path.abspath(text)


def test_rows_stay_whole():
    rows = [["a", "b"], *([text, "x"] for text in ODD)]
    text = cells.csv_text(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
    assert pd.read_csv(io.BytesIO(text.encode()), keep_default_na=False).a.tolist() == ODD
    assert cells.csv_text([["plain", 1.5, None]]) == "plain,1.5,\n"


def test_predictions_of_odd_names_are_whole_rows_and_done_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1", "-x", "@a", "+b", "cr\rcr", "\rx", "new\nline", "\tt", "'=1", "a,b", 'q"q', "a", "a\r", "e\r\nf"]
    for name in names:
        Image.new("RGB", (32, 32)).save(Path(f"{name}.png"))
    Path("=empty.png").touch()
    pictures = [predict.Picture(Path(f"{name}.png"), f"{name}.png") for name in (*names, "=empty")]
    wishes = predict.Wishes(tmp_path / "o", "npy", False, 4)
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


def test_a_table_that_a_spreadsheet_saved_goes_on(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    pictures, wishes = predict.find_pictures([str(tmp_path)]), predict.Wishes(tmp_path / "o", "", False, 4)
    predict.predict(Brightness(), pictures, wishes)
    path = tmp_path / "o/predictions.csv"
    before = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + before.replace(b"\n", b"\r\n"))
    predict.predict(Brightness(), pictures, wishes, True)
    assert path.read_bytes() == before
    # a row that a name tore is judged again
    path.write_bytes(before + b"b\rb.png,1,1,1,1,,\n" + before.splitlines()[1].replace(b"a.png", b"c.png") + b"\n")
    assert [row[0][-5:] for row in predict._rows_in(path.read_bytes().decode())] == ["path", "a.png", "c.png"]
    predict.predict(Brightness(), pictures, wishes, True)
    assert path.read_bytes().count(b"\n") == 3
    for foreign in ("path\rscore\n", "my notes", "path,score\n"):
        path.write_text(foreign)
        with pytest.raises(WorkError, match="is no table of predictions"):
            predict.predict(Brightness(), pictures, wishes, True)
        assert path.read_bytes().decode() == foreign


def image_row(path):
    return {"path": path, "label": 0, "score": -0.1, "normalised_score": 0.5, "decision": None, "mask_area": 0.0}


def test_tables_of_a_run_hold_no_formula_and_whole_rows(tmp_path):
    figures = dict.fromkeys(report.COLUMNS, -0.1)
    names = ["=1+1", "-x", "cr\rcr", "new\nline", "'=1", "plain"]
    report.write_results(tmp_path, {"@before": figures})
    table = report.write_results(tmp_path, dict.fromkeys(names, figures))
    back = report.read_rows(tmp_path / "results.csv")
    assert list(back.index) == list(table.index) == ["@before", *names, report.MEAN]
    assert (back.image_auroc == -0.1).all()
    text = (tmp_path / "results.csv").read_text()
    assert "\n'=1+1,-0.1," in text
    per_image = {"=1": [image_row("=d/a.png"), image_row("-e/\r.png")], "plain": [image_row("/abs/\rb.png")]}
    report.write_per_image(tmp_path, per_image)
    images = pd.read_csv(tmp_path / "per_image.csv")
    assert images.path.tolist() == ["./=d/a.png", "./-e/\r.png", "/abs/\rb.png"]
    assert images["class"].tolist() == ["'=1", "'=1", "plain"]
    assert images.score.tolist() == [-0.1] * 3
    settings = {"arguments": {"main": {"run_name": "=cmd|' /C calc'!A0", "note": "#N/A", "lr": -1}}}
    report.write_workbook(tmp_path, table, settings, per_image)
    book = openpyxl.load_workbook(tmp_path / "results.xlsx")
    found = {cell.value: cell for sheet in book for row in sheet.iter_rows() for cell in row}
    for value in ("=1+1", "=cmd|' /C calc'!A0", "=d/a.png", "#N/A"):
        assert found[value].data_type == "s"
    assert found["=1+1"].quotePrefix
    assert found[-0.1].data_type == "n"


def test_a_verdict_of_an_odd_class_is_text(tmp_path):
    for row in ("=x", "=y", "plain"):
        distribution.write_flag("folder", row, 1, distribution.EXCEL_DIR)
    assert distribution.read_flags("folder", "=x") == (1, 1)
    sheet = openpyxl.load_workbook(distribution.excel_path("folder")).active
    assert [row[0].data_type for row in sheet.iter_rows(min_row=2)] == ["s", "s", "s"]


def test_a_split_of_odd_names_is_whole(tmp_path):
    held_out = [SimpleNamespace(path=Path("=d/cr\r.png")), SimpleNamespace(path=Path("d/new\nline.png"))]
    train = [SimpleNamespace(path=Path("@eaDir/a.png"))]
    this = SimpleNamespace(
        training=True, dataset={"val_share": 0, "split_seed": 0}, main={"seed": 0}, results=tmp_path, net={}
    )
    run._write_split(this, SimpleNamespace(row="x", name="x", train=train, held_out=held_out))
    table = pd.read_csv(tmp_path / "splits/x.csv")
    assert table.path.tolist() == ["./=d/cr\r.png", "d/new\nline.png", "./@eaDir/a.png"]


def test_links_of_a_comparison_lead_to_the_reports(tmp_path):
    names = ["a b", "50% off?#x", 'q"<b>', "a:b", "ü&amp;", os.fsdecode(b"caf\xe9")]
    for name in names:
        folder = tmp_path / name
        report.write_results(folder, {"folder_x": dict.fromkeys(report.COLUMNS, 0.5)})
        (folder / page.FILE).touch()
    html = compare.render(compare.read_runs([tmp_path / name for name in names]), "t", home=tmp_path)
    links = re.findall(r'<a href="([^"]*)"', html)
    assert all(re.fullmatch(r"[\w./%~-]+", link, re.ASCII) for link in links)
    assert [unquote(link, errors="surrogateescape") for link in links] == [f"{name}/{page.FILE}" for name in names]
    compare.compare([tmp_path / name for name in names], tmp_path / "c.html")
    assert (tmp_path / "c.html").read_text(encoding="utf-8").count("<a href") == len(names)


# ------------------------------------------------------------------------------------------- lists


LISTED = ["/p/a b.png", "/p/ü 検.png"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_lists_of_every_encoding(encoding, end):
    assert predict.paths_in((end.join(LISTED) + end).encode(encoding)) == LISTED
    assert predict.paths_in(end.join(LISTED).encode(encoding)) == LISTED


def test_lists_of_names_with_quotes_and_line_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert predict.paths_in(b'a\nb.png\0c\r.png\0"q".png\0') == ["a\nb.png", "c\r.png", '"q".png']
    assert predict.paths_in(b"\"a b.png\"\r\n'c d.png'\n\n \n") == ["a b.png", "c d.png"]
    assert predict.paths_in(b"caf\xe9.png\n") == [os.fsdecode(b"caf\xe9.png")]
    assert predict.paths_in(b"") == predict.paths_in(b"\xff\xfe") == predict.paths_in(b"\xef\xbb\xbf\r\n") == []
    for name in ('"both".png"', "it''s.png", 'q"q.png', " lead.png", "cr\r", "'x'"):
        Path(name).touch()
    assert predict.paths_in(b"'x'\ncr\r\n lead.png\n  q\"q.png\t\n") == ["'x'", "cr\r", " lead.png", 'q"q.png']
    assert predict.paths_in(b'"q\\"q.png"\n"q""q.png"\n') == ['q"q.png'] * 2


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa.png\r\n", "a.png\r\n".encode("utf-16"), b"a.png\0", b'"a.png"\n'])
def test_a_list_on_standard_input_finds_its_files(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.png").touch()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert [str(one.path) for one in predict.find_pictures(["-"], predict.listed())] == ["a.png"]


def test_a_closed_standard_input_is_said(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="which is closed"):
        predict.listed()


def test_names_that_are_too_long_for_any_file_are_no_crash():
    with pytest.raises(InputError, match="no such file or folder"):
        predict.find_pictures(["x" * 5000])
    assert len(predict.find_pictures(["-"], ["x" * 5000])) == 1


def test_a_picture_of_a_report_has_a_name_that_can_be_written(tmp_path):
    taken = set()
    names = {report.picture_name(f"/d/{'檢' * 80}/{'b' * 249}{i}.png", taken) for i in range(3)}
    assert len(names) == 3
    for name in names:
        report.save_image(tmp_path / name, np.zeros((2, 2), np.uint8))
    assert report.picture_name("/d/broken/000.png", taken) == "broken_000.png"
