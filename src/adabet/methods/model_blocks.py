"""A model as a stem, blocks in forward order, and what comes after them."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from adabet.layers import Layer, Layers
from adabet.lean.recompute import CONTAINERS

STAGE_CLASS = re.compile(r"Stage$")
"""Class names of modules that hold a row of blocks and are none themselves, as in ConvNeXt, Swin and RegNet."""


@dataclass(frozen=True)
class Block:
    """Layers that freeze and train together.

    Attributes:
        name: path of the module, or of the first layer where layers are grouped without a module of their own.
        layers: in the order of a forward pass.
    """

    name: str
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Full names of its tensors."""
        return names_in(self.layers)


@dataclass(frozen=True)
class ModelBlocks:
    """Every layer beside the head, once.

    Attributes:
        stem: what runs before the first block (embeddings, first convolution), and what the model itself holds.
        blocks: in the order of a forward pass.
        rest: what runs after the last block, such as the final norm.
    """

    stem: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    rest: tuple[Layer, ...]

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Full names of tensors from the input to the output: stem, each block, the rest with the last block."""
        rows = [names_in(self.stem), *(block.parameters for block in self.blocks)]
        rows[-1] += names_in(self.rest)
        return tuple(filter(None, rows))


def names_in(layers: Iterable[Layer]) -> tuple[str, ...]:
    """Full names of the layers' tensors."""
    return tuple(name for layer in layers for name in layer.parameters)


def divide_blocks(model: nn.Module, layers: Layers) -> ModelBlocks:
    """Divide a model's layers, but for the head, into stem, blocks and rest.

    A block is a repeated unit: a transformer's layer, a residual stage's bottleneck. A layer between two blocks, such
    as a down-sampling, belongs to the later one. In a model without repeated units each layer is a block together with
    the norms that follow it, and embeddings are the stem.

    Args:
        model: the model that the layers were found in.
        layers: its layers.

    Examples:
        >>> import torch
        >>> from adabet.layers import find_layers
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(1))
        >>> parts = divide_blocks(model, find_layers(model, torch.zeros(1, 1, 6, 6), head=None))
        >>> [block.parameters for block in parts.blocks]
        [('0.weight', '0.bias', '1.weight', '1.bias'), ('2.weight', '2.bias')]
    """
    paths = block_paths(model)
    owners = [_owner(layer.name, paths) for layer in layers]
    last = {owner: index for index, owner in enumerate(owners) if owner is not None}
    if not last:
        return _plain(layers)
    order = list(dict.fromkeys(owner for owner in owners if owner is not None))
    found: dict[str, list[Layer]] = {path: [] for path in order}
    stem: list[Layer] = list(layers.unranked)
    rest: list[Layer] = []
    first = owners.index(order[0])
    for index, (layer, owner) in enumerate(zip(layers, owners, strict=True)):
        if owner is None and index > first:
            # the first block that is not done yet
            owner = next((path for path in order if last[path] > index), None)
        (found[owner] if owner is not None else rest if index > first else stem).append(layer)
    blocks = tuple(Block(path, tuple(members)) for path, members in found.items())
    return ModelBlocks(tuple(stem), blocks, tuple(rest))


def block_paths(model: nn.Module) -> tuple[str, ...]:
    """Paths of a model's repeated units, none inside another.

    A unit is a child of a `torch.nn.Sequential`, `torch.nn.ModuleList` or stage, with children that have parameters, of
    a class that such a container holds at least twice. Unlike `adabet.lean.recompute.repeated_blocks` it
    looks into stages, and counts a unit that is alone in its container when others of its class are not.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> block_paths(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
        ('layers.0', 'layers.1')
    """
    rows = [[child for child in module.children() if _is_unit(child)] for module in model.modules() if _holds(module)]
    repeated = {kind for row in rows for kind, count in Counter(map(type, row)).items() if count > 1}
    modules = dict(model.named_modules())
    found: dict[str, None] = {}
    for path, module in modules.items():
        parent = path.rpartition(".")[0]
        if not path or type(module) not in repeated or not _is_unit(module) or not _holds(modules[parent]):
            continue
        if _owner(parent, found) is None:
            found[path] = None
    return tuple(found)


def _holds(module: nn.Module) -> bool:
    return isinstance(module, CONTAINERS) or STAGE_CLASS.search(type(module).__name__) is not None


def _is_unit(module: nn.Module) -> bool:
    return not _holds(module) and any(True for child in module.children() for _ in child.parameters())


def _owner(name: str, paths: Iterable[str]) -> str | None:
    return next((path for path in paths if name == path or name.startswith(f"{path}.")), None)


def _plain(layers: Layers) -> ModelBlocks:
    """Each layer a block, with the norms and loose parameters that follow it."""
    stem: list[Layer] = list(layers.unranked)
    blocks: list[list[Layer]] = []
    for layer in layers:
        if layer.kind in ("norm", "parameter") and blocks:
            blocks[-1].append(layer)
        elif not blocks and layer.kind in ("norm", "parameter", "embedding"):
            stem.append(layer)
        else:
            blocks.append([layer])
    return ModelBlocks(tuple(stem), tuple(Block(row[0].name, tuple(row)) for row in blocks), ())
