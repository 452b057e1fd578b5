"""The memory of patches against its obvious form."""

import pytest
import torch

from inference import memory as module
from inference.memory import ALPHA, BETA, PatchMemory


def filled(seed=0, count=60, width=5):
    generator = torch.Generator().manual_seed(seed)
    memory = PatchMemory()
    owners = torch.randint(0, 4, (count,), generator=generator)
    memory.fill(torch.randn(count, width, generator=generator), owners, torch.tensor([0, 0, 1, 2, 3]))
    return memory, generator


@pytest.mark.parametrize("block", [7, 4096])
def test_the_nearest_patch_of_other_pictures(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    memory, generator = filled()
    features, own = torch.randn(30, 5, generator=generator), torch.randint(0, 4, (30,), generator=generator)
    distances = torch.cdist(features, memory.patches)
    assert torch.equal(memory.nearest(features), distances.argmin(1))
    allowed = distances.masked_fill(memory.owners == own[:, None], torch.inf)
    assert torch.equal(memory.nearest(features, own), allowed.argmin(1))


def test_relative_features_are_residuals_and_their_squares():
    memory, generator = filled()
    features, items = torch.randn(10, 5, generator=generator), torch.tensor([0, 1] * 5)  # two tiles of picture 0
    relative = memory(features, items)
    for row, feature in zip(relative, features, strict=True):
        others = memory.patches[memory.owners != 0]
        nearest = others[(others - feature).norm(dim=1).argmin()]
        residual = (feature - nearest) / memory.statistics[0]
        expected = torch.cat([residual * ALPHA / 5**0.5, residual**2 * BETA])
        torch.testing.assert_close(row, expected)


def test_statistics_are_those_of_good_patches():
    memory, _ = filled()
    distances = torch.cdist(memory.patches, memory.patches)
    distances = distances.masked_fill(memory.owners[:, None] == memory.owners, torch.inf)
    residuals = memory.patches - memory.patches[distances.argmin(1)]
    unit = residuals.pow(2).mean().sqrt()
    lengths = residuals.norm(dim=1) / unit
    torch.testing.assert_close(memory.statistics[:3], torch.stack([unit, lengths.mean(), lengths.std()]))


def test_the_score_rises_with_the_distance_and_with_the_logit():
    memory, _ = filled()
    memory.calibrate(torch.tensor([-3.0, -2.0, -1.0]))
    direction = torch.full((1, 5), 1.0)
    far = torch.cat([memory(memory.patches[:1] + step * direction) for step in (0.0, 5.0, 20.0, 1e4)])
    scores = memory.combine(torch.zeros(4, 1), far)[:, 0]
    assert (scores.diff() > 0).all()
    by_logit = memory.combine(torch.linspace(-50, 50, 9)[:, None], far[1:2].repeat(9, 1))[:, 0]
    assert (by_logit.diff() > 0).all()
    assert (torch.cat([scores, by_logit]) > 0).all()
    assert (torch.cat([scores, by_logit]) < 1).all()


def test_restored_it_is_the_same_to_the_bit():
    memory, generator = filled()
    memory.calibrate(torch.randn(20, generator=generator))
    again = PatchMemory()
    again.restore(memory.plain())
    features = torch.randn(10, 5, generator=generator)
    assert torch.equal(again(features), memory(features))
    assert torch.equal(
        again.combine(features[:, :1], again(features)), memory.combine(features[:, :1], memory(features))
    )
