"""Sketches of every layer's activations, sample by sample, so that samples of different times can be compared."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adabet.errors import ActivationError, SelectionError
from adabet.layers import Layer, forward_call, observing, sample_count, uncompiled
from adabet.layers.batches import Forward
from adabet.layers.trace import first_floating
from adabet.topology.distances import squared_distances
from adabet.topology.samples import by_sample, check_alike, check_finite
from adabet.topology.sketch import Sketcher

Shapes = dict[tuple[str, int], torch.Size]
"""Shape of one sample's activation by layer and call."""


def sketch_layers(
    model: nn.Module,
    inputs: Any,
    layers: Sequence[Layer],
    *,
    sketcher: Sketcher,
    shapes: Shapes,
    forward: Forward = forward_call,
) -> list[Tensor]:
    """Run a model once, in eval mode, and keep a sketch of each layer's activation of each sample.

    Args:
        model: left as it was: modes, hooks and random state.
        inputs: what it takes.
        layers: whose activations.
        sketcher: equal ones give sketches that can be compared.
        shapes: of the activations so far, to which these are held; filled the first time.
        forward: how to run the model on a batch.

    Returns:
        One tensor ``(samples, width)`` a layer, float32, on the CPU; the calls of a layer side by side.

    Raises:
        ActivationError: if an activation is not finite or of another shape than before, or a layer runs more or less
            often than before.
        SelectionError: if the model lacks a layer.
    """
    named, count = dict(model.named_modules()), sample_count(inputs)
    found: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    seen: Shapes = {}

    def hook(layer: Layer, module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ARG001
        tensor = first_floating(output)
        if tensor is None:
            return
        activation, calls = by_sample(layer.name, tensor, count, layer.output_shape), found[layer.name]
        call, shape = (layer.name, len(calls)), activation.shape[1:]
        check_alike(layer.name, [shapes.get(call, shape), shape])
        seen[call] = shape
        sketch = sketcher(activation)
        check_finite(layer.name, sketch)
        calls.append(sketch.cpu())

    with observing(model) as handles, uncompiled(model):
        for layer in layers:
            if layer.output_module not in named:
                raise SelectionError(f"the model has no module {layer.output_module!r} (any more): it is another one")
            handles.append(named[layer.output_module].register_forward_hook(partial(hook, layer)))
        forward(model, inputs)
    first = {(layer.name, 0) for layer in layers}
    if astray := sorted(first - seen.keys()) or sorted(seen.keys() ^ (shapes or seen).keys()):
        raise ActivationError(f"layer {astray[0][0]!r} does not run alike for all batches: give such as take one path")
    shapes.update(seen)
    return [torch.cat(found[layer.name], dim=1) for layer in layers]


def sketch_distances(sketches: Sequence[Tensor]) -> Tensor:
    """Distances between samples at every layer.

    Args:
        sketches: of n samples, ``(n, width)`` a layer.

    Returns:
        ``(layers, n, n)``, float32.
    """
    return torch.stack([squared_distances(rows).sqrt().float() for rows in sketches])
