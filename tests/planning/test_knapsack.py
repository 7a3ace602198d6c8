"""The solver against trying every set."""

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from adabet.planning.knapsack import best_set, best_within

BUDGET = 40  # bins=40: costs are whole numbers, so nothing is rounded


def layers(most, kinds=1):
    """Layers with up to two ways each: scores, costs of each kind, and reach of each kind."""

    def of(count):
        ways = st.lists(st.integers(1, 2), min_size=count, max_size=count)
        return ways.flatmap(
            lambda numbers: st.tuples(
                table(numbers, 20),
                st.lists(table(numbers, 25), min_size=kinds, max_size=kinds),
                st.lists(distances(count), min_size=kinds, max_size=kinds),
            )
        )

    def table(numbers, high):
        return st.tuples(*(st.lists(st.integers(0, high), min_size=n, max_size=n) for n in numbers))

    def distances(count):
        numbers = st.lists(st.integers(0, 30), min_size=count, max_size=count)
        return numbers.map(lambda values: sorted(values, reverse=True))

    return st.integers(1, most).flatmap(of)


def cost(chosen, costs, reach):
    return sum(costs[index][way] for index, way in chosen) + (reach[chosen[0][0]] if chosen else 0)


def worth(chosen, scores):
    return sum(scores[index][way] for index, way in chosen)


def every_set(scores):
    for ways in product(*([None, *range(len(row))] for row in scores)):
        yield tuple((index, way) for index, way in enumerate(ways) if way is not None)


def best_worth(scores, costs, reach, limits):
    return max(
        worth(chosen, scores)
        for chosen in every_set(scores)
        if all(cost(chosen, *kind) <= limit for *kind, limit in zip(costs, reach, limits, strict=True))
    )


@given(layers(6))
def test_no_set_is_better(case):
    scores, (costs,), (reach,) = case
    chosen = best_set(scores, costs, reach, BUDGET, bins=BUDGET)
    assert cost(chosen, costs, reach) <= BUDGET
    assert worth(chosen, scores) == best_worth(scores, [costs], [reach], [BUDGET])


@given(layers(6), st.floats(0.1, 200))
def test_rounding_never_breaks_the_limit(case, limit):
    scores, (costs,), (reach,) = case
    chosen = best_set(scores, costs, reach, limit, bins=50)
    assert cost(chosen, costs, reach) <= limit * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(layers(5, kinds=2), st.integers(20, 80))
def test_several_limits_are_all_kept(case, other):
    scores, costs, reach = case
    chosen = best_within(scores, costs, reach, [BUDGET, other])
    assert cost(chosen, costs[0], reach[0]) <= BUDGET * (1 + 1e-9)
    assert cost(chosen, costs[1], reach[1]) <= other * (1 + 1e-9)
    assert worth(chosen, scores) <= best_worth(scores, costs, reach, [BUDGET, other])


@given(layers(6))
def test_a_limit_that_binds_nothing_changes_nothing(case):
    scores, (costs,), (reach,) = case
    wide = [[0] * len(row) for row in costs]
    chosen = best_within(scores, [costs, wide], [reach, [0] * len(reach)], [BUDGET, 1], bins=BUDGET)
    assert worth(chosen, scores) == best_worth(scores, [costs], [reach], [BUDGET])


def test_a_layer_is_taken_in_one_way_only():
    assert best_set([[8, 4, 2]], [[9, 3, 2]], [0], 5) == ((0, 1),)
    assert best_set([[8, 4, 2]], [[9, 3, 2]], [0], 100) == ((0, 0),)


def test_nothing_fits_into_nothing():
    assert best_set([[1.0]], [[1.0]], [0.0], 0) == ()
    assert best_set([], [], [], 10) == ()
    assert best_within([[1.0]], [[[1.0]], [[1.0]]], [[0.0], [0.0]], [5.0, 0.0]) == ()
