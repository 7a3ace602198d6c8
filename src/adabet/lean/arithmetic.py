"""Multiplication, as in squeeze-and-excitation, gated linear units and layer scale.

Stock autograd keeps of a product what its gradients need and no more: each factor only if the other one's gradient is
wanted, and a number not at all; the same holds for quotients and sums. What is left to gain is a factor that can be made
again, such as the activation that a squeeze-and-excitation block scales.
"""

from typing import Any

import torch
from torch import Tensor

from adabet.lean.keeping import Kept, as_it_is, is_tracked, keep, may_overwrite, recipe, remember, together
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
            for_b = _multiply(a, gradient, overwrite=ctx.a_is_new).sum_to_size(ctx.b_shape)
            del a
        if ctx.needs_input_grad[0]:
            for_a = _multiply(gradient, ctx.rebuild_b(*tensors[ctx.split :]), overwrite=overwrite)
        return for_a, for_b, None, None, None


@rule(torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
def mul(input: Factor, other: Factor, *, out: Tensor | None = None) -> Tensor:
    """Stand in for ``torch.mul``: each factor only if needed, and then what it is made from."""
    if out is not None:
        return torch.mul(input, other, out=out)  # type: ignore[arg-type]  # stock judges
    return _product(input, other, in_place=False)


@rule(Tensor.mul_, Tensor.multiply_, Tensor.__imul__)
def _mul_(input: Tensor, other: Factor) -> Tensor:
    return _product(input, other, in_place=True)


def _product(a: Factor, b: Factor, *, in_place: bool) -> Tensor:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return _scaled(a, b, in_place=in_place)
    made_a, made_b = recipe(a), recipe(b)
    if _is_simple(a, b) and ((made_a and b.requires_grad) or (made_b and a.requires_grad)):
        if not in_place:
            return _lean_product(a, b, keep(a), keep(b), in_place=False)
        if may_overwrite(a):
            return _lean_product(a, b, made_a or as_it_is(a.detach().clone()), keep(b), in_place=True)
    if a.requires_grad:
        keep(b)
    return a.mul_(b) if in_place else torch.mul(a, b)
