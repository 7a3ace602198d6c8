"""Fisher information of activations: how much the loss would change without them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adabet.errors import ActivationError, OptionError
from adabet.layers import Layer
from adabet.methods.activation_gradients import activation_gradients
from adabet.methods.registry import Request, register
from adabet.ranking import SLICEABLE, RankedLayer, Ranking
from adabet.topology.samples import by_sample

MODES = ("elementwise-mean", "channel-sum")


@dataclass(frozen=True)
class Fisher:
    """Fisher information of one layer's activations.

    Attributes:
        layer: of the layer.
        channels: of each of its output channels, in one number where it has none.
    """

    layer: float
    channels: tuple[float, ...]


@register(
    "fisher",
    needs="labels, forward and backward through the whole model",
    source="baseline of the AdaBet paper, Tenison et al. 2026, arXiv 2510.03101",
)
def rank_fisher(request: Request, *, mode: str = "elementwise-mean", gradient_batches: int = 1) -> Ranking:
    """The layers whose activations, times the loss's gradient with respect to them, are largest.

    With a the output of a layer for N samples of D elements each, and g the gradient of each sample's loss with
    respect to it, the score is 1 / (2ND) times the sum of (a g)^2 over all elements (``"elementwise-mean"``), or the
    sum over output channels of 1 / (2N) times the sum over samples of (sum of a g over the channel's places)^2
    (``"channel-sum"``, TinyTrain's Fisher potential). A layer whose output the loss does not depend on scores 0.
    Channels are scored by the same formula within each, so ``channel_ratio`` works.

    The model runs in eval mode without gradients of weights, but every layer's output has to stay in memory until its
    gradient arrives: with ``micro_batch`` only those of so many samples.

    Args:
        request: model, labelled batches, loss and micro-batch, and what all methods share.
        mode: what is squared: each element, or the sum over a channel's places.
        gradient_batches: how many batches to look at; the paper's baseline takes one.

    Raises:
        OptionError: if an option makes no sense, or a batch has no labels.
        DataError: if there is no batch.
        ActivationError: if activations or gradients are not finite.

    Departs from the paper: its formula squares the product of a sample, its code (followed here by default) each
    element. There g is that of the batch's mean loss, here of each sample's own, so that scores do not shrink with the
    batch; the order is the same. A layer that runs several times is one: its elements count together, and its channels
    are summed over all times before they are squared.

    Source: Tenison et al. 2026 (arXiv 2510.03101), section 3.2 and appendix C, and their reference code;
    ``"channel-sum"``: Kwon et al., TinyTrain (ICML 2024).
    """
    layers = request.find_layers()
    found, samples = fisher_information(request, layers.candidates, mode=mode, gradient_batches=gradient_batches)
    ranked = [
        RankedLayer(
            layer,
            found[layer.name].layer,
            channel_scores=found[layer.name].channels if layer.channel_axis and layer.kind in SLICEABLE else None,
        )
        for layer in layers
    ]
    flat = (
        "flat: the loss has no gradient at any layer (a head of zeros gives none), so the order is that of the "
        "forward pass; train the head first"
    )
    return request.ranking(
        layers,
        ranked,
        method="fisher",
        samples=samples,
        notes=() if any(item.score for item in ranked) else (flat,),
        options={"mode": mode, "gradient_batches": gradient_batches},
        channel_axis="out",
    )


def fisher_information(
    request: Request, layers: Sequence[Layer], *, mode: str, gradient_batches: int = 1
) -> tuple[dict[str, Fisher], int]:
    """Fisher information by layer name, and the number of samples that it comes from; see `rank_fisher`."""
    if mode not in MODES:
        raise OptionError(f"expected mode to be one of {', '.join(MODES)}, got {mode!r}")
    if gradient_batches < 1:
        raise OptionError(f"expected gradient_batches of at least 1, got {gradient_batches}")
    by_channel = _squared_sums if mode == "channel-sum" else _mean_squares
    channels, samples = by_channel(request, layers, gradient_batches)
    found = {}
    for layer in layers:
        # channels hold equally many elements, so that the mean over all elements is the mean over channels
        total = float(channels[layer.name].sum() if mode == "channel-sum" else channels[layer.name].mean())
        if not math.isfinite(total):
            raise ActivationError(
                f"expected finite numbers, layer {layer.name!r} has activations or gradients that are not (or too "
                "large to square); check the weights, how the inputs are scaled, and the loss"
            )
        found[layer.name] = Fisher(total, tuple(channels[layer.name].tolist()))
    return found, samples


def _mean_squares(request: Request, layers: Sequence[Layer], batches: int) -> tuple[dict[str, Tensor], int]:
    """By layer name, for each channel half the mean square of its elements, and the number of samples."""
    slices, samples = activation_gradients(request, layers, _channel_norms, batches=batches)
    found = {layer.name: _nothing(layer) for layer in layers}
    for layer in layers:
        calls = [call for part in slices for call in part.get(layer.name, [])]
        if calls:
            squares = torch.stack([norms.square() for norms, _ in calls]).sum(0)
            found[layer.name] = squares / (2 * sum(elements for _, elements in calls))
    return found, samples


def _squared_sums(request: Request, layers: Sequence[Layer], batches: int) -> tuple[dict[str, Tensor], int]:
    """By layer name, for each channel half the mean over samples of its squared sum, and the number of samples."""
    slices, samples = activation_gradients(request, layers, _channel_sums, batches=batches)
    found = {layer.name: _nothing(layer) for layer in layers}
    for part in slices:
        for name, calls in part.items():
            found[name] = found[name] + torch.stack(calls).sum(0).square().sum(0) / (2 * samples)
    return found, samples


def _nothing(layer: Layer) -> Tensor:
    """What a layer without a gradient has."""
    return torch.zeros(layer.out_channels or 1 if layer.channel_axis else 1, dtype=torch.float64)


def _channel_norms(layer: Layer, product: Tensor, _: int) -> tuple[Tensor, int]:
    """Euclidean norm of each channel over samples and places, and of how many elements."""
    whole = product[None]
    axis = layer.channel_axis
    if axis is None:
        return torch.linalg.vector_norm(whole).reshape(1).cpu().double(), product.numel()
    others = [dim for dim in range(whole.dim()) if dim != whole.dim() + axis]
    return torch.linalg.vector_norm(whole, dim=others).cpu().double(), product.numel() // product.shape[axis]


def _channel_sums(layer: Layer, product: Tensor, samples: int) -> Tensor:
    """Sum of each channel over its places, ``(samples, channels)``."""
    rows = by_sample(layer.name, product, samples, layer.output_shape)
    if samples > 1 and rows.stride(0) == 0:  # an output that all samples share, such as an embedding of positions
        rows = rows[:1]
    axis = layer.channel_axis
    if axis is None:
        return rows.flatten(1).sum(1, keepdim=True).cpu().double()
    others = [dim for dim in range(1, rows.dim()) if dim != rows.dim() + axis]
    return (rows.sum(others) if others else rows).cpu().double()
