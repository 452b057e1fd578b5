"""Known defects against test images: how often each picture is reduced."""

import numpy as np
import pytest
from helpers import make_mvtec
from PIL import Image

from datasets import MVTecLayout, defects
from utils import InputError


def test_a_test_image_is_reduced_once_for_all_known_defects(tmp_path, monkeypatch):
    """Patches of all sizes share a few reduced copies of each test image, and each patch is reduced once."""
    data, _ = make_mvtec(tmp_path)
    rng = np.random.default_rng(0)
    test = MVTecLayout(data).test("disc")[:3]
    for sample in test:
        Image.fromarray(rng.integers(0, 256, (300, 340), dtype=np.uint8)).save(sample.path)
    (tmp_path / "known").mkdir()
    for number in range(30):
        pixels = rng.integers(0, 256, (16 + 2 * number, 90), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "known" / f"{number}.png")
    calls, resize = [], defects.cv2.resize
    monkeypatch.setattr(defects.cv2, "resize", lambda x, *a, **k: calls.append(x.shape) or resize(x, *a, **k))
    known = defects.list_defects(tmp_path / "known")
    defects.refuse_test_images(known, test)
    assert len(calls) <= 30 + 2 * len(test)
    Image.open(test[2].path).crop((31, 57, 131, 99)).save(tmp_path / "known" / "part.png")
    with pytest.raises(InputError, match=r"part\.png is a part of the test image"):
        defects.refuse_test_images(defects.list_defects(tmp_path / "known"), test)
