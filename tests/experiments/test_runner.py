"""What runs, what is kept, and what is never run again, with a pool that answers at once."""

import pytest

from adabet.experiments import GridResults, compare
from adabet.experiments.outcome import Done
from adabet.experiments.store import Store
from tests.experiments.grids import FakePool, make_grid, record, scored


def by_rate(cell):
    """The method's best rate is 0.1; head is worse by two hundredths, more or less."""
    return 0.5 + cell.learning_rate + 0.01 * cell.seed - (0.02 + 0.001 * cell.seed) * (cell.method.label == "head")


def keys(pool):
    return [job.cell.key for job in pool.seen]


def test_results_are_those_of_the_best_rate(tmp_path):
    found = compare(make_grid(), tmp_path / "r.db", FakePool(scored(by_rate)))
    assert found.complete
    ours, head = found.entries
    assert ours.learning_rate == 0.1
    assert ours.tests == {0: pytest.approx(0.6), 1: pytest.approx(0.61)}
    assert ours.summary.mean == pytest.approx(0.605)
    assert [run.cell.learning_rate for run in head.tried] == [0.001, 0.01, 0.1, 0.1]
    (difference,) = found.differences()
    assert difference.mean == pytest.approx(-0.0205)
    assert found.entries[0].peak == 1000


def test_reading_the_file_gives_what_compare_gave(tmp_path):
    grid = make_grid(budgets=["adabet:0.2", "1MB"], selection_memory=True)
    found = compare(grid, tmp_path / "r.db", FakePool(scored(by_rate)))
    assert GridResults.read(tmp_path / "r.db") == found
    assert [line.budget for line in found.entries] == [5000, 1_000_000, None]
    assert all(line.selection.peak == 4000 for line in found.entries)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("last_first", [False, True])
def test_the_order_in_which_workers_end_makes_no_difference(tmp_path, workers, last_first):
    expected = compare(make_grid(), tmp_path / "one.db", FakePool(scored(by_rate), workers=1))
    found = compare(make_grid(), tmp_path / "r.db", FakePool(scored(by_rate), workers=workers, last_first=last_first))
    assert found.cells == expected.cells


@pytest.mark.parametrize("after", range(8))
def test_an_interrupted_grid_goes_on_and_runs_no_finished_cell_again(tmp_path, after):
    whole = FakePool(scored(by_rate))
    expected = compare(make_grid(), tmp_path / "whole.db", whole)
    first, second = FakePool(scored(by_rate), stop_after=after), FakePool(scored(by_rate))
    with pytest.raises(KeyboardInterrupt):
        compare(make_grid(), tmp_path / "r.db", first)
    assert first.ended
    kept = {run.cell.key for run in GridResults.read(tmp_path / "r.db").cells}
    assert len(kept) == after
    found = compare(make_grid(), tmp_path / "r.db", second)
    assert not kept & set(keys(second))
    assert kept | set(keys(second)) == set(keys(whole))
    assert found.cells == expected.cells
    with Store(tmp_path / "r.db") as store:
        assert sum(store.starts().values()) == len(first.seen) + len(second.seen)


def test_a_finished_grid_starts_no_worker(tmp_path):
    compare(make_grid(), tmp_path / "r.db", FakePool(scored(by_rate)))
    again = FakePool(scored(by_rate))
    assert compare(make_grid(), tmp_path / "r.db", again).complete
    assert not again.seen
    assert not again.ended


def test_a_grid_that_grows_runs_what_is_new(tmp_path):
    compare(make_grid(), tmp_path / "r.db", FakePool(scored(by_rate)))
    more = FakePool(scored(by_rate))
    found = compare(make_grid(methods=["adabet", "head", "full"], seeds=3), tmp_path / "r.db", more)
    assert sorted(job.cell.seed for job in more.seen if job.cell.method.label != "full") == [2, 2]
    assert sum(job.cell.method.label == "full" for job in more.seen) == 5
    assert found.others == 0
    less = compare(make_grid(methods=["head"]), tmp_path / "r.db", FakePool(scored(by_rate)))
    assert (len(less.cells), less.others) == (4, 5 + 5 + 1), "two methods, and head's third seed"


