"""Batch-norm in eval mode of which only some channels train: what it keeps of its input is those."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from adabet.freezing.channels import Channels, SlicedWeight, sliced_weight
from adabet.lean.rules import first_order


class SlicedBatchNorm(torch.autograd.Function):
    """An affine map with given numbers whose gradient goes to slices of scale and shift."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor,
        bias: Tensor,
        place: Channels,
        eps: float,
    ) -> Tensor:
        """Normalise ``x`` by ``weight`` and ``bias``, which hold ``scale`` and ``shift`` at ``place``."""
        channels = torch.tensor(place.channels, device=x.device)
        ctx.eps = eps
        ctx.save_for_backward(x.index_select(1, channels), channels, mean, variance, weight, scale, shift)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of ``x``, ``scale`` and ``shift``."""
        part, channels, mean, variance, weight, *_ = ctx.saved_tensors
        normalise = torch.ops.aten.native_batch_norm_backward
        for_x = None
        if ctx.needs_input_grad[0]:
            # In eval mode the kernel reads its input for the gradient of the weight alone.
            stand_in = gradient.new_empty(1).expand_as(gradient)
            for_x, *_ = normalise(
                gradient, stand_in, weight, mean, variance, None, None, False, ctx.eps, [True, False, False]
            )
        of_part = (weight[channels], mean[channels], variance[channels], None, None, False, ctx.eps)
        cut = gradient.index_select(1, channels)
        _, for_scale, for_shift = normalise(cut, part, *of_part, [False, True, True])
        return for_x, for_scale, for_shift, *(None,) * 6


def slices_of(weight: Tensor | None, bias: Tensor | None) -> tuple[SlicedWeight, SlicedWeight] | None:
    """The slices that scale and shift were built from, if both were and of the same channels."""
    if weight is None or bias is None:
        return None
    scale, shift = sliced_weight(weight), sliced_weight(bias)
    if scale is None or shift is None or scale.place != shift.place:
        return None
    return scale, shift
