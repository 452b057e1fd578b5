"""What several tests use: weights and inputs that can be made again anywhere, small data sets, the command line."""

import copy
import functools
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from forked import Forked, run_main
from PIL import Image

from datasets import ImageSettings, MVTecLayout, TrainDataset, open_textures
from datasets.geometry import Geometry
from datasets.listing import list_images
from glass import GLASS
from inference.judge import Judge
from inference.thresholds import Thresholds

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).parent / "data"
# real images and weights, where they are; not part of the project
REAL = Path(os.environ.get("GLASS_REAL_DATA", ROOT.parent / "shared"))


def fill(module, seed, scale=1.0):
    """Draw a module's weights by NumPy in the order of its sorted keys (the rule of the golden values)."""
    rng = np.random.RandomState(seed)
    state = module.state_dict()
    for key in sorted(state):
        shape = tuple(state[key].shape)
        if key.endswith("num_batches_tracked"):
            continue
        if key.endswith("running_mean"):
            value = rng.normal(0, 0.1, shape)
        elif key.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) >= 2:
            value = scale * rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif key.endswith("weight"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 0.1, shape)
        state[key] = torch.from_numpy(np.asarray(value)).float()
    module.load_state_dict(state)


@functools.lru_cache(maxsize=8)
def filled_backbone(net, seed):
    """A network of torchvision whose weights follow the golden rule; drawing them takes longer than many a test."""
    backbone = torchvision.models.get_model(net, weights=None)
    fill(backbone, seed)
    return backbone.eval()


def make_glass(net="resnet18", layers=("layer2", "layer3"), size=(64, 64), seed=0, scale=0.1, **settings):
    """A GLASS on the CPU whose every weight follows the golden rule from `seed`."""
    settings = {"pretrain_embed_dimension": 96, "target_embed_dimension": 96} | settings
    model = GLASS("cpu").load(
        backbone=copy.deepcopy(filled_backbone(net, seed)),
        layers_to_extract_from=layers,
        device="cpu",
        input_shape=(3, *size),
        **settings,
    )
    if model.pre_projection is not None:
        fill(model.pre_projection, seed + 1, scale)
    fill(model.discriminator, seed + 2)
    return model


def shape_of_part(rng, size, defect):
    """A bright disc on dark ground with some noise; a defect is a dark blot on it. Image and mask."""
    image = rng.normal(60, 6, (size, size, 3))
    yy, xx = np.mgrid[:size, :size]
    centre = size / 2 + rng.uniform(-2, 2, 2)
    disc = np.hypot(yy - centre[0], xx - centre[1]) < size * 0.35
    image[disc] += (90, 70, 40)
    mask = np.zeros((size, size), np.uint8)
    if defect:
        at = centre + rng.uniform(-size / 6, size / 6, 2)
        mask = (np.hypot(yy - at[0], xx - at[1]) < size * 0.12).astype(np.uint8)
        image[mask > 0] = (20, 160, 200)
    return image.clip(0, 255).astype(np.uint8), mask * 255


def make_mvtec(root, classes=("disc",), size=64, train=6, good=3, defective=3, seed=0):
    """A tiny data set in the layout of MVTec AD, and a folder of textures: (data path, texture path)."""
    rng = np.random.default_rng(seed)
    for name in classes:
        base = root / "data" / name
        for kind, count in (("train/good", train), ("test/good", good), ("test/blot", defective)):
            (base / kind).mkdir(parents=True)
            (base / "ground_truth" / "blot").mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image, mask = shape_of_part(rng, size, kind == "test/blot")
                cv2.imwrite(str(base / kind / f"{i:03d}.png"), image)
                if kind == "test/blot":
                    cv2.imwrite(str(base / "ground_truth" / "blot" / f"{i:03d}_mask.png"), mask)
    make_textures(root / "textures", rng)
    return root / "data", root / "textures"


def make_textures(folder, rng):
    for i in range(4):
        (folder / f"kind{i % 2}").mkdir(parents=True, exist_ok=True)
        noise = cv2.resize(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8), (96, 80))
        cv2.imwrite(str(folder / f"kind{i % 2}" / f"{i}.jpg"), noise)


NET = [
    "net",
    "-b",
    "efficientnet_lite0",
    "--weights",
    "random",
    "--pooling",
    "published",
    "--pretrain_embed_dimension",
    "32",
    "--target_embed_dimension",
    "32",
    "--dsc_hidden",
    "32",
    "--step",
    "5",
    "--meta_epochs",
    "2",
]
DATASET = [
    "dataset",
    "--distribution",
    "2",
    "--fg",
    "0",
    "--batch_size",
    "4",
    "--num_workers",
    "0",
    "--resize",
    "64",
    "--imagesize",
    "64",
]


