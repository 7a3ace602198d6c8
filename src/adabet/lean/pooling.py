"""Max-pooling: one byte for each output element.

Stock autograd keeps the whole input, of which the kernel reads nothing but the shape, and eight bytes for each maximum.
Lean notes where in its window a maximum lay, and hands the kernel the gradient that it is about to write in the input's
place.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from adabet.lean.bits import as_vector, memory_format_of, slice_elements
from adabet.lean.keeping import is_tracked
from adabet.lean.rules import autocast_dtype, first_order, rule

aten = torch.ops.aten

Lengths = int | tuple[int, ...] | list[int]
Sizes = int | tuple[int | None, ...] | list[int | None] | None

T = TypeVar("T")

MOST_IN_A_BYTE = 256

# The kernels of a maximum over so many dimensions: with indices, and the gradient from them.
MAXIMUM_KERNELS = {
    2: (aten.max_pool2d_with_indices, aten.max_pool2d_with_indices_backward.grad_input),
    3: (aten.max_pool3d_with_indices, aten.max_pool3d_with_indices_backward.grad_input),
}
ADAPTIVE_MAXIMUM_KERNELS = {
    2: (aten.adaptive_max_pool2d, aten.adaptive_max_pool2d_backward.grad_input),
    3: (aten.adaptive_max_pool3d, aten.adaptive_max_pool3d_backward.grad_input),
}


@dataclass(frozen=True)
class Window:
    """How a window walks over the plane of an image or a volume, in the argument order of the kernels."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    def origins(self, plane: Sequence[int], steps: Sequence[int]) -> Tensor:
        """Flat index, in a plane of the input, of each window's first element; of no use where that is padding."""
        origins = torch.zeros((), dtype=torch.int64)
        for length, count, stride, padding in zip(plane, steps, self.stride, self.padding, strict=True):
            origins = origins.unsqueeze(-1) * length + torch.arange(count) * stride - padding
        return origins

    def offsets(self, plane: Sequence[int]) -> Tensor:
        """Distance of each element of a window from the first, in flat indices of a plane of the input."""
        offsets = torch.zeros((), dtype=torch.int64)
        for length, count, dilation in zip(plane, self.size, self.dilation, strict=True):
            offsets = offsets.unsqueeze(-1) * length + torch.arange(count) * dilation
        return offsets.flatten()


