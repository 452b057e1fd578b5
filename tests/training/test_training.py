"""Training as a whole: checkpoints, resumption, selection of the epoch, memory."""

import math

import numpy as np
import pytest
import torch
from helpers import make_glass

from glass import GLASS
from inference import checkpoint
from reporting import tables as report
from training import saving, trainer
from training.evaluation import METRICS
from training.testing import score_set
from utils import InputError, WorkError


def batches(count=3, size=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randn(size, 3, 64, 64, generator=rng),
            "aug": torch.randn(size, 3, 64, 64, generator=rng),
            "mask_s": (torch.rand(size, 8, 8, generator=rng) > 0.7).float(),
        }
        for _ in range(count)
    ]


def test_batches(seed=9):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.zeros(4, 1, 64, 64, dtype=torch.int8)
    mask[2:, :, 10:30, 10:30] = 1
    return [{
        "image": torch.randn(4, 3, 64, 64, generator=rng), "mask_gt": mask,
        "is_anomaly": torch.tensor([False, False, True, True]), "image_path": [f"t/{i}.png" for i in range(4)],
    }]  # fmt: skip


test_batches.__test__ = False


def model(folder, **settings):
    settings = {"step": 5, "dsc_hidden": 16, "meta_epochs": 4, "lr": 1e-3} | settings
    glass = make_glass(**settings)
    glass.set_model_dir(folder, "class")
    return glass


class Killed(Exception):
    pass


def assert_same_weights(a, b):
    for key, value in a.discriminator.state_dict().items():
        assert torch.equal(value, b.discriminator.state_dict()[key]), key
    for key, value in a.pre_projection.state_dict().items():
        assert torch.equal(value, b.pre_projection.state_dict()[key]), key


@pytest.mark.parametrize("at", ["step", 1, 2, 3, 5])
def test_killed_and_resumed_ends_bit_for_bit_as_if_never_killed(tmp_path, monkeypatch, at):
    # every epoch is a new best one, so that both files are written at each end
    monkeypatch.setattr("training.record.selection_value", lambda figures: figures["epoch"])
    monkeypatch.setattr("training.saving.SAVE_EVERY", 0)
    whole = model(tmp_path / "whole", train_backbone=at == "step")
    record = whole.trainer(batches(), test_batches(), "class")

    killed = model(tmp_path / "killed", train_backbone=at == "step")
    if at == "step":  # in the middle of an epoch
        real, calls = GLASS.train_step, []

        def dying_step(self, *args):
            calls.append(1)
            if len(calls) == 8:
                raise Killed
            return real(self, *args)

        monkeypatch.setattr(GLASS, "train_step", dying_step)
    else:  # before a file is written: at the start, the first best, the latest beside it, the next latest
        real_save, saved = saving.save, []

        def dying_save(state, path):
            saved.append(path)
            if len(saved) == at:
                raise Killed
            real_save(state, path)

        monkeypatch.setattr(saving, "save", dying_save)
    with pytest.raises(Killed):
        killed.trainer(batches(), test_batches(), "class")
    monkeypatch.undo()
    monkeypatch.setattr("training.record.selection_value", lambda figures: figures["epoch"])

    again = model(tmp_path / "killed", train_backbone=at == "step")
    resumed = again.trainer(batches(), test_batches(), "class")
    assert_same_weights(again, whole)
    assert resumed == record
    assert [p.name for p in sorted((tmp_path / "killed" / "class").glob("*.pth"))] == [
        "ckpt.pth", f"ckpt_best_{record['best']['epoch']}.pth"
    ]  # fmt: skip


def test_more_epochs_continue_a_finished_training(tmp_path):
    whole = model(tmp_path / "whole")
    whole.trainer(batches(), None, "class")
    model(tmp_path / "parts", meta_epochs=2).trainer(batches(), None, "class")
    parts = model(tmp_path / "parts", meta_epochs=4)
    parts.trainer(batches(), None, "class")
    assert_same_weights(whole, parts)


def test_finished_class_is_skipped_and_says_how_to_train_anew(tmp_path, caplog, monkeypatch):
    import logging

    monkeypatch.setattr(logging.getLogger("glass"), "propagate", True)
    caplog.set_level(logging.INFO, logger="glass")
    model(tmp_path).trainer(batches(), test_batches(), "class")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "class").glob("*.pth")}
    model(tmp_path).trainer(batches(), test_batches(), "class")
    assert f"delete {tmp_path / 'class'} to train again" in caplog.text
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "class").glob("*.pth")}


def test_resuming_with_other_settings_is_refused(tmp_path):
    model(tmp_path, meta_epochs=2).trainer(batches(), None, "class")
    with pytest.raises(InputError, match=r"other settings \(lr was 0.001, is 0.1\); delete"):
        model(tmp_path, lr=0.1).trainer(batches(), None, "class")


