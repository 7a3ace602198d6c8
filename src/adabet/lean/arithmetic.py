"""Multiplication, as in squeeze-and-excitation, gated linear units and layer scale.

Stock autograd keeps of a product what its gradients need and no more: each factor only if the other one's gradient is
wanted, and a number not at all; the same holds for quotients and sums. What is left to gain is a factor that can be
made again, such as the activation that a squeeze-and-excitation block scales.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adabet.lean.keeping import NOTHING, Kept, as_it_is, keep, may_overwrite, recipe, remember, together
from adabet.lean.rules import first_order, is_spare, rule

Factor = Tensor | complex


class _Product(torch.autograd.Function):
    """A product of two tensors that keeps of each factor what it is made from, if the other's gradient needs it."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, kept_a: Kept, kept_b: Kept, in_place: bool) -> Tensor:
        ctx.rebuild_a, ctx.rebuild_b, ctx.split = kept_a.rebuild, kept_b.rebuild, len(kept_a.tensors)
        ctx.b_shape, ctx.a_is_new = b.shape, not kept_a.is_itself
        ctx.save_for_backward(*kept_a.tensors, *kept_b.tensors)
        if not in_place:
            return torch.mul(a, b)
        ctx.mark_dirty(a)
        return a.mul_(b)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        overwrite = is_spare(gradient)
        tensors = ctx.saved_tensors
        for_a = for_b = None
        if ctx.needs_input_grad[1]:
            a = ctx.rebuild_a(*tensors[: ctx.split])
            for_b = _times(gradient, a, room=a if ctx.a_is_new else None).sum_to_size(ctx.b_shape)
            del a
        if ctx.needs_input_grad[0]:
            b = ctx.rebuild_b(*tensors[ctx.split :])
            for_a = _times(gradient, b, room=gradient if overwrite else None)
        return for_a, for_b, None, None, None


@rule(torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
def mul(input: Factor, other: Factor, *, out: Tensor | None = None) -> Tensor:
    """Stand in for ``torch.mul``: each factor only if needed, and then what it is made from."""
    if out is not None:
        return torch.mul(input, other, out=out)
    if isinstance(input, Tensor) and isinstance(other, Tensor):
        return _product(input, other)
    return _scaled(input, other, torch.mul)


@rule(Tensor.mul_, Tensor.multiply_, Tensor.__imul__)
def mul_(input: Tensor, other: Factor) -> Tensor:
    """Stand in for ``torch.Tensor.mul_``: each factor only if needed, and then what it is made from."""
    return _product_(input, other) if isinstance(other, Tensor) else _scaled(input, other, Tensor.mul_)


def _product(a: Tensor, b: Tensor) -> Tensor:
    gains = (b.requires_grad and recipe(a) is not None) or (a.requires_grad and recipe(b) is not None)
    stand_in_a = keep(a) if b.requires_grad else recipe(a)
    stand_in_b = keep(b) if a.requires_grad else recipe(b)
    y = _lean_product(a, b, stand_in_a, stand_in_b, in_place=False) if gains and _are_plain(a, b) else torch.mul(a, b)
    return _remember_product(y, stand_in_a, stand_in_b)


def _product_(a: Tensor, b: Tensor) -> Tensor:
    gains = (b.requires_grad and recipe(a) is not None) or (a.requires_grad and recipe(b) is not None)
    gains = gains and _are_plain(a, b) and may_overwrite(a)
    stand_in_a = recipe(a)
    if gains and b.requires_grad and stand_in_a is None:
        stand_in_a = as_it_is(a.detach().clone())
    stand_in_b = keep(b) if a.requires_grad else recipe(b)
    y = _lean_product(a, b, stand_in_a, stand_in_b, in_place=True) if gains else a.mul_(b)
    return _remember_product(y, stand_in_a, stand_in_b)


def _lean_product(a: Tensor, b: Tensor, stand_in_a: Kept | None, stand_in_b: Kept | None, *, in_place: bool) -> Tensor:
    needed_a = stand_in_a if b.requires_grad else None
    needed_b = stand_in_b if a.requires_grad else None
    y: Tensor = _Product.apply(a, b, needed_a or NOTHING, needed_b or NOTHING, in_place)
    return y


def _remember_product(y: Tensor, stand_in_a: Kept | None, stand_in_b: Kept | None) -> Tensor:
    """Note how a product can be made again, if both its factors can."""
    if y.requires_grad and stand_in_a is not None and stand_in_b is not None:
        a_is_new = not stand_in_a.is_itself
        again = together(lambda a, b: _times(a, b, room=a if a_is_new else None), stand_in_a, stand_in_b)
        remember(y, again)
    return y


def _scaled(a: Factor, b: Factor, multiply: Callable[[Any, Any], Tensor]) -> Tensor:
    """The product of a tensor and a number, which keeps nothing."""
    x, number = (a, b) if isinstance(a, Tensor) else (b, a)
    made = recipe(x) if isinstance(x, Tensor) and x.requires_grad else None
    y = multiply(a, b)
    if made is not None:
        remember(y, made.then(lambda again: torch.mul(again, number)))
    return y


def _are_plain(a: Tensor, b: Tensor) -> bool:
    return all(x.layout is torch.strided and not x.is_complex() and not x.is_nested for x in (a, b))


def _times(a: Tensor, b: Tensor, *, room: Tensor | None) -> Tensor:
    """The product, in memory that may be overwritten if the product would lie there just as in its own."""
    fits = (
        room is not None
        and room.shape == a.shape == torch.broadcast_shapes(a.shape, b.shape)
        and room.stride() == a.stride()
        and room.dtype is torch.result_type(a, b)
    )
    return torch.mul(a, b, out=room if fits else None)
