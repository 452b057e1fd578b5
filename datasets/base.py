"""What all data sets share: samples, preprocessing, the training and the test set, loaders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
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

import synthesis
from datasets import augment
from datasets.files import list_images, read_mask, read_rgb
from errors import InputError
from utils import IMAGENET_MEAN, IMAGENET_STD

GOOD = "good"


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
    """

    # classes resized larger before the crop, by name
    larger: frozenset[str] = frozenset()

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
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

    def foreground(self, name: str, samples: Sequence[Sample]) -> list[Path]:
        """The foreground mask of each training image, at `fg_mask/<class>/<image file name>`.

        Raises:
            InputError: one is not there.
        """
        folder = self.root / "fg_mask" / name
        by_stem = {p.stem: p for p in list_images(folder)}
        found = []
        for sample in samples:
            exact = folder / sample.path.name
            mask = exact if exact.is_file() else by_stem.get(sample.path.stem)
            if mask is None:
                raise InputError(
                    f"class {name}: foreground masks are asked for, but {exact} is not there; "
                    f"put one mask a training image there, or give --fg 0"
                )
            found.append(mask)
        return found


@dataclass(frozen=True)
class ImageSettings:
    """Preprocessing of an image (shorter side to `resize`, centre crop `imagesize`) and its random augmentation.

    rotate_degrees in degrees; translate, scale, brightness, contrast, saturation as ±shares; gray, hflip, vflip
    as probabilities; rand_aug: augment textures by three of nine operations; mean, std: of β.
    """

    resize: int = 288
    imagesize: int = 288
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
        if self.imagesize > self.resize:
            raise InputError(
                f"--imagesize {self.imagesize} is larger than --resize {self.resize}: nothing to crop from"
            )

    def for_class(self, layout: Layout, name: str) -> ImageSettings:
        """The settings of a class: toothbrush and wood of the MVTec layout are resized larger before the crop."""
        if name in layout.larger:
            return replace(self, resize=round(self.imagesize * 329 / 288))
        return self

    @property
    def randomly_augmented(self) -> bool:
        """Whether a training image differs from epoch to epoch."""
        return any(
            (self.rotate_degrees, self.translate, self.scale, self.brightness, self.contrast, self.saturation,
             self.gray, self.hflip, self.vflip)
        )  # fmt: skip

    def transform(self, image: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        """RGB image → normalised (3, imagesize, imagesize); randomly augmented where `rng` is given."""
        image = self._resize(image)
        if rng is not None and self.randomly_augmented:
            image = self._augment(image, rng)
        return self._finish(image)

    def transform_texture(self, texture: Image.Image, rng: np.random.Generator) -> Tensor:
        """Texture → normalised (3, imagesize, imagesize). Cropped last: a rotation would leave black corners."""
        if not self.rand_aug:
            return self.transform(texture, rng)
        return self._finish(augment.augment_texture(self._resize(texture), rng))

    def transform_mask(self, mask: NDArray[np.uint8]) -> NDArray[np.int8]:
        """(H, W) in {0, 1} → (imagesize, imagesize) in {0, 1}, nearest."""
        image = F.resize(Image.fromarray(mask), self.resize, InterpolationMode.NEAREST)
        return np.asarray(F.center_crop(image, self.imagesize)).astype(np.int8)

    def transform_foreground(self, mask: Image.Image) -> NDArray[np.bool_]:
        """Mask → (imagesize, imagesize) bool: first channel, bilinear with antialiasing, above 0."""
        channel = F.to_tensor(mask)[:1]
        channel = F.resize(channel, self.resize, InterpolationMode.BILINEAR, antialias=True)
        return F.center_crop(channel, self.imagesize)[0].numpy() > 0

    def straight(self, image: Image.Image) -> NDArray[np.uint8]:
        """Both sides to `resize`, then the crop, for the judge: (imagesize, imagesize, 3) RGB."""
        image = F.resize(image, [self.resize, self.resize], InterpolationMode.BILINEAR)
        return np.asarray(F.center_crop(image, self.imagesize))

    def _resize(self, image: Image.Image) -> Image.Image:
        return F.resize(image, self.resize, InterpolationMode.BILINEAR)

    def _augment(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        image = augment.jitter(image, rng, self.brightness, self.contrast, self.saturation)
        if rng.random() < self.hflip:
            image = F.hflip(image)
        if rng.random() < self.vflip:
            image = F.vflip(image)
        if rng.random() < self.gray:
            image = F.rgb_to_grayscale(image, 3)
        return augment.affine(image, rng, self.rotate_degrees, self.translate, self.scale)

    def _finish(self, image: Image.Image) -> Tensor:
        tensor = F.to_tensor(F.center_crop(image, self.imagesize))
        return F.normalize(tensor, IMAGENET_MEAN, IMAGENET_STD)


class TrainDataset(Dataset):
    """Good images with a synthetic local anomaly each.

    An item's key is (epoch, index): every draw comes from `seed`, epoch and index alone, so that an image is
    the same whichever worker makes it, in a run that was resumed as in one that was not.

    Args:
        samples: the good images.
        settings: preprocessing.
        textures: files to take textures from.
        grid: (H', W') of the model.
        foreground: mask file of each sample; None allows anomalies everywhere.
        seed: of all draws.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: ImageSettings,
        textures: Sequence[Path],
        grid: tuple[int, int],
        foreground: Sequence[Path] | None = None,
        seed: int = 0,
    ) -> None:
        self.samples, self.settings, self.textures = list(samples), settings, list(textures)
        self.grid, self.masks, self.seed = tuple(grid), foreground, seed

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def randomly_augmented(self) -> bool:
        """Whether an image differs from epoch to epoch."""
        return self.settings.randomly_augmented

    def image(self, epoch: int, index: int) -> tuple[Tensor, np.random.Generator]:
        """The image (3, H, W) of a key and the generator for all that follows."""
        rng = np.random.default_rng([self.seed, epoch, index])
        return self.settings.transform(read_rgb(self.samples[index].path), rng), rng

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, rng = self.image(epoch, index)
        size = tuple(image.shape[1:])
        texture = read_rgb(self.textures[rng.integers(len(self.textures))])
        texture = self.settings.transform_texture(texture, rng)
        foreground = None
        if self.masks is not None:
            foreground = self.settings.transform_foreground(read_rgb(self.masks[index]))
        try:
            mask, mask_s = synthesis.las_mask(rng, size, self.grid, foreground)
        except InputError as error:
            raise InputError(f"{self.masks[index] if self.masks else self.samples[index].path}: {error}") from error
        beta = synthesis.draw_beta(rng, self.settings.mean, self.settings.std)
        return {
            "image": image,
            "aug": synthesis.blend(image, texture, torch.from_numpy(mask).float(), beta),
            "mask_s": torch.from_numpy(mask_s),
            "mask_gt": torch.zeros(1, *size, dtype=torch.int8),
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

    def __init__(self, samples: Sequence[Sample], settings: ImageSettings) -> None:
        self.samples, self.settings = list(samples), settings

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        size = self.settings.imagesize
        if sample.mask is not None:
            mask = self.settings.transform_mask(read_mask(sample.mask))
        else:
            mask = np.full((size, size), -1 if sample.is_anomaly else 0, np.int8)
        return {
            "image": self.settings.transform(read_rgb(sample.path)),
            "mask_gt": torch.from_numpy(mask)[None],
            "is_anomaly": sample.is_anomaly,
            "image_path": str(sample.path),
        }


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