def test_published_checkpoints_load_here_and_ours_there(tmp_path):
    ours = model(tmp_path)
    ours.trainer(batches(), test_batches(), "class")
    path, epoch = checkpoint.find_best(tmp_path / "class")
    # theirs: two state dicts and nothing else, read with plain load_state_dict
    state = torch.load(path, weights_only=True)
    theirs = make_glass(step=5, dsc_hidden=16, seed=77)
    theirs.discriminator.load_state_dict(state["discriminator"])
    theirs.pre_projection.load_state_dict(state["pre_projection"])
    published = {"discriminator": state["discriminator"], "pre_projection": state["pre_projection"]}
    (tmp_path / "theirs" / "class").mkdir(parents=True)
    torch.save(published, tmp_path / "theirs" / "class" / "ckpt_best_12.pth")
    loaded = model(tmp_path / "theirs", seed=0)
    record = loaded.trainer(batches(), test_batches(), "class")  # already trained: not trained anew
    assert record["best"]["epoch"] == 12
    figures = loaded.tester(test_batches(), "class")
    assert figures["best_epoch"] == 12
    expected = ours.tester(test_batches(), "class")
    assert figures | {"best_epoch": epoch} == expected


def test_config_is_plain_and_rebuilds_the_model(tmp_path):
    model(tmp_path).trainer(batches(), test_batches(), "class")
    path, _ = checkpoint.find_best(tmp_path / "class")
    config = checkpoint.load(path)["config"]
    for key in ("layers_to_extract_from", "input_shape", "patchsize", "pre_proj", "dsc_layers", "backbone", "svd"):
        assert key in config

    def plain(value):
        if isinstance(value, dict):
            return all(plain(v) for v in value.values())
        return (
            all(map(plain, value))
            if isinstance(value, list)
            else value is None or type(value) in (int, float, str, bool)
        )

    assert plain(config)


@pytest.mark.parametrize(
    ("other", "reason"), [({"dsc_hidden": 8}, "made with other settings"), ({"pre_proj": 0}, "holds a pre_projection")]
)
def test_checkpoint_of_another_model(tmp_path, other, reason):
    model(tmp_path).trainer(batches(1), test_batches(), "class")
    (name,) = other
    with pytest.raises(InputError, match=f"was trained with {name} .*, but {other[name]} is given"):
        model(tmp_path, **other).tester(test_batches(), "class")
    # the published code's checkpoints tell no settings, only shapes
    path, _ = checkpoint.find_best(tmp_path / "class")
    state = checkpoint.load(path)
    saving.save({key: state[key] for key in ("discriminator", "pre_projection")}, path)
    with pytest.raises(WorkError, match=reason):
        model(tmp_path, **other).tester(test_batches(), "class")


def test_pretrain_dimension_of_another_model_is_refused(tmp_path):
    """It changes no shape, so that nothing else would notice."""
    model(tmp_path).trainer(batches(1), test_batches(), "class")
    with pytest.raises(InputError, match="pretrain_embed_dimension 96, but 192 is given"):
        model(tmp_path, pretrain_embed_dimension=192).tester(test_batches(), "class")


