"""Tiny images that every worker can read."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Gray images of two classes in three splits, that differ somewhat in brightness."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 8), ("test", 8)):
        for name, low in (("dark", 0), ("light", 60)):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(low, low + 160, (24, 24), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder
