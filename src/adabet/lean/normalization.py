"""Normalizations: a frozen batch-norm in eval mode keeps nothing of its input.

The others keep their input and its statistics, as in stock autograd: that is all that their gradients need, whether or
not their affine parameters train. What changes is that whoever uses their output need not keep that as well.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adabet.lean.bits import Layout, memory_format_of, slice_elements
from adabet.lean.composite import Composite
from adabet.lean.keeping import Kept, as_it_is, is_tracked, remember
from adabet.lean.rules import first_order, is_spare, rule
from adabet.lean.sliced_norm import SlicedBatchNorm, slices_of

Statistics = tuple[Tensor | None, Tensor | None]

CHANNELS_IN_VECTOR = 16
WIDE_TYPES = (torch.float32, torch.float64)


class _FrozenBatchNorm(torch.autograd.Function):
    """Batch-norm in eval mode whose weight does not train: an affine map with given numbers.

    Keeps references to the module's own weight and variance, no memory of its own. The gradient of the input is equal
    to the bit on a CPU; elsewhere the order of two products may differ, which is a relative 3e-7 in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.eps, ctx.layout = eps, Layout.of(x)
        ctx.save_for_backward(variance, weight)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        overwrite = is_spare(gradient)
        variance, weight = ctx.saved_tensors
        needs_x, needs_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[4]
        if needs_bias or gradient.dtype is not variance.dtype or gradient.dtype not in WIDE_TYPES:
            # In eval mode the kernel reads its input and the mean for the gradient of the weight alone.
            stand_in = gradient if ctx.layout.fits(gradient) else gradient.new_empty(1).expand_as(gradient)
            wanted = [needs_x, False, needs_bias]
            for_x, _, for_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, stand_in, weight, variance, variance, None, None, False, ctx.eps, wanted
            )
            return for_x, None, None, None, for_bias, None
        per_channel = (-1, *[1] * (gradient.dim() - 2))
        # The CPU kernel takes the root in double precision.
        wide = variance.double() if variance.device.type == "cpu" else variance
        inverse = (wide + ctx.eps).sqrt().reciprocal().to(variance.dtype).view(per_channel)
        result = gradient.mul_(inverse) if overwrite else gradient * inverse
        if weight is not None:
            result.mul_(weight.view(per_channel))
        return result, None, None, None, None, None


class _BatchNorm(torch.autograd.Function):
    """Batch-norm on a CPU that keeps what stock autograd keeps, but takes less memory for its gradients.

    The stock kernel makes room for the input's gradient twice. It treats every channel by itself, so a few at a time
    give the same bits, and these may take the place of the output's gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: Statistics,
        training: bool,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, inverse = torch.native_batch_norm(x, weight, bias, *running, training, momentum, eps)
        ctx.training, ctx.eps = training, eps
        ctx.save_for_backward(x, weight, *((None, None, mean, inverse) if training else (*running, None, None)))
        ctx.mark_non_differentiable(mean, inverse)
        return y, mean, inverse

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        overwrite = is_spare(gradient)
        x, *per_channel = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        for_x = None if not wanted[0] else gradient if overwrite else torch.empty_like(x)
        for_parameters = []
        for channels in _few_channels(x, gradient):
            parameters = [None if each is None else each[channels] for each in per_channel]
            part_x, *part_parameters = torch.ops.aten.native_batch_norm_backward(
                _part(gradient, channels), _part(x, channels), *parameters, ctx.training, ctx.eps, wanted
            )
            for_parameters.append(part_parameters)
            if for_x is not None:
                for_x[:, channels] = part_x
        for_weight, for_bias = zip(*for_parameters, strict=True)
        return (
            for_x,
            torch.cat(for_weight) if wanted[1] else None,
            torch.cat(for_bias) if wanted[2] else None,
            *(None,) * 4,
        )


def _few_channels(x: Tensor, gradient: Tensor) -> list[slice]:
    """Channels to work on at a time; all of them where the kernel would take another path for a part."""
    layout = memory_format_of(x)
    if not x.is_contiguous(memory_format=layout) or not gradient.is_contiguous(memory_format=layout):
        return [slice(None)]
    step = slice_elements(x.device) // max(1, x.numel() // x.shape[1])
    # The kernel for channels-last tensors adds up as many channels at once as fit a vector.
    step = max(CHANNELS_IN_VECTOR, step // CHANNELS_IN_VECTOR * CHANNELS_IN_VECTOR)
    return [slice(start, start + step) for start in range(0, x.shape[1], step)]


def _part(x: Tensor, channels: slice) -> Tensor:
    part = x[:, channels]
    return part if part.shape == x.shape else part.contiguous(memory_format=memory_format_of(x))


@rule(F.batch_norm)
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Stand in for ``torch.nn.functional.batch_norm``: nothing of the input in eval mode with a frozen weight."""
    running = (running_mean, running_var)
    trains = any(is_tracked(tensor) for tensor in (input, weight, bias))
    if not trains or input.numel() == 0 or (not training and (running_mean is None or running_var is None)):
        return F.batch_norm(input, *running, weight, bias, training, momentum, eps)
    if not training and not is_tracked(weight):
        frozen: Tensor = _FrozenBatchNorm.apply(input, *running, weight, bias, eps)
        return frozen
    slices = None if training else slices_of(weight, bias)
    if slices is not None and weight is not None and bias is not None:
        scale, shift = slices
        whole = (weight.detach(), bias.detach())
        sliced: Tensor = SlicedBatchNorm.apply(input, scale.part, shift.part, *running, *whole, scale.place, eps)
        return sliced
    if input.device.type == "cpu" and _is_a_batch(input, training, eps):
        normalized: tuple[Tensor, Tensor, Tensor] = _BatchNorm.apply(
            input, weight, bias, running, training, momentum, eps
        )
        y, mean, inverse = normalized
        if training and inverse.dtype in WIDE_TYPES and (weight is None or weight.dtype is inverse.dtype):
            remember(y, Kept((input, mean, inverse), partial(_normalize_again, weight=weight, bias=bias)))
            return y
    else:
        y = F.batch_norm(input, *running, weight, bias, training, momentum, eps)
    statistics = (None, None) if training else running
    return _remember_norm(y, input, lambda x: F.batch_norm(x, *statistics, weight, bias, training, eps=eps))


