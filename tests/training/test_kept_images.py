"""Images with anomalies that are drawn once: their features are those of the images, and every epoch uses them all."""

import numpy as np
import pytest
import torch
from helpers import cli, make_glass, train_cli
from torch.utils.data import DataLoader, Dataset

from training import kept_images
from training.kept_images import KeptImages, train_step
from utils import InputError, WorkError


class Drawn(Dataset):
    """Five images, the same in each epoch, with anomalies that are drawn anew."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(3, 64, 64, generator=generator)
        return {"image": image, "aug": image + torch.randn(3, 64, 64), "mask_s": torch.eye(8), "index": index}


def kept(model, count=12, changing=False, batch=2):
    torch.manual_seed(7)
    return KeptImages(model, DataLoader(Drawn(), batch), count, changing)


def drawn(count, batch=2):
    """The items that `kept` drew."""
    torch.manual_seed(7)
    loader, items = DataLoader(Drawn(), batch), []
    while len(items) < count:
        for part in loader:
            items += [{name: values[i] for name, values in part.items()} for i in range(len(part["aug"]))]
            if len(items) >= count:
                break
    return items


def filled(model):
    patches = model.features.embed_alone(torch.stack([Drawn()[i]["image"] for i in range(5)]))
    rows = torch.arange(0, len(patches), 5)
    model.features.memory.fill(patches[rows], rows // 64, torch.arange(5), 40)
    return model


@pytest.mark.parametrize("memory", [0, 64])
def test_a_step_on_kept_features_is_one_on_the_images(memory):
    models = [make_glass(memory=memory, ascent_share=0.5, local_share=0.5) for _ in range(2)]
    if memory:
        models = [filled(model) for model in models]
    batch = next(kept(models[0]).batches(0, 6))
    order = np.random.default_rng([0, kept_images.EPOCH_STREAM, 0]).permutation(12)[:2]
    items = [drawn(12)[i] for i in order]
    image, aug, mask_s = (torch.stack([item[name] for item in items]) for name in ("image", "aug", "mask_s"))
    own = torch.tensor([item["index"] for item in items]) if memory else None
    for model in models:
        model.set_centre(model._embed(image, own)[0].unflatten(0, (2, -1)).mean(0))
    found, expected = train_step(models[0], batch), models[1].train_step(image, aug, mask_s, own=own)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=5e-3, atol=5e-3, msg=name)
    assert not torch.equal(*(model.discriminator.first.weight for model in (models[0], make_glass(memory=memory))))


def test_every_epoch_uses_all_in_another_order():
    images = kept(make_glass())
    epochs = [torch.cat([batch.local for batch in images.batches(epoch, 6)]).unflatten(0, (12, -1)) for epoch in (0, 1)]
    sums = [sorted(float(x) for x in epoch.float().sum((1, 2))) for epoch in epochs]
    assert sums[0] == sums[1]
    assert len(set(sums[0])) == 12
    assert not torch.equal(*epochs)
    again = torch.cat([batch.local for batch in kept(make_glass()).batches(1, 6)]).unflatten(0, (12, -1))
    assert torch.equal(again, epochs[1])
    assert sum(batch.count for batch in images.batches(0, 15)) == 30  # more than are kept
    assert (images.count, images.without) == (12, 5)
    assert kept(make_glass(), changing=True).without == 12


def test_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(kept_images, "free_on", lambda device: 10**6)
    with pytest.raises(InputError, match=r"--local_kept 5000: the features .* give a smaller number, or 0"):
        kept(make_glass(), 5000)
    monkeypatch.undo()
    model = make_glass()
    monkeypatch.setattr(model.features, "embed_alone", lambda images: torch.full((len(images) * 64, 48), 1e6))
    with pytest.raises(WorkError, match="give --local_kept 0"):
        kept(model)
    with pytest.raises(InputError, match="no image"):
        KeptImages(make_glass(), [], 5, False)


def test_a_published_training_with_kept_images(tiny, tmp_path):
    net = ("--local_kept", 16, "--meta_epochs", 3)
    rotated = ("-d", "disc", "--hflip", 0.5)
    for folder, dataset in (("a", ("-d", "disc")), ("b", ("-d", "disc")), ("c", rotated)):
        done = train_cli(*tiny, tmp_path / folder, net=net, dataset=dataset)
        assert done.returncode == 0, done.stdout
        count = "keeping the features of 16 images with anomalies and of " + ("16" if folder == "c" else "6")
        assert count in done.stdout
    states = [
        torch.load(next((tmp_path / name).rglob("ckpt.pth")), weights_only=True)["discriminator"] for name in "abc"
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    done = train_cli(*tiny, tmp_path / "d", net=("--local_kept", 4, "--train_backbone"))
    assert done.returncode == 2
    assert "--local_kept keeps features" in done.stdout
    assert "--local_kept" in cli("net", "--help").stdout
