"""Every test runs with a deadline: what hangs fails."""

import signal
import sys
import threading
import time
import weakref
from contextlib import contextmanager

import pytest
import torch

from adabet.errors import ActivationError
from adabet.topology.lockstep import Lockstep

DEADLINE_SECONDS = 20


@pytest.fixture(autouse=True)
def deadline():
    def stop(number, frame):
        raise TimeoutError(f"still running after {DEADLINE_SECONDS} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_SECONDS, 0.1)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, former)


@contextmanager
def no_thread_left():
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < until:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def walk(steps, log, index, points, *, fails_after=None):
    def run():
        for number, point in enumerate(points):
            log.append((index, point))
            if number == fails_after:
                raise ZeroDivisionError(f"runner {index}")
            steps.arrive(point, (index, point))
        log.append((index, "end"))

    return run


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_all_meet_at_every_point_in_order(count):
    met, log = [], []
    steps = Lockstep(lambda point, values: met.append((point, values)))
    with no_thread_left():
        steps.run([walk(steps, log, index, "abba") for index in range(count)])
    assert met == [(point, [(index, point) for index in range(count)]) for point in "abba"]
    assert log == [(index, point) for point in (*"abba", "end") for index in range(count)]


def test_only_one_runs_at_a_time():
    running, most = 0, 0

    def work():
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.001)
        running -= 1

    steps = Lockstep(lambda *_: work())

    def run():
        for point in "abc":
            work()
            steps.arrive(point, None)
        work()

    steps.run([run] * 6)
    assert most == 1


def test_each_knows_its_index():
    found = []
    steps = Lockstep(lambda *_: None)

    def run():
        steps.arrive("a", None)
        found.append(steps.index)

    steps.run([run] * 4)
    assert found == [0, 1, 2, 3]


def test_without_points_each_runs_once():
    log = []
    steps = Lockstep(lambda *_: pytest.fail("nobody arrived"))
    steps.run([lambda i=i: log.append(i) for i in range(3)])
    assert log == [0, 1, 2]


def test_values_are_let_go_after_the_meeting():
    class Value:
        pass

    left = []
    steps = Lockstep(lambda *_: None)

    def run():
        value = Value()
        reference = weakref.ref(value)
        steps.arrive("a", value)
        del value
        left.append(reference())

    steps.run([run] * 3)
    assert left == [None] * 3


class TestFailures:
    @pytest.mark.parametrize("who", [0, 1, 3])
    @pytest.mark.parametrize("after", [0, 2])
    def test_of_one_runner_end_all(self, who, after):
        log = []
        steps = Lockstep(lambda *_: None)
        runners = [walk(steps, log, i, "abcd", fails_after=after if i == who else None) for i in range(4)]
        with no_thread_left(), pytest.raises(ZeroDivisionError, match=f"runner {who}"):
            steps.run(runners)
        assert not [entry for entry in log if entry[1] in ("d", "end")]

    def test_of_the_meeting_end_all(self):
        def meet(point, values):
            raise ArithmeticError(point)

        steps = Lockstep(meet)
        with no_thread_left(), pytest.raises(ArithmeticError, match="a"):
            steps.run([walk(steps, [], index, "ab") for index in range(3)])

    def test_that_a_model_swallows_do_not_hang(self):
        steps = Lockstep(lambda *_: None)

        def stubborn():
            for point in "abc":
                try:
                    steps.arrive(point, None)
                except Exception:
                    continue

        def failing():
            steps.arrive("a", None)
            raise ZeroDivisionError

        with no_thread_left(), pytest.raises(ZeroDivisionError):
            steps.run([stubborn, failing, stubborn])

    def test_the_first_is_the_one_that_is_raised(self):
        steps = Lockstep(lambda *_: None)

        def cleaning():
            try:
                steps.arrive("a", None)
            finally:
                raise KeyError("while cleaning up")

        def failing():
            raise ZeroDivisionError

        with no_thread_left(), pytest.raises(ZeroDivisionError):
            steps.run([cleaning, failing])

    def test_it_can_be_used_again(self):
        met = []
        steps = Lockstep(lambda point, values: met.append(point))
        with pytest.raises(ZeroDivisionError):
            steps.run([walk(steps, [], 0, "a"), walk(steps, [], 1, "a", fails_after=0)])
        steps.run([walk(steps, [], index, "xy") for index in range(2)])
        assert met == ["x", "y"]

    @pytest.mark.parametrize("paths", [("ab", "ac"), ("ab", "a"), ("a", "ab"), ("", "a"), ("ab", "ba")])
    def test_unequal_paths(self, paths):
        steps = Lockstep(lambda *_: None)
        with no_thread_left(), pytest.raises(ActivationError, match="does not run alike for all batches"):
            steps.run([walk(steps, [], index, path) for index, path in enumerate(paths)])

    @pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
    def test_interrupt_waits_for_what_is_running(self):
        steps = Lockstep(lambda *_: None)
        unwound = []

        def endless():
            try:
                while True:
                    time.sleep(0.2)  # until the main thread waits
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                    time.sleep(0.2)
                    steps.arrive("a", None)
            finally:
                unwound.append(steps.index)

        # a process that was started in the background of a shell ignores the signal
        former = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with no_thread_left():
                with pytest.raises(KeyboardInterrupt):
                    steps.run([endless] * 3)
                assert unwound == [0]
        finally:
            signal.signal(signal.SIGINT, former)


class TestSettings:
    @pytest.mark.parametrize("enabled", [True, False])
    def test_gradients(self, enabled):
        found = []
        steps = Lockstep(lambda *_: found.append(torch.is_grad_enabled()))

        def run():
            found.append(torch.is_grad_enabled())
            steps.arrive("a", None)

        with torch.set_grad_enabled(enabled):
            steps.run([run] * 2)
        assert found == [enabled] * 3

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype):
        found = []
        steps = Lockstep(lambda *_: None)
        with torch.autocast("cpu", dtype=dtype):
            steps.run([lambda: found.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)] * 2)
        steps.run([lambda: found.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)])
        assert found == [dtype, dtype, torch.float32]
