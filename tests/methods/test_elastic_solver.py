from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adabet.errors import OptionError
from adabet.methods.elastic_solver import (
    backward_ratio,
    choose,
    downscale,
    solve_exact,
    solve_reference,
    time_of,
)


def instance(rng, count):
    """Importances, own times and passing times, whole, index 0 at the output."""
    largest = int(rng.integers(1, 12))
    return rng.standard_normal(count), rng.integers(0, largest + 1, count), rng.integers(0, largest + 1, count)


def cost(chosen, t_dw, t_dy):
    return sum(t_dw[index] for index in chosen) + sum(t_dy[: max(chosen) + 1]) if chosen else 0


def best_by_trying_all(importance, t_dw, t_dy, limit, always=()):
    """The largest sum of importance, the forced tensors' apart, or None if they alone take too long."""
    free = [index for index in range(len(importance)) if index not in always]
    sets = (subset for size in range(len(free) + 1) for subset in combinations(free, size))
    sums = [
        sum(importance[index] for index in subset) for subset in sets if cost((*subset, *always), t_dw, t_dy) <= limit
    ]
    return max(sums, default=None)


def reference_by_its_words(importance, t_dw, t_dy, limit):
    """The paper's recursion as it is described, without tables."""
    reachable = [k for k in range(len(importance)) if sum(t_dy[: k + 1]) <= limit]

    @cache
    def state(k, time):
        """Value, the chosen, and whether the k-th tensor is."""
        if k == 0:
            return 0.0, (), True
        value, chosen, _ = state(k - 1, time)
        best = (value, chosen, False)
        for p in range(k - 1, -1, -1):
            rest = time - t_dw[k - 1] - sum(t_dy[p:k])
            if rest >= 0 and state(p, rest)[2] and state(p, rest)[0] + importance[k - 1] > best[0]:
                best = (state(p, rest)[0] + importance[k - 1], (*state(p, rest)[1], k - 1), True)
        return best

    states = [state(k, time) for k in range(len(reachable) + 1) for time in range(limit + 1)]
    return max(states, key=lambda found: found[0])


class TestSolvers:
    def test_exact_is_the_best_of_all_sets(self):
        rng = np.random.default_rng(0)
        for _ in range(500):
            importance, t_dw, t_dy = instance(rng, int(rng.integers(1, 13)))
            limit = int(rng.uniform(0, 1.1) * (t_dw.sum() + t_dy.sum()))
            chosen = solve_exact(importance, t_dw, t_dy, limit)
            assert cost(chosen, t_dw, t_dy) <= limit
            assert sum(importance[list(chosen)]) == pytest.approx(
                best_by_trying_all(importance, t_dw, t_dy, limit), abs=1e-12
            )
            assert all(importance[list(chosen)] > 0)

    def test_reference_follows_its_description(self):
        rng = np.random.default_rng(1)
        for _ in range(60):
            importance, t_dw, t_dy = instance(rng, int(rng.integers(1, 8)))
            limit = int(rng.uniform(0, 0.6) * (t_dw.sum() + t_dy.sum()))
            value, _, _ = reference_by_its_words(importance, tuple(t_dw), tuple(t_dy), limit)
            assert sum(importance[list(solve_reference(importance, t_dw, t_dy, limit))]) == pytest.approx(value)

    def test_reference_keeps_to_the_limit_and_misses_the_best_at_times(self):
        """As methods.md found in 200 instances of 25 tensors: never over the budget, below the optimum in some."""
        rng = np.random.default_rng(2)
        below = 0
        for _ in range(200):
            importance, t_dw, t_dy = instance(rng, 25)
            limit = int(0.3 * (t_dw.sum() + t_dy.sum()))
            found = solve_reference(importance, t_dw, t_dy, limit)
            exact = solve_exact(importance, t_dw, t_dy, limit)
            assert cost(found, t_dw, t_dy) <= limit
            missed = sum(importance[list(exact)]) - sum(importance[list(found)])
            assert missed > -1e-9
            below += missed > 1e-9
        assert 10 < below < 120

    @pytest.mark.parametrize("solve", [solve_exact, solve_reference])
    def test_the_reference_codes_own_example(self, solve):
        importance = np.array([1.0, 3, 10, 5, 3])
        t_dw, t_dy = np.array([5, 1, 7, 3, 1]), np.array([0, 2, 1, 4, 0])
        assert solve(importance, t_dw, t_dy, int(0.6 * 24)) == (1, 2)

    @pytest.mark.parametrize("solve", [solve_exact, solve_reference])
    def test_takes_nothing_where_nothing_fits_or_pays(self, solve):
        assert solve(np.array([1.0, 1]), np.array([3, 3]), np.array([0, 0]), 2) == ()
        assert solve(np.array([-1.0, 0]), np.array([1, 1]), np.array([0, 0]), 9) == ()
        assert solve(np.array([1.0]), np.array([0]), np.array([0]), 0) == (0,)

    @given(st.data())
    def test_more_time_is_never_worse(self, data):
        count = data.draw(st.integers(1, 20))
        whole = st.lists(st.integers(0, 9), min_size=count, max_size=count)
        t_dw, t_dy = np.array(data.draw(whole)), np.array(data.draw(whole))
        importance = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=count, max_size=count)))
        limits = sorted(data.draw(st.lists(st.integers(0, 200), min_size=2, max_size=4)))
        chosen = [solve_exact(importance, t_dw, t_dy, limit) for limit in limits]
        assert all(cost(found, t_dw, t_dy) <= limit for found, limit in zip(chosen, limits, strict=True))
        sums = [importance[list(found)].sum() for found in chosen]
        assert all(more >= less - 1e-9 for less, more in pairwise(sums))


