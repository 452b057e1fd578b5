"""Data sets: `DATASETS` maps a name of the command line to the class that knows its folders."""

from datasets.base import (
    EpochSampler,
    ImageSettings,
    Layout,
    Sample,
    TestDataset,
    TrainDataset,
    make_loader,
)
from datasets.mvtec import MVTecLayout
from datasets.visa import VisALayout

DATASETS: dict[str, type[Layout]] = {
    "mvtec": MVTecLayout,
    "visa": VisALayout,
    "mpdd": MVTecLayout,
    "wfdd": MVTecLayout,
    "custom": MVTecLayout,
}

__all__ = [
    "DATASETS",
    "EpochSampler",
    "ImageSettings",
    "Layout",
    "Sample",
    "TestDataset",
    "TrainDataset",
    "make_loader",
]
