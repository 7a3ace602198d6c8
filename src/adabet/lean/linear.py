"""Lean linear layers.

Stock autograd already keeps the input of a linear layer only for a trainable weight, and the same holds for the other
matrix products (``matmul``, ``bmm``, ``addmm``) and for ``embedding``. What is left to gain is the copy
of the weight that autocast makes and autograd keeps, and a slice's share of the input.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adabet.freezing.slices import sliced_weight
from adabet.lean.rules import autocast_dtype, first_order, rule
from adabet.lean.sliced import SlicedLinear


class _Linear(torch.autograd.Function):
    """Keeps the weight as the parameter it is, and casts it again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x = for_weight = for_bias = None
        rows = gradient.reshape(-1, gradient.shape[-1])
        if ctx.needs_input_grad[0]:
            for_x = gradient @ weight.to(gradient.dtype)
        if ctx.needs_input_grad[1]:
            for_weight = (rows.t() @ x.reshape(-1, x.shape[-1])).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            for_bias = rows.sum(0, dtype=ctx.bias_dtype)
        return for_x, for_weight, for_bias


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Stand in for ``torch.nn.functional.linear``."""
    if not _keeps_less(input, weight, bias):
        return F.linear(input, weight, bias)
    x = input.to(autocast_dtype(input) or input.dtype)
    slice_ = sliced_weight(weight) if weight.requires_grad else None
    if slice_ is None:
        out: Tensor = _Linear.apply(x, weight, bias)
    else:
        out = SlicedLinear.apply(x, slice_.part, weight.detach(), bias, slice_.place)
    return out


def _keeps_less(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether lean saves anything over stock (a slice, a cast of the weight), on arguments that stock would take."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    return (
        any(tensor.requires_grad for tensor in tensors)
        and (autocast_dtype(weight) not in (None, weight.dtype) or sliced_weight(weight) is not None)
        and len({autocast_dtype(tensor) or tensor.dtype for tensor in tensors}) == 1
        and weight.dim() == 2
        and not x.is_nested
    )
