"""A small network and data with every kind of randomness, for the tests of training."""

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from adabet.methods import select
from adabet.selection import Selection

CLASSES = 4


class Net(nn.Module):
    """Two convolutions with batch-norms, dropout, and a head; 732 parameters."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm1(self.conv1(images)))
        features = torch.relu(self.norm2(self.conv2(features)))
        return self.head(self.drop(features.mean((2, 3))))


def make_net(seed: int = 0, classes: int = CLASSES) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(classes)


def make_data(count: int = 44, seed: int = 1) -> TensorDataset:
    """Images whose mean tells their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = torch.randn(count, 1, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1)
    return TensorDataset(images, labels)


class Augmented(Dataset):
    """Draws from the generators of python and of numpy for each sample."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.data[index]
        if random.random() < 0.5:
            image = image.flip(-1)
        return image + float(np.random.randn()) * 0.1, label


def make_loaders(batch_size: int = 8) -> tuple[DataLoader, DataLoader]:
    """Shuffled with the global generator for training, with one of its own for validation."""
    own = torch.Generator().manual_seed(5)
    return (
        DataLoader(Augmented(make_data()), batch_size, shuffle=True),
        DataLoader(make_data(30, seed=2), 16, shuffle=True, generator=own),
    )


def choose_last(model: nn.Module, layer_ratio: float = 0.5) -> Selection:
    """The second convolution, its batch-norm and the head."""
    images = torch.zeros(2, 1, 6, 6)
    return select("last-k", model, [images], layer_ratio=layer_ratio, seed=0)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
