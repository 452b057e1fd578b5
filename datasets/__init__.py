"""Data sets: `DATASETS` maps a name of the command line to the class that knows its folders."""

from datasets.base import (
    EpochSampler,
    Layout,
    Sample,
    TestDataset,
    TrainDataset,
    make_loader,
)
from datasets.folder import FolderLayout
from datasets.mvtec import MVTecLayout
from datasets.settings import ImageSettings
from datasets.textures import open_textures
from datasets.visa import VisALayout

DATASETS: dict[str, type[Layout]] = {
    "mvtec": MVTecLayout,
    "visa": VisALayout,
    "mpdd": MVTecLayout,
    "wfdd": MVTecLayout,
    "custom": FolderLayout,
    "folder": FolderLayout,
}

__all__ = [
    "DATASETS",
    "EpochSampler",
    "FolderLayout",
    "ImageSettings",
    "Layout",
    "MVTecLayout",
    "Sample",
    "TestDataset",
    "TrainDataset",
    "VisALayout",
    "make_loader",
    "open_textures",
]
