"""The model that the session trained, pictures for it, and a service with it."""

import pytest
from helpers import make_mvtec
from served import options_for, running

from glass import load_checkpoint


@pytest.fixture(scope="module")
def folder(trained):
    return trained[0] / "models" / "backbone_0" / "custom_disc"


@pytest.fixture(scope="module")
def model(folder):
    return load_checkpoint(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of test pictures: three good ones, then three defective ones."""
    data, _ = make_mvtec(tmp_path_factory.mktemp("pictures"), seed=5)
    return [*sorted((data / "disc/test/good").iterdir()), *sorted((data / "disc/test/blot").iterdir())]


@pytest.fixture(scope="module")
def client(folder, tmp_path_factory):
    with running(options_for(folder, tmp_path_factory.mktemp("served") / "store")) as client:
        yield client
