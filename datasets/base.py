"""What all data sets share: samples, preprocessing, the training and the test set, loaders."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision.transforms.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import InterpolationMode
from tqdm import tqdm

import synthesis
from datasets import augment
from datasets.cache import GB, ImageCache
from datasets.defects import Defects
from datasets.files import list_images, read_mask, read_rgb
from datasets.textures import Textures
from errors import InputError, WorkError
from utils import IMAGENET_MEAN, IMAGENET_STD

GOOD = "good"
DEFAULT_RESIZE = 288
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Sample:
    """One image: its file, kind (`good` or the defect's name) and mask (None: good, or not known)."""

    path: Path
    kind: str = GOOD
    mask: Path | None = None

    @property
    def is_anomaly(self) -> bool:
        """Whether the image shows a defect."""
        return self.kind != GOOD


class Layout:
    """Knows where a data set keeps its images. One instance a data path.

    Args:
        root: data path, an existing folder.
        seed: of the choice of good test images, where a layout has to make one.
        test_share: how many of the good images that choice takes, as a share.
    """

    # classes resized larger before the crop, by name
    larger: frozenset[str] = frozenset()

    def __init__(self, root: str | Path, seed: int = 0, test_share: float = TEST_SHARE) -> None:
        self.root, self.seed, self.test_share = Path(root), seed, test_share
        if not self.root.is_dir():
            raise InputError(f"DATA_PATH {self.root}: no such folder")

    def classes(self) -> list[str]:
        """Names of the classes found."""
        raise TypeError("a layout names its classes")

    def train(self, name: str) -> list[Sample]:
        """The good training images of a class, in a fixed order."""
        raise TypeError("a layout lists its training images")

    def test(self, name: str) -> list[Sample]:
        """The test images of a class, in a fixed order."""
        raise TypeError("a layout lists its test images")

    def held_out(self, name: str) -> list[Sample]:
        """Good images that the layout itself takes out of the training for the test; [] where the user did."""
        return []

    def choose(self, wished: Sequence[str]) -> list[str]:
        """The wished classes, all by default.

        Raises:
            InputError: one is not there, or there is none at all.
        """
        known = self.classes()
        if not known:
            own = any((self.root / part).is_dir() for part in ("train", "test"))
            hint = f"; it looks like a class itself: give {self.root.absolute().parent}" if own else ""
            raise InputError(f"DATA_PATH {self.root}: no class folder found in it{hint}")
        for name in wished:
            if name not in known:
                raise InputError(f"unknown class {name!r}; {self.root} has {', '.join(known)}")
        return list(dict.fromkeys(wished)) or known

    def foreground(self, name: str, samples: Sequence[Sample]) -> list[Path] | None:
        """The foreground mask of each training image, at `fg_mask/<class>/<image file name>`; None where none is.

        Raises:
            InputError: only some are there.
        """
        folder = self.root / "fg_mask" / name
        if not list_images(folder):
            return None
        by_stem = {p.stem: p for p in list_images(folder)}
        found = []
        for sample in samples:
            exact = folder / sample.path.name
            mask = exact if exact.is_file() else by_stem.get(sample.path.stem)
            if mask is None:
                raise InputError(
                    f"class {name}: {folder} holds foreground masks, but not {exact.name}; put one mask a training "
                    f"image there, or take {folder} away to have them made, or give --fg 0"
                )
            found.append(mask)
        return found


Size = int | tuple[int, int]


@dataclass(frozen=True)
class ImageSettings:
    """Preprocessing of an image (resize, then centre crop to `imagesize`) and its random augmentation.

    resize: a number is the length of the shorter side, (H, W) both sides; None is 288 or, where `imagesize` is a
    pair or larger, the same as that. imagesize: the side of a square, or (H, W). keep_all: no crop, the whole image
    is resized to `imagesize`. rotate_degrees in degrees; translate, scale, brightness, contrast, saturation as
    ±shares; gray, hflip, vflip as probabilities; rand_aug: augment textures by three of nine operations; mean,
    std: of β.

    Raises:
        InputError: a crop larger than what it is cut from.
    """

    resize: Size | None = None
    imagesize: Size = 288
    keep_all: bool = False
    rotate_degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    gray: float = 0.0
    hflip: float = 0.0
    vflip: float = 0.0
    rand_aug: bool = True
    mean: float = 0.5
    std: float = 0.1

    def __post_init__(self) -> None:
        if self.keep_all and self.resize not in (None, self.imagesize):
            raise InputError(
                f"--keep_all resizes the whole image to --imagesize {show_size(self.imagesize)}, "
                f"--resize {show_size(self.resize)} contradicts it: leave one of the two out"
            )
        if self.resize is None:
            fits = not self.keep_all and isinstance(self.imagesize, int) and self.imagesize <= DEFAULT_RESIZE
            object.__setattr__(self, "resize", DEFAULT_RESIZE if fits else self.imagesize)
        if any(crop > side for crop, side in zip(self.size, _pair(self.resize), strict=True)):
            raise InputError(
                f"--imagesize {show_size(self.imagesize)} is larger than --resize {show_size(self.resize)}: "
                "nothing to crop from"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of what the model sees."""
        return _pair(self.imagesize)

    def for_class(self, layout: Layout, name: str) -> ImageSettings:
        """The settings of a class: toothbrush and wood of the MVTec layout are resized larger before the crop."""
        if name not in layout.larger or self.keep_all:
            return self
        sides = tuple(round(side * 329 / 288) for side in self.size)
        return replace(self, resize=sides[0] if isinstance(self.imagesize, int) else sides)

    @property
    def randomly_augmented(self) -> bool:
        """Whether a training image differs from epoch to epoch."""
        return any(
            (self.rotate_degrees, self.translate, self.scale, self.brightness, self.contrast, self.saturation,
             self.gray, self.hflip, self.vflip)
        )  # fmt: skip

    # ------------------------------------------------------------------------------------ geometry

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """(H, W) before the crop of an image of this size, as torchvision's Resize.

        Where the crop of a wide `imagesize` would reach beyond the image, it is resized larger instead.
        """
        if not isinstance(self.resize, int):
            return self.resize
        if self.keep_all:
            return self.size
        short, long = min(width, height), max(width, height)
        other = int(self.resize * long / short)
        new = (other, self.resize) if width <= height else (self.resize, other)
        if new[0] >= self.size[0] and new[1] >= self.size[1]:
            return new
        factor = max(self.size[0] / height, self.size[1] / width)
        return max(self.size[0], round(height * factor)), max(self.size[1], round(width * factor))

    def resized(self, image: Image.Image) -> Image.Image:
        """The image before the crop."""
        return F.resize(image, list(self.resized_size(*image.size)), InterpolationMode.BILINEAR)

    def cropped(self, image: Image.Image) -> Image.Image:
        """The image after resizing and cropping."""
        return F.center_crop(self.resized(image), list(self.size))

    # --------------------------------------------------------------------------------------- values

    def transform(self, image: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        """RGB image → normalised (3, H, W); randomly augmented where `rng` is given."""
        image = self.resized(image)
        return self.finish(image if rng is None else self.augmented(image, rng))

    def transform_texture(self, texture: Image.Image, rng: np.random.Generator) -> Tensor:
        """Texture → normalised (3, H, W)."""
        return self.finish(self.augmented_texture(self.resized(texture), rng))

    def augmented_texture(self, resized: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Three of the nine operations. Cropped only afterwards: a rotation would leave black corners."""
        return augment.augment_texture(resized, rng) if self.rand_aug else self.augmented(resized, rng)

    def transform_mask(self, mask: NDArray[np.uint8]) -> NDArray[np.int8]:
        """(H0, W0) in {0, 1} → (H, W) in {0, 1}, nearest."""
        image = Image.fromarray(mask)
        image = F.resize(image, list(self.resized_size(*image.size)), InterpolationMode.NEAREST)
        return np.asarray(F.center_crop(image, list(self.size))).astype(np.int8)

    def transform_foreground(self, mask: Image.Image) -> NDArray[np.bool_]:
        """Mask → (H, W) bool: first channel, bilinear with antialiasing, above 0."""
        channel = F.to_tensor(mask)[:1]
        channel = F.resize(channel, list(self.resized_size(*mask.size)), InterpolationMode.BILINEAR, antialias=True)
        return F.center_crop(channel, list(self.size))[0].numpy() > 0

    def straight(self, image: Image.Image) -> NDArray[np.uint8]:
        """Both sides to `resize`, then the crop, for the judge: (H, W, 3) RGB."""
        image = F.resize(image, list(_pair(self.resize)), InterpolationMode.BILINEAR)
        return np.asarray(F.center_crop(image, list(self.size)))

    def augmented(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The random augmentation of training images, of which each kind is off at 0."""
        if not self.randomly_augmented:
            return image
        image = augment.jitter(image, rng, self.brightness, self.contrast, self.saturation)
        if rng.random() < self.hflip:
            image = F.hflip(image)
        if rng.random() < self.vflip:
            image = F.vflip(image)
        if rng.random() < self.gray:
            image = F.rgb_to_grayscale(image, 3)
        return augment.affine(image, rng, self.rotate_degrees, self.translate, self.scale)

    def finish(self, image: Image.Image) -> Tensor:
        """Centre crop and ImageNet's normalisation, (3, H, W)."""
        return normalise(np.asarray(F.center_crop(image, list(self.size))))


def show_size(size: Size) -> str:
    """288 or 256x512."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


@functools.cache
def _normalised_values() -> list[NDArray[np.float32]]:
    """What each of the 256 values becomes in each channel, to the bit as torchvision computes it."""
    ramp = torch.arange(256, dtype=torch.float32).div(255).expand(3, 1, 256)
    return list(F.normalize(ramp, IMAGENET_MEAN, IMAGENET_STD)[:, 0].numpy())


def normalise(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) → normalised (3, H, W) float32; a look-up of values, a fifth of the arithmetic's time."""
    out = np.empty((3, *image.shape[:2]), np.float32)
    for channel, values in enumerate(_normalised_values()):
        np.take(values, image[..., channel], out=out[channel], mode="clip")
    return torch.from_numpy(out)


def plan_cache(
    cache: ImageCache,
    settings: ImageSettings,
    train: Sequence[Sample],
    foreground: bool,
    test: Sequence[Sample],
    textures: Textures | None,
    sizes: Mapping[Path, tuple[int, int]],
) -> str:
    """Reserve room for all that a class's training and testing read: training images first, textures last.

    Args:
        foreground: whether there will be a foreground mask of each training image.
        sizes: (width, height) of each image.

    Returns:
        What is kept, as a line for the log.
    """
    whole = settings.randomly_augmented  # what is drawn anew each epoch comes before the crop
    kept = sum(
        cache.plan(("train", s.path), (*(settings.resized_size(*sizes[s.path]) if whole else settings.size), 3))
        for s in train
    )
    line = f"{kept} of {len(train)} training images"
    for sample in train if foreground else ():
        cache.plan(("foreground", sample.path), settings.size)
    if test:
        fits = [
            cache.plan(("test", s.path), (*settings.size, 3))
            and (s.mask is None or cache.plan(("mask", s.mask), settings.size))
            for s in test
        ]
        line += f", {sum(fits)} of {len(test)} test images"
    if train and textures is not None:
        fits = 0
        for i in range(len(textures)):
            shape = (*settings.resized_size(*textures.size(i)), 3)
            if cache.used + math.prod(shape) >= cache.budget:
                break
            fits += cache.plan(("texture", i), shape)
        line += f", {fits} of {len(textures)} textures"
    cache.allocate()
    return f"{line} ({cache.used / GB:.2f} GB of at most {cache.budget / GB:.2f})"


class TrainDataset(Dataset):
    """Good images with a synthetic local anomaly each.

    An item's key is (epoch, index): every draw comes from `seed`, epoch and index alone, so that an image is
    the same whichever worker makes it, in a run that was resumed as in one that was not.

    Args:
        samples: the good images.
        settings: preprocessing.
        textures: where textures come from.
        grid: (H', W') of the model.
        foreground: mask file of each sample; None allows anomalies everywhere.
        seed: of all draws.
        cache: keeps what was read, see `plan_cache`; nothing is kept by default.
        defects: known defects to draw in place of textures.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: ImageSettings,
        textures: Textures,
        grid: tuple[int, int],
        foreground: Sequence[Path] | None = None,
        seed: int = 0,
        cache: ImageCache | None = None,
        defects: Defects | None = None,
    ) -> None:
        self.samples, self.settings, self.textures = list(samples), settings, textures
        self.grid, self.masks, self.seed = tuple(grid), foreground, seed
        self.cache, self.defects = cache or ImageCache(0), defects

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def randomly_augmented(self) -> bool:
        """Whether an image differs from epoch to epoch."""
        return self.settings.randomly_augmented

    def load(self, index: int) -> None:
        """Read an image and keep it, where there is room."""
        self._pixels(index)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        path, settings = self.samples[index].path, self.settings
        prepare = settings.resized if settings.randomly_augmented else settings.cropped
        return self.cache.get(("train", path), lambda: np.asarray(prepare(read_rgb(path))))

    def image(self, epoch: int, index: int) -> tuple[Tensor, np.random.Generator]:
        """The image (3, H, W) of a key and the generator for all that follows."""
        rng = np.random.default_rng([self.seed, epoch, index])
        pixels = self._pixels(index)
        if not self.settings.randomly_augmented:
            return normalise(pixels), rng
        return self.settings.finish(self.settings.augmented(Image.fromarray(pixels), rng)), rng

    def foreground_of(self, index: int) -> NDArray[np.bool_] | None:
        """Where anomalies may lie on an image, (H, W); None is everywhere."""
        if self.masks is None:
            return None
        path = self.masks[index]
        made = self.cache.get(
            ("foreground", self.samples[index].path),
            lambda: self.settings.transform_foreground(read_rgb(path)).view(np.uint8),
        )
        return made.view(np.bool_)

    def _texture(self, rng: np.random.Generator) -> Tensor:
        index = int(rng.integers(len(self.textures)))
        pixels = self.cache.get(
            ("texture", index), lambda: np.asarray(self.settings.resized(self.textures.read(index)))
        )
        return self.settings.finish(self.settings.augmented_texture(Image.fromarray(pixels), rng))

    def anomaly(
        self, rng: np.random.Generator, index: int
    ) -> tuple[Tensor, NDArray[np.bool_], NDArray[np.float32], float]:
        """What is blended in, where (H, W) and (H', W'), and how transparently (β)."""
        foreground = self.foreground_of(index)
        texture = mask = None
        if self.defects is not None and rng.random() < self.defects.share:
            texture, mask = self.defects.draw(rng, foreground)
        if texture is None:
            texture = self._texture(rng)
        try:
            if mask is None:
                mask, mask_s = synthesis.las_mask(rng, self.settings.size, self.grid, foreground)
            else:
                mask_s = synthesis.pool_mask(mask, self.grid)
        except InputError as error:
            raise InputError(f"{self.masks[index] if self.masks else self.samples[index].path}: {error}") from error
        return texture, mask, mask_s, synthesis.draw_beta(rng, self.settings.mean, self.settings.std)

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, rng = self.image(epoch, index)
        texture, mask, mask_s, beta = self.anomaly(rng, index)
        return {
            "image": image,
            "aug": synthesis.blend(image, texture, torch.from_numpy(mask).float(), beta),
            "mask_s": torch.from_numpy(mask_s),
            "mask_gt": torch.zeros(1, *self.settings.size, dtype=torch.int8),
            "is_anomaly": False,
            "image_path": str(self.samples[index].path),
        }


class CentreDataset(Dataset):
    """The images of a training set without their anomalies, for the centre of the features."""

    def __init__(self, train: TrainDataset) -> None:
        self.train = train

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {"image": self.train.image(*key)[0]}


class TestDataset(Dataset):
    """Images to be scored, with their ground truth. A defective image without a mask gets −1 everywhere."""

    __test__ = False  # pytest takes a name that begins so for a test

    def __init__(self, samples: Sequence[Sample], settings: ImageSettings, cache: ImageCache | None = None) -> None:
        self.samples, self.settings, self.cache = list(samples), settings, cache or ImageCache(0)

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int) -> None:
        """Read an image and its mask and keep them, where there is room."""
        self._pixels(index)
        self._mask(index)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        path = self.samples[index].path
        return self.cache.get(("test", path), lambda: np.asarray(self.settings.cropped(read_rgb(path))))

    def _mask(self, index: int) -> NDArray[np.int8]:
        sample = self.samples[index]
        if sample.mask is None:
            return np.full(self.settings.size, -1 if sample.is_anomaly else 0, np.int8)
        path = sample.mask
        made = self.cache.get(("mask", path), lambda: self.settings.transform_mask(read_mask(path)).view(np.uint8))
        return made.view(np.int8).copy()

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": normalise(self._pixels(index)),
            "mask_gt": torch.from_numpy(self._mask(index))[None],
            "is_anomaly": self.samples[index].is_anomaly,
            "image_path": str(self.samples[index].path),
        }


class Reading(Dataset):
    """Each image of several data sets read once: an item is the error's text, "" where there was none."""

    def __init__(self, datasets: Sequence[TrainDataset | TestDataset]) -> None:
        self.items = [(dataset, i) for dataset in datasets for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, str]:
        dataset, i = self.items[index]
        try:
            dataset.load(i)
        except WorkError as error:
            return index, str(error)
        return index, ""


def read_all(datasets: Sequence[TrainDataset | TestDataset], num_workers: int, name: str) -> dict[int, str]:
    """Read every image once, so that a bad one is found before the work begins, and keep what there is room for.

    Returns:
        The errors of the images that cannot be read, by index over all the data sets one after another.
    """
    reading = Reading(datasets)
    loader = make_loader(reading, 4, num_workers, keep_workers=False)
    bar = tqdm(
        total=len(reading), desc=f"{name}: reading", unit="img", leave=False, dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )  # fmt: skip
    bad = {}
    with bar:
        for indices, errors in loader:
            bad |= {int(i): error for i, error in zip(indices, errors, strict=True) if error}
            bar.update(len(indices))
    return bad


class EpochSampler(Sampler):
    """Keys (epoch, index) of one epoch, shuffled by seed and epoch.

    Args:
        size: of the data set.
        seed: of the shuffle.
        count: how many of them; all by default.
        shuffle: else in order.
    """

    def __init__(self, size: int, seed: int, count: int | None = None, shuffle: bool = True) -> None:
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.count = min(size, count or size)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.size)
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(order)
        return iter([(self.epoch, int(i)) for i in order[: self.count]])


def _quiet_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism


def make_loader(
    dataset: Dataset,
    batch_size: int,
    num_workers: int,
    sampler: Sampler | None = None,
    keep_workers: bool = True,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader whose workers, never more than the machine has cores, live on between epochs."""
    workers = min(num_workers, os.cpu_count() or 1, -(-len(dataset) // batch_size))
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=keep_workers and workers > 0,
        worker_init_fn=_quiet_worker,
        pin_memory=pin_memory,
    )
