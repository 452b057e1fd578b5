"""The memory of patches against its obvious form."""

import numpy as np
import pytest
import torch

from inference import memory as module
from inference.memory import ALPHA, BETA, GAMMA, PatchMemory, farthest


def filled(seed=0, count=60, width=5, typical=40):
    generator = torch.Generator().manual_seed(seed)
    memory = PatchMemory()
    owners = torch.randint(0, 4, (count,), generator=generator)
    memory.fill(torch.randn(count, width, generator=generator), owners, torch.tensor([0, 0, 1, 2, 3]), typical)
    return memory, generator


@pytest.mark.parametrize("block", [7, 4096])
def test_the_nearest_patch_of_other_pictures(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    memory, generator = filled()
    features, own = torch.randn(30, 5, generator=generator), torch.randint(0, 4, (30,), generator=generator)
    distances = torch.cdist(features, memory.patches)
    allowed = distances.masked_fill(memory.owners == own[:, None], torch.inf)
    for found, expected in ((memory.nearest(features), distances), (memory.nearest(features, own), allowed)):
        assert torch.equal(found[0], expected[:, :40].argmin(1))
        torch.testing.assert_close(found[1], expected.amin(1))


def test_relative_features_are_residuals_their_squares_and_the_distance():
    memory, generator = filled()
    features, items = torch.randn(10, 5, generator=generator), torch.tensor([0, 1] * 5)  # two tiles of picture 0
    relative = memory(features, items)
    unit, mean, deviation = memory.statistics[:3]
    typical = memory.patches[:40][memory.owners[:40] != 0]
    for row, feature in zip(relative, features, strict=True):
        residual = (feature - typical[(typical - feature).norm(dim=1).argmin()]) / unit
        distance = (memory.patches[memory.owners != 0] - feature).norm(dim=1).min()
        d = (distance - mean) / deviation
        torch.testing.assert_close(row, torch.cat([residual * ALPHA / 5**0.5, residual**2 * BETA, d[None] * GAMMA]))


def test_statistics_are_those_of_typical_patches():
    memory, _ = filled()
    distances = torch.cdist(memory.patches[:40], memory.patches)
    distances = distances.masked_fill(memory.owners[:40, None] == memory.owners, torch.inf)
    residuals = memory.patches[:40] - memory.patches[distances[:, :40].argmin(1)]
    least = distances.amin(1)
    torch.testing.assert_close(
        memory.statistics[:3], torch.stack([residuals.pow(2).mean().sqrt(), least.mean(), least.std()])
    )


def test_rare_patches_are_the_farthest_one_after_another(monkeypatch):
    monkeypatch.setattr(module, "PROJECTED", 5)
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.eye(*shape))  # no projection
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 5)).astype("float32"))
    kept = [3, 7]
    chosen = farthest(points, torch.tensor(kept), 10, 0).tolist()
    for index in chosen:
        distances = torch.cdist(points, points[kept]).amin(1)
        assert float(distances[index]) == pytest.approx(float(distances.max()), abs=1e-5)
        kept.append(index)
    assert len(set(kept)) == 12


def test_equal_patches_are_chosen_once():
    points = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    chosen = farthest(points, torch.tensor([0]), 10, 0).tolist()
    assert sorted(index % 4 for index in chosen) == [1, 2, 3]


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
