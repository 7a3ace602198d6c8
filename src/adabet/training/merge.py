"""Base weights and a delta as one file of whole weights, without building the model."""

import os
from pathlib import Path

import torch
from torch import Tensor

from adabet.errors import AdabetError, CheckpointError, StorageError
from adabet.extras import require
from adabet.files import replacing
from adabet.selection import Selection
from adabet.training.delta import KIND
from adabet.training.tensor_file import read_tensor_file
from adabet.training.weights import digest_of_state

COUNTER = "num_batches_tracked"
"""A buffer of batch-norms that many published weights leave out; it starts at 0."""


def merge_delta(
    base_weights: str | os.PathLike[str], delta: str | os.PathLike[str], out: str | os.PathLike[str]
) -> Path:
    """Write the adapted model's whole weights: those of the base, and in their place what the delta holds.

    Reads and writes safetensors only; the result loads wherever the base weights do, given the delta's number of
    classes.

    Args:
        base_weights: a safetensors file by the model's own names, the weights that training started from.
        delta: what `adabet.save_delta` or a run wrote (``best.safetensors``).
        out: the file to write, whole or not at all; may be neither of the others.

    Returns:
        The path of the result.

    Raises:
        CheckpointError: if a file is damaged, if the delta was made on other base weights, or holds adapters.
        StorageError: if the file cannot be written; a former one is whole.
    """
    base_weights, delta, out = Path(base_weights), Path(delta), Path(out)
    moved, values = read_tensor_file(delta, KIND)
    base, header = _read(base_weights)
    try:
        selection, digest = Selection.from_json(values["selection"]), values["base"]
    except (AdabetError, KeyError, TypeError) as error:
        raise CheckpointError(f"{delta} is not a whole delta: {error}") from error
    _check(base, moved, digest, selection, names=(str(base_weights), str(delta)))
    whole = {**base, **moved}
    safetensors = require("safetensors.torch", "writing tensors")
    if out.exists() and any(out.samefile(source) for source in (base_weights, delta)):
        raise StorageError(f"expected another file to write than those to read, got {out} for both; nothing was lost")
    with replacing(out) as temporary:
        try:
            safetensors.save_file(whole, temporary, {"format": "pt", **header})
        except require("safetensors", "writing tensors").SafetensorError as error:
            raise StorageError(f"could not write {out}: {error}; a file that stood there is whole") from error
    return out


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    safetensors = require("safetensors", "reading weights")
    if not path.is_file():
        raise CheckpointError(f"expected base weights in a safetensors file, got {path}, which is no file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole file of tensors: {error}") from error


def _check(
    base: dict[str, Tensor], moved: dict[str, Tensor], digest: str, selection: Selection, *, names: tuple[str, str]
) -> None:
    """Make sure that a delta was made on these base weights; only a head may be new to them.

    Raises:
        CheckpointError: if it was not.
    """
    weights, delta = names
    if selection.method == "lora":
        raise CheckpointError(
            f"{delta} holds adapters, which only the model can merge: adabet.load_delta, then "
            "adabet.methods.lora.remove(model, merge=True)"
        )
    for name, tensor in moved.items():
        theirs = base.get(name)
        if name in selection.head or (theirs is None and name.endswith(COUNTER)):
            continue
        if theirs is None or theirs.shape != tensor.shape or theirs.dtype != tensor.dtype:
            found = "does not have" if theirs is None else f"has as {_text(theirs)}"
            raise CheckpointError(f"{delta} holds {name} as {_text(tensor)}, which {weights} {found}")
    counters = {
        name.removesuffix("running_mean") + COUNTER: torch.tensor(0) for name in base if name.endswith("running_mean")
    }
    state = {**counters, **base, **moved}
    if digest_of_state(state, moved.keys()) != digest:
        raise CheckpointError(
            f"{delta} was made on other base weights than {weights}; if these leave out tensors of the model's (tied "
            "ones), put the delta onto the model by adabet.load_delta and save that"
        )


def _text(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"