def test_checkpoint_with_code_or_damage_is_refused(tmp_path):
    for name, content, says in (
        ("damaged.pth", b"PK\x03\x04 half", "not a checkpoint that can be read safely"),
        ("text.pth", b"hello", "not a checkpoint: torch.save did not write it"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WorkError, match=says):
            checkpoint.load(tmp_path / name)
    torch.save({"discriminator": print}, tmp_path / "code.pth")
    with pytest.raises(WorkError, match="read safely"):
        checkpoint.load(tmp_path / "code.pth")
    torch.save({"weights": {}}, tmp_path / "foreign.pth")
    with pytest.raises(WorkError, match="holds no discriminator"):
        checkpoint.load(tmp_path / "foreign.pth")


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    saving.save({"discriminator": {"a": torch.zeros(1)}}, tmp_path / "ckpt.pth")
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(WorkError, match="No space left"):
        saving.save({}, tmp_path / "ckpt.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["ckpt.pth"]
    assert "discriminator" in checkpoint.load(tmp_path / "ckpt.pth")


def test_first_of_equal_epochs_is_kept(tmp_path, monkeypatch):
    figures = iter([0.5, 0.9, 0.9, 0.7])
    monkeypatch.setattr(trainer, "evaluate", lambda _: dict.fromkeys(METRICS, next(figures)))
    record = model(tmp_path).trainer(batches(1), test_batches(), "class")
    assert record["best"]["epoch"] == 1
    assert record["last"]["epoch"] == 3
    assert checkpoint.find_best(tmp_path / "class")[1] == 1


@pytest.mark.parametrize(("image", "pixel", "best"), [(math.nan, 0.5, 1), (0.5, math.nan, 1), (math.nan, math.nan, 3)])
def test_selection_where_metrics_are_missing(tmp_path, monkeypatch, image, pixel, best):
    calls = []

    def evaluate(_):
        calls.append(1)
        bonus = 0.1 if len(calls) == 2 else 0
        return dict.fromkeys(METRICS, 0.0) | {"image_auroc": image + bonus, "pixel_auroc": pixel + bonus}

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    record = model(tmp_path).trainer(batches(1), test_batches(), "class")
    assert record["best"]["epoch"] == best


def test_evaluation_every_few_epochs_and_at_the_end(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(trainer, "score_set", lambda *a: seen.append(1) or score_set(*a))
    record = model(tmp_path, eval_epochs=3).trainer(batches(1), test_batches(), "class")
    assert len(seen) == 2
    assert record["last"]["epoch"] == 3


def test_epoch_ends_after_limit(tmp_path, monkeypatch):
    steps = []
    real = GLASS.train_step
    monkeypatch.setattr(GLASS, "train_step", lambda self, *a: steps.append(1) or real(self, *a))
    model(tmp_path, limit=4, meta_epochs=1).trainer(batches(5, 2), None, "class")
    assert len(steps) == 3  # 2, 4, then 6 > 4


def test_tensorboard_holds_the_curves(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model(tmp_path).trainer(batches(1), test_batches(), "class")
    events = EventAccumulator(str(tmp_path / "class" / "tb")).Reload()
    for tag in (
        "train/loss",
        "train/p_true",
        "train/p_fake",
        "train/r_t",
        "train/r_g",
        "train/r_f",
        "test/image_auroc",
    ):
        assert [e.step for e in events.Scalars(tag)] == [0, 1, 2, 3]


def test_loss_that_is_no_number_ends_training(tmp_path):
    broken = batches(1)
    broken[0]["aug"][:] = math.nan
    with pytest.raises(WorkError, match=r"loss became nan in epoch 0; try a smaller --lr"):
        model(tmp_path).trainer(broken, None, "class")


def test_predict_keeps_order_and_types(tmp_path):
    glass = make_glass()
    found = glass.predict(test_batches() + test_batches(seed=10))
    assert found.maps.shape == (8, 64, 64)
    assert found.scores.dtype == np.float32
    assert found.paths == [f"t/{i}.png" for i in range(4)] * 2
    assert found.labels.tolist() == [False, False, True, True] * 2
    scores, maps = glass._predict(test_batches(seed=10)[0]["image"])
    np.testing.assert_allclose(found.scores[4:], scores)
    np.testing.assert_allclose(found.maps[4:], maps)


def test_unknown_setting_is_an_error():
    with pytest.raises(TypeError, match="dsc_hiden"):
        make_glass(dsc_hiden=3)
    with pytest.raises(InputError, match="patchsize 2: must be odd"):
        make_glass(patchsize=2)


def test_results_keep_the_order_of_their_columns(tmp_path):
    """Also where a test's row takes the last epoch's figures from the training's."""
    figures = dict.fromkeys(METRICS, 0.5) | {"best_epoch": 1}
    last = {"last_epoch": 1, **{f"last_{metric}": 0.4 for metric in METRICS}}
    first = report.write_results(tmp_path, {"mvtec_a": figures | last})
    again = report.write_results(tmp_path, {"mvtec_a": figures})
    assert list(again.columns) == list(first.columns) == [*METRICS, "best_epoch", *last]
    assert again.loc["mvtec_a", "last_pixel_pro"] == 0.4


def test_results_keep_rows_of_earlier_runs(tmp_path):
    figures = dict.fromkeys(METRICS, 0.5) | {"best_epoch": 3}
    report.write_results(tmp_path, {"mvtec_a": figures})
    table = report.write_results(tmp_path, {"mvtec_b": figures | {"image_auroc": math.nan, "pixel_pro": 0.7}})
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0] == "Row Names,image_auroc,image_ap,pixel_auroc,pixel_ap,pixel_pro,best_epoch"
    assert [line.split(",")[0] for line in lines[1:]] == ["mvtec_a", "mvtec_b", "Mean"]
    assert lines[2].split(",")[1] == "nan"
    assert table.loc["Mean", "pixel_pro"] == pytest.approx(0.6)
    assert table.loc["Mean", "image_auroc"] == pytest.approx(0.5)


# ---------------------------------------------------------------------------------------- settings


def test_a_setting_is_an_attribute_that_can_be_replaced():
    glass = make_glass(limit=8)
    assert glass.limit == glass.settings.limit == 8
    glass.limit = 1
    assert glass.settings.limit == 1
    assert glass.config["limit"] == 1
    glass.svd = 1
    assert glass.config["svd"] == 1
    with pytest.raises(AttributeError, match="no attribute 'lmit'"):
        glass.lmit  # noqa: B018


@pytest.mark.parametrize("name", ["lmit", "backbone_hash", "weights"])
def test_settings_that_do_not_exist_are_errors(name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        make_glass(**{name: 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": -1.0}, "noise -1"),
        ({"radius": 1.5}, "radius 1.5"),
        ({"lr": math.nan}, "lr nan"),
        ({"svd": 2}, "svd 2"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        make_glass(**settings)
