"""What README, CONTRIBUTING and the model card name is there, and the worked examples work."""

import re

import numpy as np
import pytest
from helpers import ROOT, make_mvtec

from datasets.base import Layout
from tools import flags

DOCUMENTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
DOCUMENTS["weights/README.md"] = (ROOT / "weights/README.md").read_text(encoding="utf-8")
OF_PIP_AND_OTHERS = {"--check", "--version"}


def example(heading):
    """The Python block of a section of CONTRIBUTING.md that is more than a fragment."""
    section = DOCUMENTS["CONTRIBUTING.md"].split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.S)[1]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_documents_name_are_there(document):
    text = DOCUMENTS[document]
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    named = re.findall(r"\b(?:shell|benchmarks|tests|tools|onnx|datasets)/[\w/-]+\.(?:py|sh|xlsx)\b", text)
    modules = [m.replace(".", "/") + ".py" for m in re.findall(r"python -m ((?:datasets|tools)\.\w+|report)", text)]
    assert named or linked
    beside = (ROOT / document).parent
    missing = [name for name in linked if not (beside / name).exists()]
    made_up = {"datasets/flat.py"}  # by the example
    missing += [name for name in {*named, *modules} - made_up if not (ROOT / name).exists()]
    assert not missing


def test_options_that_documents_name_are_in_the_table():
    known = set(re.findall(r"--[\w-]+", flags.table())) | {"--help"}
    known |= {name.replace("_", "-") for name in known}
    for script in [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tools/*.py")]:
        known |= set(re.findall(r'"(--[\w-]+)"', script.read_text(encoding="utf-8")))
    for document, text in DOCUMENTS.items():
        # what the published code had and this does not take is said in a table of its own
        text = text.split("## How it differs")[0]
        unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text)) - known - OF_PIP_AND_OTHERS
        assert not unknown, document


def test_example_of_a_data_set_works(tmp_path):
    data, _ = make_mvtec(tmp_path, classes=("disc",))
    (data / "disc/train/good").rename(data / "good_disc")
    (data / "disc/test").rename(data / "rest")
    (data / "rest" / next(p.name for p in (data / "rest").iterdir() if p.name != "good")).rename(data / "bad_disc")
    scope = {}
    exec("from datasets.base import Layout, Sample\nfrom datasets.listing import list_images\n", scope)
    exec(example("Adding a data set"), scope)
    layout = scope["FlatLayout"](data)
    assert isinstance(layout, Layout)
    assert layout.classes() == ["disc"]
    assert len(layout.train("disc")) == 6
    assert {sample.kind for sample in layout.test("disc")} == {"bad"}


def test_example_of_a_metric_works():
    scope = {"np": np, "NAN": float("nan"), "ArrayLike": object}
    exec(example("Adding a metric"), scope)
    measure = scope["balanced_accuracy"]
    assert measure([0.1, 0.9, 0.8, 0.2], [0, 0, 1, 1], 0.5) == 0.5
    assert measure([0.1, 0.2, 0.2, 0.8, 0.9], [0, 0, 0, 1, 1], 0.5) == 1
    assert np.isnan(measure([0.1], [0], 0.5))


def test_places_that_the_examples_change_are_there():
    import backbones
    import datasets
    from reporting import page
    from training.evaluation import METRICS, judge

    assert backbones.TORCHVISION["resnet18"] == "resnet18"
    assert datasets._PLACES["FolderLayout"] == "folder"
    assert datasets._LAYOUTS["folder"] == "FolderLayout"
    assert callable(judge)
    assert {key for key, _ in page.SHOWN} >= set(METRICS)
