"""What a run leaves to look at: tables, report.html, comparisons, TensorBoard."""

import csv
import html.parser
import json
import math
import shutil

import numpy as np
import openpyxl
import pandas as pd
import pytest
from helpers import cli, make_mvtec, train_cli
from test_runs import run

from datasets.truth import PackedMasks
from inference.thresholds import Thresholds
from reporting import drawing, gallery, tables
from training.evaluation import Predictions, Tested


def class_with_scores(scores, labels, threshold=0.5, size=12):
    """A tested class whose maps equal the image score everywhere."""
    scores, labels = np.asarray(scores, np.float32), np.asarray(labels, bool)
    maps = np.ones((len(scores), size, size), np.float32) * scores[:, None, None]
    masks = PackedMasks(len(scores), (size, size))
    for i, label in enumerate(labels):
        masks[i] = np.full((size, size), int(label), np.int8)
    thresholds = None if threshold is None else Thresholds(threshold, threshold, images=9)
    paths = [f"/d/{i:03d}.png" for i in range(len(scores))]
    return Tested({}, Predictions(scores, maps, labels, masks, paths), thresholds)


# ----------------------------------------------------------------------------------------- gallery


def test_gallery_begins_with_the_worst_errors():
    scores = [0.1, 0.9, 0.6, 0.4, 0.2, 0.8]
    labels = [False, False, False, True, True, True]
    found = class_with_scores(scores, labels)
    assert gallery.outcomes(found) == ["correct", "false alarm", "false alarm", "miss", "miss", "hit"]
    assert gallery.choose(found, 0) == [4, 3, 1, 2, 5, 0]
    unjudged = class_with_scores(scores, labels, None)
    assert set(gallery.outcomes(unjudged)) == {"good", "defective"}
    assert len(gallery.choose(unjudged, 0)) == 6


def test_gallery_has_a_maximal_size_and_is_reproducible():
    rng = np.random.default_rng(0)
    found = class_with_scores(rng.random(300), rng.random(300) > 0.5)
    chosen = gallery.choose(found, 3)
    assert len(chosen) == len(set(chosen)) == 2 * gallery.WORST + gallery.SAMPLE
    assert chosen == gallery.choose(found, 3) != gallery.choose(found, 4)


def test_decision_outline_is_where_the_map_crosses_the_threshold():
    found = class_with_scores([0.9], [True], size=64)
    anomaly_map = np.zeros((64, 64), np.float32)
    anomaly_map[20:40, 10:30] = 1
    parts = gallery.panels(np.zeros((3, 64, 64), np.float32), np.full((64, 64), -1, np.int8), anomaly_map, found)
    assert [p.shape for p in parts] == [(192, 192, 3)] * 4
    assert (parts[1] == drawing.UNKNOWN_GRAY).all()  # a truth that is not known
    drawn = (parts[3] == drawing.CONTOUR).all(2)
    rows, columns = np.nonzero(drawn)
    assert rows.min() == pytest.approx(60, abs=4)
    assert columns.max() == pytest.approx(90, abs=4)
    assert not drawn[75:105, 45:75].any()


def test_picture_has_a_colour_scale():
    picture = drawing.picture(np.zeros((3, 64, 64), np.float32), np.zeros((64, 64), np.int8), np.ones((64, 64)))
    assert picture.shape == (64, 3 * 64 + drawing.BAR_WIDTH, 3)
    bar = picture[:, 3 * 64 + 5]
    assert (bar[0] == drawing.heatmap(np.ones((1, 1)))[0, 0]).all()
    assert (bar[-1] == drawing.heatmap(np.zeros((1, 1)))[0, 0]).all()


# ------------------------------------------------------------------------------------------ tables


class Page(html.parser.HTMLParser):
    """Collects open tags, ids and sources."""

    VOID = frozenset({"meta", "link", "img", "br", "path", "use", "hr", "input", "rect"})

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.sources = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.sources += [values[k] for k in ("src", "href", "xlink:href") if values.get(k)]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag, tag


def assert_sound(file):
    page = Page(file.read_text(encoding="utf-8"))
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert not [s for s in page.sources if not s.startswith(("#", "data:", "seed_"))], "the page needs a network"
    return page


def test_a_run_leaves_tables_and_a_page(trained):
    results, _ = trained
    per_image = pd.read_csv(results / "per_image.csv")
    columns = ["path", "label", "score", "normalised_score", "decision", "mask_area", "class"]
    assert list(per_image.columns) == columns
    assert len(per_image) == 6
    row = pd.read_csv(results / "results.csv", index_col=0).loc["custom_disc"]
    assert ((per_image.score > row.image_threshold).astype(int) == per_image.decision).all()
    assert ((per_image.normalised_score > 0.5).astype(int) == per_image.decision).all()
    assert per_image.mask_area.between(0, 1).all()
    flagged = per_image[per_image.label == 0].decision
    assert row.false_alarms == pytest.approx(flagged.mean(), abs=1e-5)
    assert row.image_auroc_low <= row.image_auroc <= row.image_auroc_high
    book = openpyxl.load_workbook(results / "results.xlsx")
    assert book.sheetnames == ["results", "settings", "custom_disc"]
    assert book["custom_disc"].max_row == 7
    page = assert_sound(results / "report.html")
    assert len([s for s in page.sources if s.startswith("data:image/jpeg")]) == 4 * 6
    text = (results / "report.html").read_text()
    for said in ("custom_disc", "chosen on the test set", "oracle", "bootstrap interval", "--results_path"):
        assert said in text


