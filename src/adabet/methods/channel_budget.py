"""Budgets of draws: the papers' memory units, or bytes of a real training step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from adabet.methods.channel_draws import ChannelPool, fill_units, fill_while
from adabet.methods.channel_gradients import Channels
from adabet.methods.step_bytes import StepBytes

TRIALS = 6
"""Draws that are measured until one fits that is not full."""

FULL = 0.9
"""Share of what a budget leaves for channels at which a draw is full."""

GROWTH = 4
"""How far beyond a draw that fits the next one may go, in multiples of its own bytes."""


@dataclass(frozen=True)
class Passes:
    """How the gradients of all channels of a pool are taken within a budget.

    Attributes:
        micro_batch: samples in memory at once.
        groups: sets of channels, each with a pass of its own.
    """

    micro_batch: int
    groups: tuple[Channels, ...]


@dataclass(frozen=True)
class ChannelBudget:
    """What a draw has to keep to; both budgets where both are given.

    Attributes:
        pool: the layers that channels are drawn from.
        units: memory units by the papers' cost model, or None.
        step: bytes of a step, or None.
        fill: what happens at a channel that does not fit, see `FILLS`.
    """

    pool: ChannelPool
    units: int | None
    step: StepBytes | None
    fill: str

    def take(self, order: Tensor) -> Tensor:
        """The channels of a draw, in its order, that the budget pays for."""
        if self.units is not None:
            order = fill_units(order, self.pool.spaces, self.units, fill=self.fill)
        return order if self.step is None else self._measured(order, self.step, self.fill)

    @cached_property
    def passes(self) -> Passes | None:
        """How to take the gradients of all channels of the pool within the bytes; None where there is no such budget.

        Fewer samples at once make room for more channels, and change no gradient. So all channels are in one pass, with
        as many samples at once as there is room for; in several only where a single sample is too much.
        """
        if self.step is None:
            return None
        step, rest = self.step, list(range(self.pool.size))
        while not self._pays(step, self.pool.split(rest)) and step.micro_batch > 1:
            step = step.of_fewer(-(-step.micro_batch // 2))
        found: list[Channels] = []
        while rest:
            taken = self._measured(torch.tensor(rest), step, "prefix").tolist() or rest[:1]
            found.append(self.pool.split(taken))
            rest = rest[len(taken) :]
        return Passes(step.micro_batch, tuple(found))

    def _pays(self, step: StepBytes, channels: Channels) -> bool:
        return step.predict(channels) <= step.budget and step.measure(channels) <= step.budget

    def _measured(self, order: Tensor, step: StepBytes, fill: str) -> Tensor:
        """The channels whose measured step is within the bytes and takes nearly all that they leave.

        Predictions are too high where a step peaks early in its forward pass, and may be too low. So what is taken by
        them is measured, and the limit that they have to keep to is moved along the line between two measurements.
        """

        def price(numbers: Sequence[int]) -> float:
            return step.price(self.pool.split(numbers))

        budget, head, best = step.budget, step.head, order[:0]
        low: tuple[float, float] = (head, head)
        high: tuple[float, float] | None = None
        limit, trials = float(budget), 0
        while True:
            taken = fill_while(order, self.pool.owners, price, limit, fill=fill)
            if not len(taken) and not trials and price(order[:1].tolist()) < math.inf:
                taken = order[:1]
            if len(taken) <= len(best):
                return best
            channels = self.pool.split(taken.tolist())
            point = step.predict(channels), step.measure(channels)
            trials += 1
            if point[1] <= budget:
                best, low = taken, point
            else:
                high = point
            full = len(best) == len(order) or low[1] >= head + FULL * (budget - head)
            if full or (trials >= TRIALS and len(best)):
                return best
            limit = _between(low, high, budget) if high else _beyond(low, head, budget)


def _between(low: tuple[float, float], high: tuple[float, float], budget: float) -> float:
    """The prediction for which a line through two draws, each predicted and measured, meets the budget."""
    return low[0] + (budget - low[1]) * (high[0] - low[0]) / (high[1] - low[1])


def _beyond(low: tuple[float, float], head: float, budget: float) -> float:
    """The same for a line through the head alone and one draw, but not too far from these."""
    farthest = low[0] + GROWTH * (low[0] - head)
    rise = (low[1] - head) / (low[0] - head)
    return min(farthest, head + (budget - head) / rise) if rise > 0 else farthest
