"""Group lasso over the channels that a network could do without."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from adabet.methods.channel_removal import ChannelRemoval

EPSILON = 1e-8
"""Under the root, so that a channel of zeros has a gradient."""


class Side(NamedTuple):
    """The weights of one layer that write channels, or those that read some.

    Attributes:
        axis: of the weight, along which the channels lie.
        groups: the group that each position belongs to; those that stay in any case are in one after the last.
        factors: on the norm of each group.
    """

    axis: int
    groups: Tensor
    factors: Tensor


class GroupLasso:
    """The sum of the norms of all weights that write a channel and of all that read it, layer by layer.

    Args:
        model: whose weights.
        removal: which of its channels can go, and which are gone.
        scale_by_size: multiply each norm by the root of the number of weights under it.

    Examples:
        >>> from adabet.methods.channel_removal import find_edges
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[3., 4.], [0., 0.]])), model[2].weight.fill_(1)
        >>> edges = find_edges(model, torch.zeros(1, 2))
        >>> GroupLasso(model, ChannelRemoval(model, edges))()
        tensor(7.0001, grad_fn=<SumBackward0>)
    """

    def __init__(self, model: nn.Module, removal: ChannelRemoval, *, scale_by_size: bool = False) -> None:
        self._model, self._removal, self._scale_by_size = model, removal, scale_by_size
        self._sides: dict[str, list[Side]] = {}
        self.refresh()

    def refresh(self) -> None:
        """See which channels are left, after some have gone."""
        self._sides = {}
        for name, axis in self._removal.edges.voters:
            weight = self._model.get_parameter(name)
            numbers = self._removal.numbers(name, axis)
            places = (numbers >= 0).nonzero().flatten()
            # several columns of a linear layer read one channel where a map of places was flattened
            _, groups, counts = numbers[places].unique(return_inverse=True, return_counts=True)
            sizes = counts * (weight.numel() // weight.shape[axis])
            factors = sizes.float().sqrt() if self._scale_by_size else torch.ones(len(counts))
            chosen = torch.full((len(numbers),), len(counts))
            chosen[places] = groups
            self._sides.setdefault(name, []).append(Side(axis, chosen, factors))

    def __call__(self) -> Tensor:
        """The sum, a scalar with a gradient, in float32 or wider."""
        total: list[Tensor] = []
        for name, sides in self._sides.items():
            weight = self._model.get_parameter(name)
            squares = weight.to(torch.promote_types(weight.dtype, torch.float32)).square()
            for side in sides:
                sums = squares.sum([axis for axis in range(weight.dim()) if axis != side.axis])
                collected = sums.new_zeros(len(side.factors) + 1).index_add(0, side.groups.to(weight.device), sums)[:-1]
                total.append(((collected + EPSILON).sqrt() * side.factors.to(weight.device)).sum())
        return torch.stack(total).sum()
