"""Small image folders for tests."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, *, seed: int = 0, size: tuple[int, int] = (20, 16)) -> Path:
    """A random RGB image, lossless where the suffix allows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_classes(folder: Path, counts: Mapping[str, int], *, suffix: str = ".png", first_seed: int = 0) -> None:
    """A folder for each class, with so many images, each different."""
    seed = first_seed
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            write_image(folder / name / f"{number:03d}{suffix}", seed=seed)
            seed += 1
