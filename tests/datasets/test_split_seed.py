"""Seeds of one run are tested on the same images; checkpoints say how their images were split."""

import csv

import torch
from helpers import last_line, shaped
from test_runs import run

from datasets import FolderLayout


def test_all_seeds_are_tested_on_the_same_images_and_judged_alike(tmp_path):
    data = shaped(tmp_path / "x", "good")
    flags = ("--test_share", 0.5, "--distribution", 4)
    done = run(data, "builtin", tmp_path / "r", *flags, main=("--seed", 0, "--seed", 3), net=("--meta_epochs", 1))
    assert done.exit_code == 0, done.output
    parts, variants = [], []
    for seed in (0, 3):
        with (tmp_path / f"r/seed_{seed}/splits/folder_disc.csv").open() as file:
            parts.append({row["path"]: row["part"] for row in csv.DictReader(file)})
        folder = tmp_path / f"r/seed_{seed}/models/backbone_0/folder_disc"
        config = torch.load(folder / "ckpt.pth", weights_only=True)["config"]
        assert config["split_seed"] == 0
        variants.append(config["svd"])
    assert parts[0] == parts[1]
    assert {"train", "test"} == set(parts[0].values())
    assert variants[0] == variants[1]

    # a checkpoint of a time when the seed of the run split the images
    for path in folder.glob("*.pth"):
        state = torch.load(path, weights_only=True)
        state["config"]["split_seed"] = 3
        torch.save(state, path)
    for main in (("--seed", 3), ("--test", "test")):
        done = run(data, "builtin", tmp_path / "r/seed_3", *flags, main=main, net=("--meta_epochs", 1))
        assert done.exit_code == 2
        assert "was trained with split_seed 3, but 0 is given (give --split_seed 3)" in last_line(done)


def test_another_split_seed_takes_others(tmp_path):
    data = shaped(tmp_path / "x", "good")
    held = [{s.path for s in FolderLayout(data, seed, 0.5).held_out("disc")} for seed in (0, 1)]
    assert held[0] != held[1]
