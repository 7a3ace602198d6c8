"""Average pooling keeps sizes alone, where stock autograd keeps the whole input to tell them.

The kernels get the gradient that they are about to write in the input's place.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adabet.lean.keeping import is_tracked
from adabet.lean.pooling import Lengths, Sizes, each_length, empty_gradient, image_format_of, stride_or_size
from adabet.lean.rules import first_order, rule

aten = torch.ops.aten


class _Average(torch.autograd.Function):
    """Average pooling, whose gradient needs the input's sizes alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, operation: Callable[[Tensor], Tensor], backward: Callable[..., object], dims: int
    ) -> Tensor:
        ctx.shape, ctx.format, ctx.kernel = x.shape, image_format_of(x, dims), backward
        return operation(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        result = empty_gradient(gradient, ctx.shape, ctx.format)
        ctx.kernel(gradient, result, result)
        return result, None, None, None


def _average(x: Tensor, operation: Callable[[Tensor], Tensor], backward: Callable[..., object], dims: int) -> Tensor:
    """An average that keeps sizes; ``backward(gradient, input's stand-in, result)`` writes its gradient."""
    if not is_tracked(x):
        return operation(x)
    y: Tensor = _Average.apply(x, operation, backward, dims)
    return y


def _avg_pool_rule(operation: Callable[..., Tensor], kernel: Callable[..., Tensor], dims: int) -> Callable[..., Tensor]:
    """Register the rule of average pooling over ``dims`` dimensions."""

    @rule(operation)
    def stand_in(
        input: Tensor,
        kernel_size: Lengths,
        stride: Lengths | None = None,
        padding: Lengths = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        walk = [each_length(lengths, dims) for lengths in (kernel_size, stride_or_size(stride, kernel_size), padding)]
        options = (*walk, ceil_mode, count_include_pad, divisor_override)

        def backward(gradient: Tensor, stand_in: Tensor, result: Tensor) -> None:
            kernel(gradient, stand_in, *options, grad_input=result)

        return _average(input, lambda x: operation(x, *options), backward, dims)

    return stand_in


_avg_pool2d = _avg_pool_rule(F.avg_pool2d, aten.avg_pool2d_backward.grad_input, 2)
_avg_pool_rule(F.avg_pool3d, aten.avg_pool3d_backward.grad_input, 3)


@rule(F.avg_pool1d)
def avg_pool1d(
    input: Tensor,
    kernel_size: Lengths,
    stride: Lengths | None = None,
    padding: Lengths = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Stand in for ``torch.nn.functional.avg_pool1d``: sizes alone."""
    if not is_tracked(input) or input.dim() not in (2, 3):
        return F.avg_pool1d(
            input, kernel_size, stride_or_size(stride, kernel_size), padding, ceil_mode, count_include_pad
        )
    walk = zip((1, 1, 0), (kernel_size, stride_or_size(stride, kernel_size), padding), strict=True)
    flat = [(first, *each_length(lengths, 1)) for first, lengths in walk]
    return _avg_pool2d(input.unsqueeze(-2), *flat, ceil_mode, count_include_pad).squeeze(-2)


@rule(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(input: Tensor, output_size: Sizes) -> Tensor:
    """Stand in for ``torch.nn.functional.adaptive_avg_pool2d``: sizes alone."""
    return _adaptive_average(input, output_size, F.adaptive_avg_pool2d, aten._adaptive_avg_pool2d_backward.out, 2)


@rule(F.adaptive_avg_pool3d)
def adaptive_avg_pool3d(input: Tensor, output_size: Sizes) -> Tensor:
    """Stand in for ``torch.nn.functional.adaptive_avg_pool3d``: sizes alone."""
    return _adaptive_average(input, output_size, F.adaptive_avg_pool3d, aten._adaptive_avg_pool3d_backward.out, 3)


@rule(F.adaptive_avg_pool1d)
def adaptive_avg_pool1d(input: Tensor, output_size: Lengths) -> Tensor:
    """Stand in for ``torch.nn.functional.adaptive_avg_pool1d``: sizes alone."""
    if not is_tracked(input) or input.dim() not in (2, 3):
        return F.adaptive_avg_pool1d(input, output_size)
    return adaptive_avg_pool2d(input.unsqueeze(-2), (1, *each_length(output_size, 1))).squeeze(-2)


def _adaptive_average(
    x: Tensor, size: Sizes, operation: Callable[..., Tensor], kernel: Callable[..., Tensor], dims: int
) -> Tensor:
    if all(length == 1 for length in each_length(size, dims)):
        # Stock takes the mean then, of which it keeps sizes alone.
        return operation(x, size)

    def backward(gradient: Tensor, stand_in: Tensor, result: Tensor) -> None:
        kernel(gradient, stand_in, out=result)

    return _average(x, lambda x: operation(x, size), backward, dims)
