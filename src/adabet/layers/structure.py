"""Divide a model's parameters into layers, by structure alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from adabet.errors import LayerError
from adabet.layers.families import (
    ATTENTION_PARENT,
    FUSED_PARAMETERS,
    KEY,
    NORM_CLASS,
    QUERY,
    QUERY_KEY_VALUE_FUSED,
)


@dataclass
class Unit:
    """A layer before any forward pass.

    Attributes:
        name: path of the module.
        module: the module.
        kind: see `Layer.kind`.
        parameters: those that count as its own, by full name.
        tied: other modules that hold one of them too, by path.
    """

    name: str
    module: nn.Module
    kind: str
    parameters: dict[str, Tensor] = field(default_factory=dict)
    tied: dict[str, nn.Module] = field(default_factory=dict)


def divide(model: nn.Module, *, blocks: Sequence[str] | None = None) -> list[Unit]:
    """Divide all floating-point parameters of a model into units.

    Args:
        model: any module. Tied parameters belong to the first module that holds them.
        blocks: patterns of module paths (as `fnmatch`), each matching module one unit with all that is inside
            but its norms; None finds attention blocks by their projections; empty makes every module its own.

    Raises:
        LayerError: if a pattern matches no module, or the model has no parameter at all.
    """
    modules = dict(model.named_modules())
    roots = _attention_roots(modules) if blocks is None else _matching(modules, blocks)
    units: dict[str, Unit] = {}
    holders: dict[Tensor, Unit] = {}
    for full_name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.is_floating_point():
            continue
        owner = full_name.rpartition(".")[0]
        if parameter in holders:
            holders[parameter].tied[owner] = model.get_submodule(owner)
            continue
        root = next((path for path in roots if owner == path or owner.startswith(path + ".")), None)
        name = owner if root is None or _is_norm(modules[owner]) else root
        kind = "attention" if name == root and blocks is None else kind_of(modules[name], name == root)
        unit = units.setdefault(name, Unit(name, modules[name], kind))
        unit.parameters[full_name] = parameter
        holders[parameter] = unit
    if not units:
        raise LayerError(
            f"expected a model with floating-point parameters, {type(model).__name__} has none: nothing can train"
        )
    return list(units.values())


def kind_of(module: nn.Module, is_block: bool = False) -> str:
    """Which kind of layer a module is; see `Layer.kind`."""
    if isinstance(module, _ConvNd):
        return "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    if _is_norm(module):
        return "norm"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "recurrent"
    if is_block:
        return "other"
    if any(True for child in module.children() for _ in child.parameters()):
        return "parameter"
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2:
        return "linear"
    return "other"


def _is_norm(module: nn.Module) -> bool:
    known = isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)
    leaf = not any(True for child in module.children() for _ in child.parameters())
    return known or (leaf and NORM_CLASS.search(type(module).__name__) is not None)


def _projects(module: nn.Module) -> bool:
    """Whether a module holds the projections of queries, keys and values."""
    names = {name.lower() for name, _ in module.named_children()}
    own = {name for name, value in module.named_parameters(recurse=False) if value is not None}
    return bool(names & QUERY_KEY_VALUE_FUSED or (names & QUERY and names & KEY) or own & FUSED_PARAMETERS)


def _attention_roots(modules: dict[str, nn.Module]) -> list[str]:
    """Paths of attention blocks, outermost first, none inside another."""
    roots: list[str] = []
    for path, module in modules.items():
        if not path or not _projects(module) or any(path.startswith(root + ".") for root in roots):
            continue
        parent = path.rpartition(".")[0]
        while parent and ATTENTION_PARENT.search(type(modules[parent]).__name__):
            path, parent = parent, parent.rpartition(".")[0]
        roots.append(path)
    return roots


def _matching(modules: dict[str, nn.Module], patterns: Sequence[str]) -> list[str]:
    """Paths that match one of the patterns, none inside another."""
    roots: list[str] = []
    for pattern in patterns:
        matches = [path for path in modules if path and fnmatchcase(path, pattern)]
        if not matches:
            raise LayerError(f"expected a pattern of module paths for blocks, {pattern!r} matches no module")
        roots += matches
    return [path for path in roots if not any(path.startswith(other + ".") for other in roots)]
