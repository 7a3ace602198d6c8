"""Worker processes: they answer, they die, they are replaced, and they do not outlive who started them."""

import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from adabet.errors import OptionError
from adabet.experiments.outcome import Outcome
from adabet.experiments.pools import LocalPool
from adabet.experiments.process import WorkerProcess, how_it_ended
from adabet.experiments.search import selection_cell, training_cell
from adabet.experiments.work import Job
from tests.experiments.grids import make_grid


def job(images, *, epochs=1, seed=0):
    grid = make_grid(methods=["head"], data=[str(images)], epochs=epochs)
    return Job(training_cell(grid, grid.entries[0], 0.01, seed), None, threads=1)


def until(condition, *, seconds=60):
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def alive(process_id):
    """Whether a process runs; one that has ended and is only waited for does not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")


@needs_proc
def test_a_worker_that_is_killed_fails_its_cell_and_the_next_one_runs(images):
    with LocalPool(1, threads=1) as pool:
        assert pool.free == 1
        pool.submit(job(images, epochs=100_000))
        assert pool.free == 0
        until(lambda: pool.process_ids)
        (first,) = pool.process_ids
        os.kill(first, signal.SIGKILL)
        lost, done = pool.finished()
        assert lost.cell.settings.epochs == 100_000
        assert done.status == "failed"
        assert done.error == "the worker process was killed by SIGKILL: out of memory, or killed by somebody"
        assert pool.free == 1
        pool.submit(job(images))
        _, done = pool.finished()
        assert done.status == "done", done.error + done.details
        assert Outcome.from_dict(done.record).history[0].epoch == 1
        assert done.environment["threads"] == 1
        (second,) = pool.process_ids
        grid = make_grid(methods=["adabet"], data=[str(images)], selection_memory=True)
        pool.submit(Job(selection_cell(grid, grid.entries[0]), None, threads=1))
        _, choosing = pool.finished()
        assert choosing.status == "done", choosing.error + choosing.details
        assert choosing.record["peak"] > 0
    assert second != first
    assert not alive(second)


@needs_proc
def test_leaving_in_the_middle_of_a_cell_ends_the_worker_and_its_files(images, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with LocalPool(1, threads=1) as pool:
        pool.submit(job(images, epochs=100_000))
        until(lambda: pool.process_ids)
        (worker,) = pool.process_ids
        assert alive(worker)
        assert list(tmp_path.glob("adabet-worker-*"))
    assert not alive(worker)
    assert not list(tmp_path.iterdir())


def start_and_say(images, say):
    process = WorkerProcess(threads=1)
    say(process.process_id)
    process.run(job(images, epochs=100_000).to_dict())


@needs_proc
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_worker_ends_when_who_started_it_is_killed_and_its_files_go(images, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    context = multiprocessing.get_context("fork")
    says, end = context.Pipe(duplex=False)
    starter = context.Process(target=start_and_say, args=(images, end.send))
    starter.start()
    worker = says.recv()
    assert alive(worker)
    os.kill(starter.pid, signal.SIGKILL)
    starter.join()
    until(lambda: not alive(worker))
    assert not list(tmp_path.iterdir())


def test_a_worker_that_cannot_start_says_why(images, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with LocalPool(1) as pool:
        pool.submit(job(images))
        _, done = pool.finished()
    assert (done.status, done.error) == ("failed", "the worker process ended with code 1")


@pytest.mark.parametrize(("workers", "threads"), [(0, None), (1, 0)])
def test_needs_a_worker_and_a_thread(workers, threads):
    with pytest.raises(OptionError, match="at least 1 worker and 1 thread"):
        LocalPool(workers, threads=threads)


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert (LocalPool(3).threads, LocalPool(3).name) == (2, "3 workers of 2 threads")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert LocalPool().workers == 4


@pytest.mark.parametrize(
    ("code", "words"), [(0, "ended with code 0"), (-15, "was killed by SIGTERM"), (-9, "was killed by SIGKILL: out")]
)
def test_an_exit_code_in_words(code, words):
    assert how_it_ended(code).startswith(words)
