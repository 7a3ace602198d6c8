"""Whether two sets of samples give the layers the same Betti numbers, and how sure one can be. No forward pass."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adabet.topology.betti import betti_one
from adabet.topology.stability import spearman

ROUNDS = 2
"""Random partitions of a set of samples into clouds; their counts are averaged."""

SMALLEST_DEVIATION = 0.25
"""Of a layer's mean count: a layer that never varies would otherwise drown the others by one loop."""


def mean_counts(distances: Tensor, *, points: int, generator: torch.Generator, rounds: int = ROUNDS) -> Tensor:
    """Betti numbers of clouds of so many points, averaged over random partitions of the samples into such clouds.

    One cloud of 40 points has a count that chance moves by a third; averages over more samples are surer.

    Args:
        distances: between n samples at each layer, ``(layers, n, n)``.
        points: of a cloud; all samples make one cloud if there are no more. Samples that are over stand out in a round.
        generator: of the partitions.
        rounds: number of partitions.

    Returns:
        One row a cloud, ``(clouds, layers)``, float64.
    """
    samples = distances.shape[-1]
    if samples <= points:
        return betti_one(distances).double().cpu()[None]
    counts = []
    for _ in range(rounds):
        order = torch.randperm(samples, generator=generator).to(distances.device)
        for start in range(0, samples - points + 1, points):
            rows = order[start : start + points]
            counts.append(betti_one(distances[:, rows[:, None], rows]).double().cpu())
    return torch.stack(counts)


@dataclass(frozen=True)
class Reference:
    """What fresh samples of the same data are measured against.

    Attributes:
        scores: mean count of each layer, ``(layers,)``, float64.
        deviations: how much chance moves the mean count of a window, ``(layers,)``, float64.
        correlation_bound: least rank correlation that chance allows.
        shift_bound: largest shift that chance allows.
    """

    scores: Tensor
    deviations: Tensor
    correlation_bound: float
    shift_bound: float

    def correlation(self, scores: Tensor) -> float:
        """Spearman's rank correlation of other scores with these; 1 where neither tells any layers apart."""
        return _correlation(scores, self.scores)

    def shift(self, scores: Tensor) -> float:
        """How far other scores have moved relative to each other, see `relative_shift`."""
        return relative_shift(scores - self.scores, self.deviations)


def relative_shift(differences: Tensor, deviations: Tensor) -> float:
    """Variance over the layers of their differences, each in units of its own deviation.

    What all layers have in common does not count: it changes no ranking.

    Args:
        differences: ``(layers,)``.
        deviations: ``(layers,)``, positive.
    """
    return float((differences / deviations).var(correction=0))


def learn_reference(
    distances: Tensor, *, window: int, points: int, false_alarms: float, draws: int, seed: int
) -> Reference:
    """Scores of the reference samples, and how much chance moves them, from random splits of these samples.

    Each draw takes two disjoint sets of ``window`` samples for the fresh data and for the reference. As the real
    reference has twice as many samples, the bounds err on the quiet side. Either statistic may be beyond its bound with
    half the probability ``false_alarms``.

    Args:
        distances: between the reference's samples at each layer, ``(layers, n, n)``, n at least twice the window.
        window: samples that will be compared with the reference.
        points: of a cloud, see `mean_counts`.
        false_alarms: wanted share of alarms on fresh samples of the same data, in (0, 1).
        draws: number of splits.
        seed: of the splits.
    """
    generator = torch.Generator().manual_seed(seed)
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for _ in range(draws):
        order = torch.randperm(distances.shape[-1], generator=generator).to(distances.device)
        for side, rows in zip(sides, (order[:window], order[window : 2 * window]), strict=True):
            part = distances[:, rows[:, None], rows]
            side.append(mean_counts(part, points=points, generator=generator).mean(0))
    left, right = torch.stack(sides[0]), torch.stack(sides[1])
    both = torch.cat([left, right])
    deviations = both.std(0).clamp_min(SMALLEST_DEVIATION)
    correlations = [_correlation(*pair) for pair in zip(left, right, strict=True)]
    shifts = [relative_shift(one - other, deviations) for one, other in zip(left, right, strict=True)]
    share = false_alarms / 2
    return Reference(
        both.mean(0),
        deviations,
        correlation_bound=_quantile(correlations, share),
        shift_bound=_quantile(shifts, 1 - share),
    )


def _quantile(values: list[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def _correlation(left: Tensor, right: Tensor) -> float:
    found = float(spearman(left, right))
    return float(torch.equal(left, right)) if math.isnan(found) else found