class _Maximum(torch.autograd.Function):
    """Max-pooling of a batch that keeps the place of each maximum in its window."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        forward, ctx.kernel = MAXIMUM_KERNELS[len(window.size)]
        y: Tensor
        y, indices = forward(x, *astuple(window))
        ctx.window, ctx.shape, ctx.format, ctx.strides = window, x.shape, memory_format_of(x), indices.stride()
        ctx.save_for_backward(_to_places(indices, window, x.shape[2:]))
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        result = empty_gradient(gradient, ctx.shape, ctx.format)
        samples = _samples(gradient)
        origins = ctx.window.origins(ctx.shape[2:], gradient.shape[2:]).to(places.device)
        offsets = ctx.window.offsets(ctx.shape[2:]).to(places.device)
        for part, out, place in zip(
            gradient.split(samples),
            result.split(samples),
            places.split(samples * prod(gradient.shape[1:])),
            strict=True,
        ):
            indices = offsets.index_select(0, place.int()).as_strided(part.shape, ctx.strides).add_(origins)
            ctx.kernel(part, out, *astuple(ctx.window), indices, grad_input=out)
        return result, None


def _to_places(indices: Tensor, window: Window, plane: Sequence[int]) -> Tensor:
    """Which element of its window each maximum is, in the order of the memory. Uses up the indices."""
    origins, offsets = window.origins(plane, indices.shape[2:]), window.offsets(plane)
    dtype = torch.uint8 if len(offsets) <= MOST_IN_A_BYTE else torch.int32
    # In a plane narrower than the window, elements of it may be equally far from its first; any of them will do.
    place_at = torch.zeros(int(offsets.max()) + 1, dtype=dtype)
    place_at[offsets] = torch.arange(len(offsets), dtype=dtype)
    origins, place_at = origins.to(indices.device), place_at.to(indices.device)
    places = torch.empty(indices.numel(), dtype=dtype, device=indices.device)
    samples = _samples(indices)
    for part, place in zip(indices.split(samples), places.split(samples * prod(indices.shape[1:])), strict=True):
        torch.index_select(place_at, 0, as_vector(part.sub_(origins)), out=place)
    return places


def _max_pool_rule(dims: int, *operations: Callable[..., Tensor]) -> None:
    """Register the rule of max-pooling over ``dims`` dimensions."""

    @rule(*operations)
    def stand_in(
        input: Tensor,
        kernel_size: Lengths,
        stride: Lengths | None = None,
        padding: Lengths = 0,
        dilation: Lengths = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        walk = [
            each_length(lengths, dims)
            for lengths in (kernel_size, stride_or_size(stride, kernel_size), padding, dilation)
        ]
        ordinary = is_tracked(input) and input.dim() in (dims + 1, dims + 2) and all(len(each) == dims for each in walk)
        # Autocast on a CPU pools volumes in float32.
        if return_indices or not ordinary or (dims == 3 and autocast_dtype(input) is not None):
            options = {"return_indices": True} if return_indices else {}
            return operations[0](input, kernel_size, stride, padding, dilation, ceil_mode, **options)
        if dims == 1:
            walk = [(first, *each) for first, each in zip((1, 1, 0, 1), walk, strict=True)]
        x = input.unsqueeze(-2) if dims == 1 else input
        unbatched = input.dim() == dims + 1
        size, step, margin, spread = walk
        y: Tensor = _Maximum.apply(x.unsqueeze(0) if unbatched else x, Window(size, step, margin, spread, ceil_mode))
        y = y.squeeze(0) if unbatched else y
        return y.squeeze(-2) if dims == 1 else y


_max_pool_rule(1, F.max_pool1d, torch.max_pool1d)
_max_pool_rule(2, F.max_pool2d, torch.max_pool2d)
_max_pool_rule(3, F.max_pool3d, torch.max_pool3d)


class _AdaptiveMaximum(torch.autograd.Function):
    """Adaptive max-pooling that keeps the indices alone, in four bytes each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, ...]) -> Tensor:
        forward, ctx.kernel = ADAPTIVE_MAXIMUM_KERNELS[len(size)]
        y: Tensor
        y, indices = forward(x, size)
        ctx.shape, ctx.format = x.shape, image_format_of(x, len(size))
        ctx.save_for_backward(indices.int())
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        result = empty_gradient(gradient, ctx.shape, ctx.format)
        ctx.kernel(gradient, result, indices.long(), grad_input=result)
        return result, None


def _adaptive_max_pool_rule(operation: Callable[..., Tensor], dims: int) -> None:
    """Register the rule of adaptive max-pooling over ``dims`` dimensions."""

    @rule(operation)
    def stand_in(input: Tensor, output_size: Sizes, return_indices: bool = False) -> Tensor:
        sizes = each_length(output_size, dims)
        if return_indices or not is_tracked(input) or len(sizes) != dims or input.dim() not in (dims + 1, dims + 2):
            return operation(input, output_size, return_indices)
        lengths = zip(sizes, input.shape[-dims:], strict=True)
        full = tuple(length if size is None else size for size, length in lengths)
        y: Tensor = _AdaptiveMaximum.apply(input, full)
        return y


_adaptive_max_pool_rule(F.adaptive_max_pool2d, 2)
_adaptive_max_pool_rule(F.adaptive_max_pool3d, 3)


def _samples(batch: Tensor) -> int:
    """How many samples to work on at a time."""
    return max(1, slice_elements(batch.device) // max(1, prod(batch.shape[1:])))


def empty_gradient(gradient: Tensor, shape: torch.Size, memory_format: torch.memory_format) -> Tensor:
    """Room for the gradient of an input of ``shape``, of the type of the output's gradient."""
    return torch.empty(shape, dtype=gradient.dtype, device=gradient.device, memory_format=memory_format)


def image_format_of(x: Tensor, dims: int) -> torch.memory_format:
    """The format in which kernels write the gradient of ``x``: channels-last for batches of images only."""
    return memory_format_of(x) if x.dim() == dims + 2 == 4 else torch.contiguous_format


def each_length(lengths: T | tuple[T, ...] | list[T], dims: int) -> tuple[T, ...]:
    """One length for each dimension, as torch reads a single number or a list of one."""
    if not isinstance(lengths, tuple | list):
        return (lengths,) * dims
    return tuple(lengths) * dims if len(lengths) == 1 else tuple(lengths)


def stride_or_size(stride: Lengths | None, size: Lengths) -> Lengths:
    """The stride; the window's size where none is given, be it by None or by an empty list."""
    return size if stride is None or stride in ((), []) else stride
