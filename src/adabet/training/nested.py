"""Nested state (an optimizer's, a method's) as plain JSON plus named tensors, and back."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adabet.errors import CheckpointError

TENSOR, TUPLE, PAIRS = "$tensor", "$tuple", "$pairs"
"""Keys that mark what JSON does not have: a tensor, a tuple, a mapping whose keys are not all text."""


def flatten(state: Any, prefix: str) -> tuple[Any, dict[str, Tensor]]:
    """Split nested state into what JSON can hold and the tensors.

    Args:
        state: mappings, lists, tuples, numbers, text, None and tensors, nested in any way.
        prefix: starts the names of the tensors.

    Returns:
        The state with a mark in the place of each tensor, and the tensors by name.

    Raises:
        CheckpointError: if it holds anything else; nothing is ever pickled.

    Examples:
        >>> import torch
        >>> flatten({0: (1.5, torch.zeros(2))}, "state")
        ({'$pairs': [[0, {'$tuple': [1.5, {'$tensor': 'state.0'}]}]]}, {'state.0': tensor([0., 0.])})
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"{prefix}.{len(tensors)}"
            tensors[name] = value
            return {TENSOR: name}
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: walk(item) for key, item in value.items()}
            return {PAIRS: [[walk(key), walk(item)] for key, item in value.items()]}
        if isinstance(value, tuple):
            return {TUPLE: [walk(item) for item in value]}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise CheckpointError(
            f"expected {prefix} state of tensors, numbers, text, lists, tuples and mappings; "
            f"it holds a {type(value).__name__}, which cannot be stored without pickle"
        )

    return walk(state), tensors


def unflatten(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put together what `flatten` took apart.

    Examples:
        >>> import torch
        >>> state = {"betas": (0.9, 0.99), "step": {3: torch.tensor(7)}}
        >>> unflatten(*flatten(state, "adam"))
        {'betas': (0.9, 0.99), 'step': {3: tensor(7)}}
    """
    if isinstance(document, list):
        return [unflatten(item, tensors) for item in document]
    if not isinstance(document, dict):
        return document
    if TENSOR in document:
        return tensors[document[TENSOR]]
    if TUPLE in document:
        return tuple(unflatten(item, tensors) for item in document[TUPLE])
    if PAIRS in document:
        return {unflatten(key, tensors): unflatten(item, tensors) for key, item in document[PAIRS]}
    return {key: unflatten(item, tensors) for key, item in document.items()}
