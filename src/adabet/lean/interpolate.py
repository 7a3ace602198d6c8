"""Interpolation: stock autograd keeps sizes alone, but for mode ``area``, which is adaptive average pooling."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from adabet.lean.average_pooling import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from adabet.lean.rules import rule

# By the number of dimensions beside samples and channels.
AVERAGES = {1: adaptive_avg_pool1d, 2: adaptive_avg_pool2d, 3: adaptive_avg_pool3d}


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
    dims = input.dim() - 2
    wanted = scale_factor if size is None else size
    given = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,) * dims
    plain = align_corners is None and not antialias and not recompute_scale_factor
    if (
        mode != "area"
        or dims not in AVERAGES
        or len(given) != dims
        or not plain
        or (size is None) == (scale_factor is None)
    ):
        return F.interpolate(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    if size is None:
        given = tuple(int(length * factor) for length, factor in zip(input.shape[2:], given, strict=True))
    return AVERAGES[dims](input, given)
