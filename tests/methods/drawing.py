"""Small networks, moments and slow plain computations for the tests of methods that draw channels."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from adabet.methods import Moment
from adabet.methods.registry import optimizer_outside_a_run
from tests.training.test_resume import Crash


def convolutions() -> nn.Module:
    """Plain, depthwise, grouped and pointwise convolutions with batch-norms, a linear layer, and the head "14"."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
            *(nn.Conv2d(8, 12, 1), nn.ReLU()),
            *(nn.Conv2d(12, 6, 3, padding=1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
            *(nn.Linear(24, 10), nn.GELU(), nn.Linear(10, 4)),
        )


def early_peak() -> nn.Module:
    """Convolutions of which the first has by far the largest output."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(8), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
        )


class Tokens(nn.Module):
    """A transformer's encoder over vectors, with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


def tokens() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tokens()


def labelled(*shape: int, batches: int = 3, samples: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [
        (torch.randn(samples, *shape, generator=generator), torch.randint(4, (samples,), generator=generator))
        for _ in range(batches)
    ]


def moment(epoch: int, step: int = 1) -> Moment:
    return Moment(epoch, step, 20, 3, optimizer_outside_a_run)


def channels_of(selection) -> dict[str, tuple[int, ...]]:
    """Input channels by layer, the head apart."""
    return {choice.layer: choice.channels for choice in selection.choices if choice.channels is not None}


def plain_norms(model: nn.Module, batches, layers, *, per_step: bool = False) -> list[dict[str, list[float]]]:
    """For each observation, the norm of each input channel's gradient, by stock autograd and loops over channels."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    gradients = []
    for images, labels in batches:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        gradients.append({name: model.get_submodule(name).weight.grad.clone() for name in layers})
    model.zero_grad()
    if not per_step:
        gradients = [{name: sum(found[name] for found in gradients) / len(gradients) for name in layers}]
    return [{name: _by_channel(model.get_submodule(name), found[name]) for name in layers} for found in gradients]


def _by_channel(module: nn.Module, gradient: torch.Tensor) -> list[float]:
    if isinstance(module, nn.Linear):
        return [float(gradient[:, channel].norm()) for channel in range(module.in_features)]
    width, outs = module.in_channels // module.groups, module.out_channels // module.groups
    norms = []
    for channel in range(module.in_channels):
        group = channel // width
        norms.append(float(gradient[group * outs : (group + 1) * outs, channel % width].norm()))
    return norms


@dataclass
class CrashAt:
    """Progress that stops a run in the middle of an epoch."""

    epoch_number: int
    step_number: int

    def start(self, **_):
        pass

    def step(self, *, epoch, step, loss):
        if (epoch, step) == (self.epoch_number, self.step_number):
            raise Crash

    def epoch(self, record):
        pass

    def stop(self):
        pass
