"""The channels of a network that can go, and all tensors that each of them is in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from adabet.layers.batches import Forward, forward_call, inputs_of, take_samples, tensors_of
from adabet.memory.unchanged import unchanged
from adabet.methods.channel_removal.rules import LAYERS, MOVES
from adabet.methods.channel_removal.tags import FIXED, Tags

READERS = frozenset(
    getattr(home, name)
    for home in (torch, torch.Tensor)
    for name in (
        *("item", "tolist", "numpy", "equal", "allclose", "is_nonzero"),
        *("__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__", "__contains__"),
    )
    if hasattr(home, name)
)
"""Operations that take values out of tensors, where they cannot be followed."""

CREATORS = frozenset(
    getattr(home, name)
    for home in (torch, torch.Tensor)
    for kind in ("empty", "zeros", "ones", "full", "rand", "randn")
    for name in (f"new_{kind}", f"{kind}_like")
    if hasattr(home, name)
)
"""Operations that take no more than a shape or a type from a tensor."""


@dataclass(frozen=True)
class Edges:
    """The channels between the layers of a model, numbered.

    An edge lies between the layers that write to an activation and those that read it: a convolution and the
    next one, or all that a chain of residual additions connects. Its channels have one number in all of them.

    Attributes:
        count: number of channels that can go, each counted once.
        axes: for parameters and buffers by full name and axis, the channel at each position; -1 where it stays.
        voters: name and axis of the dense weights that write or read such channels.
    """

    count: int
    axes: Mapping[str, Mapping[int, Tensor]]
    voters: tuple[tuple[str, int], ...]


def find_edges(
    model: nn.Module, batch: Any, *, forward: Forward = forward_call, frozen: Iterable[Tensor] = ()
) -> Edges:
    """Follow one sample through a model to find the channels that can go without anything else changing.

    These are channels that dense convolutions and linear layers write and read, with nothing in between that mixes them
    or knows their number: batch norms, activations, pooling over places, depthwise convolutions, sums, products and
    concatenation. Whatever reaches anything else stays, as do the model's inputs and outputs.

    Args:
        model: any module; left as it was.
        batch: of which the first sample is run, in eval mode and in train mode; norms stay in eval mode.
        forward: how to run the model on a batch.
        frozen: parameters that have to stay as they are.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
        >>> edges = find_edges(model, torch.zeros(1, 3, 4, 4))
        >>> edges.count, edges.voters
        (8, (('0.weight', 0), ('4.weight', 1)))
        >>> edges.axes["4.weight"][1][:6]
        tensor([0, 0, 0, 0, 1, 1])
    """
    tags, sample = Tags(model), take_samples(inputs_of(batch), 0, 1)
    with unchanged(model), torch.no_grad(), _Following(tags):
        for training in (False, True):  # some models have auxiliary classifiers that run only while training
            for module in model.modules():
                module.training = training and not isinstance(module, _NormBase)
            tags.fix(tensors_of(forward(model, sample)))
    tags.fix(frozen)
    axes = {(name, axis): tags.roots(found) for name, axes in tags.axes.items() for axis, found in axes.items()}
    free = sorted({int(root) for roots in axes.values() for root in roots} - {FIXED})
    numbers = {root: number for number, root in enumerate(free)}
    numbered: dict[str, dict[int, Tensor]] = {}
    for (name, axis), roots in axes.items():
        own = torch.tensor([numbers.get(root, -1) for root in roots.tolist()])
        if (own >= 0).any():
            numbered.setdefault(name, {})[axis] = own
    voters = tuple((name, axis) for name, axis in tags.voters if axis in numbered.get(name, {}))
    return Edges(len(free), numbered, voters)


class _Following(TorchFunctionMode):
    """Follows channels through every operation of a forward pass."""

    def __init__(self, tags: Tags) -> None:
        super().__init__()
        self._tags = tags

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        del types
        named = dict(kwargs or {})
        output = func(*args, **named)
        given = tensors_of([list(args), named])
        if self._tags.concern(given):
            self._follow(func, output, given, args, named)
        return output

    def _follow(
        self, func: Callable[..., Any], output: Any, given: Sequence[Tensor], args: Sequence[Any], named: dict[str, Any]
    ) -> None:
        tags, found = self._tags, None
        if isinstance(output, Tensor):
            if func in LAYERS and tags.name_of(given[0]) is None:
                found = LAYERS[func](tags, output, *args, **named)
            elif func in MOVES and not any(tags.name_of(tensor) for tensor in given):
                found = MOVES[func](tags, output, *args, **named)
        asks = func in CREATORS or (output is not None and not tensors_of(output) and func not in READERS)
        if found is None and not asks:
            tags.fix(given)
        for tensor in tensors_of(output):
            tags.put(tensor, found)
