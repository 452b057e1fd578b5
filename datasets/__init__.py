"""Data sets: `DATASETS` maps a name of the command line to the class that knows its folders.

What is named here is imported when it is first asked for: `datasets.files` is also of use where there is no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets.base import EpochSampler, Layout, Sample, TestDataset, TrainDataset, make_loader
    from datasets.folder import FolderLayout
    from datasets.mvtec import MVTecLayout
    from datasets.settings import ImageSettings
    from datasets.textures import open_textures
    from datasets.visa import VisALayout

    DATASETS: dict[str, type[Layout]]

_PLACES = {
    "EpochSampler": "base",
    "FolderLayout": "folder",
    "ImageSettings": "settings",
    "Layout": "base",
    "MVTecLayout": "mvtec",
    "Sample": "base",
    "TestDataset": "base",
    "TrainDataset": "base",
    "VisALayout": "visa",
    "make_loader": "base",
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
        found: Any = {key: __getattr__(layout) for key, layout in _LAYOUTS.items()}
    elif name in _PLACES:
        found = getattr(import_module(f"datasets.{_PLACES[name]}"), name)
    else:
        raise AttributeError(f"module 'datasets' has no attribute {name!r}")
    globals()[name] = found
    return found
