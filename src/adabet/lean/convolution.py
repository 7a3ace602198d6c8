"""Lean convolutions: a frozen weight keeps no input, a sliced one only the channels that it needs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adabet.freezing.channels import sliced_weight
from adabet.lean.adding import added_to
from adabet.lean.inputs import cast_like, copies_in_autocast, is_ordinary, kept_input
from adabet.lean.keeping import NOTHING, Kept
from adabet.lean.kernels import (
    Geometry,
    add_weight_gradient,
    adds_up,
    bias_gradient,
    both_gradients,
    convolve,
    every,
    input_gradient,
    is_product,
    memory_format,
    mixes_channels,
    weight_gradient,
)
from adabet.lean.rules import autocast_dtype, first_order, rule
from adabet.lean.sliced import SlicedConvolution, cuts_input

Lengths = int | Sequence[int]


class _Convolution(torch.autograd.Function):
    """Keeps weights as the parameters they are, never as casts, and of the input what stands for it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        kept: Kept,
        added: Tensor | None,
    ) -> Tensor:
        ctx.geometry, ctx.size, ctx.rebuild, ctx.added = geometry, x.shape, kept.rebuild, added
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(weight, *kept.tensors)
        return convolve(x, *cast_like(x, weight, bias), geometry)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        cast = weight.to(gradient.dtype)
        for_x = for_weight = for_bias = None
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        total = None if ctx.added is None else ctx.added.grad
        if needs_weight and total is not None and total.is_contiguous():
            add_weight_gradient(total, gradient, ctx.rebuild(*kept))
            needs_weight = False
        if needs_x and needs_weight:
            for_x, for_weight = both_gradients(gradient, ctx.rebuild(*kept), cast, ctx.geometry)
        elif needs_x:
            for_x = input_gradient(gradient, cast, ctx.size, ctx.geometry)
        elif needs_weight:
            for_weight = weight_gradient(gradient, ctx.rebuild(*kept), cast, ctx.geometry)
        if for_weight is not None:
            for_weight = for_weight.to(weight.dtype)
        if needs_bias:
            for_bias = bias_gradient(gradient, ctx.bias_dtype)
        return for_x, for_weight, for_bias, None, None, None


def _convolution(operation: Callable[..., Tensor], dims: int) -> None:
    """Register the rule of a convolution over ``dims`` dimensions."""

    @rule(operation)
    def stand_in(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Lengths = 1,
        padding: Lengths | str = 0,
        dilation: Lengths = 1,
        groups: int = 1,
    ) -> Tensor:
        stock = partial(operation, input, weight, bias, stride, padding, dilation, groups)
        lengths = _padding(weight, stride, padding, dilation, dims)
        if lengths is None:
            return stock()
        near, far = lengths
        geometry = Geometry(_each(stride, dims), near, _each(dilation, dims), False, (0,) * dims, groups)
        return _lean(stock, input, weight, bias, geometry, far)


def _transposed_convolution(operation: Callable[..., Tensor], dims: int) -> None:
    """Register the rule of a transposed convolution over ``dims`` dimensions."""

    @rule(operation)
    def stand_in(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Lengths = 1,
        padding: Lengths = 0,
        output_padding: Lengths = 0,
        groups: int = 1,
        dilation: Lengths = 1,
    ) -> Tensor:
        stock = partial(operation, input, weight, bias, stride, padding, output_padding, groups, dilation)
        walk = [_each(lengths, dims) for lengths in (stride, padding, dilation, output_padding)]
        geometry = Geometry(walk[0], walk[1], walk[2], True, walk[3], groups)
        return _lean(stock, input, weight, bias, geometry, (0,) * dims)


for _dims in (1, 2, 3):
    _convolution(getattr(torch, f"conv{_dims}d"), _dims)
    _transposed_convolution(getattr(torch, f"conv_transpose{_dims}d"), _dims)


