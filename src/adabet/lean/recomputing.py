"""An operation made of many: keep what goes in, and run it once more in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adabet.lean.rules import first_order


class Recomputed(torch.autograd.Function):
    """A deterministic function of tensors that keeps its inputs and none of what lies between.

    Its gradients are those of stock autograd over the second run, equal to the bit. Meant for what takes a small part of the
    time, such as a norm or the attention between two projections; whole blocks are `torch.utils.checkpoint`'s.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """Run ``function(*inputs)``."""
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Run it again and differentiate it."""
        inputs = [None if x is None else x.detach() for x in ctx.saved_tensors]
        wanted = [
            x.requires_grad_()
            for x, needed in zip(inputs, ctx.needs_input_grad[1:], strict=True)
            if x is not None and needed
        ]
        with torch.enable_grad():
            output = ctx.function(*inputs)
        gradients = iter(torch.autograd.grad(output, wanted, gradient))
        return None, *(next(gradients) if needed else None for needed in ctx.needs_input_grad[1:])
