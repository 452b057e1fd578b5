"""`--recipe fast` and its parts: memory of patches, averaged weights, one-cycle rate, shares of the locations."""

import csv

import numpy as np
import pytest
import torch
from forked import Forked, run_main
from helpers import DATASET, cli, export_onnx, make_glass, make_mvtec, train_cli
from PIL import Image
from torch import nn

import backbones
from datasets import EpochSampler
from datasets.listing import list_images
from glass import load_checkpoint
from inference.settings import FAST
from training import remembering, saving
from training.averaging import AveragedWeights
from training.remembering import draw_patches
from training.schedule import rate_factor
from utils import InputError

TINY = ("net", "--recipe", "fast", "--weights", "random", "--memory", 50, "--meta_epochs", 4, "--epoch_samples", 12,
        "--local_kept", 20, "--dsc_hidden", 16, "--step", 5, "--eval_epochs", 4)  # fmt: skip


def call(data, textures, results, *dataset, net=(), main=()):
    return ("--gpu", -1, "--results_path", results, *main, *TINY, *net, *DATASET, *dataset, "custom", data, textures)


@pytest.fixture(scope="module")
def fast(tiny, tmp_path_factory):
    results = tmp_path_factory.mktemp("fast")
    done = cli(*call(*tiny, results, "-d", "disc"))
    assert done.returncode == 0, done.stdout
    return results, done.stdout


def state_of(results):
    return torch.load(results / "models/backbone_0/custom_disc/ckpt.pth", weights_only=True)


def scores_of(results):
    with (results / "per_image.csv").open(newline="") as file:
        return [float(row["score"]) for row in csv.DictReader(file)]