def _normalize_again(x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Batch-norm in train mode once more, from its statistics: as the kernel does it, to the bit.

    It multiplies by ``inverse * weight`` and adds what is left; in eval mode ``inverse`` is that of a variance of one.
    """
    scale = inverse if weight is None else inverse * weight
    return F.batch_norm(x, mean, torch.ones_like(mean), scale, bias, eps=0.0)


def _is_a_batch(x: Tensor, training: bool, eps: float) -> bool:
    """Whether stock would find nothing to object to."""
    return x.dim() >= 2 and eps > 0 and not (training and x.numel() == x.shape[1])


@rule(torch.batch_norm)
def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,  # noqa: ARG001 - part of the signature
) -> Tensor:
    return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


@rule(F.layer_norm)
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Stand in for ``torch.nn.functional.layer_norm``: the input, once for all who use the output."""
    again = partial(F.layer_norm, normalized_shape=normalized_shape, weight=weight, bias=bias, eps=eps)
    return _remember_norm(again(input), input, again)


@rule(torch.layer_norm)
def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001 - part of the signature
) -> Tensor:
    return layer_norm(input, normalized_shape, weight, bias, eps)


@rule(F.group_norm)
def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Stand in for ``torch.nn.functional.group_norm``: the input, once for all who use the output."""
    again = partial(F.group_norm, num_groups=num_groups, weight=weight, bias=bias, eps=eps)
    return _remember_norm(again(input), input, again)


@rule(torch.group_norm)
def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001 - part of the signature
) -> Tensor:
    return group_norm(input, num_groups, weight, bias, eps)


@rule(F.rms_norm, torch.rms_norm)
def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Stand in for ``torch.nn.functional.rms_norm``: the input, once for all who use the output."""

    def normalize(x: Tensor, scale: Tensor | None) -> Tensor:
        return F.rms_norm(x, normalized_shape, scale, eps)

    if _keeps_more_than_input(input, weight):
        y: Tensor = Composite.apply(normalize, False, input, weight)
    else:
        y = normalize(input, weight)
    return _remember_norm(y, input, partial(normalize, scale=weight))


def _keeps_more_than_input(x: Tensor, weight: Tensor | None) -> bool:
    """Whether stock RMS-norm, on a CPU a chain of operations, keeps a second tensor or one in higher precision."""
    tracked = is_tracked(x) or is_tracked(weight)
    return tracked and x.device.type == "cpu" and (is_tracked(weight) or x.dtype in (torch.bfloat16, torch.float16))


def _remember_norm(y: Tensor, x: Tensor, again: Callable[[Tensor], Tensor]) -> Tensor:
    """Note that a norm's node keeps its input, unless autocast made it keep a cast of it."""
    if y.requires_grad and y.dtype is x.dtype:
        remember(y, as_it_is(x).then(again))
    return y
