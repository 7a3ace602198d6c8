"""Draws without replacement against their exact probabilities, and budgets against plain loops."""

from collections import Counter
from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adabet.errors import OptionError
from adabet.methods.channel_draws import (
    NEAR,
    ChannelPool,
    check_fill,
    fill_units,
    fill_while,
    generator_for,
    weighted_order,
)
from adabet.methods.units import ChannelCost

DRAWS = 6000
# 99.9 % quantiles of chi-square by degrees of freedom, from tables
CHI_SQUARE = {2: 13.82, 4: 18.47, 11: 31.26, 23: 49.73}


def chi_square(counts: Counter, expected: dict) -> float:
    return sum((counts[key] - DRAWS * p) ** 2 / (DRAWS * p) for key, p in expected.items())


def orders(weights, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [tuple(weighted_order(torch.tensor(weights), generator).tolist()) for _ in range(DRAWS)]


def sequential(weights: list[float], length: int) -> dict[tuple[int, ...], float]:
    """The probability of each beginning of an order: one after the other, in proportion, of those that are left."""
    found = {}
    for order in permutations(range(len(weights)), length):
        left, chance = sum(weights), 1.0
        for item in order:
            chance *= weights[item] / left
            left -= weights[item]
        found[order] = chance
    return found


@pytest.mark.parametrize(
    ("weights", "length"),
    [([1.0, 2.0, 3.0, 4.0, 10.0], 1), ([1.0, 2.0, 3.0, 4.0], 2), ([5.0, 1.0, 1.0, 3.0], 4), ([2.0] * 4, 2)],
)
def test_orders_come_as_often_as_drawing_one_by_one_gives_them(weights, length):
    expected = sequential(weights, length)
    counts = Counter(order[:length] for order in orders(weights))
    assert chi_square(counts, expected) < CHI_SQUARE[len(expected) - 1]


def test_the_scale_of_weights_does_not_matter():
    expected = {(0,): 0.25, (1,): 0.25, (2,): 0.5}
    for scale in (1e-300, 1e300):
        generator = torch.Generator().manual_seed(1)
        weights = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64) * scale
        counts = Counter(tuple(weighted_order(weights, generator)[:1].tolist()) for _ in range(DRAWS))
        assert chi_square(counts, expected) < CHI_SQUARE[2]


def test_zeros_come_last_in_any_order():
    found = orders([0.0, 3.0, 0.0, 0.0, 1.0])
    assert {frozenset(order[:2]) for order in found} == {frozenset({1, 4})}
    expected = {(item,): 1 / 3 for item in (0, 2, 3)}
    assert chi_square(Counter(order[2:3] for order in found), expected) < CHI_SQUARE[2]


@pytest.mark.parametrize("weights", [[0.0] * 4, [float("nan")] * 4, [float("inf"), 0.0, float("nan"), 0.0]])
def test_without_a_single_usable_weight_all_are_alike(weights):
    expected = sequential([1.0] * 4, 4)
    assert chi_square(Counter(orders(weights)), expected) < CHI_SQUARE[23]


def test_weights_that_are_not_finite_come_last():
    assert {frozenset(order[:2]) for order in orders([float("nan"), 1.0, float("inf"), 2.0])} == {frozenset({1, 3})}


def test_generators_follow_seed_and_epoch():
    draws = [torch.rand(3, generator=generator_for(seed, epoch)).tolist() for seed in range(9) for epoch in range(9)]
    assert len({tuple(draw) for draw in draws}) == 81
    assert torch.rand(3, generator=generator_for(2, 3)).tolist() == draws[2 * 9 + 3]


costs = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(costs=costs, budget=st.integers(0, 400), seed=st.integers(0, 10))
def test_a_prefix_is_as_long_as_the_budget_allows(costs, budget, seed):
    order = torch.randperm(len(costs), generator=torch.Generator().manual_seed(seed))
    taken = fill_units(order, torch.tensor(costs), budget, fill="prefix").tolist()
    assert taken == order.tolist()[: len(taken)]
    assert sum(costs[item] for item in taken) <= budget
    if len(taken) < len(costs):
        assert sum(costs[item] for item in order.tolist()[: len(taken) + 1]) > budget


@given(costs=costs, budget=st.integers(0, 400), seed=st.integers(0, 10))
def test_skipping_leaves_nothing_that_would_fit(costs, budget, seed):
    order = torch.randperm(len(costs), generator=torch.Generator().manual_seed(seed))
    taken = fill_units(order, torch.tensor(costs), budget, fill="skip_and_continue").tolist()
    spent = sum(costs[item] for item in taken)
    assert spent <= budget
    assert all(spent + costs[item] > budget for item in range(len(costs)) if item not in taken)
    prefix = fill_units(order, torch.tensor(costs), budget, fill="prefix").tolist()
    assert taken[: len(prefix)] == prefix


@given(
    costs=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    channels=st.integers(1, 30),
    budget=st.integers(0, 2000),
    power=st.sampled_from([0.5, 1.0, 2.0]),
    fill=st.sampled_from(["prefix", "skip_and_continue"]),
    seed=st.integers(0, 5),
)
def test_prices_are_kept_and_used(costs, channels, budget, power, fill, seed):
    """Whatever the price of a set, as long as more channels never cost less."""
    owners = torch.arange(len(costs)).repeat_interleave(channels)
    order = torch.randperm(len(owners), generator=torch.Generator().manual_seed(seed))

    def price(items):
        return sum(costs[owners[item]] for item in items) ** power

    taken = fill_while(order, owners, price, budget, fill=fill).tolist()
    assert price(taken) <= budget
    left = [item for item in order.tolist() if item not in taken]
    if fill == "prefix":
        assert taken == order.tolist()[: len(taken)]
        left = left[:1]
    if price(taken) < NEAR * budget:
        assert all(price([*taken, item]) > budget for item in left)


def test_few_prices_are_asked_for():
    asked = []

    def price(items):
        asked.append(len(items))
        return 7.0 * len(items)

    taken = fill_while(torch.arange(100_000), torch.zeros(100_000), price, 300_000, fill="prefix")
    assert NEAR * 300_000 <= 7 * len(taken) <= 300_000
    assert len(asked) < 6


def test_channels_are_numbered_layer_by_layer():
    pool = ChannelPool({name: ChannelCost(count, 9, 4, 36) for name, count in (("a", 3), ("b", 1), ("c", 5))})
    assert pool.size == 9
    numbers = torch.cat([pool.numbers("c", (4, 0)), pool.numbers("a", (1,)), pool.numbers("b", (0,))])
    assert numbers.tolist() == [8, 4, 1, 3]
    assert pool.split(numbers.tolist()) == {"a": (1,), "b": (0,), "c": (0, 4)}
    assert pool.spaces.tolist() == [13] * 9
    assert all(first <= second for first, second in pairwise(pool.owners.tolist()))
    assert pool.only(["c", "a"]).names == ("a", "c")


def test_an_unknown_fill():
    with pytest.raises(OptionError, match="prefix, skip_and_continue; got 'all'"):
        check_fill("all")
