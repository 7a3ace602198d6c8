"""Interpolation: stock autograd keeps sizes alone, but for mode ``area``, which is adaptive average pooling."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from adabet.lean.average_pooling import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from adabet.lean.pooling import each_length
from adabet.lean.rules import rule

AVERAGES = {3: adaptive_avg_pool1d, 4: adaptive_avg_pool2d, 5: adaptive_avg_pool3d}


@rule(F.interpolate)
def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Stand in for ``torch.nn.functional.interpolate``: sizes alone, in mode ``area`` too."""
    average = AVERAGES.get(input.dim()) if mode == "area" else None
    if average is None or align_corners is not None or antialias or (size is None) == (scale_factor is None):
        return F.interpolate(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    if size is None:
        factors = each_length(scale_factor, input.dim() - 2)
        size = [int(length * factor) for length, factor in zip(input.shape[2:], factors, strict=True)]
    return average(input, size)
