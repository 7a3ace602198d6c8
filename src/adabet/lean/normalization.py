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

from adabet.lean.keeping import as_it_is, is_tracked, remember
from adabet.lean.composite import Composite
from adabet.lean.rules import first_order, is_spare, rule


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
        ctx.eps = eps
        ctx.save_for_backward(variance, weight)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        overwrite = is_spare(gradient)
        variance, weight = ctx.saved_tensors
        needs_x, needs_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[4]
        if needs_bias or gradient.dtype is not variance.dtype:
            for_x, _, for_bias = torch.ops.aten.native_batch_norm_backward(
                # In eval mode the kernel looks at its input and mean for the weight's gradient only.
                gradient,
                gradient,
                weight,
                variance,
                variance,
                None,
                None,
                False,
                ctx.eps,
                [needs_x, False, needs_bias],
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
    trains = any(is_tracked(tensor) for tensor in (input, weight, bias))
    if trains and not (training or is_tracked(weight) or running_mean is None or running_var is None):
        frozen: Tensor = _FrozenBatchNorm.apply(input, running_mean, running_var, weight, bias, eps)
        return frozen
    y = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    statistics = (None, None) if training else (running_mean, running_var)

    def again(x: Tensor) -> Tensor:
        return F.batch_norm(x, *statistics, weight, bias, training, eps=eps)

    return _remember_norm(y, input, again)


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
