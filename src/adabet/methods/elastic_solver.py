"""ElasticTrainer's problem: which tensors to train in a given share of the backward pass's time."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from adabet.errors import OptionError

Times = NDArray[np.int64]
Importance = NDArray[np.float64]

SOLVERS = ("exact", "reference")
QUANTA = 1000
"""Whole units into which the time of the backward pass is divided, the paper's ``Tq``."""

NOT_TAKEN = -2
NONE_BEFORE = -1


def backward_ratio(speedup: float, forward: float | None = None, backward: float | None = None) -> float:
    """Share of the backward pass's time that a share of the whole training time leaves.

    With r the ratio of forward to backward time: ``speedup * (1 + r) - r``; where the times are not known, r is 1/2.

    Args:
        speedup: wanted training time over that of training everything.
        forward: time of a forward pass, any unit; None if not known.
        backward: time of a whole backward pass, the same unit.

    Raises:
        OptionError: if the forward pass alone takes that long, or the share is above 1.

    Source: README and ``train.py`` of ElasticTrainer.

    Examples:
        >>> round(backward_ratio(0.533), 4), round(backward_ratio(0.533, 1.0, 3.0), 4)
        (0.2995, 0.3773)
    """
    ratio = forward / backward if forward is not None and backward else 0.5
    least = ratio / (1 + ratio)
    if not least < speedup <= 1:
        raise OptionError(
            f"expected speedup, the wanted time over that of training everything, above {least:.3f} (what the forward "
            f"passes take) and up to 1, got {speedup}"
        )
    return speedup * (1 + ratio) - ratio


def choose(
    importance: Sequence[float],
    t_dw: Sequence[float],
    t_dy: Sequence[float],
    ratio: float,
    *,
    always: Collection[int] = (),
    quanta: int = QUANTA,
    disco: bool = True,
    solver: str = "exact",
) -> tuple[int, ...]:
    """The tensors whose importance sums to the most within a share of the backward pass's time.

    Times are scaled so that all of them sum to ``quanta`` and rounded down to whole numbers. Training a set takes
    ``t_dw`` of each of its tensors and ``t_dy`` of every tensor from the output down to the deepest of the set, that
    one included. The limit is ``ratio * disco * sum of the rounded times``.

    Args:
        importance: of each tensor, in the order of a forward pass; those without a positive one are never chosen.
        t_dw: time of each tensor's own gradient, any unit.
        t_dy: time to pass the error through each tensor.
        ratio: share of the backward pass's time, see `backward_ratio`.
        always: tensors that train whatever is chosen; they are paid for first.
        quanta: how finely times are told apart.
        disco: shrink the limit by what rounding took off the times, as the paper's code does.
        solver: ``"exact"``, or ``"reference"`` for the paper's dynamic program.

    Returns:
        Indices in ascending order, without those of ``always``.

    Raises:
        OptionError: if there are no quanta or no such solver.

    Examples:
        >>> choose([3, 1, 2], t_dw=[2, 2, 2], t_dy=[2, 1, 1], ratio=0.6)  # too far for the first
        (1, 2)
    """
    if quanta < 1:
        raise OptionError(f"expected quanta, the units of the backward pass's time, of at least 1, got {quanta}")
    if solver not in SOLVERS:
        raise OptionError(f"expected solver to be one of {', '.join(SOLVERS)}, got {solver!r}")
    weights, reach, lost = downscale(t_dw, t_dy, quanta)
    limit = int(ratio * (lost if disco else 1.0) * (weights.sum() + reach.sum()))
    # from here on index 0 is the output's side
    weights, reach, worth = weights[::-1].copy(), reach[::-1].copy(), np.array(importance, dtype=np.float64)[::-1]
    fixed = [len(weights) - 1 - index for index in always]
    free = np.delete(np.arange(len(weights)), fixed)
    if fixed:
        deepest = max(fixed) + 1
        limit -= int(weights[fixed].sum() + reach[:deepest].sum())
        reach[:deepest] = 0
    solve = solve_exact if solver == "exact" else solve_reference
    found = solve(worth[free], weights[free], reach[free], limit) if limit >= 0 else ()
    return tuple(sorted(len(weights) - 1 - int(free[index]) for index in found))


def downscale(t_dw: Sequence[float], t_dy: Sequence[float], quanta: int = QUANTA) -> tuple[Times, Times, float]:
    """Times in whole units, rounded down, and what share of all time they still hold (the paper's ``disco``).

    Examples:
        >>> downscale([0.5, 0.26], [0.0, 0.24], 10)
        (array([5, 2]), array([0, 2]), 0.9)
    """
    own, reach = np.array(t_dw, dtype=np.float64), np.array(t_dy, dtype=np.float64)
    total = own.sum() + reach.sum()
    if not np.isfinite(total) or total <= 0 or min(own.min(), reach.min()) < 0:
        raise OptionError("expected a profile of times from 0 up whose sum is above 0; measure it again")
    whole_own, whole_reach = (np.floor(times * (quanta / total)).astype(np.int64) for times in (own, reach))
    return whole_own, whole_reach, float((whole_own.sum() + whole_reach.sum()) / quanta)


