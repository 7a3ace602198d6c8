"""Where values lie on an axis, and which of them are written beside it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Distances between ticks, times a power of ten."""

MARGIN = 0.06
"""Share of the range that is added on both sides."""


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        low: value at its start.
        high: value at its end.
        ticks: values that are written beside it.
        logarithmic: whether equal distances are equal factors.
        text: how a value is written.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    text: Callable[[float], str]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the axis's start and 1 at its end."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear(
    values: Sequence[float],
    text: Callable[[float], str],
    *,
    low: float | None = None,
    high: float | None = None,
    count: int = 4,
) -> Axis:
    """An axis that holds all values.

    Args:
        values: at least one, finite.
        text: how a value is written.
        low: where it starts; None: a little below the values.
        high: where it must not go beyond; None: a little above the values.
        count: about how many ticks.

    Examples:
        >>> linear([0.81, 0.93], "{:g}".format, high=1.0).ticks
        (0.85, 0.9)
    """
    least, most = min(values), max(values)
    spread = (most - least) or abs(most) or 1.0
    start = least - MARGIN * spread if low is None else low
    end = most + MARGIN * spread
    if high is not None:
        end = min(high, end) if most < high else high
    if end <= start:
        start, end = start - 0.5 * spread, end + 0.5 * spread
    rough = (end - start) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in STEPS if step * power >= rough * 0.999)
    first = math.ceil(start / step - 1e-9)
    last = math.floor(end / step + 1e-9)
    return Axis(start, end, tuple(round(index * step, 12) for index in range(first, last + 1)), text)


def logarithmic(values: Sequence[float], text: Callable[[float], str]) -> Axis:
    """An axis of factors that holds all values, which are above zero.

    Examples:
        >>> logarithmic([15e6, 700e6], "{:g}".format).ticks
        (20000000.0, 50000000.0, 100000000.0, 200000000.0, 500000000.0)
    """
    low, high = min(values) / 1.2, max(values) * 1.2
    decades = math.log10(high / low)
    parts = (1, 2, 5) if decades < 2.2 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [part * 10.0**power for power in powers for part in parts]
    return Axis(low, high, tuple(tick for tick in ticks if low <= tick <= high), text, logarithmic=True)
