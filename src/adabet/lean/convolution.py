"""Lean convolutions: a frozen weight keeps no input, a sliced one only the channels that it needs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adabet.freezing.slices import sliced_weight
from adabet.lean.kernels import (
    Geometry,
    bias_gradient,
    both_gradients,
    convolve,
    input_gradient,
    is_pointwise,
    weight_gradient,
)
from adabet.lean.rules import autocast_dtype, first_order, rule
from adabet.lean.sliced import SlicedConvolution

Lengths = int | Sequence[int]


class _Convolution(torch.autograd.Function):
    """Keeps the input only for a trainable weight, and weights as the parameters they are, never as casts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.geometry, ctx.size = geometry, x.shape
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return convolve(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), geometry)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        for_x = for_weight = for_bias = None
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        if needs_x and needs_weight:
            for_x, for_weight = both_gradients(gradient, x, weight.to(gradient.dtype), ctx.geometry)
        elif needs_x:
            for_x = input_gradient(gradient, weight.to(gradient.dtype), ctx.size, ctx.geometry)
        elif needs_weight:
            for_weight = weight_gradient(gradient, x, weight.shape, ctx.geometry)
        if for_weight is not None:
            for_weight = for_weight.to(weight.dtype)
        if needs_bias:
            for_bias = bias_gradient(gradient, ctx.bias_dtype)
        return for_x, for_weight, for_bias, None


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
        settled = _same_padding(input, weight, stride, padding, dilation, dims)
        if settled is None or not _is_ordinary(input, weight, bias, dims):
            return operation(input, weight, bias, stride, padding, dilation, groups)
        x, lengths = settled
        none = (0,) * dims
        geometry = Geometry(_each(stride, dims), lengths, _each(dilation, dims), False, none, groups)
        if not _keeps_less(x, weight, geometry):
            return operation(input, weight, bias, stride, padding, dilation, groups)
        return _lean_convolution(x, weight, bias, geometry)


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
        walk = [_each(lengths, dims) for lengths in (stride, padding, dilation, output_padding)]
        geometry = Geometry(walk[0], walk[1], walk[2], True, walk[3], groups)
        if not _is_ordinary(input, weight, bias, dims) or not _keeps_less(input, weight, geometry):
            return operation(input, weight, bias, stride, padding, output_padding, groups, dilation)
        return _lean_convolution(input, weight, bias, geometry)


for _dims, _operation in enumerate((torch.conv1d, torch.conv2d, torch.conv3d), start=1):
    _convolution(_operation, _dims)
for _dims, _operation in enumerate((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), start=1):
    _transposed_convolution(_operation, _dims)


def _lean_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    x = x.to(autocast_dtype(x) or x.dtype)
    batch = x if x.dim() == weight.dim() else x.unsqueeze(0)
    slice_ = sliced_weight(weight) if weight.requires_grad else None
    if slice_ is None:
        out: Tensor = _Convolution.apply(batch, weight, bias, geometry)
    else:
        out = SlicedConvolution.apply(batch, slice_.part, weight.detach(), bias, slice_.place, geometry)
    return out if batch is x else out.squeeze(0)


def _is_ordinary(x: Tensor, weight: Tensor, bias: Tensor | None, dims: int) -> bool:
    """Whether something is to be learned here, and the arguments are such that stock would take them."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    return (
        any(tensor.requires_grad for tensor in tensors)
        and len({autocast_dtype(tensor) or tensor.dtype for tensor in tensors}) == 1
        and x.is_floating_point()
        and x.dim() in (dims + 1, dims + 2)
        and weight.dim() == dims + 2
    )


def _keeps_less(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether lean saves anything over stock: the input, a cast of the weight, a slice, or workspace."""
    return (
        not weight.requires_grad
        or autocast_dtype(weight) not in (None, weight.dtype)
        or sliced_weight(weight) is not None
        or is_pointwise(x, weight.shape, geometry)
    )


def _same_padding(
    x: Tensor, weight: Tensor, stride: Lengths, padding: Lengths | str, dilation: Lengths, dims: int
) -> tuple[Tensor, tuple[int, ...]] | None:
    """The input and the padding in numbers; None where stock has to say what is wrong with them.

    Padding ``"same"`` of an even kernel is one longer at the far end, which is put onto the input itself.
    """
    if not isinstance(padding, str):
        return x, _each(padding, dims)
    if padding == "valid":
        return x, (0,) * dims
    if padding != "same" or any(step != 1 for step in _each(stride, dims)) or weight.dim() != dims + 2:
        return None
    reach = [step * (kernel - 1) for step, kernel in zip(_each(dilation, dims), weight.shape[2:], strict=True)]
    if any(length % 2 for length in reach):
        x = F.pad(x, [side for length in reversed(reach) for side in (0, length % 2)])
    return x, tuple(length // 2 for length in reach)


def _each(lengths: Lengths, dims: int) -> tuple[int, ...]:
    """One length for each dimension, as torch reads a single number or a list of one."""
    if isinstance(lengths, int):
        return (lengths,) * dims
    return tuple(lengths) * dims if len(lengths) == 1 else tuple(lengths)