@pytest.mark.parametrize("lacking", ["masks", "defects", "good"])
def test_report_of_a_class_without_masks_defects_or_good_images(tmp_path, lacking):
    data, textures = make_mvtec(tmp_path)
    gone = {"masks": "ground_truth", "defects": "test/blot", "good": "test/good"}[lacking]
    shutil.rmtree(data / "disc" / gone)
    if lacking == "defects":
        shutil.rmtree(data / "disc" / "ground_truth")
    done = run(data, textures, tmp_path / "r", name="mvtec")
    assert done.exit_code == 0, done.output
    with open(tmp_path / "r" / "results.csv", newline="") as file:
        row = next(csv.DictReader(file))
    of_images, of_pixels = math.isnan(float(row["image_auroc"])), math.isnan(float(row["pixel_auroc"]))
    assert (of_images, of_pixels) == {"masks": (False, True), "defects": (True, True), "good": (True, False)}[lacking]
    assert math.isnan(float(row["false_alarms"])) == (lacking == "good")
    assert_sound(tmp_path / "r" / "report.html")


def test_sheet_names_are_valid_in_excel():
    taken = {"results"}
    names = [tables._sheet_name(n, taken) for n in ("a" * 40, "a" * 41, "x[1]:y/z", "Results")]
    assert len({n.lower() for n in names}) == 4
    assert all(len(n) <= 31 for n in names)
    assert not set("".join(names)) & set("[]:*?/\\")


# ----------------------------------------------------------------------------- seeds, comparisons


@pytest.fixture(scope="module")
def seeds(tiny, tmp_path_factory):
    results = tmp_path_factory.mktemp("seeds")
    done = train_cli(*tiny, results, main=("--seed", 0, "--seed", 3), dataset=("-d", "disc"))
    assert done.returncode == 0, done.stdout
    return results, done.stdout


def test_several_seeds_give_mean_and_deviation(seeds, trained):
    results, printed = seeds
    each = [pd.read_csv(results / f"seed_{s}" / "results.csv", index_col=0) for s in (0, 3)]
    assert (results / "seed_0" / "results.csv").read_text() == (trained[0] / "results.csv").read_text()
    both = pd.read_csv(results / "results.csv", index_col=0)
    assert list(both.columns[:7]) == [*tables.COLUMNS, "seeds"]
    for name in ("custom_disc", "Mean"):
        values = [table.loc[name, "pixel_auroc"] for table in each]
        assert both.loc[name, "pixel_auroc"] == pytest.approx(np.mean(values), abs=1e-5)
        assert both.loc[name, "pixel_auroc_std"] == pytest.approx(np.std(values, ddof=1), abs=1e-5)
        assert both.loc[name, "seeds"] == 2
    assert "±" in printed
    page = assert_sound(results / "report.html")
    assert {s for s in page.sources if s.startswith("seed_")} == {f"seed_{s}/report.html" for s in (0, 3)}
    assert openpyxl.load_workbook(results / "results.xlsx").sheetnames[0] == "results"


def compare(*arguments):
    return cli("report", *arguments)


def test_runs_are_compared(seeds, tmp_path, monkeypatch):
    results, _ = seeds
    monkeypatch.chdir(tmp_path)  # a path is seen from where the user is
    done = compare(results / "seed_0", results / "seed_3", "--out", "both.html")
    assert done.returncode == 0, done.stdout
    first, second = (
        pd.read_csv(results / f"seed_{s}" / "results.csv", index_col=0).loc["custom_disc", "pixel_auroc"]
        for s in (0, 3)
    )
    assert f"{100 * second:.2f} ({100 * (second - first):+.2f})" in done.stdout
    assert_sound(tmp_path / "both.html")
    assert "main seed" in (tmp_path / "both.html").read_text()


