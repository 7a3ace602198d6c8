"""One kind of file for checkpoints and deltas: safetensors with a record in its header, never pickle."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adabet.errors import CheckpointError, StorageError
from adabet.extras import require
from adabet.files import replacing
from adabet.records import read_record, write_record

RECORD, DIGEST = "adabet", "digest"
"""Keys in the header: the record, and what tells whether the tensors are still those that were written."""


def write_tensor_file(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], values: dict[str, Any]
) -> None:
    """Write tensors and a record as one file, whole or not at all.

    Args:
        path: the file; one that stands there is replaced once the new one is safe on the disk.
        kind: what it is, such as ``"adabet/delta"``.
        tensors: any shapes and dtypes, on any device.
        values: of the record, anything that JSON can hold.

    Raises:
        StorageError: if it cannot be written; the former file is whole.
    """
    safetensors = require("safetensors.torch", "writing tensors")
    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    header = {RECORD: write_record(kind, values), DIGEST: _digest(plain)}
    with replacing(path) as temporary:
        try:
            safetensors.save_file(plain, temporary, header)
        except require("safetensors", "writing tensors").SafetensorError as error:
            raise StorageError(f"could not write {path}: {error}; a file that stood there is whole") from error


def read_tensor_file(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensor_file` wrote.

    Returns:
        The tensors, on the CPU, and the values of the record.

    Raises:
        CheckpointError: if the file is missing, damaged, of another kind or of another version.
    """
    safetensors = require("safetensors", "reading tensors")
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"expected a file of kind {kind!r} at {path}; there is none")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole file of tensors: {error}") from error
    if RECORD not in header:
        raise CheckpointError(f"expected a file of kind {kind!r}; {path} is not one that adabet wrote")
    try:
        values = read_record(kind, header[RECORD])
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    if header.get(DIGEST) != _digest(tensors):
        raise CheckpointError(f"{path} is damaged: its tensors are not those that were written")
    return tensors, values


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, and with a storage of its own, as safetensors asks."""
    plain = tensor.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(bytes_of(tensors[name]))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The elements of a tensor as they lie in memory, in row-major order."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
