"""Intervals and corrections, against scipy's and statsmodels' definitions worked by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from adabet.experiments.statistics import differences, holm, summary
from tests.experiments.grids import make_grid


class Line:
    def __init__(self, entry, tests, grain=0.0):
        self.entry, self.tests, self.grain = entry, tests, grain


def lines(grid, **tests):
    return [Line(entry, tests[entry.method.label]) for entry in grid.entries]


metrics = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(metrics)
def test_the_interval_of_a_mean_is_scipys(values):
    found = summary(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    if found.std < 1e-9:
        return
    low, high = stats.t.interval(0.95, len(values) - 1, loc=found.mean, scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_a_single_seed_has_no_spread():
    found = summary([0.7])
    assert (found.mean, found.std, found.low, found.high) == (0.7, None, None, None)
    assert str(found) == "0.700"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_a_difference_is_scipys_paired_test(pairs):
    grid = make_grid()
    ours = {seed: first for seed, (first, _) in enumerate(pairs)}
    theirs = {seed: second for seed, (_, second) in enumerate(pairs)}
    (found,) = differences(lines(grid, adabet=ours, head=theirs), "adabet")
    gains = [second - first for first, second in pairs]
    assert found.mean == pytest.approx(sum(gains) / len(gains))
    if max(gains) - min(gains) < 1e-6:
        return
    expected = stats.ttest_rel([second for _, second in pairs], [first for first, _ in pairs])
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert found.within_noise == (found.p_holm > 0.05)


def test_pairs_are_of_the_seeds_that_both_have():
    (found,) = differences(lines(make_grid(), adabet={0: 0.5, 1: 0.6, 2: 0.9}, head={1: 0.7, 2: 0.8, 9: 0.1}), "adabet")
    assert found.seeds == (1, 2)
    assert found.mean == pytest.approx(0.0)


def test_one_seed_in_common_tells_nothing():
    assert differences(lines(make_grid(), adabet={0: 0.5}, head={0: 0.7}), "adabet") == ()


def test_equal_differences_have_no_noise_and_equal_results_no_difference():
    grid = make_grid(methods=["adabet", "head", "full"])
    same = {0: 0.5, 1: 0.75}
    better, equal = differences(lines(grid, adabet=same, head={0: 0.625, 1: 0.875}, full=same), "adabet")
    assert (better.mean, better.p, better.within_noise) == (0.125, 0.0, False)
    assert (equal.mean, equal.p, equal.within_noise) == (0.0, 1.0, True)


def test_equal_differences_on_few_images_are_no_certainty():
    ours, head = make_grid().entries
    pair = [Line(ours, {0: 0.5, 1: 0.75}, grain=1 / 32), Line(head, {0: 0.53125, 1: 0.78125}, grain=1 / 32)]
    (found,) = differences(pair, "adabet")
    assert found.mean == pytest.approx(1 / 32)
    assert found.within_noise
    # the t interval of two differences whose spread is that of rounding to whole images
    assert found.resolution == pytest.approx(stats.t.ppf(0.975, 1) * (1 / 32) * math.sqrt(1 / 6) / math.sqrt(2))


def test_a_reference_is_compared_at_its_own_share_and_with_methods_that_have_none():
    grid = make_grid(methods=["adabet", "random", "head"], layer_ratios=[0.1, 0.2])
    tests = {0: 0.5, 1: 0.6}
    found = differences(lines(grid, adabet=tests, random=tests, head=tests), "adabet")
    pairs = [(item.entry.method.label, str(item.entry.share), str(item.reference.share)) for item in found]
    assert pairs == [
        *(("random", "0.1", "0.1"), ("head", "None", "0.1")),
        *(("random", "0.2", "0.2"), ("head", "None", "0.2")),
    ]


def test_methods_of_other_data_are_no_family():
    grid = make_grid(data=["one", "two"])
    found = differences(lines(grid, adabet={0: 0.5, 1: 0.6}, head={0: 0.6, 1: 0.8}), "adabet")
    assert [(item.entry.data.label, item.reference.data.label) for item in found] == [("one", "one"), ("two", "two")]
    assert all(item.p_holm == item.p for item in found)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_rejects_what_its_step_down_rule_rejects(p_values):
    corrected = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    rejected = set()
    for rank, index in enumerate(order):
        if p_values[index] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(corrected) if p <= 0.05} == rejected
    assert all(math.isclose(a, b) or a >= b for a, b in zip(corrected, p_values, strict=True))