def test_predict_gives_the_scores_of_the_test(fast, tiny):
    results, printed = fast
    assert "nearest neighbours without training" in printed
    model = load_checkpoint(results / "models/backbone_0/custom_disc")
    assert len(model.scorer.features.memory.patches) == 50
    with (results / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        path = next((tiny[0] / "disc").rglob("/".join(row["path"].split("/")[-2:])))
        assert model.score_pictures([Image.open(path).convert("RGB")])[0][0] == pytest.approx(
            float(row["score"]), abs=1e-5
        )


def test_the_recipe_is_what_the_settings_say_and_given_options_win(fast):
    config = state_of(fast[0])["config"]
    changed = {"memory": 50, "meta_epochs": 4, "epoch_samples": 12, "local_kept": 20, "dsc_hidden": 16, "eval_epochs": 4}
    assert {name: config[name] for name in FAST} == {**FAST, **changed}
    assert config["backbone"] == backbones.EMBEDDED


def test_same_command_twice_and_killed_in_between(fast, tiny, tmp_path):
    arguments = [str(a) for a in call(*tiny, tmp_path / "r", "-d", "disc")]

    def work():
        saving.SAVE_EVERY = 0
        epochs = []

        def stop_in_the_third(*measured):
            epochs.append(1)
            if len(epochs) == 3:
                raise KeyboardInterrupt
            measure(*measured)

        measure, remembering.measure = remembering.measure, stop_in_the_third
        run_main(arguments)()

    assert Forked(work).finish().returncode == 130
    done = cli(*arguments)
    assert done.returncode == 0, done.stdout
    assert "resumed after 2 of 4 epochs" in done.stdout
    for part in ("discriminator", "pre_projection", "memory"):
        for name, value in state_of(fast[0])[part].items():
            assert torch.equal(value, state_of(tmp_path / "r")[part][name]), name
    assert scores_of(fast[0]) == scores_of(tmp_path / "r")


def test_more_epochs_and_other_settings_are_refused(fast, tiny):
    for option, says in (("--meta_epochs", "meta_epochs was 4, is 5"), ("--memory", "memory was 50, is 5")):
        done = cli(*call(*tiny, fast[0], "-d", "disc", net=(option, 5)))
        assert done.returncode == 2
        assert says in done.stdout


def test_thresholds_of_training_images_leave_out_their_own_patches(fast, tiny):
    model = load_checkpoint(fast[0] / "models/backbone_0/custom_disc")
    good = [model.prepare(Image.open(p).convert("RGB")) for p in list_images(tiny[0] / "disc/train/good")]
    scorer, images = model.scorer, torch.stack(good)
    left_out = scorer.finish(scorer.score_images(images, torch.arange(len(good))))[0]
    assert model.thresholds.image == pytest.approx(float(left_out.max()), abs=1e-5)
    with_own = scorer.finish(scorer.score_images(images))[0]
    assert (with_own != left_out).all()


def test_a_damaged_memory_and_impossible_ones(fast, tiny, tmp_path):
    path = next((fast[0] / "models/backbone_0/custom_disc").glob("ckpt_best_*"))
    state = torch.load(path, weights_only=True)
    state["memory"]["patches"][0, 0] = torch.nan
    torch.save(state, tmp_path / "ckpt_best_0.pth")
    done = cli("predict", "--checkpoint", tmp_path, "--out", tmp_path / "o", tiny[0] / "disc/test/good")
    assert done.returncode == 1
    assert "lacks the memory of patches" in done.stdout
    done = cli(*call(*tiny, tmp_path / "r", net=("--train_backbone",)))
    assert done.returncode == 2
    assert "omit --train_backbone" in done.stdout
    done = cli(*call(*make_mvtec(tmp_path / "one", train=1), tmp_path / "s"))
    assert done.returncode == 2
    assert "needs at least 2 of them" in done.stdout


def test_the_exported_graph_holds_the_memory(fast, tiny, tmp_path):
    import onnxruntime

    folder = fast[0] / "models/backbone_0/custom_disc"
    model = load_checkpoint(folder)
    pictures = [Image.open(path).convert("RGB") for path in list_images(tiny[0] / "disc/test/blot")]
    scores, maps = model.score_pictures(pictures)
    int8 = ("--quantize", "int8", "--images", tiny[0] / "disc/train/good")
    for flags, apart in (((), 2e-4), (("--static",), 2e-4), (("--half",), 2e-2), (int8, 0.3)):
        done = export_onnx(folder, "--out", tmp_path / "model.onnx", *flags)
        assert done.returncode == 0, done.stdout
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
        batches = (
            [np.stack([np.asarray(p) for p in pictures])]
            if flags != ("--static",)
            else [np.asarray(p)[None] for p in pictures]
        )
        found = [session.run(["score", "map"], {"image": batch}) for batch in batches]
        np.testing.assert_allclose(np.concatenate([part[0] for part in found]), scores, atol=apart)
        np.testing.assert_allclose(np.concatenate([part[1] for part in found]), maps, atol=apart)


def test_tiles_of_a_picture_are_compared_with_those_of_others(tiny, tmp_path):
    small = DATASET[: DATASET.index("--resize")]
    places = ("--gpu", -1, "--results_path", tmp_path / "r")
    tiles = (*small, "--imagesize", 32, "--tile", 48, "-d", "disc", "custom", *tiny)
    done = cli(*places, *TINY, *tiles)
    assert done.returncode == 0, done.stdout
    memory = load_checkpoint(tmp_path / "r/models/backbone_0/custom_disc").scorer.features.memory
    assert len(memory.pictures) > 6
    assert set(memory.pictures.tolist()) == set(range(6))
    assert set(memory.owners.tolist()) <= set(range(6))


def test_a_training_without_a_memory_is_not_continued_with_one(tiny, tmp_path):
    done = train_cli(*tiny, tmp_path / "r", dataset=("-d", "disc"))
    assert done.returncode == 0, done.stdout
    for option, value, says in (("--memory", 5, "memory was 0, is 5"), ("--average", 0.5, "average was 0.0, is 0.5")):
        done = train_cli(*tiny, tmp_path / "r", net=("--meta_epochs", 3, option, value), dataset=("-d", "disc"))
        assert done.returncode == 2
        assert says in done.stdout


# ------------------------------------------------------------------------------------------ parts


class Items(list):
    """A loader of items in batches of two."""

    def __init__(self, images, order):
        super().__init__(
            {"image": images[part], "index": torch.tensor(part)} for part in (order[i : i + 2] for i in (0, 2, 4))
        )
        self.dataset = range(len(images))


def test_the_draw_does_not_depend_on_the_order():
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = make_glass(memory=40)
    patches, owners, pictures = draw_patches(model, Items(images, [0, 1, 2, 3, 4, 5]), 40)
    again = draw_patches(model, Items(images, [5, 3, 1, 0, 2, 4]), 40)
    assert patches.shape == (40, 96)
    assert pictures.tolist() == list(range(6))
    torch.testing.assert_close(patches, again[0])
    assert torch.equal(owners, again[1])
    assert not torch.equal(patches, draw_patches(make_glass(memory=40, seed=1), Items(images, list(range(6))), 40)[0])


def test_averages_are_those_of_a_loop():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    averaged = AveragedWeights(None, net, 0.7)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for step in range(1, 6):
        net(torch.randn(8, 3))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        averaged.update()
        decay = min(0.7, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            kept = decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value
            expected[name] = kept.clone()
    for name, value in averaged.discriminator.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_the_one_cycle_rate():
    factors = np.array([rate_factor("one_cycle", step, 101) for step in range(101)])
    assert factors[0] == pytest.approx(1 / 25)
    assert factors.max() == pytest.approx(1, abs=0.01)
    assert 25 < factors.argmax() < 35
    assert factors[-1] == pytest.approx(1e-4)
    assert np.abs(np.diff(factors)).max() < 0.06
    assert rate_factor("constant", 50, 101) == 1


@pytest.mark.parametrize("svd", [0, 1])
def test_a_step_uses_the_same_locations_of_all_images(svd, monkeypatch):
    import glass

    model = make_glass(svd=svd, ascent_share=0.25, local_share=0.5)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = model._embed(images)[0]
    model.set_centre(features.unflatten(0, (2, -1)).mean(0))
    seen, real = [], glass.gas
    monkeypatch.setattr(
        glass,
        "gas",
        lambda d, true, noise, centre, **more: (seen.append((true, centre)), real(d, true, noise, centre, **more))[1],
    )
    figures = model.train_step(images, images, torch.eye(8).expand(2, 8, 8))
    assert all(np.isfinite(float(value)) for value in figures.values())
    true, centre = seen[0]
    assert (len(true), len(centre)) == (32, 16)
    with pytest.raises(InputError, match="ascent_share"):
        make_glass(ascent_share=0.0)


def test_an_epoch_goes_through_a_small_training_set_several_times():
    sampler, plain = EpochSampler(5, 3, least=12), EpochSampler(5, 3)
    keys = [key for epoch in range(2) for key in (sampler.set_epoch(epoch), *sampler)[1:]]
    assert len(keys) == len(set(keys)) == 24
    assert sorted(np.bincount([i for _, i in keys[:12]]).tolist()) == [2, 2, 2, 3, 3]
    assert len(sampler) == 12
    assert list(plain) == [key for key in keys if key[0] == 0][:5]
