"""The judge, its file, and how the options decide."""

import numpy as np
import pandas as pd
import pytest

from training import distribution
from utils import WorkError


def never():
    raise AssertionError("nothing to judge here")


@pytest.mark.parametrize(
    ("mode", "flags", "judged", "expected"),
    [
        (0, (1, 0), None, 1), (0, (0, 0), None, 0), (0, None, 1, 1), (1, (0, 0), 1, 1), (2, (1, 1), None, 0),
        (3, (0, 0), None, 1), (4, (1, 0), None, 0), (4, (0, 0), None, 1), (4, None, 1, 1),
    ],
)  # fmt: skip
def test_distribution_option(mode, flags, judged, expected):
    decision = distribution.decide(mode, 0, None, flags, never if judged is None else lambda: judged)
    assert decision.svd == expected
    assert not decision.foreground


@pytest.mark.parametrize("mode", range(5))
def test_given_svd_wins(mode):
    decision = distribution.decide(mode, 0, 1, (0, 0), never)
    assert decision.svd == 1
    assert decision.reason == "--svd"


@pytest.mark.parametrize(
    ("fg", "flags", "expected"),
    [(0, (1, 1), False), (1, (0, 0), True), (2, (0, 0), False), (2, (0, 1), True), (2, None, True)],
)
def test_fg_option(fg, flags, expected):
    assert distribution.decide(2, fg, None, flags, never).foreground is expected


def test_verdicts_are_written_beside_the_others():
    assert distribution.read_flags("mine", "mine_a") is None
    distribution.write_flag("mine", "mine_a", 1, distribution.EXCEL_DIR)
    distribution.write_flag("mine", "mine_b", 0, distribution.EXCEL_DIR)
    distribution.write_flag("mine", "mine_a", 0, distribution.EXCEL_DIR)
    table = pd.read_excel(distribution.excel_path("mine"))
    assert list(table.columns) == ["Class", "Distribution", "Foreground"]
    assert sorted(table["Class"]) == ["mine_a", "mine_b"]
    assert distribution.read_flags("mine", "mine_a") == (0, 0)


def test_damaged_file_is_named():
    path = distribution.excel_path("mine")
    path.parent.mkdir(parents=True)
    path.write_text("not Excel")
    with pytest.raises(WorkError, match=r"cannot read .*mine_distribution\.xlsx"):
        distribution.read_flags("mine", "mine_a")
    pd.DataFrame({"Klasse": ["a"]}).to_excel(path)
    with pytest.raises(WorkError, match="columns are"):
        distribution.read_flags("mine", "mine_a")


def test_mean_image_is_truncated_bgr():
    one, two = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 3), np.uint8)
    one[..., 0], two[..., 0], two[..., 2] = 10, 15, 7
    mean = distribution.mean_image([one, two])
    assert mean[0, 0].tolist() == [3, 0, 12]


def test_constant_image_is_judged():
    assert distribution.judge(np.full((50, 60, 3), 100, np.uint8)) == 0
    assert distribution.judge(np.zeros((50, 60, 3), np.uint8)) == 0
