"""The checkpoint that the session trained, and its model."""

import pytest

from glass import load_checkpoint


@pytest.fixture(scope="module")
def folder(trained):
    return trained[0] / "models" / "backbone_0" / "custom_disc"


@pytest.fixture(scope="module")
def model(folder):
    return load_checkpoint(folder)
