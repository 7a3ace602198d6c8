"""Convolution and its two gradients as pure functions, each with as little workspace as PyTorch's kernels allow.

What stock autograd cannot avoid, these can: the gradient of the input needs no input, and a pointwise convolution
is a matrix product. On a CPU with several threads PyTorch lays out both tensors of a contiguous convolution
anew; for the pointwise ones that doubles to quintuples the memory of the call, at equal speed or worse.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from adabet.lean.adding import add_product

ONEDNN_TYPES = (torch.float32, torch.bfloat16, torch.float16)
PRODUCT_TYPES = (torch.float32, torch.bfloat16, torch.float64)


class Geometry(NamedTuple):
    """How a convolution walks, in the argument order of ``torch.convolution``."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


def mixes_channels(weight: torch.Size, geometry: Geometry) -> bool:
    """Whether a convolution takes every pixel by itself, or every second, and so on."""
    return (
        geometry.groups == 1
        and all(length == 1 for length in weight[2:])
        and not any(geometry.padding)
        and not geometry.transposed
    )


def is_product(x: Tensor, weight: torch.Size, geometry: Geometry) -> bool:
    """Whether to run a convolution as a product of matrices: pointwise, without stride, on a CPU, contiguous.

    In channels-last layout, and on other devices, the stock kernels need no extra memory for it.
    """
    return (
        mixes_channels(weight, geometry)
        and all(step == 1 for step in geometry.stride)
        and x.device.type == "cpu"
        and x.dtype in PRODUCT_TYPES
        and x.is_contiguous()
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolution of a batch, ``(N, C_in, *spatial)`` to ``(N, C_out, *spatial)``, all of one type."""
    if is_product(x, weight.shape, geometry):
        return _mix_channels(x, weight.flatten(1), bias)
    return torch.convolution(x, weight, bias, *geometry)


def input_gradient(gradient: Tensor, weight: Tensor, size: torch.Size, geometry: Geometry) -> Tensor:
    """Gradient with respect to the input, of ``size``, without the input.

    On a CPU it is the adjoint convolution, for a ``convolution_backward`` without an input would still allocate
    one there. Elsewhere, and for types that oneDNN does not serve, it is the stock kernel on a one-element stand-in.
    """
    if is_product(gradient, weight.shape, geometry):
        return _mix_channels(gradient, weight.flatten(1).t(), None)
    if gradient.device.type == "cpu" and gradient.dtype in ONEDNN_TYPES and torch.backends.mkldnn.is_available():
        if mixes_channels(weight.shape, geometry) and gradient.shape[2:] == size[2:]:
            return torch.convolution(gradient, weight.transpose(0, 1), None, *geometry)
        return torch.convolution(gradient, weight, None, *_adjoint(gradient.shape, weight.shape, size, geometry))
    stand_in = gradient.new_empty(1).expand(size)
    in_layout = weight.contiguous(memory_format=memory_format(gradient))
    return _stock_gradients(gradient, stand_in, in_layout, geometry, (True, False))[0]


def weight_gradient(gradient: Tensor, x: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
    """Gradient with respect to a weight. Of ``like`` only the shape counts: the weight itself, or a stand-in."""
    if not is_product(x, like.shape, geometry):
        return _stock_gradients(gradient, x, like, geometry, (False, True))[1]
    # a sum in low precision would round at every sample
    total = torch.zeros(like.shape, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    add_weight_gradient(total, gradient, x)
    return total


def adds_up(x: Tensor, weight: torch.Size, geometry: Geometry) -> bool:
    """Whether `add_weight_gradient` serves: where it is pointwise, or meets all of the input once as a linear layer."""
    linear = x.shape[2:] == weight[2:] and geometry.groups == 1 and not geometry.transposed
    walks = any(geometry.padding) or any(step > 1 for step in geometry.dilation)
    return is_product(x, weight, geometry) or (linear and not walks)


def add_weight_gradient(total: Tensor, gradient: Tensor, x: Tensor) -> None:
    """Add the gradient with respect to a weight to a contiguous tensor, as products of matrices, see `adds_up`."""
    matrix = total.view(len(total), -1)
    if x.shape[2:] == total.shape[2:]:
        add_product(matrix, gradient.flatten(1).t(), x.flatten(1))
        return
    for sample_gradient, sample in zip(gradient.flatten(2), x.flatten(2), strict=True):
        add_product(matrix, sample_gradient, sample.t())


def both_gradients(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Gradients with respect to the input and the weight, in one call of the stock kernel where that serves."""
    if is_product(gradient, weight.shape, geometry):
        return (
            input_gradient(gradient, weight, x.shape, geometry),
            weight_gradient(gradient, x, weight, geometry),
        )
    return _stock_gradients(gradient, x, weight, geometry, (True, True))


def select_channels(x: Tensor, channels: Tensor | None) -> Tensor:
    """A copy of some channels, ``(N, C, *spatial)``, in the layout of ``x``; None stands for all and copies nothing."""
    if channels is None:
        return x
    return x.index_select(1, channels).contiguous(memory_format=memory_format(x))


def every(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """View of every so many pixels of a batch, from the first on."""
    for dimension, step in enumerate(stride, start=2):
        x = x[(slice(None),) * dimension + (slice(None, None, step),)]
    return x


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels-last where the tensor is dense in that layout only, else contiguous."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(x.dim(), torch.contiguous_format)
    return last if not x.is_contiguous() and x.is_contiguous(memory_format=last) else torch.contiguous_format


def bias_gradient(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient with respect to the bias: the sum over everything but channels, accumulated in ``dtype``."""
    return gradient.sum([0, *range(2, gradient.dim())], dtype=dtype)


def _stock_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    gradients = torch.ops.aten.convolution_backward(gradient, x, weight, None, *geometry, (*wanted, False))
    return gradients[0], gradients[1]


def _adjoint(gradient: torch.Size, weight: torch.Size, size: torch.Size, geometry: Geometry) -> Geometry:
    """The convolution that takes the output's gradient back to an input of ``size``.

    A strided convolution maps several input sizes to one output size; the output padding of its adjoint says which.
    """
    if geometry.transposed:
        return geometry._replace(transposed=False, output_padding=(0,) * len(geometry.stride))
    walk = zip(size[2:], gradient[2:], weight[2:], geometry.stride, geometry.padding, geometry.dilation, strict=True)
    rest = tuple(
        length - ((steps - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1)
        for length, steps, kernel, stride, padding, dilation in walk
    )
    return geometry._replace(transposed=True, output_padding=rest)


def _mix_channels(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Product of a matrix ``(C_out, C_in)`` with every pixel's channels."""
    out = x.new_empty((x.shape[0], matrix.shape[0], *x.shape[2:]))
    matrices = matrix.expand(x.shape[0], -1, -1)
    if bias is None:
        torch.bmm(matrices, x.flatten(2), out=out.flatten(2))
    else:
        torch.baddbmm(bias.unsqueeze(1), matrices, x.flatten(2), out=out.flatten(2))
    return out
