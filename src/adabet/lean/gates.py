"""Activations whose slope takes two values: one bit an element is all that their backward pass needs.

A gate says how its activation runs, what the bit of an element is, and how the gradient follows from it; the last by
the kernel that stock autograd calls, so that gradients are equal to the bit.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from adabet.lean.bits import compare

aten = torch.ops.aten


@dataclass(frozen=True)
class Gate:
    """One activation whose slope takes two values.

    Attributes:
        apply: the stock activation.
        apply_: the same in place.
        test: the bits, as new booleans, of a slice of the output if they show there, else of the input.
        backward: ``backward(gradient, kept, out=...)`` writes the input's gradient, elementwise, maybe over the
            output's. ``kept`` is the bits as 0 and 1 in uint8, or the whole output in its own type if they show there.
        shows_in_output: whether the output tells the bit as well as the input does.
    """

    apply: Callable[[Tensor], Tensor]
    apply_: Callable[[Tensor], Tensor]
    test: Callable[[Tensor], Tensor]
    backward: Callable[..., object]
    shows_in_output: bool


def _pass_ones(gradient: Tensor, kept: Tensor, *, out: Tensor) -> None:
    """The gradient where what was kept is above zero."""
    aten.threshold_backward.grad_input(gradient, kept, 0, grad_input=out)


def _above_zero_or_nan(part: Tensor) -> Tensor:
    return compare(torch.le, part, 0).logical_not_()


RECTIFIER = Gate(torch.relu, torch.relu_, _above_zero_or_nan, _pass_ones, shows_in_output=True)


def leaky_rectifier(slope: float) -> Gate:
    """Leaky ReLU with a slope that is not negative: the gradient passes whole above zero, else shrunk."""

    def backward(gradient: Tensor, kept: Tensor, *, out: Tensor) -> None:
        signs = kept.to(gradient.dtype)
        aten.leaky_relu_backward.grad_input(gradient, signs, slope, False, grad_input=out)

    return Gate(
        apply=partial(F.leaky_relu, negative_slope=slope),
        apply_=partial(F.leaky_relu_, negative_slope=slope),
        test=lambda part: compare(torch.gt, part, 0),
        backward=backward,
        shows_in_output=True,
    )


def hard_tanh(low: float, high: float) -> Gate:
    """Hardtanh, and ReLU6 by it: the gradient passes strictly between the bounds, and at NaN."""

    def test(part: Tensor) -> Tensor:
        cut = compare(torch.le, part, low).logical_or_(compare(torch.ge, part, high))
        return cut.logical_not_()

    def backward(gradient: Tensor, kept: Tensor, *, out: Tensor) -> None:
        if kept.dtype is torch.uint8:
            _pass_ones(gradient, kept, out=out)
        else:
            aten.hardtanh_backward.grad_input(gradient, kept, low, high, grad_input=out)

    return Gate(
        apply=partial(F.hardtanh, min_val=low, max_val=high),
        apply_=partial(F.hardtanh_, min_val=low, max_val=high),
        test=test,
        backward=backward,
        shows_in_output=True,
    )


def clamp_gate(low: float | None, high: float | None) -> Gate:
    """Clamp to numbers, one of them at least: the gradient passes between the bounds, not at NaN."""
    above, below = (torch.ge, torch.le) if _clamp_passes_at_its_bounds() else (torch.gt, torch.lt)

    def test(part: Tensor) -> Tensor:
        sides = ((above, low), (below, high))
        tests = [compare(comparison, part, bound) for comparison, bound in sides if bound is not None]
        return tests[0] if len(tests) == 1 else tests[0].logical_and_(tests[1])

    return Gate(
        apply=partial(torch.clamp, min=low, max=high),
        apply_=partial(torch.clamp_, min=low, max=high),
        test=test,
        backward=_pass_ones,
        shows_in_output=False,
    )


@functools.cache
def _clamp_passes_at_its_bounds() -> bool:
    """Whether stock autograd gives a clamp the slope 1 at its bounds: releases of PyTorch differ."""
    with torch.enable_grad():
        bound = torch.zeros((), device="cpu", requires_grad=True)
        (slope,) = torch.autograd.grad(torch.clamp(bound, 0, 1), bound)
    return bool(slope)


def _outside_three(part: Tensor) -> Tensor:
    return compare(torch.gt, part, -3).logical_and_(compare(torch.lt, part, 3)).logical_not_()


def _pass_sixth_of_zeros(gradient: Tensor, kept: Tensor, *, out: Tensor) -> None:
    # The kernel takes 0 for an input inside the linear part, and 3 for one outside.
    aten.hardsigmoid_backward.grad_input(gradient, kept * 3, grad_input=out)


HARD_SIGMOID = Gate(
    F.hardsigmoid,
    partial(F.hardsigmoid, inplace=True),
    _outside_three,
    _pass_sixth_of_zeros,
    shows_in_output=False,
)
