"""Data sets. `DATASETS` maps the data set names of the command line to the class that knows their layout.

The public names below are imported on first use, because `datasets.files` is also used where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets.base import Layout, Sample
    from datasets.evaluation_set import TestDataset
    from datasets.folder import FolderLayout
    from datasets.loaders import EpochSampler, make_loader
    from datasets.mvtec import MVTecLayout
    from datasets.settings import ImageSettings
    from datasets.textures import open_textures
    from datasets.training_set import TrainDataset
    from datasets.visa import VisALayout

    DATASETS: dict[str, type[Layout]]

_PLACES = {
    "EpochSampler": "loaders",
    "FolderLayout": "folder",
    "ImageSettings": "settings",
    "Layout": "base",
    "MVTecLayout": "mvtec",
    "Sample": "base",
    "TestDataset": "evaluation_set",
    "TrainDataset": "training_set",
    "VisALayout": "visa",
    "make_loader": "loaders",
    "open_textures": "textures",
}
_LAYOUTS = {
    "mvtec": "MVTecLayout",
    "visa": "VisALayout",
    "mpdd": "MVTecLayout",
    "wfdd": "MVTecLayout",
    "custom": "FolderLayout",
    "folder": "FolderLayout",
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


def __getattr__(name: str) -> Any:
    if name == "DATASETS":
        value: Any = {key: __getattr__(layout) for key, layout in _LAYOUTS.items()}
    elif name in _PLACES:
        value = getattr(import_module(f"datasets.{_PLACES[name]}"), name)
    else:
        raise AttributeError(f"module 'datasets' has no attribute {name!r}")
    globals()[name] = value
    return value
