"""Which modules can take low-rank adapters, and how PEFT is told to put them there and nowhere else."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from adabet.errors import OptionError
from adabet.layers import Layer
from adabet.ranking import Ranking

ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)

READ_FROM_OUTSIDE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that take the weights of their parts without calling these, so that an adapter there would do nothing."""


def adaptable_modules(model: nn.Module) -> frozenset[str]:
    """Paths of the modules that can take an adapter which does what it should.

    These are linear layers, transformers' ``Conv1D``, embeddings, and convolutions without groups and dilation. Left
    out is what shares its weight with another module (a tied embedding), of which an adapter would reach one only, and
    the parts of torch's ``MultiheadAttention`` and ``TransformerEncoderLayer``, which read weights past their adapters.
    """
    modules = dict(model.named_modules())
    holders = Counter(id(weight) for module in modules.values() for weight in module._parameters.values())
    return frozenset(
        path
        for path, module in modules.items()
        if path and _takes_adapter(module) and not _is_read_from_outside(path, modules)
        if holders[id(module.weight)] == 1
    )


def targets_of(parameters: Iterable[str], able: Collection[str]) -> list[str]:
    """Paths of the modules that own these parameters, of those that are able to take adapters, in order."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in parameters)
    return [owner for owner in owners if owner in able]


def best_adaptable(ranking: Ranking, able: Collection[str], layer_ratio: float) -> list[Layer]:
    """Of the layers that can take adapters the best, at least one, in the order of a forward pass.

    Args:
        ranking: of the model.
        able: paths of `adaptable_modules`.
        layer_ratio: share of the layers that can.

    Raises:
        OptionError: if the ratio is outside 0 to 1.
    """
    if not 0 <= layer_ratio <= 1:
        raise OptionError(f"expected a layer_ratio from 0 to 1, got {layer_ratio}")
    order = [ranked.layer for ranked in ranking.order if targets_of(ranked.layer.parameters, able)]
    # the small addend keeps 0.29 * 100 from becoming 28
    best = {layer.name for layer in order[: max(1, int(layer_ratio * len(order) + 1e-9))]}
    return [ranked.layer for ranked in ranking.layers if ranked.layer.name in best]


def places(model: nn.Module, targets: Sequence[str]) -> dict[str, Any]:
    """What tells PEFT to adapt exactly these modules: arguments of ``peft.LoraConfig``.

    Args:
        model: without adapters.
        targets: paths of modules.
    """
    modules = dict(model.named_modules())
    found: dict[str, Any] = {"target_modules": list(targets)}
    if any(path.endswith(f".{target}") for path in modules for target in targets):
        # PEFT takes a list's names for the ends of paths, a text for a pattern of whole paths
        found["target_modules"] = "|".join(map(re.escape, targets))
    if any(_is_transposed(modules[target]) for target in targets):
        found["fan_in_fan_out"] = True
    return found


def _takes_adapter(module: nn.Module) -> bool:
    """Whether PEFT has an adapter for a module, and it computes what the module would with the sum of both weights."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        # PEFT's own convolution knows none of these, nor what a subclass does to weights and borders
        plain = module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
        return plain and type(module) in ADAPTED
    if isinstance(module, nn.Embedding):
        # with these its weight is more than looked up
        return type(module) in ADAPTED and module.max_norm is None and not module.sparse
    return type(module) in ADAPTED or _is_transposed(module)


def _is_read_from_outside(path: str, modules: Mapping[str, nn.Module]) -> bool:
    parents = (path[: match.start()] for match in re.finditer(r"\.", path))
    return any(isinstance(modules[parent], READ_FROM_OUTSIDE) for parent in (*parents, ""))


def _is_transposed(module: nn.Module) -> bool:
    """Whether this is transformers' ``Conv1D``, a linear layer with its weight transposed."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
