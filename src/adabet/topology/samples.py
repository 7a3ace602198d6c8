"""Activations sample by sample, and whether they can be compared."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adabet.errors import ActivationError


def by_sample(name: str, output: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
    """An activation with the samples along the first axis, ``(count, ...)``, as a view where possible.

    Args:
        name: of the layer.
        output: what the layer gave for ``count`` samples.
        count: number of samples.
        shape: the shape of its output for one sample. The axis that has grown ``count``-fold holds the samples
            (several entries each, sample after sample, where attention works on windows); if none has, the
            output is the same for all samples, as an embedding of positions is.

    Raises:
        ActivationError: if the output has another shape than for one sample, and no axis holds the samples.
    """
    if count == 1:
        return output if shape[:1] == (1,) else output.unsqueeze(0)
    if output.shape == (count, *shape):  # the model squeezed away the axis of its one sample
        return output
    for axis, (now, one) in enumerate(zip(output.shape, shape, strict=False)):
        if now == count * one:
            moved = output.movedim(axis, 0)
            return moved if one == 1 else moved.reshape(count, one, *moved.shape[1:])
    if output.shape != shape:
        raise ActivationError(
            f"layer {name!r} gave {shape} for one sample and {tuple(output.shape)} for {count}: none of its axes holds "
            "the samples"
        )
    return output.unsqueeze(0).expand(count, *output.shape)


def check_alike(name: str, shapes: Sequence[torch.Size]) -> None:
    """Make sure that a layer's activations of one sample have one size.

    Raises:
        ActivationError: if they do not.
    """
    if len(set(map(math.prod, shapes))) > 1:
        different = sorted(set(map(tuple, shapes)))
        raise ActivationError(
            f"expected activations of one size, layer {name!r} gave {' and '.join(map(str, different))}; "
            "resize, crop or pad all samples to the same shape"
        )


def check_finite(name: str, values: Tensor) -> None:
    """Make sure that what came of a layer's activations is finite.

    Raises:
        ActivationError: if it is not.
    """
    if not bool(torch.isfinite(values).all()):
        raise ActivationError(
            f"layer {name!r} gave activations that are not finite (or too large to square); "
            "check the weights and how the inputs are scaled"
        )
