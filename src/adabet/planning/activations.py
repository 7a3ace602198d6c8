"""What a pass over one sample keeps for the backward pass, taken apart by what causes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from adabet.layers import Layer, forward_call
from adabet.layers.batches import map_tensors, tensors_of
from adabet.layers.observe import observing
from adabet.lean.recompute import repeated_blocks
from adabet.memory.bytes_by_layer import SavedBytes, saved_bytes
from adabet.methods.elastic_probe import probing
from adabet.selection import Choice, Selection

APART = 4
"""Layers of which every so many train at once to see what each keeps: neighbours share what they keep."""


@dataclass(frozen=True)
class Activations:
    """Bytes that a pass over one sample keeps. A layer's figures are in the order of the layers.

    Attributes:
        reach: what a backward pass down to a layer needs from there on, none of it for the layer's own gradient.
        own: what the layer's own gradient needs.
        widest: index of the layer with the largest input and output: a forward pass peaks there.
        resting: what the head alone needs.
    """

    reach: tuple[float, ...]
    own: tuple[float, ...]
    widest: int
    resting: float

    def early(self, index: int) -> float:
        """Of a layer's reach what is kept by the time that the widest layer is done."""
        after = self.reach[self.widest + 1] if self.widest + 1 < len(self.reach) else 0.0
        return max(0.0, self.reach[index] - after)


class Passes:
    """Forward passes over one sample in the lean mode that keep nothing; their memory is that of inference.

    With recomputation repeated blocks keep only what they are given, and one of them at a time what is inside.

    Args:
        model: any module; left as it was.
        layers: those that may train, in the order of the forward pass.
        head: the selection of the head alone.
        sample: inputs of one sample.
        recompute: whether repeated blocks run again in the backward pass.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], head: Selection, sample: Any, *, recompute: bool
    ) -> None:
        self._model, self._layers, self._head = model, layers, head
        # a view into a batch would count with the memory of the whole batch
        self._sample = map_tensors(Tensor.clone, sample)
        self._blocks = _block_inputs(model, sample) if recompute else {}

    def kept(self, choices: Sequence[Choice]) -> float:
        """Bytes that a pass keeps with these layers, in the order of the forward pass, and the head."""
        saved = self._saved(choices)
        return self._since(saved, choices[0].layer) if choices else self._outside(saved, 0)

    def activations(self) -> Activations:
        """What each layer adds."""
        whole = [Choice.of(layer) for layer in self._layers]
        resting, first = self._saved([]), self._saved(whole[:1])
        rest = self._outside(resting, 0)
        own = [0.0] * len(whole)
        for offset in range(APART):
            some = self._saved([whole[index] for index in sorted({0, *range(offset, len(whole), APART)})])
            for index in range(offset, len(whole), APART):
                layer = self._layers[index]
                if not self._block_of(layer.name):
                    own[index] = float(max(0, some.within(layer) - first.within(layer)))
        inner = self._saved(whole) if self._blocks else first
        return Activations(
            reach=tuple(max(0.0, self._since(first, layer.name, inner) - rest) for layer in self._layers),
            own=tuple(own),
            widest=max(
                range(len(whole)), key=lambda index: self._layers[index].input_size + self._layers[index].output_size
            ),
            resting=rest,
        )

    def _saved(self, choices: Sequence[Choice]) -> SavedBytes:
        head = self._head
        selection = Selection(head.method, (*choices, *head.choices), head.fingerprint, head.candidates)
        return saved_bytes(self._model, selection, self._sample)

    def _outside(self, saved: SavedBytes, start: int) -> float:
        """Bytes outside of recomputed blocks, from an event on."""
        return float(sum(size for path, size in saved.events[start:] if not self._block_of(path)))

    def _since(self, saved: SavedBytes, name: str, inner: SavedBytes | None = None) -> float:
        """Bytes outside of blocks from the moment when a layer starts; inputs of its block and of those behind it.

        And what the largest of these blocks keeps inside, by another pass if one is given.
        """
        start = saved.entered.get(name, 0)
        own, order = self._block_of(name), list(self._blocks)
        after = [block for block in order if saved.entered.get(block, 0) >= start]
        behind = order[order.index(own) :] if own else after
        inside = dict.fromkeys(behind, 0)
        for path, size in (inner or saved).events:
            if (block := self._block_of(path)) in inside:
                inside[block] += size
        given = sum(self._blocks[block] for block in behind)
        return self._outside(saved, start) + given + max(inside.values(), default=0)

    def _block_of(self, path: str) -> str:
        """The block in which a module is, or nothing."""
        return next((block for block in self._blocks if path == block or path.startswith(block + ".")), "")


def _block_inputs(model: nn.Module, sample: Any) -> dict[str, int]:
    """Bytes that each repeated block is given for one sample, in the order in which they run."""
    sizes: dict[str, int] = {}
    with observing(model) as handles:
        for path in repeated_blocks(model):

            def note(_: nn.Module, arguments: Any, keywords: Any, path: str = path) -> None:
                sizes.setdefault(path, sum(tensor.nbytes for tensor in tensors_of([list(arguments), keywords])))

            handles.append(model.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True))
        forward_call(model, sample)
    return sizes


def stock_bytes(model: nn.Module, inputs: Any) -> int:
    """Bytes that stock autograd would keep if everything trained, found without keeping any.

    Args:
        model: any module; left as it was.
        inputs: of the samples that pass.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes: list[int] = []

    def pack(tensor: Tensor) -> None:
        if tensor.untyped_storage().data_ptr() not in weights:
            sizes.append(tensor.untyped_storage().nbytes())

    with probing(model), saved_tensors_hooks(pack, _never):
        forward_call(model, inputs)
    return sum(sizes)


def _never(_: object) -> Tensor:
    raise RuntimeError("this pass has no backward pass")
