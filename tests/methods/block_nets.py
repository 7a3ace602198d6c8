"""Small named networks with blocks, and batches for them."""

import torch
from torch import Tensor, nn

from adabet.methods import Moment, Request
from adabet.methods.registry import optimizer_outside_a_run


class Unit(nn.Module):
    """A residual unit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.relu(self.norm(self.conv(images)))


class Residual(nn.Module):
    """Stem, three units with a convolution between the second and the third, a final norm and a head."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.units = nn.Sequential(Unit(4), Unit(4))
        self.down = nn.Conv2d(4, 6, 1)
        self.deep = nn.Sequential(Unit(6))
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.deep(self.down(self.units(self.scale * self.stem(images))))
        return self.head(self.norm(features).mean((2, 3)))


def tensors(*owners: str) -> set[str]:
    return {f"{owner}.{name}" for owner in owners for name in ("weight", "bias")}


STEM = {"scale", *tensors("stem")}
UNITS = [
    tensors("units.0.conv", "units.0.norm"),
    tensors("units.1.conv", "units.1.norm"),
    tensors("down", "deep.0.conv", "deep.0.norm"),
]
REST = tensors("norm")
HEAD = tensors("head")
EVERYTHING = STEM.union(*UNITS, REST, HEAD)


class Text(nn.Module):
    """A tiny transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(1))


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


def images(count: int = 6, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 1, 5, 5, generator=draw), torch.randint(3, (size,), generator=draw)) for _ in range(count)
    ]


def texts(count: int = 4, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(3)
    return [
        (torch.randint(11, (size, 5), generator=draw), torch.randint(2, (size,), generator=draw)) for _ in range(count)
    ]


def request_for(model: nn.Module | None = None, **values) -> Request:
    return Request(model or made(Residual), values.pop("batches", images()), **values)


def moment(epoch: int, step: int = 1, epochs: int = 10, steps: int | None = 6) -> Moment:
    return Moment(epoch, step, epochs, steps, optimizer_outside_a_run)


def trained(turn) -> set[str]:
    return set(turn.selection.parameters)


def names_of(layers) -> set[str]:
    return {name for layer in layers for name in layer.parameters}
