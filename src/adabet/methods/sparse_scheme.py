"""Schemes of Sparse Update: how far back biases train, and which share of which weights; what they take."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from adabet.errors import OptionError, UnknownNameError
from adabet.freezing.channels import Channels
from adabet.layers import Layer, Layers
from adabet.methods.registry import Request
from adabet.methods.tensors import choose_tensors
from adabet.methods.units import ChannelCost, channel_costs
from adabet.selection import Selection

CRITERIA = ("magnitude+", "magnitude-", "random")
BIAS_BITS, MASK_BITS = 32, 1
"""Bits of a bias, and of what tells whether an output was clipped."""


@dataclass(frozen=True)
class Scheme:
    """What trains beside the head.

    Attributes:
        biases: the biases of so many of the last layers train.
        ratios: by the number of a layer, counted from 0 in the order of a forward pass: the share of its input
            channels whose weights train. A layer that is not named trains no weights.
    """

    biases: int
    ratios: Mapping[int, float] = field(default_factory=dict)


def _evenly(biases: int, first: int, *ratios: float) -> Scheme:
    """A scheme for every third layer: the widening convolutions of successive blocks."""
    return Scheme(biases, {first + 3 * place: ratio for place, ratio in enumerate(ratios)})


PUBLISHED: dict[str, dict[str, Scheme]] = {
    "mbv2-w0.35": {
        "49kB": Scheme(16, {36: 1, 39: 1, 40: 0, 41: 0.25, 42: 0.125, 45: 0.125, 48: 0.125, 49: 0.125}),
        "73kB": Scheme(20, {32: 0.125, 33: 0.5, 36: 0.5, 39: 1, 41: 0.25, 42: 0.125, 45: 0.125, 48: 1}),
        "99kB": _evenly(25, 27, 1, 1, 1, 1, 1, 0.125, 0.5, 1),
        "123kB": _evenly(31, 27, 1, 1, 1, 1, 1, 0.5, 1, 1),
        "138kB": _evenly(34, 27, 1, 1, 1, 1, 1, 1, 1, 1),
    },
    "mcunet-5fps": {
        "49kB": Scheme(20, {23: 0, 24: 0.25, 27: 0.5, 30: 0.5, 33: 0, 39: 0}),
        "74kB": Scheme(21, {21: 1, 23: 0, 24: 1, 26: 0, 27: 0.5, 30: 1}),
        "99kB": Scheme(22, {21: 1, 24: 1, 27: 1, 30: 1, 36: 0.125, 39: 0.25}),
        "124kB": Scheme(24, {21: 0.25, 24: 1, 27: 1, 30: 1, 33: 0.5, 39: 0.5}),
        "148kB": Scheme(23, {21: 1, 24: 1, 27: 1, 30: 1, 36: 1, 39: 0.5}),
    },
    "proxyless-w0.3": {
        "49kB": Scheme(21, {39: 0.25, 42: 1, 44: 0, 45: 1, 50: 0, 51: 0.125, 54: 0.25, 57: 0.25}),
        "74kB": Scheme(28, {33: 0.5, 36: 0.25, 39: 1, 42: 1, 45: 1, 51: 0.5, 54: 0.25, 57: 0.5}),
        "98kB": _evenly(25, 36, 1, 0.5, 1, 1, 0.25, 0.5, 1, 1),
        "120kB": _evenly(32, 36, 1, 1, 1, 1, 0.5, 1, 1, 1),
        "148kB": _evenly(45, 36, 1, 1, 1, 1, 1, 1, 1, 1),
    },
}
"""The published schemes by net and by the extra memory that they are named after."""

SIGNATURES = {(51, 238_688): "mbv2-w0.35", (42, 463_216): "mcunet-5fps", (60, 320_816): "proxyless-w0.3"}
"""What the three nets are known by: the number of convolutions without the head, and of their weights."""


@dataclass(frozen=True)
class Site:
    """A convolution or linear layer as schemes see it.

    Attributes:
        layer: its name.
        weight: full name of its weight.
        bias: full name of its bias, or of the shift of the norm behind it; None if it has neither.
        cost: of one of its input channels.
        outputs: elements of its output for one sample.
        bias_count: elements of the bias.
    """

    layer: str
    weight: str
    bias: str | None
    cost: ChannelCost
    outputs: int
    bias_count: int

    def kept(self, ratio: float) -> int:
        """How many input channels a ratio stands for, rounded down."""
        # the small addend keeps 0.29 * 100 from becoming 28
        return math.floor(ratio * self.cost.channels + 1e-9)


@dataclass(frozen=True)
class Sites:
    """All that schemes choose from, and what it takes by the paper's rule.

    Attributes:
        items: convolutions and linear layers in the order of a forward pass, without the head.
        head_inputs: elements of the head's input for one sample.
        bits: of a weight, and of an element of an activation.
    """

    items: tuple[Site, ...]
    head_inputs: int
    bits: int = 8

    @classmethod
    def of(cls, model: nn.Module, layers: Layers, *, bits: int = 8) -> "Sites":
        """The sites of a model.

        Raises:
            OptionError: if bits are not positive.
        """
        if bits < 1:
            raise OptionError(f"expected bits of a weight of at least 1, got {bits}")
        costs = channel_costs(model, layers)
        following = [*layers.candidates[1:], None]
        items = tuple(
            _site(model, layer, after, costs[layer.name])
            for layer, after in zip(layers.candidates, following, strict=True)
            if layer.name in costs and isinstance(model.get_submodule(layer.name), _ConvNd | nn.Linear)
        )
        return cls(items, sum(layer.input_size for layer in layers.head), bits)

    @property
    def published(self) -> Mapping[str, Scheme]:
        """The published schemes by name, if these are the layers of one of the three nets; else none."""
        weights = sum(site.cost.channels * site.cost.weight for site in self.items)
        return PUBLISHED.get(SIGNATURES.get((len(self.items), weights), ""), {})

    @property
    def everything(self) -> Scheme:
        """The scheme that trains every bias and every weight."""
        return Scheme(len(self.items), dict.fromkeys(range(len(self.items)), 1.0))

    def bias_bits(self, index: int) -> int:
        """Bits that training a layer's bias takes, or passing its gradient on."""
        site = self.items[index]
        return MASK_BITS * site.outputs + BIAS_BITS * site.bias_count

    def weight_bits(self, index: int, ratio: float) -> int:
        """Bits that training the weights of a share of a layer's input channels takes."""
        site = self.items[index]
        return self.bits * site.kept(ratio) * site.cost.space

    @property
    def least_bits(self) -> int:
        """Bits that training the head alone takes."""
        return self.bits * self.head_inputs

    def extra_bytes(self, scheme: Scheme) -> int:
        """Bytes that a scheme takes beyond inference, for one sample, rounded up.

        For each of the layers whose bias trains: a bit for every element of the output (whether it was clipped) and
        32 bits for every bias; for every input channel whose weights train, ``bits`` for each weight and for each
        element of the channel's input; for the head ``bits`` for each element of its input. The head's weights and the
        optimizer's state don't count.

        Source: the analytic memory of mit-han-lab/tiny-training (`partial_backward.py`), after which the published
        schemes are named, in units of 1024 bytes.
        """
        last = range(len(self.items) - scheme.biases, len(self.items))
        bits = self.least_bits + sum(map(self.bias_bits, last))
        bits += sum(self.weight_bits(index, ratio) for index, ratio in scheme.ratios.items())
        return math.ceil(bits / 8)

    def check(self, scheme: Scheme) -> None:
        """Make sure that a scheme can be put onto these layers.

        Raises:
            OptionError: if it has more layers, a weight in front of the first bias, or a ratio outside 0 to 1.
        """
        count = len(self.items)
        if not 0 <= scheme.biases <= count:
            raise OptionError(f"expected a scheme with biases of 0 to {count} layers, got {scheme.biases}")
        for index, ratio in scheme.ratios.items():
            if not 0 <= ratio <= 1:
                raise OptionError(f"expected ratios from 0 to 1 in a scheme, got {ratio} of layer {index}")
            if not count - scheme.biases <= index < count:
                raise OptionError(
                    f"expected weights of layers {count - scheme.biases} to {count - 1}, whose biases train too; "
                    f"the scheme names layer {index}"
                )


