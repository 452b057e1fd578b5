"""The distillation of the embedded backbone, `tools/distil.py`: interrupting, resuming, wrong usage."""

import csv

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import backbones
from tools import distil, pictures
from utils import InputError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "weights.pth"
    torch.save(backbones.load("resnet18", "random", 0).state_dict(), path)
    return path


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Four in two folders, some too small for a crop; without those of scikit-image, which would take long."""
    monkeypatch.setattr(pictures, "PHOTOS", ())
    rng = np.random.default_rng(0)
    for name, size in (("a/0", (90, 120)), ("a/1", (12, 12)), ("b/0", (70, 70)), ("b/1", (2, 900))):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"{tmp_path / 'photos' / name}.png", rng.integers(0, 256, (*size, 3)).astype(np.uint8))
    return tmp_path / "photos"


def distilled(out, photographs, teacher, *more):
    given = [out, "--images", photographs, "--weights", teacher, "--crops", 8, "--batch", 2, "--side", 64, *more]
    return CliRunner().invoke(distil.main, [str(word) for word in given])


def test_an_interrupted_training_resumes_to_the_same_weights(photographs, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "SAVE_EVERY", 2)
    assert distilled(tmp_path / "whole", photographs, teacher).exit_code == 0
    step = distil.Distillation.step

    def stopped(self, number, crops):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, crops)

    monkeypatch.setattr(distil.Distillation, "step", stopped)
    assert distilled(tmp_path / "parts", photographs, teacher).exit_code != 0
    assert not (tmp_path / "parts" / "resnet18_half.safetensors").exists()
    monkeypatch.setattr(distil.Distillation, "step", step)
    done = distilled(tmp_path / "parts", photographs, teacher)
    assert done.exit_code == 0, done.output
    whole, parts = ((tmp_path / name / "resnet18_half.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts
    rows = [list(csv.DictReader((tmp_path / name / "distil.csv").open())) for name in ("whole", "parts")]
    for one, other in zip(*rows, strict=True):
        assert one | {"seconds": ""} == other | {"seconds": ""}
    # and what was made is a backbone
    backbones.load("resnet18_half", tmp_path / "whole" / "resnet18_half.safetensors")

    # other pictures, another teacher, other settings: not the same training
    (photographs / "a/0.png").rename(photographs / "a/2.png")
    for flags, message in (
        ((), "was begun with other settings (pictures was"),
        (("--crops", 10), "crops was 8, is 10"),
    ):
        done = distilled(tmp_path / "whole", photographs, teacher, *flags)
        assert done.exit_code == 2
        assert message in done.output
    (tmp_path / "whole" / "distil.pth").write_bytes(b"no")
    done = distilled(tmp_path / "whole", photographs, teacher)
    assert done.exit_code == 1
    assert "move it away to start again" in done.output


def test_held_out_names_a_subfolder(photographs):
    assert len(pictures.find_photographs(photographs, [])) == 4
    assert len(pictures.find_photographs(photographs, ["a"])) == 2
    with pytest.raises(InputError, match=r"--held_out bumby: .* has no folder of that name"):
        pictures.find_photographs(photographs, ["bumby"])
    with pytest.raises(InputError, match="no folder of that name"):  # the way to it does not count
        pictures.find_photographs(photographs, ["photos"])
    with pytest.raises(InputError, match="every image"):
        pictures.find_photographs(photographs, ["a", "b"])


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (20, 20), (700, 900)])
def test_images_of_any_size_give_crops(size):
    rng = np.random.default_rng(0)
    picture = pictures._no_larger(np.zeros((*size, 3), np.uint8))
    for _ in range(20):
        assert pictures._crop(rng, picture, 64).shape == (64, 64, 3)


@pytest.mark.parametrize("words", [("--gpu", "-2"), ("--rate", "0"), ("--rate", "nan"), ("--images", "/none")])
def test_invalid_options_are_refused(words, photographs, teacher, tmp_path):
    done = distilled(tmp_path / "out", photographs, teacher, *words)
    assert done.exit_code == 2
    assert "Invalid value" in done.output
