"""Find a model's layers: structure first, then one forward pass over one sample for sizes and order."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from adabet.errors import AdabetWarning, LayerError
from adabet.layers.batches import Forward, forward_call
from adabet.layers.families import CHANNELS_SECOND_CLASS
from adabet.layers.head import find_head, named_head
from adabet.layers.layer import Layer, Layers
from adabet.layers.macs import count_macs, features_of
from adabet.layers.structure import Unit, divide
from adabet.layers.trace import Seen, trace
from adabet.layers.wrappers import on_bare_model


@on_bare_model
def find_layers(
    model: nn.Module,
    batch: Any,
    *,
    head: str | Sequence[str] | None = "auto",
    blocks: Sequence[str] | None = None,
    tie_norm: bool = False,
    forward: Forward = forward_call,
) -> Layers:
    """Find what can be chosen in a model.

    Args:
        model: any module; left as it was.
        batch: a batch as the model is fed, labels allowed; its first sample is used.
        head: ``"auto"`` (see `find_head`), or the path (paths) of the classifier, or None for a model without one.
        blocks: patterns of module paths that are one layer each; None finds attention blocks by themselves.
        tie_norm: make each norm part of the layer that runs before it, instead of a layer of its own.
        forward: how to run the model on a batch.

    Raises:
        LayerError: if the model has no parameters, or none of its layers runs.

    Warns:
        AdabetWarning: naming layers that the forward pass does not reach; they are left out.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
        >>> layers = find_layers(model, torch.zeros(2, 1, 8, 8), head="3")
        >>> [(layer.name, layer.kind, layer.output_size) for layer in layers]
        [('0', 'convolution', 144), ('1', 'norm', 144)]
    """
    units = divide(model, blocks=blocks)
    heads = find_head(model, head)
    observations = trace(model, units, batch, forward)
    reached = [
        _describe(units[index], seen, observations)
        for index, seen in sorted(_by_unit(units, observations).items(), key=lambda item: item[1].order)
    ]
    unranked = tuple(_held_by_model(unit) for unit in units if unit.name == "")
    missing = tuple(unit.name for unit in units if unit.name and unit.name not in {layer.name for layer in reached})
    if missing:
        warnings.warn(
            f"{len(missing)} layers never run in a forward pass and are left out: {', '.join(missing)}",
            AdabetWarning,
            stacklevel=2,
        )
    if head == "auto" and not named_head(model) and reached and reached[-1].name not in heads:
        heads = ()  # what looks like a classifier by its place is none if anything runs after it
    marked = [replace(layer, head=_inside(layer.name, heads)) for layer in reached if layer.name]
    if tie_norm:
        marked = _tie_norms(marked)
    if not marked:
        raise LayerError("no layer of the model runs in a forward pass over the batch: nothing to choose from")
    return Layers(
        candidates=tuple(layer for layer in marked if not layer.head),
        head=tuple(layer for layer in marked if layer.head),
        unranked=unranked,
        never_called=missing,
    )


def _output_module(unit: Unit, seen: dict[nn.Module, Seen]) -> nn.Module:
    """The module whose output is the unit's activation: of an attention block its last projection."""
    if unit.kind != "attention":
        return next((module for module in (unit.module, *unit.tied.values()) if module in seen), unit.module)
    owners = {name.rpartition(".")[0] for name in unit.parameters}
    inner = dict(unit.module.named_modules(prefix=unit.name))
    ran = [inner[owner] for owner in owners if owner != unit.name and inner[owner] in seen]
    return max(ran, key=lambda module: seen[module].order, default=unit.module)


def _by_unit(units: list[Unit], seen: dict[nn.Module, Seen]) -> dict[int, Seen]:
    """What was seen of each unit that ran and that is not the model itself."""
    return {
        index: seen[module]
        for index, unit in enumerate(units)
        if unit.name and (module := _output_module(unit, seen)) in seen
    }


def _describe(unit: Unit, record: Seen, seen: dict[nn.Module, Seen]) -> Layer:
    """A unit and what was seen of it, as a layer."""
    output = _output_module(unit, seen)
    whole = seen.get(unit.module, record)
    shape = record.output_shape
    in_channels, out_channels = _channels(unit, output, shape)
    inside = (*unit.module.named_modules(prefix=unit.name), *unit.tied.items())
    return Layer(
        name=unit.name,
        kind=unit.kind,
        parameters=tuple(unit.parameters),
        parameter_count=sum(parameter.numel() for parameter in unit.parameters.values()),
        input_size=whole.input_size,
        output_size=record.output_size,
        in_channels=in_channels,
        out_channels=out_channels,
        channel_axis=_channel_axis(unit, out_channels, shape),
        macs=count_macs(unit, output, seen),
        calls=record.calls,
        output_module=next(path for path, module in inside if module is output),
        input_shape=whole.input_shape,
        output_shape=shape,
    )


def _channels(unit: Unit, output: nn.Module, shape: tuple[int, ...]) -> tuple[int | None, int | None]:
    """Input and output channels of a unit."""
    weight = getattr(unit.module, "weight", None)
    if unit.kind == "attention":
        return None, features_of(output, shape)
    if unit.kind == "convolution":
        return int(unit.module.in_channels), int(unit.module.out_channels)  # type: ignore[arg-type]
    if unit.kind == "linear" and isinstance(weight, Tensor):
        outputs, inputs = weight.shape
        # transformers' Conv1D keeps its weight transposed and its output size as nf
        return (outputs, inputs) if getattr(unit.module, "nf", outputs) != outputs else (inputs, outputs)
    if unit.kind in ("norm", "embedding") and isinstance(weight, Tensor):
        return int(weight.shape[-1]), int(weight.shape[-1])
    return None, None


def _channel_axis(unit: Unit, channels: int | None, shape: tuple[int, ...]) -> int | None:
    """The axis of the output that holds the channels, counted from the end."""
    if channels is None or len(shape) < 2:
        return None
    known = unit.kind == "convolution" or isinstance(unit.module, _NormBase | nn.GroupNorm)
    second = known or CHANNELS_SECOND_CLASS.search(type(unit.module).__name__) is not None
    for axis in (1, len(shape) - 1) if second else (len(shape) - 1, 1):
        if shape[axis] == channels:
            return axis - len(shape)
    return None


def _held_by_model(unit: Unit) -> Layer:
    """Parameters of the model itself, which have no output of their own."""
    return Layer(
        name="",
        kind="parameter",
        parameters=tuple(unit.parameters),
        parameter_count=sum(parameter.numel() for parameter in unit.parameters.values()),
        input_size=0,
        output_size=0,
        in_channels=None,
        out_channels=None,
        channel_axis=None,
        macs=0,
        calls=0,
        output_module="",
        input_shape=(),
        output_shape=(),
    )


def _inside(name: str, paths: Sequence[str]) -> bool:
    return any(name == path or name.startswith(path + ".") for path in paths)


def _tie_norms(layers: list[Layer]) -> list[Layer]:
    """Merge each norm into the convolution or linear layer that finished before it."""
    merged: list[Layer] = []
    for layer in layers:
        before = merged[-1] if merged else None
        if layer.kind == "norm" and before is not None and before.kind in ("convolution", "linear") and not before.head:
            merged[-1] = replace(
                before,
                parameters=before.parameters + layer.parameters,
                parameter_count=before.parameter_count + layer.parameter_count,
                macs=before.macs + layer.macs,
            )
        else:
            merged.append(layer)
    return merged
