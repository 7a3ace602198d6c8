"""Which channel every element of an activation belongs to, followed through a forward pass."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from adabet.layers.batches import tensors_of

FIXED = 0
"""The tag of whatever cannot be removed."""

ATTRIBUTE = "_adabet_tags"


class Tags:
    """Numbers for channels: an activation's tags have its shape, and equal numbers leave the network together.

    Attributes:
        model: whose channels they are.
        axes: for each tensor of the model, the tags along those of its axes that count channels.
        voters: the axes of dense weights, which decide whether a channel is still used.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.axes: dict[str, dict[int, Tensor]] = {}
        self.voters: list[tuple[str, int]] = []
        self._parents = [FIXED]
        self._own = dict((*model.named_parameters(), *model.named_buffers()))
        self._names = {id(tensor): name for name, tensor in self._own.items()}

    def name_of(self, tensor: Tensor | None) -> str | None:
        """The full name of one of the model's own tensors, None for any other."""
        return self._names.get(id(tensor))

    def of(self, tensor: Tensor) -> Tensor:
        """Tags of an activation, in its shape; fixed where nothing is known."""
        found = getattr(tensor, ATTRIBUTE, None)
        return torch.tensor(FIXED).expand(tensor.shape) if found is None else found

    def put(self, tensor: Tensor, tags: Tensor | None) -> None:
        """Remember an activation's tags, or that nothing is known of it."""
        if tags is not None:
            setattr(tensor, ATTRIBUTE, tags)
        elif hasattr(tensor, ATTRIBUTE):
            delattr(tensor, ATTRIBUTE)

    def concern(self, value: Any) -> bool:
        """Whether there is something to follow: an activation with tags, or a tensor of the model."""
        return any(hasattr(tensor, ATTRIBUTE) or id(tensor) in self._names for tensor in tensors_of(value))

    def use(self, name: str, axis: int, tags: Tensor | None, *, votes: bool = False) -> Tensor:
        """Note what an axis of one of the model's tensors meets; of every use the same channels.

        Args:
            name: of the tensor.
            axis: of the tensor.
            tags: one for each position, or None for those it has already, new ones at its first use.
            votes: whether the tensor is a dense weight.

        Returns:
            The axis's tags.
        """
        axes = self.axes.setdefault(name, {})
        if axis not in axes:
            axes[axis] = self._new(self._own[name].shape[axis]) if tags is None else tags
            if votes:
                self.voters.append((name, axis))
        elif tags is not None:
            self.join(axes[axis], tags)
        return axes[axis]

    def join(self, first: Tensor, second: Tensor) -> None:
        """Channels that have to stay or go together, position by position."""
        for dim in range(first.dim()):
            if constant(first, dim) and constant(second, dim):
                first, second = first.narrow(dim, 0, 1), second.narrow(dim, 0, 1)
        if first.numel():
            pairs = torch.stack([first.flatten(), second.flatten()]).unique(dim=1)
            for one, other in pairs.T.tolist():
                low, high = sorted((self._root(one), self._root(other)))
                self._parents[high] = low

    def fix(self, tensors: Iterable[Tensor]) -> None:
        """Channels that have to stay: of activations, and of the model's own tensors."""
        for tensor in tensors:
            name = self.name_of(tensor)
            if name is not None:
                for axis, size in enumerate(tensor.shape):
                    self.use(name, axis, torch.full((size,), FIXED))
            elif hasattr(tensor, ATTRIBUTE):
                tags = self.of(tensor)
                self.join(tags, torch.full_like(tags, FIXED))

    def roots(self, tags: Tensor) -> Tensor:
        """The same tags with one number for all that go together."""
        return torch.tensor([self._root(tag) for tag in tags.tolist()], dtype=torch.long)

    def _new(self, count: int) -> Tensor:
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def _root(self, tag: int) -> int:
        while self._parents[tag] != tag:
            self._parents[tag] = tag = self._parents[self._parents[tag]]
        return tag


def constant(tags: Tensor, dim: int) -> bool:
    """Whether tags are the same all along an axis."""
    return tags.shape[dim] <= 1 or tags.stride(dim) == 0 or bool((tags == tags.narrow(dim, 0, 1)).all())


def along(tags: Tensor, dim: int) -> Tensor | None:
    """One tag for each position of an axis, or None if other axes count channels too."""
    for other in range(tags.dim()):
        if other != dim % tags.dim():
            if not constant(tags, other) or not tags.shape[other]:
                return None
            tags = tags.narrow(other, 0, 1)
    return tags.flatten()
