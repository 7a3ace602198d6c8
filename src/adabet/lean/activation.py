"""Activations: one bit an element where the slope takes two values, else the input, as in stock autograd.

Sigmoid and tanh need no rule: stock autograd keeps their output, which whoever uses it keeps as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adabet.lean.bits import Layout, map_slices, pack, room_for_bits
from adabet.lean.gates import HARD_SIGMOID, RECTIFIER, Gate, clamp_gate, hard_tanh, leaky_rectifier
from adabet.lean.keeping import Kept, as_it_is, is_tracked, keep, may_overwrite, recipe, remember, remember_mask
from adabet.lean.rules import first_order, is_spare, rule

aten = torch.ops.aten

Bound = float | Tensor | None


class _Gated(torch.autograd.Function):
    """An activation that keeps one bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, gate: Gate, in_place: bool) -> Tensor:
        if in_place and not gate.shows_in_output:
            pack(x, gate.test, packed)
        y = gate.apply_(x) if in_place else gate.apply(x)
        ctx.gate, ctx.layout = gate, Layout.of(y)
        if gate.shows_in_output:
            pack(y, gate.test, packed)
        elif not in_place:
            pack(ctx.layout.arrange(x), gate.test, packed)
        if in_place:
            ctx.mark_dirty(x)
        ctx.save_for_backward(packed)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        overwrite = is_spare(gradient)
        (kept,) = ctx.saved_tensors
        if kept.dtype is torch.uint8:
            result = map_slices(ctx.gate.backward, gradient, kept, ctx.layout, overwrite=overwrite)
        else:
            result = gradient if overwrite else torch.empty_like(gradient)
            ctx.gate.backward(gradient, kept, out=result)
        return result, None, None, None


def _gate(x: Tensor, gate: Gate, *, in_place: bool = False) -> Tensor:
    if not is_tracked(x) or (in_place and not may_overwrite(x)):
        return gate.apply_(x) if in_place else gate.apply(x)
    made = recipe(x)
    packed = room_for_bits(x)
    y: Tensor = _Gated.apply(x, packed, gate, in_place)
    if made is not None:
        remember(y, made.then(gate.apply_))
    elif gate.shows_in_output:
        remember_mask(y, packed)
    return y


@rule(F.relu)
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.relu``: one bit an element."""
    return _gate(input, RECTIFIER, in_place=inplace)


@rule(torch.relu, Tensor.relu)
def _relu(input: Tensor) -> Tensor:
    return _gate(input, RECTIFIER)


@rule(torch.relu_, Tensor.relu_)
def _relu_(input: Tensor) -> Tensor:
    return _gate(input, RECTIFIER, in_place=True)


@rule(F.relu6)
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.relu6``: one bit an element."""
    return _gate(input, hard_tanh(0.0, 6.0), in_place=inplace)


@rule(F.hardtanh)
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.hardtanh``: one bit an element."""
    if min_val > max_val:
        return F.hardtanh(input, min_val, max_val, inplace)
    return _gate(input, hard_tanh(min_val, max_val), in_place=inplace)


@rule(F.hardtanh_)
def _hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return hardtanh(input, min_val, max_val, inplace=True)


@rule(F.leaky_relu)
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.leaky_relu``: one bit an element."""
    if negative_slope < 0:
        return F.leaky_relu(input, negative_slope, inplace)
    return _gate(input, leaky_rectifier(negative_slope), in_place=inplace)


@rule(F.leaky_relu_)
def _leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return leaky_relu(input, negative_slope, inplace=True)


