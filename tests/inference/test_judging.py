"""The library: `load_checkpoint(…).predict_image(…)` with every kind of image, and checkpoints that cannot be loaded."""

import os
import pickle
import tempfile
import threading

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import shape_of_part, train_cli
from PIL import Image

import backbones
from glass import load_checkpoint
from inference import checkpoint
from utils import InputError, WorkError


def test_arrays_files_and_pil_images_give_the_same_result(tiny, model):
    path = sorted((tiny[0] / "disc/test/blot").iterdir())[0]
    picture = Image.open(path).convert("RGB")
    scores = {model.predict_image(x).score for x in (path, str(path), picture, np.asarray(picture))}
    assert max(scores) - min(scores) < 1e-7
    together = model.predict_images([path] * 3)
    assert [r.score for r in together] == pytest.approx([scores.pop()] * 3, abs=1e-6)
    gray = np.asarray(picture.convert("L"))
    assert model.predict_image(gray).score == model.predict_image(gray[..., None]).score
    for wrong in (gray.astype(np.float32), np.zeros((3, 64, 64), np.uint8), np.zeros(5, np.uint8)):
        with pytest.raises(InputError, match="is not an image"):
            model.predict_image(wrong)


def test_threads_give_the_same_results(tiny, model):
    paths = sorted((tiny[0] / "disc/test").rglob("*.png"))
    expected = [model.predict_image(p).score for p in paths]
    found = {}

    def work(number):
        found[number] = [model.predict_image(p).score for p in paths * 3]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(scores == pytest.approx(expected * 3, abs=1e-6) for scores in found.values())
    assert len(found) == 4


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (200, 120), (33, 65)])
def test_map_is_aligned_with_the_image(model, size):
    """A map equal to the image is placed where the image is, except for the part that was cropped."""
    height, width = size
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.random((4, 4), np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    picture = Image.fromarray((smooth * 255).astype(np.uint8)).convert("RGB")
    seen = np.asarray(model.settings.cropped(picture))[..., 0].astype(np.float32) / 255
    back = model.geometry.place(seen, picture.size)
    assert back.shape == size
    margin = abs(height - width) // 2
    inner = (
        (slice(margin, height - margin), slice(None))
        if height > width
        else (slice(None), slice(margin, width - margin))
    )
    assert np.abs(back - smooth)[inner][2:-2, 2:-2].mean() < 0.02
    outside = np.ones(size, bool)
    outside[inner] = False
    outside = cv2.erode(outside.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert (back[outside] == 0).all()


def test_bf16_gives_nearly_the_same_scores(folder, model, tiny):
    low = load_checkpoint(folder, precision="bf16")
    for path in sorted((tiny[0] / "disc/test").rglob("*.png")):
        assert low.predict_image(path).score == pytest.approx(model.predict_image(path).score, abs=0.03)


def test_pil_images_are_read_as_their_files(model, tmp_path):
    deep = Image.fromarray(np.full((64, 64), 30_000, np.uint16))
    deep.save(tmp_path / "deep.png")
    assert (
        model.predict_image(Image.open(tmp_path / "deep.png")).score == model.predict_image(tmp_path / "deep.png").score
    )
    with pytest.raises(InputError, match="mode F"):
        model.predict_image(Image.new("F", (64, 64)))
    shape = Image.fromarray(shape_of_part(np.random.default_rng(0), 64, True)[0]).crop((0, 0, 40, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    shape.save(tmp_path / "turned.png", exif=exif)
    turned = model.predict_image(Image.open(tmp_path / "turned.png"))
    assert turned.map.shape == model.predict_image(tmp_path / "turned.png").map.shape == (40, 64)


@pytest.mark.parametrize("given", [None, b"x", [[1, 2]], 3, torch.zeros(3, 9, 9)])
def test_what_is_not_an_image_is_refused(model, given):
    with pytest.raises(InputError, match="is not an image; possible: a path, a PIL image, or a NumPy array"):
        model.predict_image(given)


FOLDER_OF_THE_PAYLOAD = os.path.join(tempfile.gettempdir(), f"glass-was-here-{os.getpid()}")


class Payload:
    def __reduce__(self):
        return (os.mkdir, (FOLDER_OF_THE_PAYLOAD,))


def test_files_that_are_not_checkpoints_are_refused(folder, tmp_path):
    best = checkpoint.find_best(folder)[0]
    state = torch.load(best, weights_only=True)
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "cut.pth").write_bytes(best.read_bytes()[:5000])
    torch.save({"model": {}}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("# words")
    torch.save({"discriminator": state["discriminator"]}, tmp_path / "published.pth")
    other = {**state, "config": {**state["config"], "backbone_hash": "0" * 32}}
    torch.save(other, tmp_path / "wrong.pth")
    gone = {**state, "config": {**state["config"], "weights": "/gone/weights.pth"}}
    torch.save(gone, tmp_path / "gone.pth")
    for name, kind, says in (
        ("pickle.pth", WorkError, "more than tensors and plain values"),
        ("cut.pth", WorkError, "damaged"),
        ("other.pth", WorkError, "it holds no discriminator"),
        ("text.pth", WorkError, "torch.save did not write it"),
        ("published.pth", WorkError, "does not say how it was trained"),
        ("wrong.pth", InputError, "was trained with other weights"),
        ("gone.pth", WorkError, "give --weights PATH"),
    ):
        with pytest.raises(kind, match=says):
            load_checkpoint(tmp_path / name)
    assert not os.path.exists(FOLDER_OF_THE_PAYLOAD)
    torch.save(backbones.load("efficientnet_lite0", "random", 0).state_dict(), tmp_path / "weights.pth")
    assert load_checkpoint(tmp_path / "gone.pth", weights=tmp_path / "weights.pth").class_name == "custom_disc"


def test_a_trained_backbone_is_part_of_the_checkpoint(tiny, tmp_path):
    done = train_cli(*tiny, tmp_path, net=("--train_backbone", "--meta_epochs", 1), dataset=("-d", "disc"))
    assert done.returncode == 0, done.stdout
    judged = pd.read_csv(tmp_path / "per_image.csv")
    ours = load_checkpoint(tmp_path / "models/backbone_0/custom_disc")
    for row in judged.itertuples():
        assert ours.predict_image(row.path).score == pytest.approx(row.score, abs=1e-5)
