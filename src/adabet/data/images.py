"""A dataset of image files, and what it shares with other files that have a class."""

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from adabet.data.decode import read_image
from adabet.data.sampling import Draw
from adabet.data.transforms import ImageTransform

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[["Image"], Tensor]
"""Turns an image into the tensor that a model takes; `adabet.data.transforms` makes them."""


@dataclass(frozen=True)
class Sample:
    """A file and its class.

    Attributes:
        path: the file.
        label: number of its class.
    """

    path: Path
    label: int


class FileDataset(Dataset[tuple[Tensor, int]]):
    """Files with labels, as tensors.

    Indexed by a file's number, or by a number and a seed (as `EpochSampler` gives them), which makes its
    random changes a function of the seed: the same in every worker and after every interruption.

    Args:
        samples: the files.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = tuple(samples)

    @property
    def labels(self) -> list[int]:
        """Class of every file."""
        return [sample.label for sample in self.samples]

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether no file is read any more."""

    @abstractmethod
    def with_transform(self, transform: Any) -> "FileDataset":
        """The same files under another transform."""

    @abstractmethod
    def _load(self, index: int) -> Tensor:
        """A file's tensor; draws from torch's and Python's generators where it changes it at random."""

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | Draw) -> tuple[Tensor, int]:
        if not isinstance(key, tuple):
            return self._load(key), self.samples[key].label
        index, seed = key
        # torchvision's transforms draw from torch's generator, some of timm's from Python's.
        states = torch.get_rng_state(), random.getstate()
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        try:
            return self._load(index), self.samples[index].label
        finally:
            torch.set_rng_state(states[0])
            random.setstate(states[1])


class ImageDataset(FileDataset):
    """Image files with labels, as tensors ``(channels, height, width)``.

    Args:
        samples: the images.
        transform: what is done to each.
        pixels: prepared pixels of every image, ``(images, channels, height, width)``, uint8, in place of the
            files; only for an `ImageTransform`.
    """

    def __init__(self, samples: Sequence[Sample], *, transform: Transform, pixels: Tensor | None = None) -> None:
        super().__init__(samples)
        self.transform = transform
        self.pixels = pixels

    @property
    def in_memory(self) -> bool:
        """Whether prepared pixels are kept."""
        return self.pixels is not None

    def with_transform(self, transform: Transform) -> "ImageDataset":
        """The same images under another transform; pixels in memory are shared if they serve it too."""
        shared = isinstance(self.transform, ImageTransform) and self.transform.prepares_like(transform)
        return ImageDataset(self.samples, transform=transform, pixels=self.pixels if shared else None)

    def _load(self, index: int) -> Tensor:
        if self.pixels is not None and isinstance(self.transform, ImageTransform):
            return self.transform.finish(self.pixels[index])
        return self.transform(read_image(self.samples[index].path, channels=channels_of(self.transform)))


def channels_of(transform: Transform) -> int:
    """Colour channels that a transform takes: its configuration's, otherwise 3."""
    return transform.config.input_size[0] if isinstance(transform, ImageTransform) else 3
