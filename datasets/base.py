"""What all data sets share: samples, preprocessing, the training and the test set, loaders."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from tqdm import tqdm

from datasets.cache import ImageCache
from datasets.defects import Defects
from datasets.files import DEFAULT, ReadOptions, closed_folders, list_images, read_rgb, what_else
from datasets.geometry import cut_mirrored
from datasets.masks import LOST, examine, find_annotations, read_mask_of
from datasets.settings import ImageSettings, normalise
from datasets.textures import Textures
from metrics import NO_PIXEL_LEFT
from synthesis import las
from utils import LOGGER, InputError, WorkError, cores

GOOD = "good"
GOOD_NAMES = frozenset({GOOD, "ok", "normal"})  # in any letter case
TEST_SHARE = 0.2
LEAST_FOREGROUND = 0.02  # of a tile


def is_good(name: str) -> bool:
    """Whether a folder or label of this name means images without a defect."""
    return name.strip().casefold() in GOOD_NAMES


@dataclass(frozen=True)
class Sample:
    """One image: its file, kind (`good` or the defect's name) and mask (None: good, or not known).

    mask: a file, or a folder of several masks whose union is meant.
    box: (top, left, h, w) of the tile of it that is meant; None is all of it.
    """

    path: Path
    kind: str = GOOD
    mask: Path | None = None
    box: tuple[int, int, int, int] | None = None

    @property
    def is_anomaly(self) -> bool:
        """Whether the image shows a defect."""
        return self.kind != GOOD

    @property
    def key(self) -> Path | tuple[Path, tuple[int, int, int, int]]:
        """Tells it from others in a cache."""
        return self.path if self.box is None else (self.path, self.box)

    def read(self, reading: ReadOptions = DEFAULT) -> Image.Image:
        """Its pixels, RGB.

        Raises:
            WorkError: they cannot be read.
        """
        if self.box is None:
            return read_rgb(self.path, reading)
        return Image.fromarray(cut_mirrored(_last_picture(self.path, reading), self.box))


@functools.lru_cache(maxsize=2)  # a picture and its foreground mask
def _last_picture(path: Path, reading: ReadOptions) -> NDArray[np.uint8]:
    """Tiles are mostly asked for one after another, each of which would decode the whole picture."""
    return np.asarray(read_rgb(path, reading))


@functools.lru_cache(maxsize=1)
def _last_foreground(path: Path, picture: Path, reading: ReadOptions) -> NDArray[np.uint8]:
    return read_mask_of(path, picture, scaled=True, reading=reading)


class Layout:
    """Knows where a data set keeps its images. One instance a data path.

    Args:
        root: data path, an existing folder.
        seed: of the choice of good test images, where a layout has to make one.
        test_share: how many of the good images that choice takes, as a share.
    """

    # classes resized larger before the crop, by name
    larger: frozenset[str] = frozenset()
    expected = ""  # what a class is, for a message

    def __init__(self, root: str | Path, seed: int = 0, test_share: float = TEST_SHARE) -> None:
        self.root, self.seed, self.test_share = Path(root), seed, test_share
        if not self.root.is_dir():
            is_file = "is a file, not a folder" if self.root.exists() else "no such folder"
            raise InputError(f"DATA_PATH {self.root}: {is_file}; give the folder that holds a folder a class")

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
        if self.is_class_itself():
            whole = self.root.absolute()
            raise InputError(
                f"DATA_PATH {self.root} is the folder of one class: give {whole.parent}, with -d {whole.name}"
            )
        if not known:
            raise InputError(
                f"DATA_PATH {self.root}: no class folder found in it; {self.expected}{what_else(self.root)}"
            )
        for name in wished:
            if name not in known:
                raise InputError(f"unknown class {name!r}; {self.root} has {', '.join(known)}")
        empty = [] if wished else self.empty()
        if empty:
            raise InputError(
                f"class {empty[0]}: {self.root / empty[0]} holds no file at any depth; put images there, take the "
                "folder away, or name the classes wished with -d"
            )
        closed = closed_folders(self.root)
        if closed:
            LOGGER.warning("%s may not be entered and is left out", ", ".join(map(str, closed)))
        others = [] if wished else self.not_classes()
        if others:
            LOGGER.warning("%s holds pictures, but is no class: %s", self.root / others[0], self.expected)
        return list(dict.fromkeys(wished)) or known

    def is_class_itself(self) -> bool:
        """Whether the data path is what should be a class's folder inside it."""
        return False

    def empty(self) -> list[str]:
        """Names of folders that could be classes, but hold no file at any depth."""
        return []

    def not_classes(self) -> list[str]:
        """Names of folders that hold pictures, but are not classes of this layout."""
        return []

    def unused_masks(self, name: str) -> list[Path]:
        """Mask files of a class that belong to none of its images."""
        return []

    def notes(self, name: str) -> list[str]:
        """What to say of the files of a class that are there, but not used, or not as one may expect; [] of none."""
        found = self.annotations(name)
        if not found:
            return []
        suffixes = ", ".join(sorted({path.suffix.lower() for path in found}))
        return [
            f"{len(found)} annotation files ({suffixes}) are not read, the first is {found[0]}: a mask has to be a "
            "picture, 0 where it is normal"
        ]

    def annotations(self, name: str) -> list[Path]:
        """Files of a class with labels that are no masks; `notes` names them."""
        pictures = [sample.path for sample in self._listed(name)]
        places = [self.root / name, self.root / "ground_truth" / name]
        return find_annotations([place for place in places if place.is_dir()], pictures)

    def _listed(self, name: str) -> list[Sample]:
        """The images of a class that can be listed: it may have a training or a test alone."""
        samples = []
        for part in (self.train, self.test):
            with contextlib.suppress(InputError):
                samples += part(name)
        return samples

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


def plan_images(
    cache: ImageCache,
    settings: ImageSettings,
    train: Sequence[Sample],
    foreground: bool,
    test: Sequence[Sample],
    sizes: Mapping[Path, tuple[int, int]],
) -> str:
    """Reserve room for all images that a class's training and testing read, in order of importance.

    Args:
        foreground: whether there will be a foreground mask of each training image.
        sizes: (width, height) of each image.

    Returns:
        What is kept, as a line for the log.
    """
    whole = settings.randomly_augmented  # what is drawn anew each epoch comes before the crop
    kept = sum(
        cache.plan(("train", s.key), (*(settings.resized_size(*_seen(s, sizes)) if whole else settings.size), 3))
        for s in train
    )
    parts = [f"{kept} of {len(train)} training images"] if train else []
    for sample in train if foreground else ():
        cache.plan(("foreground", sample.key), settings.size)
    if test:
        fits = [
            cache.plan(("test", s.key), (*settings.size, 3))
            and (s.mask is None or s.box is not None or cache.plan(("mask", s.mask), settings.size))
            for s in test
        ]
        parts.append(f"{sum(fits)} of {len(test)} test images")
    return ", ".join(parts)


def _seen(sample: Sample, sizes: Mapping[Path, tuple[int, int]]) -> tuple[int, int]:
    """(width, height) of what is read of a sample."""
    return sizes[sample.path] if sample.box is None else sample.box[:1:-1]


def plan_textures(cache: ImageCache, settings: ImageSettings, textures: Textures) -> int:
    """Reserve room for the first textures, as many as there is room for; how many."""
    for i in range(len(textures)):
        key = ("texture", settings.resize, textures.name(i))
        if not cache.plan(key, (*settings.resized_size(*textures.size(i)), 3)):
            return i
    return len(textures)


def prepare_foreground(path: Path, sample: Sample, settings: ImageSettings) -> NDArray[np.bool_]:
    """The foreground mask of a training image, or of its tile, as the model sees the image: (H, W).

    Raises:
        WorkError: it cannot be read; the message names it.
    """
    if sample.box is None:
        mask = read_mask_of(path, sample.path, scaled=True, reading=settings.reading)
    else:
        mask = cut_mirrored(_last_foreground(path, sample.path, settings.reading), sample.box)
    return settings.transform_foreground(Image.fromarray(mask * np.uint8(255)))


class TrainDataset(Dataset):
    """Good images with a synthetic local anomaly each.

    An item's key is (epoch, index), or (epoch, index, whether its image is wanted): every draw comes from `seed`,
    epoch and index alone, so that an image is the same whichever worker makes it, in a run that was resumed as in one
    that was not.

    Args:
        samples: the good images.
        settings: preprocessing.
        textures: where textures come from.
        grid: (H', W') of the model.
        foreground: mask file of each sample; None, of all or of one, allows anomalies everywhere.
        seed: of all draws.
        cache: keeps what was read, see `plan_images`; nothing is kept by default.
        defects: known defects to draw in place of textures.
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
        sample, settings = self.samples[index], self.settings
        prepare = settings.resized if settings.randomly_augmented else settings.cropped
        return self.cache.get(("train", sample.key), lambda: np.asarray(prepare(sample.read(settings.reading))))

    def image(self, epoch: int, index: int) -> tuple[Tensor, np.random.Generator]:
        """The image (3, H, W) of a key and the generator for all that follows."""
        rng = np.random.default_rng([self.seed, epoch, index])
        pixels = self._pixels(index)
        if not self.settings.randomly_augmented:
            return normalise(pixels), rng
        return self.settings.finish(self.settings.augmented(Image.fromarray(pixels), rng)), rng

    def plain_image(self, index: int) -> Tensor:
        """The image (3, H, W) as a test would show it."""
        if not self.settings.randomly_augmented:
            return normalise(self._pixels(index))
        return normalise(np.asarray(self.settings.cropped(self.samples[index].read(self.settings.reading))))

    def foreground_of(self, index: int) -> NDArray[np.bool_] | None:
        """Where anomalies may lie on an image, (H, W); None is everywhere."""
        if self.masks is None or self.masks[index] is None:
            return None
        sample, path = self.samples[index], self.masks[index]
        made = self.cache.get(
            ("foreground", sample.key), lambda: prepare_foreground(path, sample, self.settings).view(np.uint8)
        ).view(np.bool_)
        # a tile beside the part is background alone, where something may lie as well
        return made if sample.box is None or made.mean() >= LEAST_FOREGROUND else None

    def texture_pixels(self, index: int) -> NDArray[np.uint8]:
        """A texture before the crop, kept where there is room."""
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
        """What is blended in, where (H, W) and (H', W'), and how transparently (β)."""
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
        # who says which images are wanted trains, and has no use for the ground truth of good ones
        left_out = ({"mask_gt"} if wanted[0] else {"mask_gt", "image"}) if wanted else set()
        return {name: value for name, value in item.items() if name not in left_out}


class CentreDataset(Dataset):
    """The images of a training set without their anomalies, for the centre of the features."""

    def __init__(self, train: TrainDataset) -> None:
        self.train = train

    def __len__(self) -> int:
        return len(self.train)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {"image": self.train.image(*key)[0], "index": key[1]}


class TestDataset(Dataset):
    """Images to be scored, with their ground truth.

    The mask of a defective image is −1 everywhere where it has none, and −2 where resizing and crop leave no pixel of
    its defect.
    """

    __test__ = False  # pytest takes a name that begins so for a test

    def __init__(self, samples: Sequence[Sample], settings: ImageSettings, cache: ImageCache | None = None) -> None:
        self.samples, self.settings, self.cache = list(samples), settings, cache or ImageCache(0)

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int) -> list[str]:
        """Read an image and its mask and keep them, where there is room; what is strange about the mask."""
        self._pixels(index)
        remarks: list[str] = []
        self._mask(index, remarks)
        return remarks

    def _pixels(self, index: int) -> NDArray[np.uint8]:
        sample = self.samples[index]
        return self.cache.get(
            ("test", sample.key), lambda: np.asarray(self.settings.cropped(sample.read(self.settings.reading)))
        )

    def _image(self, index: int) -> Tensor:
        return normalise(self._pixels(index))

    def _mask(self, index: int, remarks: list[str] | None = None) -> NDArray[np.int8]:
        """The truth (H, W); `remarks` gets what is strange about a mask that is read for it."""
        sample = self.samples[index]
        if sample.mask is None:
            return np.full(self.settings.size, -1 if sample.is_anomaly else 0, np.int8)

        def make() -> NDArray[np.uint8]:
            reading = self.settings.reading
            if remarks is None:
                marked = read_mask_of(sample.mask, sample.path, reading=reading)
            else:
                marked, strange = examine(sample.mask, sample.path, reading)
                remarks.extend(strange)
            shown = self.settings.transform_mask(marked).view(np.uint8)
            if remarks is not None and marked.any() and not shown.any():
                remarks.append(LOST)
            return shown

        made = self.cache.get(("mask", sample.mask), make).view(np.int8)
        if sample.is_anomaly and not made.any():
            return np.full(self.settings.size, NO_PIXEL_LEFT, np.int8)
        return made.copy()

    def truth(self, index: int) -> tuple[NDArray[np.int8], bool, str]:
        """(H, W) mask, whether the image shows a defect, and its path; the image is not read."""
        sample = self.samples[index]
        return self._mask(index), sample.is_anomaly, str(sample.path)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self._image(index),
            "mask_gt": torch.from_numpy(self._mask(index))[None],
            "is_anomaly": self.samples[index].is_anomaly,
            "image_path": str(self.samples[index].path),
            "index": index,
        }


class TextureReading:
    """The first `count` textures of a training set, to be read before they are drawn."""

    def __init__(self, train: TrainDataset, count: int) -> None:
        self.train, self.count = train, count

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> None:
        """Read a texture and keep it."""
        self.train.texture_pixels(index)


Readable = TrainDataset | TestDataset | TextureReading


class Reading(Dataset):
    """Each image of several data sets read once: an item is the error's text, "" where there was none, and remarks."""

    def __init__(self, datasets: Sequence[Readable]) -> None:
        self.items = [(dataset, i) for dataset in datasets for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, str, str]:
        dataset, i = self.items[index]
        try:
            remarks = dataset.load(i)
        except WorkError as error:
            return index, str(error), ""
        return index, "", " ".join(remarks or ())


def read_all(
    datasets: Sequence[Readable], num_workers: int, name: str, remarks: dict[int, list[str]] | None = None
) -> dict[int, str]:
    """Read every image once, so that a bad one is found before the work begins, and keep what there is room for.

    Args:
        remarks: gets what is strange about masks, by index as the errors.

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
        for indices, errors, strange in loader:
            bad |= {int(i): error for i, error in zip(indices, errors, strict=True) if error}
            if remarks is not None:
                remarks |= {int(i): text.split() for i, text in zip(indices, strange, strict=True) if text}
            bar.update(len(indices))
    return bad


class EpochSampler(Sampler):
    """Keys (epoch, index) of one epoch, shuffled by seed and epoch.

    Args:
        size: of the data set.
        seed: of the shuffle.
        count: how many of them; all by default.
        shuffle: else in order.

    Attributes:
        known: tells images whose features are known; with it, keys are (epoch, index, whether the image is wanted).
    """

    known: Callable[[int], bool] | None = None

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
        keys = [(self.epoch, int(i)) for i in order[: self.count]]
        known = self.known
        return iter(keys if known is None else [(epoch, i, not known(i)) for epoch, i in keys])


def _quiet_worker(_: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism


def _collate(items: list[Any]) -> Any:
    """A batch; what some items lack is of the others alone."""
    if not isinstance(items[0], dict):
        return default_collate(items)
    names = dict.fromkeys(name for item in items for name in item)
    return {name: default_collate([item[name] for item in items if name in item]) for name in names}


class Loader(DataLoader):
    """A loader whose workers can be ended before it is."""

    def end_workers(self) -> None:
        """End the workers that wait for another reading; it would start new ones."""
        self._iterator = None


def end_workers(loader: Any) -> None:
    """End the waiting workers of a loader, where it has any."""
    if isinstance(loader, Loader):
        loader.end_workers()


def make_loader(
    dataset: Dataset,
    batch_size: int,
    num_workers: int,
    sampler: Sampler | None = None,
    keep_workers: bool = True,
    pin_memory: bool = False,
) -> Loader:
    """A loader whose workers, never more than the machine has cores, live on between epochs with `keep_workers`."""
    workers = min(num_workers, cores(), -(-len(dataset) // batch_size))
    return Loader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=keep_workers and workers > 0,
        worker_init_fn=_quiet_worker,
        collate_fn=_collate,
        pin_memory=pin_memory,
    )
