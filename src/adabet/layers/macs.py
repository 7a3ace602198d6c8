"""How many multiply-accumulates a layer takes for one sample."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from adabet.layers.structure import Unit, kind_of
from adabet.layers.trace import Seen


def count_macs(unit: Unit, output: nn.Module, seen: dict[nn.Module, Seen]) -> int:
    """Multiply-accumulates of a unit: products with its weights, for attention also between tokens.

    Args:
        unit: the unit.
        output: the module whose output is the unit's.
        seen: what was seen of all modules.
    """
    record = seen[output]
    modules = dict(unit.module.named_modules(prefix=unit.name))
    own: dict[nn.Module, list[Tensor]] = {}
    for name, parameter in unit.parameters.items():
        owner, _, own_name = name.rpartition(".")
        # tables of biases have two axes too, but nothing is multiplied by them
        is_matrix = parameter.dim() >= 2 and (own_name.endswith("weight") or unit.kind == "recurrent")
        own.setdefault(modules[owner], []).extend([parameter] if is_matrix else [])
    if unit.kind != "attention":
        return sum(_products(module, matrices, seen.get(module, record)) for module, matrices in own.items())
    projected = sum(
        _products(module, matrices, seen.get(module, record)) for module, matrices in own.items() if matrices
    )
    return projected + _products_between_tokens(unit, output, record)


def features_of(module: nn.Module, shape: Sequence[int]) -> int:
    """Features at each place of a module's output of this shape."""
    return module.out_channels if isinstance(module, _ConvNd) else shape[-1]


def _products(module: nn.Module, matrices: Sequence[Tensor], record: Seen) -> int:
    """Each matrix meets every place of the output; what has none works on one element at a time."""
    kind = kind_of(module)
    if kind == "embedding":
        return 0
    if kind == "norm" or not matrices:
        return record.output_size
    elements = sum(matrix.numel() for matrix in matrices)
    if isinstance(module, _ConvNd) and module.transposed:
        return record.input_size // module.in_channels * elements
    return record.output_size // features_of(module, record.output_shape) * elements


def _products_between_tokens(unit: Unit, output: nn.Module, record: Seen) -> int:
    """Every token with every other of its window, once for the weights and once for the values."""
    shape = record.output_shape
    if len(shape) < 3:
        return 0
    if isinstance(output, _ConvNd):
        tokens = math.prod(shape[2:])
    elif getattr(unit.module, "batch_first", True):
        tokens = shape[-2]
    else:
        tokens = shape[0]
    return 2 * record.output_size * tokens
