"""What one input channel costs, by the cost model of TraDy and MeDyate."""

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from adabet.layers import Layer, Layers

COSTED = ("convolution", "linear")


@dataclass(frozen=True)
class ChannelCost:
    """The cost of training one input channel of a layer, for one sample; the same for all its channels.

    A unit is one scalar: multiply by the bytes of a scalar for bytes. A weight counts once, whether as the weight, its
    gradient or its update.

    Attributes:
        channels: input channels of the layer.
        weight: the channel's weights, the papers' C_w.
        activation: scalars of the channel's input that the backward pass needs, the papers' C_a.
        macs: multiply-accumulates of the gradient of the channel's weights.
    """

    channels: int
    weight: int
    activation: int
    macs: int

    @property
    def space(self) -> int:
        """Units of one channel: its weights and its input."""
        return self.weight + self.activation

    @property
    def total(self) -> int:
        """Units of the whole layer."""
        return self.channels * self.space


def channel_costs(model: nn.Module, layers: Layers) -> dict[str, ChannelCost]:
    """The cost of an input channel of every convolution and linear layer among the candidates.

    For a convolution with C' output channels, a kernel of D x D and g groups, an input of H x W and an output of
    H' x W': weights C' / g * D * D (so D * D where it is depth-wise), input H * W, multiply-accumulates
    C' / g * D * D * H' * W'. A linear layer is a convolution with D = 1 over its tokens, or over one place. Biases, the
    head and the batch size don't count. A layer that a forward pass runs several times needs all its inputs.

    An attention block's projections are one layer without input channels that could be frozen one by one, so it is
    left out, as are norms and embeddings. Find the layers with ``blocks=()`` to have each projection that is a linear
    layer as a layer of its own.

    Args:
        model: the model that the layers were found in.
        layers: its layers.

    Returns:
        Costs by layer name, in the order of a forward pass.

    Source: Quelennec et al., TraDy, section 3.1, equations 2 to 4, and MeDyate, section 3.1, equations 3 to 5.

    Examples:
        >>> import torch
        >>> from adabet.layers import find_layers
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, groups=16))
        >>> layers = find_layers(model, torch.zeros(1, 3, 8, 8), head=None)
        >>> costs = channel_costs(model, layers)
        >>> [(cost.channels, cost.weight, cost.activation, cost.total) for cost in costs.values()]
        [(3, 144, 64, 624), (16, 9, 16, 400)]
    """
    return {layer.name: _channel_cost(model, layer) for layer in layers if _has_input_channels(layer)}


def _has_input_channels(layer: Layer) -> bool:
    """Whether the layer has a weight of its own, not tied to an earlier one, that meets its input channels."""
    return layer.kind in COSTED and f"{layer.name}.weight" in layer.parameters and bool(layer.in_channels)


def _channel_cost(model: nn.Module, layer: Layer) -> ChannelCost:
    channels, outputs = layer.in_channels or 1, layer.out_channels or 1
    # whatever the order of the axes and the groups, each weight meets exactly one input channel
    weight = model.get_parameter(f"{layer.name}.weight").numel() // channels
    activation = layer.input_size // channels
    transposed = isinstance(model.get_submodule(layer.name), _ConvTransposeNd)
    places = activation if transposed else layer.output_size // outputs
    return ChannelCost(channels, weight, activation, weight * places)
