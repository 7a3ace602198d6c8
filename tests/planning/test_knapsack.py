"""The solver against trying every set."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from adabet.planning.knapsack import best_set

BUDGET = 40  # bins=40: costs are whole numbers, so nothing is rounded
LAYERS = st.integers(1, 8).flatmap(
    lambda count: st.tuples(
        *(st.lists(st.integers(low, high), min_size=count, max_size=count) for low, high in ((0, 20), (0, 25), (0, 30)))
    )
)


def cost(chosen, costs, reach):
    return sum(costs[index] for index in chosen) + (reach[chosen[0]] if chosen else 0)


@given(LAYERS)
def test_no_set_is_better(layers):
    scores, costs, reach = layers
    reach = sorted(reach, reverse=True)
    chosen = best_set(scores, costs, reach, BUDGET, bins=BUDGET)
    assert cost(chosen, costs, reach) <= BUDGET
    every = (
        subset
        for size in range(len(scores) + 1)
        for subset in combinations(range(len(scores)), size)
        if cost(subset, costs, reach) <= BUDGET
    )
    assert sum(scores[index] for index in chosen) == max(sum(scores[index] for index in subset) for subset in every)


@given(LAYERS, st.floats(0.1, 200))
def test_rounding_never_breaks_the_budget(layers, budget):
    scores, costs, reach = layers
    reach = sorted(reach, reverse=True)
    chosen = best_set(scores, costs, reach, budget, bins=50)
    assert cost(chosen, costs, reach) <= budget * (1 + 1e-9)


def test_nothing_fits_into_nothing():
    assert best_set([1.0], [1.0], [0.0], 0) == ()
    assert best_set([], [], [], 10) == ()
