"""Sequences without their padding, and activations of sequences of different lengths."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adabet.errors import ActivationError
from adabet.layers import Layer

MASK = "attention_mask"
"""Key of the inputs that says which places of a sequence are tokens (1) and which are padding (0)."""


def lengths_of(inputs: Any) -> tuple[int, ...] | None:
    """Tokens of each sequence of a batch, by its mask ``(samples, places)``; None where there is no such mask.

    Raises:
        ActivationError: if a sequence has no token at all.

    Examples:
        >>> lengths_of({"input_ids": torch.zeros(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])})
        (2, 3)
    """
    mask = inputs.get(MASK) if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        return None
    lengths = tuple(mask.sum(1).tolist())
    if 0 in lengths:
        raise ActivationError(
            f"expected sequences with a token each, sample {lengths.index(0)} of a batch has none: its {MASK} is all 0"
        )
    return lengths


def without_padding(inputs: Any) -> Any:
    """Inputs of sequences of one length, each without the places that its mask leaves out.

    Whatever has a place for each of the mask's, ``(samples, places, ...)``, loses the same; the rest stays.

    Args:
        inputs: with a mask, see `lengths_of`.

    Examples:
        >>> padded = {"input_ids": torch.tensor([[0, 7, 8]]), "attention_mask": torch.tensor([[0, 1, 1]])}
        >>> without_padding(padded)["input_ids"]
        tensor([[7, 8]])
    """
    mask = inputs[MASK]
    tokens = mask == 1
    if bool(tokens.all()):
        return inputs

    def keep(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[:2] != mask.shape:
            return value
        kept = value[tokens.to(value.device)]
        return kept.view(mask.shape[0], -1, *value.shape[2:])

    return {name: keep(value) for name, value in inputs.items()}


Axes = tuple[int, ...]


def token_axes(layers: Sequence[Layer], others: Sequence[Layer], *, inputs: bool = False) -> dict[str, Axes]:
    """The axes of layers' outputs that hold a sequence's tokens, or what has become of them.

    Args:
        layers: as a sequence of one length shows them.
        others: the same layers, as one of another length does.
        inputs: look at the layers' inputs instead.

    Returns:
        By the layer's name the axes whose sizes differ; layers without any are left out.
    """
    shapes = {layer.name: _shape(layer, inputs) for layer in others}
    found = {}
    for layer in layers:
        own, other = _shape(layer, inputs), shapes.get(layer.name, ())
        if len(own) == len(other):
            axes = tuple(axis for axis, sizes in enumerate(zip(own, other, strict=True)) if sizes[0] != sizes[1])
            found.update({layer.name: axes} if axes else {})
    return found


def mean_over_tokens(output: Tensor, shape: tuple[int, ...], axes: Axes) -> tuple[Tensor, tuple[int, ...]]:
    """What a layer gave for one sequence, averaged over its tokens, and the shape that this has.

    Args:
        output: for one sequence, without padding.
        shape: of the layer's output for one sequence, of whatever length.
        axes: see `token_axes`. An output of another number of axes, as a layer that runs twice may have, stays.
    """
    if not axes or output.dim() != len(shape):
        return output, shape
    mean = output.mean(axes, dtype=torch.promote_types(output.dtype, torch.float32))
    return mean, tuple(size for axis, size in enumerate(shape) if axis not in axes)


def _shape(layer: Layer, inputs: bool) -> tuple[int, ...]:
    return layer.input_shape if inputs else layer.output_shape
