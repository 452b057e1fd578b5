"""Filling the memory of patches from the training set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inference.features import Batch
from inference.memory import farthest
from utils import InputError, evenly_chosen

if TYPE_CHECKING:
    from glass import GLASS

POOL = 60_000  # patches that rare ones are chosen from
MEASURED = 20  # images whose good patches tell the usual logits of D


@torch.no_grad()
def fill_memory(model: GLASS, loader: Iterable[Batch]) -> None:
    """Fill the model's memory with patches: half of them typical, half of them rare; see `inference.memory`.

    Typical ones are drawn at random, about equally many of each image. The draw of an image depends on the seed and the
    image's index alone, so the order of the batches does not matter.

    Args:
        model: with the setting `memory`.
        loader: batches with `image` and `index` of all training images, without augmentation.

    Raises:
        InputError: there are fewer than two images.
    """
    pictures = _pictures_of(loader)
    if len(set(pictures)) < 2:
        raise InputError("--memory compares each training image with the others: it needs at least 2 of them")
    count, seed = model.settings.memory, model.settings.seed
    patches, owners, numbers = draw_patches(model, loader, max(POOL, count))
    typical = torch.arange(len(patches))
    if len(patches) > count:
        shuffled = np.random.default_rng([seed, len(patches)]).permutation(len(patches))
        typical = torch.from_numpy(np.sort(shuffled[: -(-count // 2)]))
    rare = farthest(patches, typical.to(patches.device), count - len(typical), seed)
    chosen = torch.cat([typical, rare.sort().values])
    model.features.memory.fill(patches[chosen.to(patches.device)], owners[chosen], numbers, len(typical))


@torch.no_grad()
def draw_patches(model: GLASS, loader: Iterable[Batch], wanted: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most `wanted` patches of a training set: the patches (M, C), their pictures (M,), those of all items (n,)."""
    pictures, seed = _pictures_of(loader), model.settings.seed
    quota = -(-wanted // len(pictures))
    patches, owners = {}, {}
    for batch in loader:
        features = model.features.embed_alone(batch["image"]).unflatten(0, (len(batch["image"]), -1))  # (B, P, C)
        features = _inspected(model, features, 1)
        for index, rows in zip(batch["index"].tolist(), features, strict=True):
            chosen = np.random.default_rng([seed, index]).permutation(len(rows))[:quota]
            patches[index] = rows[torch.from_numpy(chosen).to(rows.device)]
            owners[index] = torch.full((len(chosen),), pictures[index])
    order = sorted(patches)
    all_patches, all_owners = (torch.cat([part[i] for i in order]) for part in (patches, owners))
    kept = np.sort(np.random.default_rng([seed, len(pictures)]).permutation(len(all_patches))[:wanted])
    rows = torch.from_numpy(kept)
    return all_patches[rows.to(all_patches.device)], all_owners[rows], torch.tensor(pictures)


def _pictures_of(loader: Iterable[Batch]) -> list[int]:
    """The number of the picture that each item of a training set belongs to."""
    dataset: Any = getattr(loader, "dataset", None)
    samples = getattr(getattr(dataset, "train", dataset), "samples", None)
    if samples is None:
        return list(range(len(dataset)))
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(sample.path, len(numbers)) for sample in samples]


def measured_indices(loader: Iterable[Batch]) -> frozenset[int]:
    """The indices of the images that `measure` gets."""
    count = len(getattr(loader, "dataset", ()))
    return frozenset(evenly_chosen(count, min(MEASURED, count)))


def measure(model: GLASS, features: Mapping[int, Tensor]) -> None:
    """Measure D's logits of the relative features of some training images, {index: (P, 2·C)}."""
    head = model.scorer().head
    model.features.memory.calibrate(
        torch.cat([head.logits(_inspected(model, features[index], 0)) for index in sorted(features)])
    )


def _inspected(model: GLASS, features: Tensor, axis: int) -> Tensor:
    """Of features with all patches along an axis, those in the region of interest."""
    inspected = model.features.inspected
    return features if inspected is None else features.index_select(axis, inspected.locations)
