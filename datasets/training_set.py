"""The training set: good images, each with a synthetic local anomaly."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.base import Sample
from datasets.cache import ImageCache
from datasets.defects import Defects
from datasets.files import ReadOptions
from datasets.geometry import cut_mirrored
from datasets.masks import read_mask_of
from datasets.settings import ImageSettings, normalise
from datasets.textures import Textures
from synthesis import las
from utils import InputError

LEAST_FOREGROUND = 0.02  # of a tile


def prepare_foreground(path: Path, sample: Sample, settings: ImageSettings) -> NDArray[np.bool_]:
    """The foreground mask of a training image, or of its tile, as the model sees the image: (H, W).

    Args:
        path: of the mask.
        sample: the image, or the tile of one.
        settings: preprocessing of the image.

    Raises:
        WorkError: it cannot be read.
    """
    if sample.box is None:
        mask = read_mask_of(path, sample.path, scaled=True, reading=settings.reading)
    else:
        mask = cut_mirrored(_whole_foreground(path, sample.path, settings.reading), sample.box)
    return settings.transform_foreground(Image.fromarray(mask * np.uint8(255)))


@functools.lru_cache(maxsize=1)
def _whole_foreground(path: Path, image: Path, reading: ReadOptions) -> NDArray[np.uint8]:
    """Kept because tiles are mostly read one after another, and each would decode the whole mask again."""
    return read_mask_of(path, image, scaled=True, reading=reading)


class TrainDataset(Dataset):
    """Good images with a synthetic local anomaly each.

    The key of an item is (epoch, index), or (epoch, index, whether its image is wanted). Every random draw depends on
    `seed`, epoch and index alone, so that an image is the same whichever worker makes it, and in a resumed run too.

    Args:
        samples: the good images.
        settings: preprocessing.
        textures: where textures come from.
        grid: (H', W') of the model's feature map.
        foreground: the mask file of each sample; None, for all or for one, allows anomalies everywhere.
        seed: of all random draws.
        cache: keeps what was read, see `datasets.preloading`; by default nothing is kept.
        defects: known defects to draw in place of textures.
        roi: (H, W), the inspected pixels of what the model sees, outside of which there are no anomalies.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: ImageSettings,
        textures: Textures,
        grid: tuple[int, int],
        foreground: Sequence[Path | None] | None = None,
        seed: int = 0,
        cache: ImageCache | None = None,
        defects: Defects | None = None,
        roi: NDArray[np.bool_] | None = None,
    ) -> None:
        self.samples, self.settings, self.textures = list(samples), settings, textures
        self.grid, self.masks, self.seed = tuple(grid), foreground, seed
        self.cache, self.defects, self.roi = cache or ImageCache(0), defects, roi

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def randomly_augmented(self) -> bool:
        """Whether an image differs from epoch to epoch."""
        return self.settings.randomly_augmented

    def load(self, index: int) -> None:
        """Read an image, and keep it if there is room."""
        self._pixels(index)

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        sample, settings = self.samples[index], self.settings
        prepare = settings.resized if settings.randomly_augmented else settings.cropped
        return self.cache.get(("train", sample.key), lambda: np.asarray(prepare(sample.read(settings.reading))))

    def image(self, epoch: int, index: int) -> tuple[Tensor, np.random.Generator]:
        """The image (3, H, W) of a key, and the generator for all further draws of this item."""
        rng = np.random.default_rng([self.seed, epoch, index])
        pixels = self._pixels(index)
        if not self.settings.randomly_augmented:
            return normalise(pixels), rng
        return self.settings.finish(self.settings.augmented(Image.fromarray(pixels), rng)), rng

    def plain_image(self, index: int) -> Tensor:
        """The image (3, H, W) without random augmentation, as in a test set."""
        if not self.settings.randomly_augmented:
            return normalise(self._pixels(index))
        return normalise(np.asarray(self.settings.cropped(self.samples[index].read(self.settings.reading))))

    def foreground_of(self, index: int) -> NDArray[np.bool_] | None:
        """Where anomalies may lie on an image, (H, W); None means everywhere.

        That is the foreground in the region of interest, or the region alone if there is no foreground in it.
        """
        foreground = self._object_on(index)
        if self.roi is None or foreground is None:
            return foreground if self.roi is None else self.roi
        both = foreground & self.roi
        return both if both.any() else self.roi

    def _object_on(self, index: int) -> NDArray[np.bool_] | None:
        if self.masks is None or self.masks[index] is None:
            return None
        sample, path = self.samples[index], self.masks[index]
        mask = self.cache.get(
            ("foreground", sample.key), lambda: prepare_foreground(path, sample, self.settings).view(np.uint8)
        ).view(np.bool_)
        # a tile beside the part shows background only, which may have anomalies as well
        return mask if sample.box is None or mask.mean() >= LEAST_FOREGROUND else None

    def texture_pixels(self, index: int) -> NDArray[np.uint8]:
        """A texture before the crop, kept if there is room."""
        return self.cache.get(
            ("texture", self.settings.resize, self.textures.name(index)),
            lambda: np.asarray(self.settings.resized(self.textures.read(index))),
        )

    def _texture(self, rng: np.random.Generator) -> Tensor:
        pixels = self.texture_pixels(int(rng.integers(len(self.textures))))
        return self.settings.finish(self.settings.augmented_texture(Image.fromarray(pixels), rng))

    def anomaly(
        self, rng: np.random.Generator, index: int
    ) -> tuple[Tensor, NDArray[np.bool_], NDArray[np.float32], float]:
        """Draw an anomaly for an image.

        Returns:
            The texture (3, H, W), its mask (H, W), the mask on the grid (H', W'), and the transparency β.
        """
        foreground = self.foreground_of(index)
        texture = mask = None
        if self.defects is not None and rng.random() < self.defects.share:
            texture, mask = self.defects.draw(rng, foreground)
        if texture is None:
            texture = self._texture(rng)
        try:
            if mask is None:
                mask, mask_s = las.las_mask(rng, self.settings.size, self.grid, foreground)
            else:
                mask_s = las.pool_mask(mask, self.grid)
        except InputError as error:
            raise InputError(f"{self.masks[index] if self.masks else self.samples[index].path}: {error}") from error
        return texture, mask, mask_s, las.draw_beta(rng, self.settings.mean, self.settings.std)

    def __getitem__(self, key: tuple[int, int] | tuple[int, int, bool] | int) -> dict[str, Any]:
        epoch, index, *wanted = key if isinstance(key, tuple) else (0, key)
        image, rng = self.image(epoch, index)
        texture, mask, mask_s, beta = self.anomaly(rng, index)
        item = {
            "image": image,
            "aug": las.blend(image, texture, torch.from_numpy(mask).float(), beta),
            "mask_s": torch.from_numpy(mask_s),
            "mask_gt": torch.zeros(1, *self.settings.size, dtype=torch.int8),
            "is_anomaly": False,
            "image_path": str(self.samples[index].path),
            "index": index,
        }
        # a caller that states which images it wants is training, and does not use the ground truth of good images
        left_out = ({"mask_gt"} if wanted[0] else {"mask_gt", "image"}) if wanted else set()
        return {name: value for name, value in item.items() if name not in left_out}


class CentreDataset(Dataset):
    """The images of a training set without anomalies, from which the centre of the features is computed."""

    def __init__(self, train: TrainDataset) -> None:
        self.train = train

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {"image": self.train.image(*key)[0], "index": key[1]}
