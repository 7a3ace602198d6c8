"""Mean, spread and confidence over seeds, and which differences are within noise."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from adabet.experiments.grid import Entry
from adabet.extras import require

CONFIDENCE = 0.95

ROUNDING = math.sqrt(2 / 12)
"""Standard deviation of the difference of two metrics that are rounded to whole steps, in steps."""


@dataclass(frozen=True)
class Summary:
    """A metric over seeds.

    Attributes:
        count: how many seeds.
        mean: over them.
        std: with ``count - 1``; None for a single seed.
        low: of the 95 % confidence interval of the mean, by Student's t; None for a single seed.
        high: likewise.
    """

    count: int
    mean: float
    std: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.std is None else f"{self.mean:.3f} ± {self.std:.3f}"


@dataclass(frozen=True)
class Difference:
    """A method's metric minus the reference's, paired by seed.

    Attributes:
        entry: the method.
        reference: what it is compared with, on the same model and data.
        seeds: that both have.
        mean: of the differences; above zero where the method is better.
        low: of the 95 % confidence interval of the mean, by the paired t test, not corrected.
        high: likewise.
        p: of the paired t test, two-sided.
        p_holm: the same, corrected by Holm for the methods compared with this reference.
    """

    entry: Entry
    reference: Entry
    seeds: tuple[int, ...]
    mean: float
    low: float
    high: float
    p: float
    p_holm: float

    @property
    def within_noise(self) -> bool:
        """Whether these seeds do not tell the two apart: the corrected p is above 0.05."""
        return self.p_holm > 1 - CONFIDENCE

    @property
    def resolution(self) -> float:
        """How large a difference had to be, with this spread and so many seeds, to lie outside its own interval."""
        return (self.high - self.low) / 2


class Line(Protocol):
    """What is compared: an entry and its metric by seed."""

    @property
    def entry(self) -> Entry:
        """Model, data, method and share."""

    @property
    def tests(self) -> Mapping[int, float]:
        """The metric by seed."""

    @property
    def grain(self) -> float:
        """The smallest step of the metric, 0 if it is not known."""


def summary(values: Sequence[float]) -> Summary:
    """Mean, spread and confidence interval of at least one value.

    Examples:
        >>> found = summary([0.82, 0.85, 0.88])
        >>> f"{found}, 95 % from {found.low:.3f} to {found.high:.3f}"
        '0.850 ± 0.030, 95 % from 0.775 to 0.925'
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(len(values), mean, None, None, None)
    std = statistics.stdev(values)
    half = _half_width(std, len(values))
    return Summary(len(values), mean, std, mean - half, mean + half)


def differences(lines: Iterable[Line], reference: str) -> tuple[Difference, ...]:
    """Every line against the reference method of the same model and data, and of the same share if both have one.

    Args:
        lines: the entries of a table.
        reference: label of a method.
    """
    lines = tuple(lines)
    found: list[Difference] = []
    for base in lines:
        if base.entry.method.label != reference:
            continue
        family = [_difference(line, base) for line in lines if line is not base and _comparable(line.entry, base.entry)]
        compared = [difference for difference in family if difference is not None]
        corrected = holm([difference.p for difference in compared])
        found += [replace(difference, p_holm=p) for difference, p in zip(compared, corrected, strict=True)]
    return tuple(found)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: the smallest p times their number, the next times one less, never falling.

    Examples:
        >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
        [0.06, 0.03, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(order):
        floor = max(floor, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = floor
    return corrected


def _comparable(entry: Entry, base: Entry) -> bool:
    if (entry.model, entry.data) != (base.model, base.data):
        return False
    return entry.share == base.share or entry.share is None or base.share is None


def _difference(line: Line, base: Line) -> Difference | None:
    """The paired difference, None with less than two seeds in common."""
    seeds = tuple(seed for seed in base.tests if seed in line.tests)
    if len(seeds) < 2:
        return None
    gains = [line.tests[seed] - base.tests[seed] for seed in seeds]
    mean, std = statistics.fmean(gains), statistics.stdev(gains)
    std = max(std, max(line.grain, base.grain) * ROUNDING)  # equal differences of few seeds may be mere chance
    half = _half_width(std, len(gains))
    p = _p_value(mean, std, len(gains))
    return Difference(line.entry, base.entry, seeds, mean, mean - half, mean + half, p, p)


def _half_width(std: float, count: int) -> float:
    stats = require("scipy.stats", "a confidence interval")
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * std / math.sqrt(count)


def _p_value(mean: float, std: float, count: int) -> float:
    if std == 0:
        return 1.0 if mean == 0 else 0.0
    stats = require("scipy.stats", "a confidence interval")
    return 2 * float(stats.t.sf(abs(mean) * math.sqrt(count) / std, count - 1))