def _lean(
    stock: Callable[[], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    far: tuple[int, ...],
) -> Tensor:
    """The convolution that keeps least; ``stock`` where that is the stock one, or has to judge the arguments."""
    dims = len(far)
    if not is_ordinary(x, weight, bias) or not _fits(x, weight, geometry, dims):
        return stock()
    stride = geometry.stride if mixes_channels(weight.shape, geometry) else (1,) * dims
    if any(step > 1 for step in stride):
        geometry = geometry._replace(stride=(1,) * dims)
    prepare = partial(_prepare, dtype=autocast_dtype(x) or x.dtype, far=far, stride=stride)
    batch = prepare(x)
    slice_ = sliced_weight(weight) if weight.requires_grad else None
    if slice_ is not None:
        whole = not cuts_input(slice_.place, geometry) and geometry.groups == 1
        kept = kept_input(x, batch, prepare, whole=whole)
        out = SlicedConvolution.apply(batch, slice_.part, weight.detach(), bias, slice_.place, geometry, kept)
    else:
        kept = kept_input(x, batch, prepare) if weight.requires_grad else NOTHING
        added = added_to(weight) if adds_up(batch, weight.shape, geometry) else None
        keeps_as_stock = weight.requires_grad and kept.is_itself and batch is x and added is None
        if keeps_as_stock and not copies_in_autocast(weight) and not is_product(batch, weight.shape, geometry):
            return stock()
        out = _Convolution.apply(batch, weight, bias, geometry, kept, added)
    result: Tensor = out if x.dim() == dims + 2 else out.squeeze(0)
    return result


def _fits(x: Tensor, weight: Tensor, geometry: Geometry, dims: int) -> bool:
    walk = (geometry.stride, geometry.padding, geometry.dilation, geometry.output_padding)
    return (
        weight.dim() == dims + 2
        and x.dim() in (dims + 1, dims + 2)
        and all(len(lengths) == dims for lengths in walk)
        and all(step > 0 for step in geometry.stride)
    )


def _prepare(x: Tensor, *, dtype: torch.dtype, far: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """The input as a batch in the type of the operation, padded at the far end, and only the pixels that it reads."""
    x = x.to(dtype)
    if any(far):
        x = F.pad(x, [side for length in reversed(far) for side in (0, length)])
    if x.dim() == len(far) + 1:
        x = x.unsqueeze(0)
    return _thin_out(x, stride) if any(step > 1 for step in stride) else x


class _Thinning(torch.autograd.Function):
    """Every so many pixels of a batch, copied in its layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: tuple[int, ...]) -> Tensor:
        ctx.size, ctx.stride = x.shape, stride
        return every(x, stride).contiguous(memory_format=memory_format(x))

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layout = memory_format(gradient)
        whole = torch.empty(ctx.size, dtype=gradient.dtype, device=gradient.device, memory_format=layout).zero_()
        every(whole, ctx.stride).copy_(gradient)
        return whole, None


def _thin_out(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Keep the pixels that a pointwise convolution with this stride reads.

    The gradient comes back mostly zero and as large as the input, usually to wait for that of a parallel branch.
    So it is made as late as can be: of the nodes whose turn it is, autograd runs the youngest first, and this one
    poses as old as the input.
    """
    thin: Tensor = _Thinning.apply(x, stride)
    postpone = getattr(thin.grad_fn, "_set_sequence_nr", None)
    if postpone is not None and x.grad_fn is not None:
        postpone(x.grad_fn._sequence_nr())
    return thin


def _padding(
    weight: Tensor, stride: Lengths, padding: Lengths | str, dilation: Lengths, dims: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Padding at both ends, and what the far end has more of; None where stock has to say what is wrong.

    Padding ``"same"`` of a kernel with an even reach is one longer at the far end.
    """
    if not isinstance(padding, str):
        return _each(padding, dims), (0,) * dims
    if padding == "valid":
        return (0,) * dims, (0,) * dims
    if padding != "same" or any(step != 1 for step in _each(stride, dims)) or weight.dim() != dims + 2:
        return None
    reach = [step * (kernel - 1) for step, kernel in zip(_each(dilation, dims), weight.shape[2:], strict=True)]
    return tuple(length // 2 for length in reach), tuple(length % 2 for length in reach)


def _each(lengths: Lengths, dims: int) -> tuple[int, ...]:
    """One length for each dimension, as torch reads a single number or a list of one."""
    if isinstance(lengths, int):
        return (lengths,) * dims
    return tuple(lengths) * dims if len(lengths) == 1 else tuple(lengths)
