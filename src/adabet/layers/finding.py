"""Find a model's layers: structure first, then one forward pass over one sample for sizes and order."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from adabet.errors import AdabetWarning, LayerError
from adabet.layers.batches import Forward, forward_call, inputs_of, take_samples, tensors_of
from adabet.layers.head import find_head
from adabet.layers.layer import Layer, Layers
from adabet.layers.observe import observing
from adabet.layers.structure import Unit, divide


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
        head: ``"auto"``, or the path (paths) of the classifier, or None for a model without one.
        blocks: patterns of module paths that are one layer each; None finds attention blocks by themselves.
        tie_norm: make each norm part of the layer that runs before it, instead of a layer of its own.
        forward: how to run the model on a batch.

    Raises:
        LayerError: if the model has no parameters, or none of its layers runs.

    Warns:
        AdabetWarning: naming layers that the forward pass does not reach; they are left out.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
        >>> layers = find_layers(model, torch.zeros(2, 1, 8, 8), head="3")
        >>> [(layer.name, layer.kind, layer.output_size) for layer in layers]
        [('0', 'convolution', 144), ('1', 'norm', 144)]
    """
    units = divide(model, blocks=blocks)
    heads = find_head(model, head)
    observations = _trace(model, units, batch, forward)
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


@dataclass
class _Seen:
    """What the hooks saw of one module."""

    order: int
    input_size: int = 0
    output_size: int = 0
    calls: int = 0
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()


def _trace(model: nn.Module, units: list[Unit], batch: Any, forward: Forward) -> dict[nn.Module, _Seen]:
    """Run one sample and note sizes and order of every module inside a unit."""
    seen: dict[nn.Module, _Seen] = {}
    finished = 0

    def note(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        nonlocal finished
        tensor = first_floating(output)
        if tensor is None:
            return
        record = seen.setdefault(module, _Seen(order=finished))
        finished += 1
        given = next(iter(tensors_of([list(arguments), keywords])), tensor)
        record.input_size += given.numel()
        record.output_size += tensor.numel()
        record.calls += 1
        record.input_shape = record.input_shape or tuple(given.shape)
        record.output_shape = record.output_shape or tuple(tensor.shape)

    with observing(model) as handles:
        for module in {inner for unit in units if unit.name for inner in unit.module.modules()}:
            handles.append(module.register_forward_hook(note, with_kwargs=True))
        forward(model, take_samples(inputs_of(batch), 0, 1))
    return seen


def first_floating(output: Any) -> Tensor | None:
    """The first floating-point tensor of a module's output: its activation."""
    return next((tensor for tensor in tensors_of(output) if tensor.is_floating_point()), None)


def _output_module(unit: Unit, seen: dict[nn.Module, _Seen]) -> nn.Module:
    """The module whose output is the unit's activation: of an attention block its last projection."""
    if unit.kind != "attention":
        return unit.module
    owners = {name.rpartition(".")[0] for name in unit.parameters}
    inner = dict(unit.module.named_modules(prefix=unit.name))
    ran = [inner[owner] for owner in owners if owner != unit.name and inner[owner] in seen]
    return max(ran, key=lambda module: seen[module].order, default=unit.module)


def _by_unit(units: list[Unit], seen: dict[nn.Module, _Seen]) -> dict[int, _Seen]:
    """What was seen of each unit that ran and that is not the model itself."""
    return {
        index: seen[module]
        for index, unit in enumerate(units)
        if unit.name and (module := _output_module(unit, seen)) in seen
    }


def _describe(unit: Unit, record: _Seen, seen: dict[nn.Module, _Seen]) -> Layer:
    """A unit and what was seen of it, as a layer."""
    output = _output_module(unit, seen)
    whole = seen.get(unit.module, record)
    shape = record.output_shape
    in_channels, out_channels = _channels(unit, shape)
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
        macs=_macs(unit, record, in_channels, out_channels),
        calls=record.calls,
        output_module=next(path for path, module in unit.module.named_modules(prefix=unit.name) if module is output),
        input_shape=whole.input_shape,
        output_shape=shape,
    )


def _channels(unit: Unit, shape: tuple[int, ...]) -> tuple[int | None, int | None]:
    """Input and output channels of a unit."""
    weight = getattr(unit.module, "weight", None)
    if unit.kind == "attention":
        return None, shape[-1]
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
    batched_first = unit.kind == "convolution" or isinstance(unit.module, _NormBase | nn.GroupNorm)
    for axis in (1, len(shape) - 1) if batched_first else (len(shape) - 1, 1):
        if shape[axis] == channels:
            return axis - len(shape)
    return None


def _macs(unit: Unit, record: _Seen, in_channels: int | None, out_channels: int | None) -> int:
    """Multiply-accumulates for one sample: products with weights, for attention also between tokens."""
    if unit.kind == "embedding":
        return 0
    if unit.kind == "norm" or not out_channels:
        return record.output_size
    matrices = sum(parameter.numel() for parameter in unit.parameters.values() if parameter.dim() >= 2)
    if getattr(unit.module, "transposed", False) and in_channels:
        return record.input_size // in_channels * matrices
    products = record.output_size // out_channels * matrices
    if unit.kind == "attention" and len(record.output_shape) > 2:
        return products + 2 * record.output_size * record.output_shape[-2]
    return products


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
