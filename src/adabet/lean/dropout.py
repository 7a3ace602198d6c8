"""Dropout: one bit an element for what was dropped, from the same random numbers as stock dropout.

Only dropout of single elements needs a rule: what drops whole channels or samples (``dropout2d``, stochastic depth)
multiplies by a mask with one number for each of them, and that is all that stock autograd keeps.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adabet.lean.bits import Layout, map_slices, pack, room_for_bits
from adabet.lean.keeping import as_it_is, is_tracked, may_overwrite, recipe, remember, together
from adabet.lean.rules import first_order, is_spare, rule

# Where stock dropout that is not in place runs as one kernel, with random numbers of its own order.
FUSED_DEVICES = ("cuda", "xpu")


class _Dropout(torch.autograd.Function):
    """Multiplication by packed draws and a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, layout: Layout, scale: float, in_place: bool) -> Tensor:
        ctx.layout, ctx.scale = layout, scale
        ctx.save_for_backward(packed)
        if in_place:
            ctx.mark_dirty(x)
        return _thin_out(x, packed, layout, scale, overwrite=in_place)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        overwrite = is_spare(gradient)
        (packed,) = ctx.saved_tensors
        return _thin_out(gradient, packed, ctx.layout, ctx.scale, overwrite=overwrite), None, None, None, None


@rule(F.dropout)
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.dropout``: one bit an element."""
    drops = training and 0 < p < 1 and is_tracked(input) and input.numel() > 0
    if not drops or (inplace and not may_overwrite(input)):
        return F.dropout(input, p, training, inplace)
    made = recipe(input)
    packed, layout = room_for_bits(input), Layout.of(input)
    draws, scale = _draw(input.detach(), p, in_place=inplace)
    # Draws that are booleans already are used up here, which is as well.
    pack(layout.arrange(draws), Tensor.bool, packed)
    del draws
    y: Tensor = _Dropout.apply(input, packed, layout, scale, inplace)
    if made is not None:
        thin_out = partial(_thin_out, layout=layout, scale=scale, overwrite=True)
        remember(y, together(thin_out, made, as_it_is(packed)))
    return y


@rule(torch.dropout)
def _dropout(input: Tensor, p: float, train: bool) -> Tensor:
    return dropout(input, p, train)


@rule(torch.dropout_)
def _dropout_(input: Tensor, p: float, train: bool) -> Tensor:
    return dropout(input, p, train, inplace=True)


def _draw(x: Tensor, p: float, *, in_place: bool) -> tuple[Tensor, float]:
    """What stays, from the random numbers that stock dropout would take, and the factor for it as stock rounds it."""
    if x.device.type in FUSED_DEVICES and not in_place:
        return torch.native_dropout(x, p, True)[1], 1 / (1 - p)
    # On a CPU the numbers do not depend on the type; elsewhere they may.
    dtype = torch.bool if x.device.type == "cpu" else x.dtype
    draws = torch.empty_like(x, dtype=dtype).bernoulli_(1 - p)
    return draws, torch.ones((), dtype=x.dtype).div_(1 - p).item()


def _thin_out(x: Tensor, packed: Tensor, layout: Layout, scale: float, *, overwrite: bool) -> Tensor:
    """Zero what was dropped and scale the rest. Infinity and NaN stay NaN, as in stock."""

    def thin_out(part: Tensor, bits: Tensor, *, out: Tensor) -> None:
        torch.mul(part, bits.to(part.dtype), out=out).mul_(scale)

    return map_slices(thin_out, x, packed, layout, overwrite=overwrite)