def cli_process(*arguments, cwd=ROOT, apart=False):
    """Run the command line in a process of its own, without importing PyTorch again; output and errors together."""
    return Forked(run_main([str(a) for a in arguments]), cwd, apart=apart).finish()


def cli(*arguments, input=None):
    """As `cli_process`, in the test's own process, which does not import torch again."""
    import main

    return run_here(main.main, "main.py", *arguments, input=input)


def run_here(command, name, *arguments, input=None):
    """Run a Click command in the test's own process; standard output and error together."""
    from training import distribution

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(distribution, "EXCEL_DIR", distribution.PUBLISHED_DIR)
        patch.setattr(sys, "argv", [name, *map(str, arguments)])  # settings.json notes the command
        done = CliRunner().invoke(command, [str(a) for a in arguments], input=input, prog_name=name)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception  # outside of a test it would be a traceback
    return subprocess.CompletedProcess(arguments, done.exit_code, done.output)


def train_cli(data, textures, results, *, main=(), net=(), dataset=(), name="custom", run=cli):
    return run("--gpu", -1, "--results_path", results, *main, *NET, *net, *DATASET, *dataset, name, data, textures)


def export_onnx(*arguments):
    """Run onnx/pth2onnx.py in the test's own process."""
    from tools import script

    return run_here(script("pth2onnx").main, "pth2onnx.py", *arguments)


class Brightness(Judge):
    """A judge without a network: an image's score is its mean brightness."""

    geometry, thresholds, class_name = Geometry(imagesize=32), Thresholds(0.5, 0.5), "part"

    def score_pictures(self, pictures):
        values = np.array([np.asarray(picture).mean() / 255 for picture in pictures], np.float32)
        return values, values[:, None, None] * np.ones((32, 32), np.float32)


def noise_image(width, height, seed=0):
    """A Pillow image of coarse noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3)).astype(np.uint8)
    return Image.fromarray(cv2.resize(noise, (width, height)))


def train_set(root, settings=None, **kwargs):
    """The training set of the class disc of `make_mvtec`, by default of 64x64 pixels."""
    data, textures = make_mvtec(root)
    settings = settings or ImageSettings(resize=64, imagesize=64)
    return TrainDataset(MVTecLayout(data).train("disc"), settings, open_textures(textures), (8, 8), **kwargs)


def shaped(root, form, defects=True, good_test=True):
    """The class disc of `make_mvtec` in one of the forms of a user's own folders."""
    data, _ = make_mvtec(root)
    disc, target = data / "disc", root / "own" / "disc"
    target.mkdir(parents=True)
    if form == "plain":
        for path in list_images(disc / "train" / "good"):
            path.rename(target / path.name)
    elif form == "good":
        (disc / "train" / "good").rename(target / "good")
        if defects:
            (disc / "test" / "blot").rename(target / "blot")
            (disc / "ground_truth").rename(target / "ground_truth")
    else:
        (disc / "train").rename(target / "train")
        if defects:
            (disc / "test").rename(target / "test")
            if not good_test:
                shutil.rmtree(target / "test" / "good")
    return root / "own"


def make_visa(root):
    """A tiny data set in the layout of VisA."""
    base = root / "candle" / "Data"
    rows = ["object,split,label,image,mask"]
    for i in range(4):
        split = "train" if i < 2 else "test"
        path = base / "Images" / "Normal" / f"{i}.JPG"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise_image(40, 32, i).save(path, "JPEG")
        rows.append(f"candle,{split},normal,candle/Data/Images/Normal/{i}.JPG,")
    (base / "Images" / "Anomaly").mkdir()
    (base / "Masks" / "Anomaly").mkdir(parents=True)
    noise_image(40, 32).save(base / "Images" / "Anomaly" / "0.JPG", "JPEG")
    mask = np.zeros((32, 40), np.uint8)
    mask[8:16, 8:20] = 3  # the number of a kind of defect, which looks nearly black
    Image.fromarray(mask).save(base / "Masks" / "Anomaly" / "0.png")
    rows.append("candle,test,anomaly,candle/Data/Images/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")
    return root


def spoil(path):
    """Overwrite pixels of a PNG file with zeros; its header and its end stay intact."""
    content = bytearray(path.read_bytes())
    start = content.index(b"IDAT") + 40
    content[start : start + 400] = bytes(400)
    path.write_bytes(content)
    return path


def last_line(done):
    """The last line that a command printed."""
    return done.output.strip().splitlines()[-1]
