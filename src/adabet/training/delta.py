"""A delta: only what training moved; base weights plus delta are the adapted model."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from torch import Tensor, nn

from adabet.errors import AdabetError, CheckpointError
from adabet.layers import on_bare_model
from adabet.methods.lora import injected_for
from adabet.selection import Selection
from adabet.training.tensor_file import read_tensor_file, write_tensor_file
from adabet.training.weights import base_digest, check_tensors, persistent_buffers, put_tensors, tensors_named

KIND = "adabet/delta"


@on_bare_model
def save_delta(
    model: nn.Module,
    selection: Selection,
    path: str | os.PathLike[str],
    *,
    buffers: Collection[str] | None = None,
    parameters: Collection[str] | None = None,
    whole: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Save what training moved: trained tensors, head and buffers, as safetensors with a JSON header.

    Args:
        model: the adapted model.
        selection: what trained.
        path: the file; a former one is replaced once the new one is safe on the disk.
        buffers: names of the buffers that changed (running statistics of trained batch-norms); None saves
            every persistent buffer, which is right whatever changed.
        parameters: full names of all tensors that have trained; None: those of the selection.
        whole: gives a tensor of the model, by name, in the shape that it has in the base model; None: it has it.

    Raises:
        SelectionError: if the selection is for another model: a tensor of it is not there.
        StorageError: if the file cannot be written; a former one is whole.
    """
    names = persistent_buffers(model) if buffers is None else buffers
    trained = selection.parameters if parameters is None else parameters
    tensors = tensors_named(model, (*trained, *names))
    values = {
        "selection": selection.to_json(),
        "base": base_digest(model, tensors.keys()),
    }
    if whole is not None:
        tensors = {name: whole(name, tensor.detach()) for name, tensor in tensors.items()}
    write_tensor_file(path, KIND, tensors, values)


def extend_delta(model: nn.Module, path: str | os.PathLike[str], names: Collection[str]) -> None:
    """Add tensors that are about to train to a delta written before, with the values that they have now.

    Without them the delta would no longer fit the model, whose base they leave.

    Args:
        model: the model, without a selection on it.
        path: the delta.
        names: full names of parameters and buffers.

    Raises:
        CheckpointError: if the file is damaged.
        StorageError: if the file cannot be written; the former one is whole.
    """
    tensors, values = read_tensor_file(path, KIND)
    tensors = {**tensors_named(model, names), **tensors}
    write_tensor_file(path, KIND, tensors, {**values, "base": base_digest(model, tensors.keys())})


@on_bare_model
def load_delta(model: nn.Module, path: str | os.PathLike[str]) -> Selection:
    """Put a delta onto base weights: everything is checked first, so either all of it is copied or nothing.

    Adapters of method ``"lora"`` are put into the model before, see `adabet.methods.lora`.

    Args:
        model: a model with the base weights that the adapted one started from and a head of the same size.
        path: what `save_delta` or a run folder wrote (``best.safetensors``, ``last.safetensors``).

    Returns:
        The selection that trained; of a method that selects again while training, the last one.

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
    with injected_for(model, selection):
        check_tensors(model, tensors, base, str(path))
    put_tensors(model, tensors)
    return selection
