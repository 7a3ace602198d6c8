"""A checkpoint: all that a run needs to go on as if nothing had happened, without the frozen base."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from adabet.errors import CheckpointError
from adabet.training.nested import flatten, unflatten
from adabet.training.result import EpochRecord
from adabet.training.tensor_file import read_tensor_file, write_tensor_file

KIND = "adabet/checkpoint"

WEIGHT = "weight:"
"""Starts the names of the model's own tensors, so that none meets a name from the optimizer's state."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after an epoch.

    Attributes:
        epoch: epochs done.
        history: one record for each.
        stopped_early: whether early stopping ended the run.
        weights: trained parameters and buffers that changed, by name.
        base: digest of the tensors that did not move (`adabet.training.weights.base_digest`).
        optimizer: the optimizer's ``state_dict``.
        scaler: the loss scaler's ``state_dict``; empty unless training is in float16.
        method: the ``state_dict`` of a method that selects again while training, or None.
        random: the random state of each process.
    """

    epoch: int
    history: tuple[EpochRecord, ...]
    stopped_early: bool
    weights: Mapping[str, Tensor]
    base: str
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    method: Mapping[str, Any] | None
    random: list[dict[str, Any]]


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of the former one.

    Raises:
        StorageError: if it cannot be written; the former one is whole.
        CheckpointError: if the optimizer's or the method's state holds what only pickle could store.
    """
    optimizer, optimizer_tensors = flatten(checkpoint.optimizer, "optimizer")
    method, method_tensors = flatten(checkpoint.method, "method")
    values = {
        "epoch": checkpoint.epoch,
        "history": [record.to_dict() for record in checkpoint.history],
        "stopped_early": checkpoint.stopped_early,
        "base": checkpoint.base,
        "optimizer": optimizer,
        "scaler": dict(checkpoint.scaler),
        "method": method,
        "random": checkpoint.random,
    }
    weights = {WEIGHT + name: tensor for name, tensor in checkpoint.weights.items()}
    write_tensor_file(path, KIND, weights | optimizer_tensors | method_tensors, values)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `write_checkpoint` wrote; its tensors are on the CPU.

    Raises:
        CheckpointError: if it is missing, damaged, of another kind or of another version.
    """
    tensors, values = read_tensor_file(path, KIND)
    try:
        return Checkpoint(
            epoch=values["epoch"],
            history=tuple(EpochRecord.from_dict(record) for record in values["history"]),
            stopped_early=values["stopped_early"],
            weights={name.removeprefix(WEIGHT): tensor for name, tensor in tensors.items() if name.startswith(WEIGHT)},
            base=values["base"],
            optimizer=unflatten(values["optimizer"], tensors),
            scaler=values["scaler"],
            method=unflatten(values["method"], tensors),
            random=values["random"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error!r}") from error