def _site(model: nn.Module, layer: Layer, after: Layer | None, cost: ChannelCost) -> Site:
    own = f"{layer.name}.bias"
    bias = next(
        (name for name in (own, *layer.parameters) if name in layer.parameters and name.endswith(".bias")), None
    )
    if bias is None and after is not None and after.kind == "norm" and after.in_channels == layer.out_channels:
        # a norm folds into the layer before it, and its shift is then that layer's bias
        bias = next((name for name in after.parameters if name.endswith(".bias")), None)
    count = 0 if bias is None else model.get_parameter(bias).numel()
    return Site(layer.name, f"{layer.name}.weight", bias, cost, layer.output_size, count)


def find_scheme(sites: Sites, scheme: str | Scheme) -> Scheme:
    """A scheme by its published name, or as it is.

    Raises:
        OptionError: if it is named, and the model is none of the three nets; or if it does not fit.
        UnknownNameError: if the net has no scheme of that name.
    """
    if isinstance(scheme, str):
        known = sites.published
        if not known:
            raise OptionError(
                f"expected one of {', '.join(PUBLISHED)} for the published scheme {scheme!r}, got a model of "
                f"{len(sites.items)} other convolutions and linear layers; give extra='49kB' to search for a scheme"
            )
        if scheme not in known:
            raise UnknownNameError("scheme", scheme, known)
        scheme = known[scheme]
    sites.check(scheme)
    return scheme


