"""Convolution and linear of which only a channel slice trains: what it keeps and computes is the slice's."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adabet.freezing.channels import Channels
from adabet.lean.adding import added_to, product_gradient
from adabet.lean.inputs import cast_like
from adabet.lean.keeping import Kept
from adabet.lean.kernels import Geometry, bias_gradient, convolve, input_gradient, select_channels, weight_gradient
from adabet.lean.rules import first_order


class SlicedConvolution(torch.autograd.Function):
    """Convolution by a full weight whose gradient goes to a slice of it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        part: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        place: Channels,
        geometry: Geometry,
        kept: Kept,
    ) -> Tensor:
        """Convolve ``x`` by ``weight``, which holds ``part`` at ``place``."""
        ctx.geometry, ctx.size, ctx.place = geometry, x.shape, place
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.rebuild = None if kept.is_itself else kept.rebuild
        inputs = _input_parts(x, weight, ctx) if kept.is_itself else kept.tensors
        ctx.save_for_backward(part, weight, *inputs)
        return convolve(x, *cast_like(x, weight, bias), geometry)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, ``part`` and ``bias``."""
        part, weight, *inputs = ctx.saved_tensors
        for_x = for_part = for_bias = None
        if ctx.needs_input_grad[0]:
            for_x = input_gradient(gradient, weight.to(gradient.dtype), ctx.size, ctx.geometry)
        if ctx.needs_input_grad[1]:
            if ctx.rebuild is not None:
                inputs = _input_parts(ctx.rebuild(*inputs), weight, ctx)
            for block, x in zip(_blocks(ctx.place, weight), inputs, strict=True):
                cut = select_channels(gradient, block.others if cuts_input(ctx.place, ctx.geometry) else block.sliced)
                rows = _block_gradient(cut, x, part, block, ctx)
                if len(rows) == len(part):
                    for_part = rows.to(part.dtype)
                    break
                for_part = torch.empty_like(part) if for_part is None else for_part
                for_part[block.rows] = rows
        if ctx.needs_input_grad[3]:
            for_bias = bias_gradient(gradient, ctx.bias_dtype)
        return for_x, for_part, None, for_bias, None, None, None


def cuts_input(place: Channels, geometry: Geometry) -> bool:
    """Whether a slice runs along the input's channels; the weight's second dimension, but in transposed convolution."""
    return place.inner != geometry.transposed


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


def _blocks(place: Channels, weight: Tensor) -> Iterator[_Block]:
    channels, device = torch.tensor(place.channels), weight.device
    if place.groups == 1:
        yield _Block(slice(None), channels.to(device), None, 1)
        return
    widths = weight.shape[0] // place.groups, weight.shape[1]
    sliced_width, other_width = reversed(widths) if place.inner else widths
    group = channels // sliced_width
    counts = torch.bincount(group, minlength=place.groups)
    for count in counts[counts > 0].unique():
        groups = (counts == count).nonzero().flatten()
        rows = (counts[group] == count).nonzero().flatten()
        others = (groups.unsqueeze(1) * other_width + torch.arange(other_width)).flatten()
        complete = len(groups) == place.groups
        yield _Block(rows.to(device), channels[rows].to(device), None if complete else others.to(device), len(groups))


def _input_parts(x: Tensor, weight: Tensor, ctx: Any) -> list[Tensor]:
    """What each block's gradient needs of the input."""
    cuts = cuts_input(ctx.place, ctx.geometry)
    return [select_channels(x, block.sliced if cuts else block.others) for block in _blocks(ctx.place, weight)]


def _block_gradient(gradient: Tensor, x: Tensor, part: Tensor, block: _Block, ctx: Any) -> Tensor:
    """Gradient of a block's weight, one row a channel."""
    first, second = (x, gradient) if ctx.geometry.transposed else (gradient, x)
    shape = (first.shape[1], second.shape[1] // block.groups, *part.shape[2:])
    # only its shape counts, and kernels copy what is not dense
    stand_in = part.to(x.dtype) if part.shape == shape else x.new_empty(shape)
    whole = weight_gradient(gradient, x, stand_in, ctx.geometry._replace(groups=block.groups))
    if not ctx.place.inner:
        return whole
    by_group: Tensor = whole.unflatten(0, (block.groups, -1))
    return by_group.transpose(1, 2).flatten(0, 1)


class SlicedLinear(torch.autograd.Function):
    """Linear layer with a full weight whose gradient goes to a slice of it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, part: Tensor, weight: Tensor, bias: Tensor | None, place: Channels, kept: Kept
    ) -> Tensor:
        """Multiply ``x`` by ``weight``, which holds ``part`` at ``place``."""
        ctx.place, ctx.added = place, added_to(part)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.rebuild = None if kept.is_itself else kept.rebuild
        inputs = (_features(x, place),) if kept.is_itself else kept.tensors
        ctx.save_for_backward(part, weight, *inputs)
        return F.linear(x, *cast_like(x, weight, bias))

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, ``part`` and ``bias``."""
        part, weight, *inputs = ctx.saved_tensors
        for_x = for_part = for_bias = None
        rows = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            for_x = gradient @ weight.to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            x = inputs[0] if ctx.rebuild is None else _features(ctx.rebuild(*inputs), ctx.place)
            x = x.reshape(-1, x.shape[-1])
            first, second = (x.t(), rows) if ctx.place.inner else (ctx.place.select(rows, 1).t(), x)
            for_part = product_gradient(first, second, part.dtype, ctx.added)
        if ctx.needs_input_grad[3]:
            for_bias = rows.sum(0, dtype=ctx.bias_dtype)
        return for_x, for_part, None, for_bias, None, None


def _features(x: Tensor, place: Channels) -> Tensor:
    return place.select(x, -1) if place.inner else x