@rule(F.hardsigmoid)
def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.hardsigmoid``: one bit an element."""
    return _gate(input, HARD_SIGMOID, in_place=inplace)


@rule(torch.clamp, torch.clip, Tensor.clamp, Tensor.clip)
def clamp(input: Tensor, min: Bound = None, max: Bound = None, *, out: Tensor | None = None) -> Tensor:
    """Stand in for ``torch.clamp`` to numbers: one bit an element."""
    gate = _number_gate(min, max) if out is None else None
    if gate is None:
        return torch.clamp(input, min, max, out=out)  # type: ignore[arg-type]  # stock judges
    return _gate(input, gate)


@rule(torch.clamp_, torch.clip_, Tensor.clamp_, Tensor.clip_)
def _clamp_(input: Tensor, min: Bound = None, max: Bound = None) -> Tensor:
    gate = _number_gate(min, max)
    if gate is None:
        return torch.clamp_(input, min, max)  # type: ignore[arg-type]  # stock judges
    return _gate(input, gate, in_place=True)


@rule(torch.clamp_min, Tensor.clamp_min)
def _clamp_min(input: Tensor, min: Bound, *, out: Tensor | None = None) -> Tensor:
    return clamp(input, min, out=out)


@rule(torch.clamp_max, Tensor.clamp_max)
def _clamp_max(input: Tensor, max: Bound, *, out: Tensor | None = None) -> Tensor:
    return clamp(input, None, max, out=out)


@rule(torch.clamp_min_, Tensor.clamp_min_)
def _clamp_min_(input: Tensor, min: Bound) -> Tensor:
    return _clamp_(input, min)


@rule(torch.clamp_max_, Tensor.clamp_max_)
def _clamp_max_(input: Tensor, max: Bound) -> Tensor:
    return _clamp_(input, None, max)


def _number_gate(low: Bound, high: Bound) -> Gate | None:
    """The gate for bounds that are numbers; None for tensors, and for no bounds at all."""
    if (low is None and high is None) or isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    return clamp_gate(low, high)


@dataclass(frozen=True)
class Curve:
    """An activation whose slope is a function of the input.

    Attributes:
        apply: the stock activation.
        apply_: the same in place.
        backward: the stock kernel, ``backward(gradient, input)``.
        backward_into: the same with ``grad_input=`` for its result; None if there is none that writes there.
    """

    apply: Callable[[Tensor], Tensor]
    apply_: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    backward_into: Callable[..., Tensor] | None = None


SILU = Curve(F.silu, partial(F.silu, inplace=True), aten.silu_backward, aten.silu_backward.grad_input)
HARDSWISH = Curve(F.hardswish, partial(F.hardswish, inplace=True), aten.hardswish_backward)
GELU = {
    name: Curve(
        partial(F.gelu, approximate=name),
        partial(aten.gelu_, approximate=name),
        partial(aten.gelu_backward, approximate=name),
        partial(aten.gelu_backward.grad_input, approximate=name),
    )
    for name in ("none", "tanh")
}


class _Curved(torch.autograd.Function):
    """An activation that keeps its input, or what the input is made from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Kept, curve: Curve, in_place: bool) -> Tensor:
        ctx.curve, ctx.rebuild = curve, kept.rebuild
        ctx.save_for_backward(*kept.tensors)
        if not in_place:
            return curve.apply(x)
        ctx.mark_dirty(x)
        return curve.apply_(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        overwrite = is_spare(gradient)
        x = ctx.rebuild(*ctx.saved_tensors)
        if overwrite and ctx.curve.backward_into is not None:
            return ctx.curve.backward_into(gradient, x, grad_input=gradient), None, None, None
        return ctx.curve.backward(gradient, x), None, None, None


def _curve(x: Tensor, curve: Curve, *, in_place: bool = False) -> Tensor:
    if not is_tracked(x) or (in_place and not may_overwrite(x)):
        return curve.apply_(x) if in_place else curve.apply(x)
    kept = recipe(x) or as_it_is(x.detach().clone()) if in_place else keep(x)
    y: Tensor = _Curved.apply(x, kept, curve, in_place)
    remember(y, kept.then(curve.apply if kept.is_itself else curve.apply_))
    return y


@rule(F.silu)
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.silu``: the input, once for all who use it or the output."""
    return _curve(input, SILU, in_place=inplace)


@rule(F.hardswish)
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.hardswish``: the input, once for all who use it or the output."""
    return _curve(input, HARDSWISH, in_place=inplace)


@rule(F.gelu)
def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """Stand in for ``torch.nn.functional.gelu``: the input, once for all who use it or the output."""
    return _curve(input, GELU[approximate]) if approximate in GELU else F.gelu(input, approximate=approximate)
