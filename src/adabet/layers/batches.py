"""What a batch is: how to run a model on it, count its samples and take some of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adabet.errors import ActivationError

LABEL_KEYS = frozenset({"labels", "label", "label_ids", "targets", "target"})
"""Keys of a mapping that hold labels; selection never looks at them."""

Forward = Callable[[nn.Module, Any], Any]
"""Runs a model on a batch: ``forward(model, inputs)``."""


def inputs_of(batch: Any) -> Any:
    """The part of a batch that the model takes, without labels.

    A tensor is taken as it is; of a tuple or list the first element; of a mapping all but the labels.

    Examples:
        >>> inputs_of((torch.zeros(8, 3), torch.ones(8))).shape
        torch.Size([8, 3])
        >>> list(inputs_of({"input_ids": torch.zeros(8, 5), "labels": torch.ones(8)}))
        ['input_ids']
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in LABEL_KEYS}
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 0:
        return inputs_of(batch[0])
    raise ActivationError(
        f"expected a batch that is a tensor, a tuple that starts with one, or a dict; got {type(batch).__name__}"
    )


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors inside nested tuples, lists, mappings and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [tensor for item in dataclasses.fields(value) for tensor in tensors_of(getattr(value, item.name))]
    return []


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nesting of tuples, lists and mappings with the function applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_tensors(function, item) for item in value]
    return value


def sample_count(inputs: Any) -> int:
    """Number of samples in a batch's inputs: the length of their first tensor.

    Raises:
        ActivationError: if there is no tensor with a first axis.
    """
    tensors = tensors_of(inputs)
    if not tensors or tensors[0].dim() == 0:
        raise ActivationError("expected inputs with at least one tensor whose first axis counts the samples")
    return tensors[0].shape[0]


def take_samples(inputs: Any, start: int, stop: int) -> Any:
    """Samples ``start`` to ``stop`` (exclusive) of a batch's inputs, as views.

    Tensors whose first axis does not count the samples are left whole.
    """
    count = sample_count(inputs)
    return map_tensors(
        lambda tensor: tensor[start:stop] if tensor.dim() and tensor.shape[0] == count else tensor, inputs
    )


def join_samples(parts: Sequence[Any]) -> Any:
    """Several inputs of the same nesting joined along the samples' axis.

    Raises:
        ActivationError: if their shapes or keys differ.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        shapes = {tuple(part.shape[1:]) for part in parts}
        if len(shapes) > 1:
            raise ActivationError(
                f"expected samples of one shape, got {' and '.join(map(str, sorted(shapes)))}; "
                "resize, crop or pad them to the same shape"
            )
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))
    if isinstance(first, Mapping):
        if any(set(part) != set(first) for part in parts):
            raise ActivationError("expected batches with the same keys; they differ")
        return {key: join_samples([part[key] for part in parts]) for key in first}
    if isinstance(first, list | tuple):
        return [join_samples(items) for items in zip(*parts, strict=True)]
    return first


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def forward_call(model: nn.Module, batch: Any) -> Any:
    """Run a model on the inputs of a batch: mappings as keywords, anything else as the one argument."""
    device = device_of(model)
    inputs = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), inputs_of(batch))
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