class TestChoose:
    def test_pays_for_what_trains_always_first(self):
        rng = np.random.default_rng(3)
        seen = set()
        for _ in range(200):
            count = int(rng.integers(2, 9))
            importance, t_dw, t_dy = instance(rng, count)
            if not t_dw.sum() + t_dy.sum():
                continue
            always = tuple(rng.choice(count, int(rng.integers(1, 3)), replace=False).tolist())
            total = int(t_dw.sum() + t_dy.sum())
            ratio = rng.uniform(0, 1)
            # with as many quanta as there is time nothing is rounded; the tests' index 0 is the output
            chosen = choose(
                importance[::-1],
                t_dw[::-1],
                t_dy[::-1],
                ratio,
                always=[count - 1 - index for index in always],
                quanta=total,
            )
            found = tuple(count - 1 - index for index in chosen)
            assert not set(found) & set(always)
            best = best_by_trying_all(importance, t_dw, t_dy, int(ratio * total), always)
            seen.add(best is None)
            if best is None:
                assert found == ()
            else:
                assert cost((*found, *always), t_dw, t_dy) <= int(ratio * total)
                assert sum(importance[list(found)]) == pytest.approx(best, abs=1e-12)
        assert seen == {True, False}

    def test_everything_that_pays_fits_into_all_the_time(self):
        assert choose([1, -1, 0.5, 2], [5, 1, 1, 3], [1, 2, 2, 0], 1.0, disco=False) == (0, 2, 3)

    def test_disco_shrinks_the_limit(self):
        # 3 tensors of 3.75 + 3.75 + 2.5 of 10 units: rounded 3 + 3 + 2, so a limit of 4 * 1.0 or 4 * 0.8
        times = [3.75, 3.75, 2.5]
        assert downscale(times, [0, 0, 0], 10)[2] == 0.8
        assert choose([1, 3, 2], times, [0, 0, 0], 0.5, quanta=10, disco=False) == (1,)
        assert choose([1, 3, 2], times, [0, 0, 0], 0.45, quanta=10, disco=False) == (1,)
        assert choose([1, 3, 2], times, [0, 0, 0], 0.45, quanta=10, disco=True) == (2,)

    def test_solver_is_the_one_asked_for(self):
        rng = np.random.default_rng(2)
        differ = 0
        for _ in range(50):
            importance, t_dw, t_dy = instance(rng, 25)
            found = [choose(importance, t_dw, t_dy, 0.3, solver=solver) for solver in ("exact", "reference")]
            differ += found[0] != found[1]
        assert differ

    @pytest.mark.parametrize(
        ("times", "options", "message"),
        [
            ([1, 1], {"quanta": 0}, "quanta"),
            ([1, 1], {"solver": "greedy"}, "exact, reference"),
            ([0, 0], {}, "above 0"),
            ([1, -1], {}, "from 0 up"),
            ([1, np.nan], {}, "from 0 up"),
        ],
    )
    def test_refuses(self, times, options, message):
        with pytest.raises(OptionError, match=message):
            choose([1, 1], times, [0, 0], 0.5, **options)


class TestDownscale:
    @given(
        st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), min_size=1, max_size=30).filter(
            lambda times: sum(map(sum, times)) > 1e-3
        )
    )
    def test_rounds_down_by_less_than_a_unit(self, times):
        own, reach = zip(*times, strict=True)
        total = sum(own) + sum(reach)
        weights, passing, disco = downscale(own, reach, 1000)
        for whole, exact in ((weights, own), (passing, reach)):
            assert np.issubdtype(whole.dtype, np.integer)
            lost = np.array(exact) * 1000 / total - whole
            assert (lost > -1e-6).all()
            assert (lost < 1 + 1e-6).all()
        assert disco == pytest.approx((weights.sum() + passing.sum()) / 1000)
        assert disco <= 1 + 1e-9


class TestTimes:
    def test_of_a_set(self):
        t_dw, t_dy = [1, 10, 100], [1000, 2000, 3000]
        assert time_of([0, 1, 2], t_dw, t_dy) == 6111
        assert time_of([1], t_dw, t_dy) == 5010
        assert time_of([], t_dw, t_dy) == 0

    def test_published_ratios(self):
        assert backward_ratio(0.533) == pytest.approx((0.533 - 1 / 3) * 1.5)
        assert backward_ratio(0.533) == pytest.approx(0.3, abs=1e-3)
        assert backward_ratio(0.5, 3.0, 4.0) == pytest.approx(0.5 * (1 + 0.75) - 0.75)
        assert backward_ratio(1, 3.0, 4.0) == 1

    @pytest.mark.parametrize(
        ("speedup", "times", "message"),
        [(1 / 3, (), "above 0.333"), (0.2, (1.0, 3.0), "above 0.250"), (1.1, (), "up to 1"), (float("nan"), (), "nan")],
    )
    def test_refuses_what_cannot_be(self, speedup, times, message):
        with pytest.raises(OptionError, match=message):
            backward_ratio(speedup, *times)
