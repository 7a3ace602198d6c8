"""Selections of single tensors, for methods that choose finer than layers."""

from collections.abc import Collection, Mapping
from typing import Any

from adabet.layers import Layer, Layers, fingerprint
from adabet.methods.registry import Request
from adabet.selection import Axis, Choice, Selection


def choose_tensors(
    request: Request,
    layers: Layers,
    names: Collection[str],
    *,
    method: str,
    channels: Mapping[str, Collection[int]] | None = None,
    axis: Axis = "in",
    options: Mapping[str, Any] | None = None,
) -> Selection:
    """Train the named tensors and the head.

    Args:
        request: whose model it is.
        layers: the model's layers, as `Request.find_layers` gave them.
        names: full names of the tensors; those of the head need not be named.
        method: for the record.
        channels: for a layer's name, the channels of its weight that train; all where a layer is not named.
        axis: which channels these are.
        options: for the record.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> request = Request(model, [torch.zeros(1, 3)], head="2")
        >>> selection = choose_tensors(request, request.find_layers(), {"0.bias"}, method="an example")
        >>> selection.parameters
        ('0.bias', '2.weight', '2.bias')
    """
    sizes = {name: parameter.numel() for name, parameter in request.model.named_parameters()}
    choices = []
    for layer in (*layers.unranked, *layers.candidates):
        chosen = tuple(name for name in layer.parameters if name in names)
        if chosen:
            part = (channels or {}).get(layer.name)
            choices.append(_choice(layer, chosen, sizes, None if part is None else tuple(sorted(part)), axis))
    return Selection(
        method=method,
        choices=(*choices, *map(Choice.of, layers.head)),
        fingerprint=fingerprint(request.model, layers.head_parameters),
        candidates=len(layers.candidates),
        options=dict(options or {}),
    )


def _choice(
    layer: Layer, chosen: tuple[str, ...], sizes: Mapping[str, int], channels: tuple[int, ...] | None, axis: Axis
) -> Choice:
    total = layer.out_channels if axis == "out" else layer.in_channels
    share = 1.0 if channels is None or not total else len(channels) / total
    count = 0
    for name in chosen:
        # a bias has no input channels: it trains whole
        whole = axis == "in" and name.endswith("bias") and layer.kind in ("convolution", "linear")
        count += round(sizes[name] * (1.0 if whole else share))
    return Choice(
        layer=layer.name,
        kind=layer.kind,
        parameters=chosen,
        parameter_count=count,
        channels=channels,
        axis=axis,
    )
