"""What all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# a busy machine is no failure
settings.register_profile("adabet", deadline=None)
settings.load_profile("adabet")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and weights, which the environment names."""
    folder = os.environ.get("ADABET_DATA")
    if not folder:
        pytest.skip("needs real data: set ADABET_DATA to its folder")
    return Path(folder)
