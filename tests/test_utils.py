"""Small tools that several modules use."""

import numpy as np

from utils import evenly_chosen


def test_items_are_chosen_evenly_with_the_first_and_the_last():
    assert evenly_chosen(10, 4) == [0, 3, 6, 9]
    assert evenly_chosen(3, 10) == [0, 1, 2]
    assert evenly_chosen(5, 1) == [0]
    assert evenly_chosen(0, 4) == []
    for count in range(1, 60):
        for most in range(1, 60):
            wanted = np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()
            assert evenly_chosen(count, most) == wanted
