"""Lean linear layers.

Stock autograd already keeps the input of a linear layer only for a trainable weight, and the same holds for the other
matrix products (``matmul``, ``bmm``, ``addmm``). What is left to gain is the copy of the weight that autocast makes and
autograd keeps, an input that can be made again from what another operation keeps, for a slice of input channels all but
its share of the input, and in micro-batches a second gradient beside their sum.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adabet.freezing.channels import sliced_weight
from adabet.lean.adding import added_to, product_gradient
from adabet.lean.inputs import cast_like, copies_in_autocast, is_ordinary, kept_input
from adabet.lean.keeping import NOTHING, Kept
from adabet.lean.rules import autocast_dtype, first_order, rule
from adabet.lean.sliced import SlicedLinear


class _Linear(torch.autograd.Function):
    """Keeps the weight as the parameter it is, never as a cast, and of the input what stands for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Kept, added: Tensor | None) -> Tensor:
        ctx.rebuild, ctx.added = kept.rebuild, added
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(weight, *kept.tensors)
        return F.linear(x, *cast_like(x, weight, bias))

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, *kept = ctx.saved_tensors
        for_x = for_weight = for_bias = None
        rows = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            for_x = gradient @ weight.to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            x = ctx.rebuild(*kept)
            for_weight = product_gradient(rows.t(), x.reshape(-1, x.shape[-1]), weight.dtype, ctx.added)
        if ctx.needs_input_grad[2]:
            for_bias = rows.sum(0, dtype=ctx.bias_dtype)
        return for_x, for_weight, for_bias, None, None


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stand in for ``torch.nn.functional.linear``."""
    if weight.dim() != 2 or not is_ordinary(input, weight, bias):
        return F.linear(input, weight, bias)
    cast = partial(torch.Tensor.to, dtype=autocast_dtype(input) or input.dtype)
    x = cast(input)
    slice_ = sliced_weight(weight) if weight.requires_grad else None
    if slice_ is not None:
        kept = kept_input(input, x, cast, whole=not slice_.place.inner)
        sliced: Tensor = SlicedLinear.apply(x, slice_.part, weight.detach(), bias, slice_.place, kept)
        return sliced
    kept = kept_input(input, x, cast) if weight.requires_grad else NOTHING
    added = added_to(weight)
    if added is not None or copies_in_autocast(weight) or (weight.requires_grad and not kept.is_itself):
        out: Tensor = _Linear.apply(x, weight, bias, kept, added)
        return out
    return F.linear(input, weight, bias)
