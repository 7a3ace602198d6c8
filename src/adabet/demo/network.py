"""The demo's digit reader: a small residual network and its shipped weights."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from adabet.demo.digits import CLASSES
from adabet.errors import CheckpointError, OptionError
from adabet.extras import require

WEIGHTS = Path(__file__).with_name("digit_reader.safetensors")
"""The shipped checkpoint, written by ``scripts/pretrain_demo.py``."""

WIDTHS = (16, 24, 32, 48)
"""Channels of the stem and first block, and of the three blocks after it."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch-norm, and a skip connection around them (He et al., arXiv 1512.03385).

    Features are ``(batch, channels, height, width)``; height and width shrink by ``stride``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.skip = nn.Sequential()
        if in_channels != out_channels or stride != 1:
            self.skip.add_module("conv", nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.skip.add_module("norm", nn.BatchNorm2d(out_channels))

    def forward(self, features: Tensor) -> Tensor:
        """Residual plus skip connection, through a ReLU."""
        residual = F.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self.skip(features))


class DigitReader(nn.Module):
    """A residual network for grey images of one channel, any size from 8x8 up; 24x24 in the demo.

    A stem, four residual blocks and a linear head: 25 layers with parameters, batch-norms included, and
    67 978 parameters for ten classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        first, second, third, fourth = WIDTHS
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(1, first, 3, 1, 1, bias=False))
        self.stem.add_module("norm", nn.BatchNorm2d(first))
        self.block1 = ResidualBlock(first, first, stride=1)
        self.block2 = ResidualBlock(first, second, stride=2)
        self.block3 = ResidualBlock(second, third, stride=2)
        self.block4 = ResidualBlock(third, fourth, stride=1)
        self.head = nn.Linear(fourth, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(batch, num_classes)`` of images ``(batch, 1, height, width)`` with values in [0, 1]."""
        features = F.relu(self.stem(images))
        features = self.block4(self.block3(self.block2(self.block1(features))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def demo_model(num_classes: int = CLASSES, *, pretrained: bool = True) -> DigitReader:
    """The demo's digit reader.

    Args:
        num_classes: outputs of the head. With another number than ten, the head starts afresh even if the
            rest is pre-trained.
        pretrained: load the shipped weights, which ``scripts/pretrain_demo.py`` made.

    Raises:
        OptionError: if ``num_classes`` is less than one.
        CheckpointError: if the shipped weights are missing or damaged.
        MissingExtraError: if ``pretrained`` and safetensors is not installed.

    Examples:
        >>> import torch
        >>> demo_model(4, pretrained=False)(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 4])
    """
    if num_classes < 1:
        raise OptionError(f"expected num_classes of at least 1, got {num_classes}")
    model = DigitReader(num_classes)
    if pretrained:
        _load_weights(model, keep_head=num_classes == CLASSES)
    return model


def save_weights(model: DigitReader, path: Path = WEIGHTS) -> None:
    """Write a digit reader's weights in half precision, to halve the file; loading widens them again."""
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    require("safetensors.torch", "saving the demo's weights").save_file(half, path)


def _load_weights(model: DigitReader, *, keep_head: bool) -> None:
    purpose = "the demo's pre-trained network"
    damaged = require("safetensors", purpose).SafetensorError
    try:
        weights = require("safetensors.torch", purpose).load_file(WEIGHTS)
        fresh_head = {} if keep_head else model.head.state_dict(prefix="head.")
        model.load_state_dict(weights | fresh_head)
    except (OSError, RuntimeError, damaged) as error:
        raise CheckpointError(f"cannot load {WEIGHTS.name}: {error}; reinstall adabet") from error
