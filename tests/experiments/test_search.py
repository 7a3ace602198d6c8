"""The search asks for what a walk uphill in one process would run, in whatever order results come."""

import itertools
import random

import pytest

from adabet.experiments.search import Known, budget_cell, standing, uphill, wanted_cells
from tests.experiments.grids import make_grid

FIVE = (0.1, 0.2, 0.3, 0.4, 0.5)


def climb(rates, score):
    """The same walk written as a loop that runs what it needs; returns all that it ran, and the best."""
    ran, place = {}, len(rates) // 2
    while True:
        near = [index for index in (place, place - 1, place + 1) if 0 <= index < len(rates)]
        for index in near:
            ran.setdefault(rates[index], score(rates[index]))
        best = place
        for index in near:
            if ran[rates[index]] > ran[rates[best]]:
                best = index
        if best == place:
            return set(ran), rates[place]
        place = best


@pytest.mark.parametrize("order", list(itertools.permutations(range(5))))
def test_asks_for_no_more_and_no_less_than_a_walk_in_one_process(order):
    scores = dict(zip(FIVE, (float(value) for value in order), strict=True))
    known: dict[float, Known] = {}
    best = None
    draw = random.Random(0)
    while best is None:
        needed, best = uphill(FIVE, known.get)
        missing = [rate for rate in needed if rate not in known]
        if missing:
            rate = draw.choice(missing)
            known[rate] = Known("done", (scores[rate], 0.0))
    assert (set(known), best) == climb(FIVE, scores.get)


def outcomes(**at):
    return {rate: Known(*at[f"r{number}"]) for number, rate in enumerate(FIVE, 1) if f"r{number}" in at}.get


def test_of_equal_metrics_the_lower_loss_is_better():
    equal = outcomes(r2=("done", (1.0, -0.5)), r3=("done", (1.0, -0.4)), r4=("done", (1.0, -0.6)))
    assert uphill(FIVE, equal)[1] == 0.3


def test_goes_down_where_all_rates_diverge():
    diverged = {f"r{number}": ("diverged",) for number in (2, 3, 4)}
    assert uphill(FIVE, outcomes(**diverged)) == ([0.1, 0.2, 0.3, 0.4], None)
    found = outcomes(**diverged, r1=("done", (0.5, -1.0)))
    assert uphill(FIVE, found) == ([0.1, 0.2, 0.3, 0.4], 0.1)


def test_gives_up_where_every_rate_has_diverged():
    needed, best = uphill(FIVE, lambda _: Known("diverged"))
    assert best is None
    assert needed == [0.1, 0.2, 0.3, 0.4]


def test_gives_up_where_the_first_rates_all_fail_since_another_rate_would_not_help():
    assert uphill(FIVE, lambda _: Known("failed")) == ([0.2, 0.3, 0.4], None)


def test_a_single_rate_needs_no_search():
    assert uphill((0.1,), lambda _: Known("done", (0.2, 0.0))) == ([0.1], 0.1)


def finish(grid, score, *, choose):
    """Run a grid by hand; returns the cells in the order in which they ran, and what is known."""
    known, ran = {}, []
    while cells := list(wanted_cells(grid, known)):
        cell = choose(cells)
        ran.append(cell)
        known[cell.key] = Known("done", (score(cell), 0.0), bytes=7)
    return ran, known


def high_is_good(cell):
    return cell.learning_rate or 0.0


@pytest.mark.parametrize("search", ["uphill", "all"])
def test_the_order_in_which_cells_end_makes_no_difference(search):
    grid = make_grid(search=search, budgets=["adabet:0.2"], selection_memory=True)
    orders = [lambda cells: cells[0], lambda cells: cells[-1], random.Random(3).choice]
    runs = [{cell.key for cell in finish(grid, high_is_good, choose=choose)[0]} for choose in orders]
    assert runs[0] == runs[1] == runs[2]


def test_each_cell_is_wanted_once():
    ran, _ = finish(make_grid(budgets=["adabet:0.2"]), high_is_good, choose=lambda cells: cells[0])
    assert len({cell.key for cell in ran}) == len(ran)


def test_the_first_seed_searches_and_the_others_follow_at_the_best_rate():
    grid = make_grid(methods=["head"], seeds=[5, 6, 7])
    ran, known = finish(grid, high_is_good, choose=lambda cells: cells[0])
    assert [(cell.learning_rate, cell.seed) for cell in ran] == [(0.001, 5), (0.01, 5), (0.1, 5), (0.1, 6), (0.1, 7)]
    assert standing(grid, grid.entries[0], known).learning_rate == 0.1


def test_the_full_grid_runs_every_rate_with_every_seed_and_takes_the_best_mean():
    # the second seed turns the first one's order around
    values = {(0.001, 0): 0.2, (0.01, 0): 0.4, (0.1, 0): 0.6, (0.001, 1): 0.9, (0.01, 1): 0.8, (0.1, 1): 0.1}
    grid = make_grid(methods=["head"], search="all")
    ran, known = finish(grid, lambda cell: values[cell.learning_rate, cell.seed], choose=lambda cells: cells[-1])
    assert len(ran) == 6
    assert standing(grid, grid.entries[0], known).learning_rate == 0.01


class TestBudget:
    def test_is_measured_once_and_first(self):
        grid = make_grid(methods=["adabet", "random"], budgets=["adabet:0.2"])
        first = list(wanted_cells(grid, {}))
        assert [cell.kind for cell in first] == ["budget"]
        assert first[0].key == budget_cell(grid, grid.entries[1]).key
        assert first[0].share.layer_ratio == 0.2

    def test_that_could_not_be_measured_stops_its_lines_and_no_others(self):
        grid = make_grid(budgets=["adabet:0.2"])
        (budget,) = [cell for cell in wanted_cells(grid, {}) if cell.kind == "budget"]
        left = list(wanted_cells(grid, {budget.key: Known("failed")}))
        assert {cell.method.method for cell in left} == {"head"}