def select_scheme(
    request: Request, layers: Layers, sites: Sites, scheme: Scheme, *, criterion: str = "magnitude+"
) -> Selection:
    """A scheme as a selection: biases whole, weights by input channels, the head in any case.

    Args:
        request: whose model it is; its seed draws where the criterion is random.
        layers: the model's layers.
        sites: of the model.
        scheme: one that `Sites.check` passes.
        criterion: which input channels of a weight to keep: those of the largest (``"magnitude+"``) or the smallest
            (``"magnitude-"``) Euclidean norm, or ``"random"`` ones.

    Raises:
        OptionError: if there is no such criterion.
    """
    if criterion not in CRITERIA:
        raise OptionError(f"expected a criterion of {', '.join(CRITERIA)}, got {criterion!r}")
    names = {site.bias for site in sites.items[len(sites.items) - scheme.biases :] if site.bias is not None}
    channels: dict[str, Sequence[int]] = {}
    for index, ratio in scheme.ratios.items():
        site = sites.items[index]
        count = site.kept(ratio)
        if count:
            names.add(site.weight)
        if 0 < count < site.cost.channels:
            norms = channel_norms(request.model.get_submodule(site.layer))
            channels[site.layer] = _kept_channels(norms, count, criterion, f"{request.seed} {site.layer}")
    shares = {sites.items[index].layer: float(ratio) for index, ratio in sorted(scheme.ratios.items())}
    return choose_tensors(
        request,
        layers,
        names,
        method="sparse-update",
        channels=channels,
        axis="in",
        options={
            "biases": scheme.biases,
            "ratios": shares,
            "criterion": criterion,
            "extra": sites.extra_bytes(scheme),
        },
    )


@torch.no_grad()
def channel_norms(module: nn.Module) -> Tensor:
    """Euclidean norm of the weights that meet each input channel of a convolution or linear layer: ``(channels,)``."""
    weight: Tensor = module.get_parameter("weight")
    if isinstance(module, _ConvNd):
        place = Channels(tuple(range(module.in_channels)), module.groups, inner=not module.transposed)
        rows = place.take(weight).flatten(1)
    else:
        rows = weight.T
    norms: Tensor = torch.linalg.vector_norm(rows.float(), dim=1)
    return norms


def _kept_channels(norms: Tensor, count: int, criterion: str, seed: str) -> list[int]:
    if criterion == "random":
        return random.Random(seed).sample(range(len(norms)), count)
    order = norms.argsort(descending=criterion == "magnitude+", stable=True)
    return [int(channel) for channel in order[:count]]
