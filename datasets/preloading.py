"""Reading every image once before the work begins: bad files are found, and what there is memory for is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.data import Dataset

from datasets.base import Sample
from datasets.cache import ImageCache
from datasets.evaluation_set import TestDataset
from datasets.loaders import make_loader
from datasets.settings import ImageSettings
from datasets.textures import Textures
from datasets.training_set import TrainDataset
from utils import WorkError, progress_bar

BATCH = 4  # images that a worker reads before it reports


def plan_images(
    cache: ImageCache,
    settings: ImageSettings,
    train: Sequence[Sample],
    foreground: bool,
    test: Sequence[Sample],
    sizes: Mapping[Path, tuple[int, int]],
) -> str:
    """Reserve room for all images that the training and the test of a class read, in order of importance.

    Args:
        cache: that the room is reserved in.
        settings: preprocessing.
        train, test: the samples.
        foreground: whether each training image will have a foreground mask.
        sizes: (width, height) of each image.

    Returns:
        What is kept, as a line for the log.
    """
    before_crop = settings.randomly_augmented  # an image that is augmented anew each epoch is kept before the crop
    kept = sum(
        cache.plan(
            ("train", sample.key),
            (*(settings.resized_size(*_read_size(sample, sizes)) if before_crop else settings.size), 3),
        )
        for sample in train
    )
    parts = [f"{kept} of {len(train)} training images"] if train else []
    for sample in train if foreground else ():
        cache.plan(("foreground", sample.key), settings.size)
    if test:
        fits = [
            cache.plan(("test", sample.key), (*settings.size, 3))
            and (sample.mask is None or sample.box is not None or cache.plan(("mask", sample.mask), settings.size))
            for sample in test
        ]
        parts.append(f"{sum(fits)} of {len(test)} test images")
    return ", ".join(parts)


def _read_size(sample: Sample, sizes: Mapping[Path, tuple[int, int]]) -> tuple[int, int]:
    """(width, height) of what is read for a sample: the image or its tile."""
    return sizes[sample.path] if sample.box is None else sample.box[:1:-1]


def plan_textures(cache: ImageCache, settings: ImageSettings, textures: Textures) -> int:
    """Reserve room for the first textures, as many as fit; returns how many."""
    for i in range(len(textures)):
        key = ("texture", settings.resize, textures.name(i))
        if not cache.plan(key, (*settings.resized_size(*textures.size(i)), 3)):
            return i
    return len(textures)


class TextureReading:
    """The first `count` textures of a training set, which are read before they are drawn."""

    def __init__(self, train: TrainDataset, count: int) -> None:
        self.train, self.count = train, count

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> None:
        """Read a texture and keep it."""
        self.train.texture_pixels(index)


Readable = TrainDataset | TestDataset | TextureReading


class _Reading(Dataset):
    """Each image of several data sets, read once: an item is its index, the error or "", and remarks on its mask."""

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
        datasets: what is read.
        num_workers: of the loader.
        name: of the class, for the progress bar.
        remarks: receives what is suspicious about masks, by the same index as the errors.

    Returns:
        The errors of the images that cannot be read, by index over the concatenated data sets.
    """
    reading = _Reading(datasets)
    loader = make_loader(reading, BATCH, num_workers, keep_workers=False)
    unreadable = {}
    with progress_bar(len(reading), "img", f"{name}: reading") as bar:
        for indices, errors, suspicious in loader:
            unreadable |= {int(i): error for i, error in zip(indices, errors, strict=True) if error}
            if remarks is not None:
                remarks |= {int(i): text.split() for i, text in zip(indices, suspicious, strict=True) if text}
            bar.update(len(indices))
    return unreadable
