"""How many bytes autograd would keep for each layer, found without keeping any."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from adabet.freezing import apply
from adabet.layers import Layer, forward_call
from adabet.layers.batches import Forward
from adabet.layers.observe import observing
from adabet.lean import lean
from adabet.selection import Selection


@dataclass(frozen=True)
class SavedBytes:
    """What a forward pass over one sample would keep for the backward pass.

    Attributes:
        entered: for each module path, how many tensors had been saved when it first ran.
        events: the saved tensors in order: the innermost module that was running, and bytes.
    """

    entered: dict[str, int]
    events: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(size for _, size in self.events)

    def within(self, layer: Layer) -> int:
        """Bytes that a layer itself saves."""
        prefix = layer.name + "."
        return sum(size for path, size in self.events if path == layer.name or path.startswith(prefix))

    def since(self, layer: Layer) -> int:
        """Bytes saved from the moment when a layer starts."""
        return sum(size for _, size in self.events[self.entered.get(layer.name, 0) :])


def saved_bytes(model: nn.Module, selection: Selection, inputs: Any, forward: Forward = forward_call) -> SavedBytes:
    """Run a forward pass in the lean mode and note what it would keep; the memory is that of inference.

    Args:
        model: any module; left as it was.
        selection: what trains.
        inputs: of one sample.
        forward: how to run the model.
    """
    events: list[tuple[str, int]] = []
    entered: dict[str, int] = {}
    running: list[str] = [""]
    seen: dict[int, StorageWeakRef] = {}
    own: set[int] = set()

    def pack(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in own or (address in seen and not seen[address].expired()):
            return
        seen[address] = StorageWeakRef(storage)
        events.append((running[-1], storage.nbytes()))

    def enter(path: str, *_: Any) -> None:
        entered.setdefault(path, len(events))
        running.append(path)

    def leave(*_: Any) -> None:
        running.pop()

    with apply(model, selection), observing(model) as handles, torch.enable_grad(), lean():
        # slices of channels are the model's parameters, too, as long as the selection is on it
        own.update(tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers()))
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(partial(enter, path)))
            handles.append(module.register_forward_hook(leave, always_call=True))
        model.train()  # as in the step that is planned; dropout keeps its mask there
        with saved_tensors_hooks(pack, _never):
            forward(model, inputs)
    return SavedBytes(entered, tuple(events))


def _never(_: Any) -> Tensor:
    raise RuntimeError("this pass has no backward pass")
