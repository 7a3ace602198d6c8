"""The order of Keras's ``model.layers``, and the networks of the AdaBet paper as Keras builds them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from adabet.errors import UnknownNameError
from adabet.extras import require
from adabet.memory.operations import Operation


def keras_order(operations: Sequence[Operation]) -> list[Operation]:
    """Operations sorted as a Keras functional model sorts its layers.

    By depth, the longest way to the output, deepest first; among equals in the order of a walk from the
    output back along the inputs.

    Source: the behaviour of Keras 2 (``Functional``, the map of a graph's layers by depth).
    """
    depth = [0] * len(operations)
    for number in reversed(range(len(operations))):
        for maker in operations[number].inputs:
            depth[maker] = max(depth[maker], depth[number] + 1)
    visited: dict[int, None] = {}
    waiting = [len(operations) - 1]
    while waiting:
        number = waiting.pop()
        if number not in visited:
            visited[number] = None
            waiting.extend(reversed(operations[number].inputs))
    return [operations[number] for number in sorted(visited, key=lambda number: -depth[number])]


def keras_network(name: str, *, classes: int) -> nn.Module:
    """One of the paper's networks with a new head, as Keras builds it, without memory (on the meta device).

    What differs from torchvision and timm, and shows in the formula: Keras's ResNet50 strides in the first
    convolution of a block, its convolutions have biases, and padding before the stem and its pooling is a
    layer of its own; VGG16 ends in global average pooling instead of its fully connected layers; a block of
    the vision transformer is one custom layer, into which the formula does not look.

    Args:
        name: ``"resnet50"``, ``"mobilenet_v2"``, ``"vgg16"`` or ``"vit_b16"``.
        classes: outputs of the head; the paper's published numbers fit 37, VGG16's full training 120.

    Raises:
        UnknownNameError: if the paper has no such network.
        MissingExtraError: if torchvision or timm is not installed.
    """
    builders: dict[str, Callable[[int], nn.Module]] = {
        "resnet50": _resnet50,
        "mobilenet_v2": _mobilenet_v2,
        "vgg16": _vgg16,
        "vit_b16": _vit_b16,
    }
    if name not in builders:
        raise UnknownNameError("network", name, builders)
    with torch.device("meta"):
        return builders[name](classes)


def _torchvision(name: str, **options: int) -> nn.Module:
    model: nn.Module = require("torchvision.models", "building the paper's networks").get_model(
        name, weights=None, **options
    )
    return model


def _resnet50(classes: int) -> nn.Module:
    model = _torchvision("resnet50", num_classes=classes)
    blocks: list[Any] = [module for module in model.modules() if type(module).__name__ == "Bottleneck"]
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    model.conv1 = nn.Sequential(nn.ZeroPad2d(3), nn.Conv2d(3, 64, 7, stride=2))
    model.maxpool = nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, stride=2))
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.empty(module.out_channels))
    return model


def _mobilenet_v2(classes: int) -> nn.Module:
    return _torchvision("mobilenet_v2", num_classes=classes)


def _vgg16(classes: int) -> nn.Module:
    features = _torchvision("vgg16").get_submodule("features")
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def _vit_b16(classes: int) -> nn.Module:
    timm = require("timm", "building the paper's networks")
    model: nn.Module = timm.create_model("vit_base_patch16_224", num_classes=classes)
    blocks = model.get_submodule("blocks")
    for name, block in list(blocks.named_children()):
        setattr(blocks, name, _CustomLayer(block))
    return model


class _CustomLayer(nn.Module):
    """A block as one layer: its parameters and its output's shape, which is that of its input."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, parameter in block.named_parameters():
            self.register_parameter(name.replace(".", "_"), parameter)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens in, tokens out."""
        return tokens.clone()
