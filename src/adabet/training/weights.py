"""Which of a model's tensors training moves, and a check that the others are still the same."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adabet.errors import CheckpointError, OptionError, SelectionError
from adabet.layers import is_sharded
from adabet.training.tensor_file import bytes_of

ELEMENTS_IN_DIGEST = 256
"""Elements of each tensor, evenly spaced, that tell one set of base weights from another."""


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and persistent buffers by name, as they are; of a slice the full tensor.

    Raises:
        OptionError: if they are split over processes.
    """
    state = model.state_dict(keep_vars=True)
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    if any(map(is_sharded, tensors.values())):
        raise OptionError(
            "expected a model that this process holds whole, got one that fully_shard has split: train it in your own "
            "loop, with adabet.apply and adabet.lean, and gather its state into a whole model to save a delta"
        )
    return tensors


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that belong to a model's state, by name."""
    state = stored_tensors(model)
    return {name: buffer for name, buffer in model.named_buffers() if name in state}


def tensors_named(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors with these names, as they are; of tied ones the first name only.

    Raises:
        SelectionError: if the model does not have one of them.
    """
    state = stored_tensors(model)
    found: dict[int, tuple[str, Tensor]] = {}
    for name in names:
        if name not in state:
            raise SelectionError(f"expected a model with {name}, which {type(model).__name__} does not have")
        found.setdefault(id(state[name]), (name, state[name]))
    return dict(found.values())


@dataclass(frozen=True)
class BufferWatch:
    """Remembers a model's persistent buffers by their digests, so that those that change are known.

    Attributes:
        digests: of every persistent buffer, by name.
    """

    digests: Mapping[str, bytes]

    @classmethod
    def of(cls, model: nn.Module) -> "BufferWatch":
        """Remember the buffers as they are now."""
        return cls({name: _digest(buffer) for name, buffer in persistent_buffers(model).items()})

    def changed(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the buffers that differ from then."""
        now = persistent_buffers(model)
        return tuple(name for name, buffer in now.items() if self.digests.get(name) != _digest(buffer))


def base_digest(model: nn.Module, moved: Collection[str]) -> str:
    """Tell base weights apart: a digest over the tensors that training does not move.

    Reads names, shapes, dtypes and `ELEMENTS_IN_DIGEST` elements of each tensor, so it costs next to nothing.

    Args:
        model: the model.
        moved: names of the tensors that do not count, those tied to them included.
    """
    return digest_of_state(stored_tensors(model), moved)


def digest_of_state(state: Mapping[str, Tensor], moved: Collection[str]) -> str:
    """`base_digest` of the model that has this state, where tied tensors are one object."""
    left_out = {id(state[name]) for name in moved}
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        if id(tensor) in left_out:
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        digest.update(bytes_of(flat[:: max(1, flat.numel() // ELEMENTS_IN_DIGEST)]))
    return digest.hexdigest()


def check_tensors(model: nn.Module, tensors: Mapping[str, Tensor], base: str, what: str) -> None:
    """Check that stored tensors fit a model, without changing it.

    Args:
        model: the model, with its base weights.
        tensors: what was stored, by name.
        base: `base_digest` of the model that it was stored from.
        what: the file, for the message.

    Raises:
        CheckpointError: if a name is missing, a shape or dtype differs, or the base weights are others.
    """
    own = stored_tensors(model)
    for name, tensor in tensors.items():
        if name not in own:
            raise CheckpointError(f"{what} holds {name}, which {type(model).__name__} does not have")
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{what} holds {name} of shape {tuple(tensor.shape)}, in the model it has shape "
                f"{tuple(own[name].shape)}; build the model as it was, with as many classes"
            )
        if own[name].dtype != tensor.dtype:
            raise CheckpointError(
                f"{what} holds {name} as {tensor.dtype}, in the model it is {own[name].dtype}; convert the model before"
            )
    if base_digest(model, tensors.keys()) != base:
        raise CheckpointError(
            f"{what} was made on other base weights: the tensors that it does not hold differ from those then"
        )


@torch.no_grad()
def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy checked tensors into a model's own, wherever those lie; no slices may be on it."""
    own = stored_tensors(model)
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def _digest(tensor: Tensor) -> bytes:
    return hashlib.blake2b(bytes_of(tensor), digest_size=16).digest()
