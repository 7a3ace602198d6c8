"""The best set of layers within limits, where the deepest one decides how far back the backward pass reaches."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

BINS = 2000
"""Steps into which a limit is divided; costs are rounded up to whole steps, so that no set is over it."""

MIXES = 4
"""Steps in which limits are weighed against each other."""

Chosen = tuple[tuple[int, int], ...]
"""Pairs of a layer and of the way in which it is taken, in the order of the layers."""


def best_set(
    scores: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    reach: Sequence[float],
    limit: float,
    *,
    bins: int = BINS,
) -> Chosen:
    """The layers, and the way to take each, with the largest sum of scores whose cost is within a limit.

    The cost of a set is the sum of its layers' own costs plus ``reach`` of its first layer: what the backward pass
    needs to get there, whatever trains behind it. Exact but for the rounding of costs to ``1 / bins`` of the limit.

    Args:
        scores: what each layer is worth, in the order of the forward pass, one number for each way to take it; ways
            that are worth nothing are never taken.
        costs: what each layer adds by itself, in the same shape, not negative.
        reach: what a backward pass down to each layer costs, not negative and never more for a later layer.
        limit: the most that a set may cost.
        bins: how finely costs are told apart.

    Returns:
        Indices of layers in ascending order, each with the index of its way; empty if nothing fits.

    Source: the depth-wise decomposition is that of ElasticTrainer's problem (Huang et al., MobiSys 2023) with bytes
    in place of times.

    Examples:
        >>> best_set([[5], [3, 1], [4]], [[2], [9, 1], [2]], [3, 1, 0], limit=4)
        ((1, 1), (2, 0))
    """
    if limit <= 0:
        return ()
    step = limit / bins
    # table[b]: best sum of scores of layers behind the current one within b steps; taken[i][b]: the way of i, or -1
    table = np.zeros(bins + 1)
    taken: dict[int, np.ndarray] = {}
    best_score, best_start, best_room = 0.0, (-1, -1), 0
    for index in range(len(scores) - 1, -1, -1):
        behind, ways = table.copy(), np.full(bins + 1, -1, dtype=np.int8)
        reached = bins - _steps(reach[index], step)
        for way, (score, cost) in enumerate(zip(scores[index], costs[index], strict=True)):
            weight = _steps(cost, step)
            if score <= 0 or weight > bins:
                continue
            if reached >= weight and score + behind[reached - weight] > best_score:
                best_room = reached - weight
                best_score, best_start = score + behind[best_room], (index, way)
            with_it = behind[: bins + 1 - weight] + score
            better = with_it > table[weight:]
            table[weight:][better] = with_it[better]
            ways[weight:][better] = way
        taken[index] = ways
    if best_start[0] < 0:
        return ()
    chosen, room = [best_start], best_room
    for index in range(best_start[0] + 1, len(scores)):
        way = int(taken[index][room])
        if way >= 0:
            chosen.append((index, way))
            room -= _steps(costs[index][way], step)
    return tuple(chosen)


def best_within(
    scores: Sequence[Sequence[float]],
    costs: Sequence[Sequence[Sequence[float]]],
    reach: Sequence[Sequence[float]],
    limits: Sequence[float],
    *,
    bins: int = BINS,
) -> Chosen:
    """The best set of layers that keeps several limits at once.

    Limits are joined into one, in several mixes: a set that keeps them all keeps each mix, so the best set of a mix is
    the best of all if it keeps every limit. Where none does, each gives up what is worth least for what it strains
    until it does, and the best of these counts.

    Args:
        scores: see `best_set`.
        costs: see `best_set`, for each limit.
        reach: see `best_set`, for each limit.
        limits: the most that a set may cost of each kind.
        bins: see `best_set`.

    Examples:
        >>> bytes_, seconds = [[2], [2], [1]], [[1], [3], [3]]
        >>> best_within([[4], [5], [3]], [bytes_, seconds], [[0] * 3, [0] * 3], [3.2, 4.2])
        ((0, 0), (2, 0))
    """
    if min(limits) <= 0:
        return ()
    own = [np.array([[*row, *[0.0] * (_width(scores) - len(row))] for row in kind], float) for kind in costs]
    own = [kind / limit for kind, limit in zip(own, limits, strict=True)]
    far = [np.array(kind, float) / limit for kind, limit in zip(reach, limits, strict=True)]

    def solve(mix: tuple[float, ...]) -> Chosen:
        rows = [row[: len(ways)].tolist() for row, ways in zip(_joined(mix, own), scores, strict=True)]
        return best_set(scores, rows, _joined(mix, far).tolist(), 1.0, bins=bins)

    def over(chosen: Chosen) -> list[int]:
        """Limits that a set breaks."""
        sums = [sum(kind[pair] for pair in chosen) for kind in own]
        starts = [distance[chosen[0][0]] if chosen else 0.0 for distance in far]
        return [kind for kind, cost in enumerate(np.add(sums, starts)) if cost > 1 + 1e-9]

    best: Chosen = ()
    for mix in _mixes(len(limits)):
        chosen = solve(mix)
        if not over(chosen):
            return chosen
        while broken := over(chosen):
            least = min(chosen, key=lambda pair: _density(scores, [own[kind] for kind in broken], pair))
            chosen = tuple(pair for pair in chosen if pair != least)
        if _worth(scores, chosen) > _worth(scores, best):
            best = chosen
    return best


def _joined(mix: Sequence[float], kinds: Sequence[np.ndarray]) -> np.ndarray:
    """A weighted sum, without a matrix product: numpy's BLAS would take 32 MB of buffers for its first."""
    joined: np.ndarray = np.sum([share * kind for share, kind in zip(mix, kinds, strict=True)], axis=0)
    return joined


def _density(scores: Sequence[Sequence[float]], strained: Sequence[np.ndarray], pair: tuple[int, int]) -> float:
    """Worth for what it costs under the limits that are broken."""
    return scores[pair[0]][pair[1]] / max(1e-12, float(sum(kind[pair] for kind in strained)))


def _mixes(count: int) -> Iterator[tuple[float, ...]]:
    """Shares of the limits, those of one limit alone first."""
    shares = [mix for mix in product(range(MIXES + 1), repeat=count) if sum(mix) == MIXES]
    for mix in sorted(shares, key=lambda mix: -max(mix)):
        yield tuple(share / MIXES for share in mix)


def _steps(cost: float, step: float) -> int:
    return int(np.ceil(cost / step - 1e-9))


def _width(scores: Sequence[Sequence[float]]) -> int:
    return max((len(ways) for ways in scores), default=0)


def _worth(scores: Sequence[Sequence[float]], chosen: Chosen) -> float:
    return sum(scores[index][way] for index, way in chosen)
