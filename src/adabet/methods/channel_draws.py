"""Draws of channels: without replacement, with given probabilities, until a budget is met."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adabet.errors import OptionError
from adabet.methods.units import ChannelCost

FILLS = ("prefix", "skip_and_continue")
"""What happens at the first channel that does not fit: the draw ends, or goes on with the channels after it."""

NEAR = 0.97
"""Share of what a budget leaves for channels at which a draw may end."""


@dataclass(frozen=True)
class ChannelPool:
    """Channels of several layers, numbered from 0 in the order of the layers.

    Attributes:
        costs: of a channel, by layer, in the order of a forward pass.
    """

    costs: Mapping[str, ChannelCost]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The layers."""
        return tuple(self.costs)

    @cached_property
    def size(self) -> int:
        """How many channels there are."""
        return sum(cost.channels for cost in self.costs.values())

    @cached_property
    def owners(self) -> Tensor:
        """For each channel the position of its layer in `names`, ``(size,)``."""
        counts = torch.tensor([cost.channels for cost in self.costs.values()], dtype=torch.int64)
        return torch.arange(len(self.costs)).repeat_interleave(counts)

    @cached_property
    def spaces(self) -> Tensor:
        """For each channel its units, ``(size,)``."""
        return torch.tensor([cost.space for cost in self.costs.values()], dtype=torch.int64)[self.owners]

    @cached_property
    def starts(self) -> dict[str, int]:
        """For each layer the number of its first channel."""
        counts = torch.tensor([0, *(cost.channels for cost in self.costs.values())])
        return dict(zip(self.names, counts.cumsum(0).tolist(), strict=False))

    def only(self, names: Iterable[str]) -> "ChannelPool":
        """The pool of some of the layers, in the same order."""
        kept = set(names)
        return ChannelPool({name: cost for name, cost in self.costs.items() if name in kept})

    def split(self, numbers: Iterable[int]) -> dict[str, tuple[int, ...]]:
        """Channels by layer, ascending.

        Examples:
            >>> pool = ChannelPool({"a": ChannelCost(3, 9, 4, 36), "b": ChannelCost(2, 9, 4, 36)})
            >>> pool.split([4, 0, 2])
            {'a': (0, 2), 'b': (1,)}
        """
        found: dict[str, list[int]] = {}
        owners = self.owners.tolist()
        for number in sorted(numbers):
            name = self.names[owners[number]]
            found.setdefault(name, []).append(number - self.starts[name])
        return {name: tuple(channels) for name, channels in found.items()}

    def numbers(self, name: str, channels: Sequence[int]) -> Tensor:
        """The numbers of a layer's channels."""
        return torch.tensor(channels, dtype=torch.int64) + self.starts[name]


def generator_for(seed: int, epoch: int) -> torch.Generator:
    """The generator of an epoch's draw: the same in a run that was resumed."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


def weighted_order(weights: Tensor, generator: torch.Generator) -> Tensor:
    """The order in which channels are drawn one after the other without replacement.

    The next one is each of those that are left with a probability proportional to its weight: an exponential variate
    of that rate is drawn for each, and they are sorted. Channels of weight 0 come after all others, in any order, and
    so do weights that are not finite. If no weight is above 0, all orders are equally likely.

    Args:
        weights: ``(n,)``, not negative.
        generator: of random numbers.

    Returns:
        Channel numbers, ``(n,)``.

    Source: Efraimidis and Spirakis 2006, Weighted random sampling with a reservoir.

    Examples:
        >>> weighted_order(torch.tensor([0.0, 1e9, 1.0]), torch.Generator().manual_seed(0))
        tensor([1, 2, 0])
    """
    weights = weights.double()
    possible = weights.isfinite() & (weights > 0)
    # in logarithms, as neither very small nor very large weights overflow there
    waits = torch.empty_like(weights).exponential_(generator=generator).log()
    keys = torch.where(possible, waits - weights.where(possible, weights.new_ones(())).log(), waits)
    order = keys.argsort(stable=True)
    return torch.cat([order[possible[order]], order[~possible[order]]])


def fill_units(order: Tensor, spaces: Tensor, budget: int, *, fill: str) -> Tensor:
    """The channels, in the order of their draw, whose units together are within the budget.

    Args:
        order: channel numbers.
        spaces: units by channel number.
        budget: units; never exceeded.
        fill: see `FILLS`.

    Examples:
        >>> spaces = torch.tensor([3, 9, 2])
        >>> fill_units(torch.tensor([0, 1, 2]), spaces, 6, fill="prefix")
        tensor([0])
        >>> fill_units(torch.tensor([0, 1, 2]), spaces, 6, fill="skip_and_continue")
        tensor([0, 2])
    """
    costs = spaces[order]
    if fill == "prefix":
        return order[costs.cumsum(0) <= budget]
    taken, left = [], budget
    for number, cost in zip(order.tolist(), costs.tolist(), strict=True):
        if cost <= left:
            taken.append(number)
            left -= cost
    return torch.tensor(taken, dtype=torch.int64)


def fill_while(
    order: Tensor, owners: Tensor, price: Callable[[Sequence[int]], float], budget: float, *, fill: str
) -> Tensor:
    """The channels, in the order of their draw, whose price together is within the budget.

    Asks for a few prices only, guided by those that it has seen: the draw ends when the next channel would not fit, or
    when `NEAR` of what the budget leaves above the price of no channel is spent. With ``skip_and_continue``, channels
    of a layer that has one that does not fit are not tried again.

    Args:
        order: channel numbers.
        owners: the layer by channel number.
        price: of a set of channels; more of them never cost less.
        budget: in the same unit; never exceeded.
        fill: see `FILLS`.

    Examples:
        >>> def square(channels):
        ...     return len(channels) ** 2
        >>> fill_while(torch.tensor([3, 1, 0, 2]), torch.zeros(4), square, 5, fill="prefix")
        tensor([3, 1])
    """
    taken: list[int] = []
    rest = order.tolist()
    enough = budget - (1 - NEAR) * (budget - price([]))
    while rest:
        count, paid = _longest(taken, rest, price, budget, enough)
        taken += rest[:count]
        if fill == "prefix" or count == len(rest) or paid >= enough:
            break
        full = owners[rest[count]]
        rest = [number for number in rest[count + 1 :] if owners[number] != full]
    return torch.tensor(taken, dtype=torch.int64)


def check_fill(fill: str) -> None:
    """Refuse a way to fill that does not exist.

    Raises:
        OptionError: that names those that do.
    """
    if fill not in FILLS:
        raise OptionError(f"expected fill to be one of {', '.join(FILLS)}; got {fill!r}")


def _longest(
    taken: list[int], rest: list[int], price: Callable[[Sequence[int]], float], budget: float, enough: float
) -> tuple[int, float]:
    """How many of the rest, from the front, the budget pays for beside what is taken, and the price of all that."""
    low, paid = 0, price(taken)
    high, asked = len(rest), price([*taken, *rest])
    if asked <= budget:
        return high, asked
    halve = False
    while high - low > 1 and paid < enough:
        share = 0.5 if halve or asked <= paid else (budget - paid) / (asked - paid)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        found = price([*taken, *rest[:middle]])
        if found <= budget:
            low, paid = middle, found
        else:
            high, asked = middle, found
        # a guess along the line may come closer from one side only; every other step halves what is left
        halve = not halve
    return low, paid