def time_of(chosen: Collection[int], t_dw: Sequence[float], t_dy: Sequence[float]) -> float:
    """Time of the backward pass that trains some tensors, indices in the order of a forward pass.

    Examples:
        >>> time_of([1], t_dw=[5, 2, 1], t_dy=[3, 1, 1])
        4
    """
    return sum(t_dw[index] for index in chosen) + sum(t_dy[min(chosen, default=len(t_dy)) :])


def solve_exact(importance: Importance, t_dw: Times, t_dy: Times, limit: int) -> tuple[int, ...]:
    """The best set, exactly, in O(tensors * limit); index 0 is the output's side.

    For every tensor as the deepest one, the time left after reaching it is filled by a knapsack over those before it;
    the tables of these knapsacks grow from one to the next.

    Args:
        importance: of each tensor.
        t_dw: whole time of each tensor's own gradient.
        t_dy: whole time to pass the error through each.
        limit: the most that a set may take.

    Examples:
        >>> solve_exact(np.array([1.0, 3, 10, 5, 3]), np.array([5, 1, 7, 3, 1]), np.array([0, 2, 1, 4, 0]), 14)
        (1, 2)
    """
    spent = np.cumsum(t_dy)
    table = np.zeros(limit + 1)
    taken = np.zeros((len(importance), limit + 1), dtype=bool)
    best, deepest, left = 0.0, -1, 0
    for index in range(int(np.searchsorted(spent, limit, side="right"))):
        value, weight = importance[index], int(t_dw[index])
        room = limit - int(spent[index]) - weight
        if value > 0 and room >= 0 and value + table[room] > best:
            best, deepest, left = value + table[room], index, room
        if value > 0 and weight <= limit:
            with_it = table[: limit + 1 - weight] + value
            taken[index, weight:] = with_it > table[weight:]
            table[weight:] = np.maximum(table[weight:], with_it)
    chosen = [deepest] if deepest >= 0 else []
    for index in range(deepest - 1, -1, -1):
        if taken[index, left]:
            chosen.append(index)
            left -= int(t_dw[index])
    return tuple(sorted(chosen))


def solve_reference(importance: Importance, t_dw: Times, t_dy: Times, limit: int) -> tuple[int, ...]:
    """The paper's dynamic program, which keeps to the limit but may miss the best set; index 0 is the output's side.

    ``value[k, t]`` is the most that the first k tensors give within t. The k-th is either left out, or taken on top of
    a state ``(p, t')`` whose best solution takes its p-th tensor. A state whose best solution does not is lost to the
    deeper ones, so that the optimum can be missed. Ties leave the tensor out, or take the nearest ``p``. Where the
    limit reaches every tensor, the paper's code never looks at the last one; this does.

    Args:
        importance: see `solve_exact`.
        t_dw: see `solve_exact`.
        t_dy: see `solve_exact`.
        limit: see `solve_exact`.
    """
    count = int(np.searchsorted(np.cumsum(t_dy), limit, side="right"))
    value = np.zeros((count + 1, limit + 1))
    before = np.full((count + 1, limit + 1), NOT_TAKEN)
    before[0] = NONE_BEFORE
    best, state = 0.0, (0, 0)
    for k in range(1, count + 1):
        value[k] = value[k - 1]
        cost = int(t_dw[k - 1])
        for p in range(k - 1, -1, -1):
            cost += int(t_dy[p])
            if cost > limit:
                break
            rest = limit + 1 - cost
            candidate = np.where(before[p, :rest] != NOT_TAKEN, value[p, :rest] + importance[k - 1], -np.inf)
            better = candidate > value[k, cost:]
            value[k, cost:][better] = candidate[better]
            before[k, cost:][better] = p
        if value[k].max() > best:
            best, state = float(value[k].max()), (k, int(value[k].argmax()))
    return _trace(before, t_dw, t_dy, state)


def _trace(before: NDArray[np.int64], t_dw: Times, t_dy: Times, state: tuple[int, int]) -> tuple[int, ...]:
    """The tensors behind a state of the paper's dynamic program."""
    chosen = []
    k, time = state
    while k > 0:
        p = int(before[k, time])
        if p == NOT_TAKEN:
            k -= 1
            continue
        chosen.append(k - 1)
        time -= int(t_dw[k - 1] + t_dy[p:k].sum())
        k = p
    return tuple(sorted(chosen))
