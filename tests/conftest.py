"""Fixtures, and one thread a process, since the tests run side by side."""

import logging

import pytest
import torch
from helpers import REAL, make_mvtec, train_cli
from hypothesis import Phase, settings

# no shrinking: an example that trains takes a second, and shrinking tries hundreds
settings.register_profile(
    "glass", deadline=None, max_examples=25, derandomize=True, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
settings.load_profile("glass")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_excel_folder(tmp_path, monkeypatch):
    """No test writes verdicts into the repository."""
    from training import distribution

    monkeypatch.setattr(distribution, "EXCEL_DIR", tmp_path / "excel")


@pytest.fixture(autouse=True)
def _log_as_before():
    """A command that ran in the test's own process leaves its log handler behind."""
    import utils

    yield
    utils.LOGGER.handlers.clear()
    utils.LOGGER.propagate = True


@pytest.fixture(autouse=True)
def _charts_are_not_drawn(request, monkeypatch):
    """Drawing the charts takes longer than a tiny training; the tests of the report, alone, look at them."""
    from reporting import charts

    if request.path.parent.name != "reporting":
        monkeypatch.setattr(charts, "_svg", lambda figure, name: f'<svg role="img" id="{name}"></svg>')


@pytest.fixture
def log(caplog, monkeypatch):
    """What the program logs."""
    import utils

    monkeypatch.setattr(utils.LOGGER, "propagate", False)  # as a command sets it
    utils.LOGGER.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "glass")
    yield caplog
    utils.LOGGER.removeHandler(caplog.handler)


@pytest.fixture
def put(tmp_path):
    """Writes bytes to a file with a name."""

    def write(data, name="image.png"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """(data path, texture path) of a tiny data set with classes disc and plate."""
    return make_mvtec(tmp_path_factory.mktemp("tiny"), classes=("disc", "plate"))


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """Results of a whole command-line run on class disc, and what it printed."""
    results = tmp_path_factory.mktemp("trained")
    done = train_cli(*tiny, results, dataset=("-d", "disc"))
    assert done.returncode == 0, done.stdout
    return results, done.stdout


@pytest.fixture
def real():
    """The folder of real images and weights; skips where there is none."""
    if not (REAL / "data").is_dir():
        pytest.skip(f"real images and weights are not at {REAL} (GLASS_REAL_DATA names the folder)")
    return REAL