def test_report_of_a_single_run_is_written_again(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    (copy / "report.html").unlink()
    done = compare(copy)
    assert done.returncode == 0, done.stdout
    assert (copy / "report.html").read_text().count("<figure") == 6


def test_comparing_folders_that_are_not_runs(seeds, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.csv").write_text("nothing,like\n1,it\n")
    for folder, code, says in (
        (tmp_path / "none", 2, "no such folder"),
        (tmp_path, 2, "is not the results folder of a finished run"),
        (tmp_path / "broken", 1, "cannot read"),
    ):
        done = compare(folder)
        assert done.returncode == code, done.stdout
        assert says in done.stdout
        assert len(done.stdout.strip().splitlines()) == 1
    assert compare().returncode == 2


def test_a_damaged_record_is_reported(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    (copy / "report" / "custom_other.json").write_text("{")
    done = compare(copy)
    assert done.returncode == 1
    assert "custom_other.json" in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1


def test_tensorboard_holds_curves_histograms_heatmaps_and_settings(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(trained[0] / "models" / "backbone_0" / "custom_disc" / "tb"))
    board.Reload()
    tags = board.Tags()
    assert {"train/loss", "test/image_auroc", "best/pixel_auroc", "final/image_auroc"} <= set(tags["scalars"])
    assert {"scores/good", "scores/defective"} <= set(tags["histograms"])
    assert len(board.Images("examples")) == 2
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_record_of_a_class_is_plain_json(trained):
    text = (trained[0] / "report" / "custom_disc.json").read_text()
    assert set(json.loads(text)) == {"row", "select", "figures", "thresholds", "history", "images", "curves", "gallery"}
    assert "NaN" not in text


# --------------------------------------------------------------------------- what earlier runs left


def test_a_refused_run_and_one_that_trains_nothing_keep_the_settings_of_the_training(tmp_path):
    data, textures = make_mvtec(tmp_path)
    results = tmp_path / "r"
    assert run(data, textures, results).exit_code == 0
    before = json.loads((results / "settings.json").read_text())
    assert run(data, textures, results, net=("--select", "last", "--meta_epochs", 3)).exit_code == 2
    assert json.loads((results / "settings.json").read_text()) == before
    assert run(data, textures, results, net=("--patience", 3)).exit_code == 0
    after = json.loads((results / "settings.json").read_text())
    assert len(after.pop("later_calls")) == 1
    assert after == before
    assert "chosen on the test set" in (results / "report.html").read_text()


def test_several_seeds_do_not_touch_a_run_with_one_seed(tmp_path):
    data, textures = make_mvtec(tmp_path)
    results = tmp_path / "r"
    assert run(data, textures, results).exit_code == 0
    kept = (results / "results.csv").read_bytes()
    done = run(data, textures, results, main=("--seed", 0, "--seed", 1))
    assert done.exit_code == 2
    assert "holds a run with a single seed" in done.output
    assert (results / "results.csv").read_bytes() == kept
    assert "--seed 2 is given twice" in run(data, textures, tmp_path / "s", main=("--seed", 2, "--seed", 2)).output


def test_without_test_images_the_report_does_not_say_that_they_chose_the_epoch(tmp_path):
    data, textures = make_mvtec(tmp_path)
    for kind in ("test", "ground_truth"):
        shutil.rmtree(data / "disc" / kind)
    done = run(data, textures, tmp_path / "r", main=("--pictures", "every_eval"), net=("--patience", 1))
    assert done.exit_code == 0, done.output
    assert "--patience has no effect without test images" in done.output
    assert "--pictures every_eval has no effect" in done.output
    text = (tmp_path / "r" / "report.html").read_text()
    assert "The last epoch was kept" in text
    assert "optimistic" not in text
    again = compare(tmp_path / "r")
    assert again.returncode == 0
    assert "no class of these runs has test images" in again.stdout


def test_seeds_keep_their_deviation_when_compared(seeds, trained):
    done = compare(trained[0], seeds[0], "--out", seeds[0] / "c.html")
    assert done.returncode == 0, done.stdout
    assert " ± " in done.stdout
    assert "net patchsize" not in (seeds[0] / "c.html").read_text()  # the same in both


def test_a_run_that_only_tests_keeps_only_the_figures_of_the_last_epoch(tmp_path):
    data, textures = make_mvtec(tmp_path)
    results = tmp_path / "r"
    assert run(data, textures, results).exit_code == 0
    shutil.rmtree(data / "disc" / "ground_truth")
    assert run(data, textures, results, main=("--test", "test")).exit_code == 0
    row = pd.read_csv(results / "results.csv", index_col=0).loc["folder_disc"]
    assert row[["pixel_auroc", "pixel_f1_max", "pixel_pro_5", "pixel_pro_published"]].isna().all()
    assert row.last_epoch == 1
    text = (results / "report.html").read_text()
    assert "the last epoch, 1, has" in text
    assert "chosen on the test set" in text


def test_class_names_that_are_awkward_in_html_and_excel(tmp_path):
    data, textures = make_mvtec(tmp_path, classes=("a b", "a-b", "<b>c\x07", "l" * 180))
    (data / "a b/test/good/000.png").rename(data / "a b/test/good/x\x07<i>.png")
    done = run(data, textures, tmp_path / "r", net=("--meta_epochs", 1))
    assert done.exit_code == 0, done.output
    assert_sound(tmp_path / "r" / "report.html")
    assert "<i>.png" not in (tmp_path / "r" / "report.html").read_text()
    assert len(openpyxl.load_workbook(tmp_path / "r" / "results.xlsx").sheetnames) == 6


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("settings.json", "[]"), ("settings.json", '{"arguments": null}'), ("results.csv", "Row Names,image_auroc\na,much\n"),
        ("results.csv", "Row Names,image_auroc\na,1\na,2\n"),
    ],
)  # fmt: skip
def test_files_that_no_run_wrote_are_reported(trained, tmp_path, file, text):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    (copy / file).write_text(text)
    done = compare(copy, trained[0])
    assert done.returncode == 1
    assert len(done.stdout.strip().splitlines()) == 1
    assert file in done.stdout
