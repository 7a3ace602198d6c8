"""A delta: only what training moved; base weights plus delta are the adapted model."""

import os
from collections.abc import Collection
from pathlib import Path

from torch import nn

from adabet.errors import AdabetError, CheckpointError
from adabet.selection import Selection
from adabet.training.tensor_file import read_tensor_file, write_tensor_file
from adabet.training.weights import base_digest, check_tensors, persistent_buffers, put_tensors, tensors_named

KIND = "adabet/delta"


def save_delta(
    model: nn.Module,
    selection: Selection,
    path: str | os.PathLike[str],
    *,
    buffers: Collection[str] | None = None,
) -> None:
    """Save what training moved: trained tensors, head and buffers, as safetensors with a JSON header.

    Args:
        model: the adapted model.
        selection: what trained.
        path: the file; a former one is replaced once the new one is safe on the disk.
        buffers: names of the buffers that changed (running statistics of trained batch-norms); None saves
            every persistent buffer, which is right whatever changed.

    Raises:
        SelectionError: if the selection is for another model: a tensor of it is not there.
        StorageError: if the file cannot be written; a former one is whole.
    """
    names = persistent_buffers(model) if buffers is None else buffers
    tensors = tensors_named(model, (*selection.parameters, *names))
    values = {
        "selection": selection.to_json(),
        "base": base_digest(model, tensors.keys()),
    }
    write_tensor_file(path, KIND, tensors, values)


def load_delta(model: nn.Module, path: str | os.PathLike[str]) -> Selection:
    """Put a delta onto base weights: everything is checked first, so either all of it is copied or nothing.

    Args:
        model: a model with the base weights that the adapted one started from and a head of the same size.
        path: what `save_delta` or a run folder wrote (``best.safetensors``, ``last.safetensors``).

    Returns:
        The selection that trained.

    Raises:
        CheckpointError: if the file is damaged or no delta, if a name, shape or dtype does not fit the model,
            or if the model's base weights are others.
    """
    path = Path(path)
    tensors, values = read_tensor_file(path, KIND)
    try:
        selection = Selection.from_json(values["selection"])
        base = values["base"]
    except (AdabetError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a whole delta: {error}") from error
    check_tensors(model, tensors, base, str(path))
    put_tensors(model, tensors)
    return selection
