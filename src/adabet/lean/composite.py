"""An operation made of many: keep what goes in, and run it once more in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adabet.lean.rules import first_order


class Composite(torch.autograd.Function):
    """A function of tensors that keeps its inputs, and none of what lies between.

    Its gradients are those of stock autograd over the second run, equal to the bit; random numbers are drawn again
    from the same state. Meant for what takes a small part of the time, such as a norm or the attention between two
    projections; whole blocks are `torch.utils.checkpoint`'s.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], draws: bool, *inputs: Tensor | None) -> Tensor:
        """Run ``function(*inputs)``; ``draws`` says whether it takes random numbers."""
        ctx.function, ctx.device = function, next(x.device for x in inputs if x is not None)
        ctx.save_for_backward(_random_state(ctx.device) if draws else None, *inputs)
        return function(*inputs)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Run it again and differentiate it."""
        state, *saved = ctx.saved_tensors
        inputs = [None if x is None else x.detach() for x in saved]
        wanted = [
            x.requires_grad_()
            for x, needed in zip(inputs, ctx.needs_input_grad[2:], strict=True)
            if x is not None and needed
        ]
        with torch.enable_grad(), _drawing_from(state, ctx.device):
            output = ctx.function(*inputs)
        gradients = iter(torch.autograd.grad(output, wanted, gradient))
        return None, None, *(next(gradients) if needed else None for needed in ctx.needs_input_grad[2:])


def _random_state(device: torch.device) -> Tensor:
    return torch.get_rng_state() if device.type == "cpu" else getattr(torch, device.type).get_rng_state(device)


@contextmanager
def _drawing_from(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draw random numbers from this state on, and leave the device's own as they are."""
    if state is None:
        yield
        return
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            getattr(torch, device.type).set_rng_state(state, device)
        yield
