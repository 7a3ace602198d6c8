import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adabet.data import EpochSampler
from adabet.data.sampling import allocate, choose
from adabet.errors import OptionError

CAPACITIES = st.lists(st.integers(0, 50), min_size=1, max_size=12)


@given(CAPACITIES, st.data())
def test_shares_add_up_and_are_in_proportion(capacities, data):
    total = data.draw(st.integers(0, sum(capacities)))
    shares = allocate(capacities, total)
    assert sum(shares) == total
    filled = [capacity for capacity in capacities if capacity]
    for share, capacity in zip(shares, capacities, strict=True):
        assert 0 <= share <= capacity
        exact = capacity * total / max(sum(capacities), 1)
        # A class is rounded up to one at the cost of others: by no more than one for each class.
        assert exact - len(filled) - 1 < share < exact + 1 + 1e-9
        if capacity and total >= len(filled):
            assert share >= 1


@given(CAPACITIES)
def test_no_minimum_where_it_does_not_fit(capacities):
    filled = sum(capacity > 0 for capacity in capacities)
    if filled > 1:
        assert sum(allocate(capacities, filled - 1)) == filled - 1


def test_more_than_there_is():
    with pytest.raises(OptionError, match="from 0 to 3 images, got 4"):
        allocate([1, 2], 4)


@given(st.lists(st.integers(0, 4), min_size=5, max_size=60), st.integers(0, 3), st.integers(0, 2), st.data())
def test_choices_are_seeded_distinct_and_leave_what_is_kept(labels, seed, keep, data):
    counts = Counter(labels)
    total = data.draw(st.integers(0, sum(max(count - keep, 0) for count in counts.values())))
    chosen = choose(labels, total, seed=seed, keep=keep)
    assert chosen == sorted(set(chosen)) == choose(labels, total, seed=seed, keep=keep)
    assert len(chosen) == total
    left = counts - Counter(labels[position] for position in chosen)
    assert all(left[label] >= min(keep, count) for label, count in counts.items())


def test_seeds_choose_differently():
    labels = [0] * 50 + [1] * 50
    assert len({tuple(choose(labels, 10, seed=seed)) for seed in range(5)}) == 5


def test_an_epoch_is_a_function_of_its_number_and_the_seed():
    sampler = EpochSampler(20, seed=3)
    epochs = [list(sampler) for _ in range(3)]
    for epoch in epochs:
        assert sorted(index for index, _ in epoch) == list(range(20))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    later = EpochSampler(20, seed=3)
    later.set_epoch(2)
    assert list(later) == epochs[2]
    assert list(EpochSampler(20, seed=4)) != epochs[0]
    assert len({seed for epoch in epochs for _, seed in epoch}) == 60


def test_the_sampler_travels():
    sampler = pickle.loads(pickle.dumps(EpochSampler(5, seed=1)))
    assert (len(sampler), list(sampler)) == (5, list(EpochSampler(5, seed=1)))
