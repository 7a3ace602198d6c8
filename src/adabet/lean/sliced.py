"""Convolution and linear of which only a channel slice trains: what it keeps and computes is the slice's."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adabet.freezing.slices import Channels
from adabet.lean.kernels import Geometry, bias_gradient, convolve, input_gradient, select_channels, weight_gradient
from adabet.lean.rules import first_order


class SlicedConvolution(torch.autograd.Function):
    """Convolution by a full weight whose gradient goes to a slice of it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, part: Tensor, weight: Tensor, bias: Tensor | None, place: Channels, geometry: Geometry
    ) -> Tensor:
        ctx.geometry, ctx.size, ctx.place = geometry, x.shape, place
        ctx.bias_dtype = None if bias is None else bias.dtype
        # Input channels are what a slice of input channels runs along, and all that the others can spare.
        ctx.cuts_input = place.inner != geometry.transposed
        ctx.blocks = list(_blocks(place, weight.shape, x.device))
        kept = [select_channels(x, block.sliced if ctx.cuts_input else block.others) for block in ctx.blocks]
        ctx.save_for_backward(part, weight, *kept)
        return convolve(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), geometry)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        part, weight, *kept = ctx.saved_tensors
        for_x = for_part = for_bias = None
        if ctx.needs_input_grad[0]:
            for_x = input_gradient(gradient, weight.to(gradient.dtype), ctx.size, ctx.geometry)
        if ctx.needs_input_grad[1]:
            for_part = torch.empty_like(part)
            for block, x in zip(ctx.blocks, kept, strict=True):
                cut = select_channels(gradient, block.others if ctx.cuts_input else block.sliced)
                for_part[block.rows] = _block_gradient(cut, x, ctx.place.inner, part.shape[2:], block, ctx.geometry)
        if ctx.needs_input_grad[3]:
            for_bias = bias_gradient(gradient, ctx.bias_dtype)
        return for_x, for_part, None, for_bias, None, None


class _Block(NamedTuple):
    """A part of a slice that is a convolution of its own: groups with equally many of the slice's channels.

    Attributes:
        rows: rows of the slice.
        sliced: channels of those rows, on the side along which the slice runs.
        others: channels of the other side that they meet; None for all.
        groups: how many groups these are.
    """

    rows: Tensor | slice
    sliced: Tensor
    others: Tensor | None
    groups: int


def _blocks(place: Channels, weight: torch.Size, device: torch.device) -> Iterator[_Block]:
    channels = torch.tensor(place.channels)
    if place.groups == 1:
        yield _Block(slice(None), channels.to(device), None, 1)
        return
    first_width = weight[0] // place.groups
    sliced_width, other_width = (weight[1], first_width) if place.inner else (first_width, weight[1])
    group = channels // sliced_width
    counts = torch.bincount(group, minlength=place.groups)
    for count in counts[counts > 0].unique():
        groups = (counts == count).nonzero().flatten()
        rows = (counts[group] == count).nonzero().flatten()
        others = (groups.unsqueeze(1) * other_width + torch.arange(other_width)).flatten()
        complete = len(groups) == place.groups
        yield _Block(
            rows.to(device), channels[rows].to(device), None if complete else others.to(device), len(groups)
        )


def _block_gradient(
    gradient: Tensor, x: Tensor, inner: bool, kernel: torch.Size, block: _Block, geometry: Geometry
) -> Tensor:
    """Gradient of a block's weight, one row a channel."""
    first, second = (x, gradient) if geometry.transposed else (gradient, x)
    size = torch.Size((first.shape[1], second.shape[1] // block.groups, *kernel))
    whole = weight_gradient(gradient, x, size, geometry._replace(groups=block.groups))
    if not inner:
        return whole
    return whole.unflatten(0, (block.groups, -1)).transpose(1, 2).flatten(0, 1)


class SlicedLinear(torch.autograd.Function):
    """Linear layer with a full weight whose gradient goes to a slice of it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, part: Tensor, weight: Tensor, bias: Tensor | None, place: Channels
    ) -> Tensor:
        ctx.place = place
        ctx.bias_dtype = None if bias is None else bias.dtype
        channels = torch.tensor(place.channels, device=x.device)
        ctx.save_for_backward(part, weight, channels, x.index_select(-1, channels) if place.inner else x)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        part, weight, channels, kept = ctx.saved_tensors
        for_x = for_part = for_bias = None
        rows = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            for_x = gradient @ weight.to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            inputs = kept.reshape(-1, kept.shape[-1])
            product = inputs.t() @ rows if ctx.place.inner else rows.index_select(1, channels).t() @ inputs
            for_part = product.to(part.dtype)
        if ctx.needs_input_grad[3]:
            for_bias = rows.sum(0, dtype=ctx.bias_dtype)
        return for_x, for_part, None, for_bias, None
