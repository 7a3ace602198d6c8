"""Activations times the loss's gradient with respect to them, layer by layer as a backward pass reaches them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adabet.errors import DataError
from adabet.layers import Layer, forward_call, inputs_of, observing, sample_count, take_samples
from adabet.layers.batches import Forward
from adabet.layers.trace import first_floating
from adabet.methods.registry import Request
from adabet.step import train_step

Found = TypeVar("Found")
Reduce = Callable[[Layer, Tensor, int], Found]
"""``reduce(layer, product, samples)``: what is kept of one layer's product for so many samples."""


def activation_gradients(
    request: Request, layers: Sequence[Layer], reduce: Reduce[Found], *, batches: int = 1
) -> tuple[list[dict[str, list[Found]]], int]:
    """Reduce each layer's activations times their gradients, element by element, over labelled batches.

    The gradient is that of each sample's own loss: for a loss that is a mean it is multiplied by the number of samples.
    The model runs in eval mode, so that samples do not mix, in the lean mode with all parameters frozen: no gradient
    of a weight is computed. Each activation is kept until its gradient arrives, that is the price: all layers'
    outputs for one slice of samples. The product is made, reduced and let go then. The model is left as it was.

    Args:
        request: the model, labelled batches, the loss, and how many samples run at once (``micro_batch``).
        layers: whose outputs to look at.
        reduce: called with the product in the shape of the layer's output, float32 or wider, which it may overwrite.
        batches: how many batches to look at.

    Returns:
        For each slice of samples what was found by layer name, a list with an entry for each time that the layer ran
        (the last first), and the number of samples. A layer without a gradient is missing.

    Raises:
        DataError: if there is no batch.
        OptionError: if a batch has no labels.
    """
    model = request.model
    runner = model if request.forward is forward_call else _Through(model, request.forward)
    # the gradients of a mean shrink with the batch
    mean = getattr(request.loss, "reduction", "mean") != "sum"
    found: list[dict[str, list[Found]]] = []
    samples = 0
    modified: set[str] | None = None
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for number, batch in enumerate(islice(request.batches, batches), 1):
            if modified is None:
                modified = _modified_in_place(request, layers, batch)
            count = sample_count(batch)
            watch = _Watch(reduce, modified, scale=count if mean else 1, count=count, size=request.micro_batch or count)
            with observing(model) as handles, torch.enable_grad():
                for layer in layers:
                    module = model.get_submodule(layer.output_module)
                    handles.append(module.register_forward_hook(partial(watch.forward, layer)))
                train_step(runner, batch, request.loss, micro_batch=request.micro_batch, backward=watch.backward)
            found += watch.found
            samples += count
            if request.progress is not None:
                request.progress(number, batches)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    if not samples:
        raise DataError("expected labelled batches to look at, the loader is empty")
    return found, samples


class _Watch:
    """Keeps activations of one slice of samples after the other until their gradients come."""

    def __init__(self, reduce: Reduce[Any], modified: set[str], *, scale: int, count: int, size: int) -> None:
        self.found: list[dict[str, list[Any]]] = []
        self._reduce, self._modified, self._scale = reduce, modified, scale
        self._left, self._size = count, size
        self._kept: list[Tensor | None] = []
        self._slice: dict[str, list[Any]] = {}

    def forward(self, layer: Layer, module: nn.Module, arguments: Any, output: Any) -> Any:  # noqa: ARG002 - a hook
        """Keep a layer's output, and have the gradient with respect to it arrive."""
        tensor = first_floating(output)
        if tensor is None:
            return None
        handed = tensor
        if not tensor.requires_grad:
            # a leaf would refuse to be modified in place, and nothing upstream needs a gradient
            handed = tensor + torch.zeros((), dtype=tensor.dtype, device=tensor.device, requires_grad=True)
        elif layer.name in self._modified:
            handed = tensor.clone()
        if handed.requires_grad:  # the model may run a part of itself without gradients
            handed.register_hook(partial(self._arrived, layer, len(self._kept)))
            self._kept.append(tensor.detach())
        return None if handed is tensor else _exchanged(output, tensor, handed)

    def backward(self, value: Tensor) -> None:
        """Run a slice's backward pass, and be ready for the next slice."""
        value.backward()
        self.found.append(self._slice)
        self._slice, self._kept = {}, []
        self._left -= self._size

    def _arrived(self, layer: Layer, place: int, gradient: Tensor) -> None:
        activation, self._kept[place] = self._kept[place], None
        if activation is not None:
            wide = torch.promote_types(activation.dtype, torch.float32)
            product = (activation.to(wide) * gradient.to(wide)).mul_(self._scale)
            samples = min(self._size, self._left)
            self._slice.setdefault(layer.name, []).append(self._reduce(layer, product, samples))


def _modified_in_place(request: Request, layers: Sequence[Layer], batch: Any) -> set[str]:
    """Layers whose output something after them overwrites, as an in-place ReLU does: told by one sample."""
    seen: list[tuple[str, Tensor, int]] = []

    def note(layer: Layer, module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ARG001 - a hook
        tensor = first_floating(output)
        if tensor is not None:
            seen.append((layer.name, tensor, tensor._version))

    with observing(request.model) as handles:
        for layer in layers:
            module = request.model.get_submodule(layer.output_module)
            handles.append(module.register_forward_hook(partial(note, layer)))
        request.forward(request.model, take_samples(inputs_of(batch), 0, 1))
    return {name for name, tensor, version in seen if tensor._version != version}


def _exchanged(output: Any, old: Tensor, new: Tensor) -> Any:
    """A module's output with one tensor in the place of another."""
    if output is old:
        return new
    if isinstance(output, tuple | list):
        items = [_exchanged(item, old, new) for item in output]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    if isinstance(output, Mapping):
        exchanged: Any = copy.copy(output)
        for key, item in output.items():
            exchanged[key] = _exchanged(item, old, new)
        return exchanged
    return output


class _Through(nn.Module):
    """A model run the way that the caller asked for."""

    def __init__(self, model: nn.Module, run: Forward) -> None:
        super().__init__()
        self.inner = model
        self._run = run

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self._run(self.inner, inputs[0] if inputs else named)