class TestFailures:
    def fails(self, job):
        if job.cell.method.label == "head" and job.cell.learning_rate == 0.1 and job.cell.seed == 1:
            return Done("failed", error="the worker process was killed by SIGKILL")
        return scored(by_rate)(job)

    def test_are_recorded_and_the_rest_goes_on(self, tmp_path):
        found = compare(make_grid(), tmp_path / "r.db", FakePool(self.fails))
        assert found.complete
        ours, head = found.entries
        assert len(ours.tests) == 2
        assert head.tests == {0: pytest.approx(0.58)}
        assert head.problem == "seed 1: the worker process was killed by SIGKILL"
        assert [run.status for run in head.runs] == ["done", "failed"]
        assert found.differences() == ()

    def test_are_not_run_again_unless_that_is_asked_for(self, tmp_path):
        compare(make_grid(), tmp_path / "r.db", FakePool(self.fails))
        same, retried = FakePool(scored(by_rate)), FakePool(scored(by_rate))
        compare(make_grid(), tmp_path / "r.db", same)
        assert not same.seen
        found = compare(make_grid(), tmp_path / "r.db", retried, retry_failed=True)
        assert [(job.cell.method.label, job.cell.seed) for job in retried.seen] == [("head", 1)]
        assert len(found.entries[1].tests) == 2

    def test_a_method_that_always_fails_has_a_line_that_says_why(self, tmp_path):
        def fails(job):
            if job.cell.method.label == "head":
                return Done("failed", error="no head to train")
            return scored(by_rate)(job)

        found = compare(make_grid(), tmp_path / "r.db", FakePool(fails))
        assert found.complete
        assert found.entries[1].problem == "no head to train"
        assert found.entries[1].summary is None
        assert len(found.entries[0].tests) == 2

    def test_a_budget_that_cannot_be_measured_fails_its_lines(self, tmp_path):
        def fails(job):
            return Done("failed", error="no such weights") if job.cell.kind == "budget" else scored(by_rate)(job)

        found = compare(make_grid(budgets=["adabet:0.1"]), tmp_path / "r.db", FakePool(fails))
        assert found.complete
        assert found.entries[0].problem == "its budget could not be measured: no such weights"
        assert len(found.entries[1].tests) == 2

    def test_a_rate_that_diverges_is_worse_than_any_other(self, tmp_path):
        def diverges(job):
            if job.cell.learning_rate == 0.1:
                return Done("diverged", error="the loss became nan in epoch 1")
            return Done("done", record(0.0, 0.0))

        found = compare(make_grid(), tmp_path / "r.db", FakePool(diverges))
        assert [line.learning_rate for line in found.entries] == [0.01, 0.01]
        assert all(not line.problem for line in found.entries)


class TestBudget:
    def test_is_told_to_those_that_keep_to_it(self, tmp_path):
        pool = FakePool(scored(by_rate))
        compare(make_grid(budgets=["adabet:0.2", "2MB"], selection_memory=True), tmp_path / "r.db", pool)
        told = {(job.cell.kind, str(job.cell.share)): job.budget for job in pool.seen}
        assert told == {
            ("budget", "0.2"): None,
            **{(kind, "adabet:0.2"): 5000 for kind in ("train", "selection")},
            **{(kind, "2MB"): 2_000_000 for kind in ("train", "selection")},
            **{(kind, "None"): None for kind in ("train", "selection")},
        }


def test_progress_reaches_its_total_and_never_passes_it(tmp_path):
    reports = []
    compare(make_grid(selection_memory=True), tmp_path / "r.db", FakePool(scored(by_rate)), progress=reports.append)
    assert [report.done for report in reports] == list(range(len(reports)))
    assert all(report.done <= report.total for report in reports)
    assert reports[-1].done == reports[-1].total == len(reports) - 1
    assert reports[0].cell is None
    assert reports[0].total == reports[-1].total, "three rates leave nothing to find out"
