"""Figure E.16: what is seen of a process from outside."""

import pytest

from adabet.errors import TrainingError
from adabet.experiments.reproduce import resources
from adabet.experiments.reproduce.published import METHODS, SETTINGS
from adabet.experiments.reproduce.resources import Watched

pytest.importorskip("psutil")


def test_looks_count_from_the_start_and_processor_time_by_the_clock():
    looks = [(9.0, 100, 5.0), (10.0, 200, 6.0), (10.5, 260, 6.25), (11.0, 240, 6.75)]
    assert resources._since(10.2, looks) == Watched(
        200, [(pytest.approx(0.3), 260, pytest.approx(50)), (pytest.approx(0.8), 240, pytest.approx(100))]
    )


def test_a_process_is_watched_while_it_trains(task):
    full = next(method for method in METHODS if method.label == "Full training")
    watched = resources.watch(resources._cell(task.models[0], task.data[0], full, SETTINGS.__class__(epochs=2), 0))
    seconds = [second for second, _, _ in watched.looks]
    assert seconds
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    # torch and its libraries are loaded before
    assert watched.start > 50e6
    assert all(resident > 50e6 and percent >= 0 for _, resident, percent in watched.looks)
    assert sum(percent for _, _, percent in watched.looks) > 0


def test_a_run_that_fails_is_an_error(task):
    head = next(method for method in METHODS if method.label == "Transfer learning")
    cell = resources._cell(task.models[0], task.data[0].__class__("no/such/folder"), head, SETTINGS, 0)
    with pytest.raises(TrainingError, match="no/such/folder"):
        resources.watch(cell)
