"""A place to reproduce on: the bundled model and a few of the bundled digits."""

import pytest

from adabet.experiments.reproduce import Task
from adabet.experiments.reproduce.local import write_digits
from adabet.experiments.specs import DataSpec, ModelSpec


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    pytest.importorskip("sklearn")
    pytest.importorskip("torchvision")
    return write_digits(tmp_path_factory.mktemp("digits"), {"train": 100, "val": 20, "test": 20})


@pytest.fixture
def task(digits, tmp_path):
    return Task(tmp_path, (ModelSpec("demo"),), (DataSpec(str(digits), label="digits"),), quick=True)
