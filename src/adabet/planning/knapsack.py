"""The best set of layers for a budget, where the deepest one decides how far back the backward pass reaches."""

from collections.abc import Sequence

import numpy as np

BINS = 4000
"""Steps into which the budget is divided; costs are rounded up to whole steps, so that no set is over it."""


def best_set(
    scores: Sequence[float], costs: Sequence[float], reach: Sequence[float], budget: float, *, bins: int = BINS
) -> tuple[int, ...]:
    """The layers with the largest sum of scores whose cost is within the budget.

    The cost of a set is the sum of its layers' own costs plus ``reach`` of its first layer: what the backward pass
    needs to get there, whatever trains behind it. Exact but for the rounding of costs to ``1 / bins`` of the budget.

    Args:
        scores: what each layer is worth, in the order of the forward pass; layers worth nothing are never taken.
        costs: what each layer adds by itself, not negative.
        reach: what a backward pass down to each layer costs, not negative and never more for a later layer.
        budget: the most that a set may cost.
        bins: how finely costs are told apart.

    Returns:
        Indices in ascending order; empty if nothing fits.

    Source: the depth-wise decomposition is that of ElasticTrainer's problem (Huang et al., MobiSys 2023) with bytes
    in place of times.

    Examples:
        >>> best_set([5, 3, 4], [2, 1, 2], [3, 1, 0], budget=4)
        (1, 2)
    """
    if budget <= 0 or not len(scores):
        return ()
    step = budget / bins
    weights = [int(np.ceil(cost / step - 1e-9)) for cost in costs]
    # table[b]: best sum of scores of layers behind the current one within b steps; taken[i][b]: whether i is in it
    table = np.zeros(bins + 1)
    taken: list[np.ndarray] = []
    best_score, best_start, best_room = 0.0, -1, 0
    for index in range(len(scores) - 1, -1, -1):
        room = bins - int(np.ceil(reach[index] / step - 1e-9)) - weights[index]
        if scores[index] > 0 and room >= 0 and scores[index] + table[room] > best_score:
            best_score, best_start, best_room = scores[index] + table[room], index, room
        with_it = np.full_like(table, -np.inf)
        if scores[index] > 0 and weights[index] <= bins:
            with_it[weights[index] :] = table[: bins + 1 - weights[index]] + scores[index]
        taken.append(with_it > table)
        table = np.maximum(table, with_it)
    if best_start < 0:
        return ()
    chosen, room = [best_start], best_room
    for index in range(best_start + 1, len(scores)):
        if taken[len(scores) - 1 - index][room]:
            chosen.append(index)
            room -= weights[index]
    return tuple(chosen)
