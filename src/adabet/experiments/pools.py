"""Where cells are run: a protocol, and worker processes on this machine."""

import os
import queue
import threading
from types import TracebackType
from typing import Protocol, Self

import torch

from adabet.errors import OptionError
from adabet.experiments.outcome import Done
from adabet.experiments.process import WorkerDied, WorkerProcess
from adabet.experiments.work import Job

MOST_WORKERS = 4
"""By default: each holds its own model and prepared images."""


class Pool(Protocol):
    """Runs jobs somewhere, several at once."""

    @property
    def free(self) -> int:
        """How many more jobs it can take now."""

    @property
    def name(self) -> str:
        """For people: how many workers, where."""

    @property
    def threads(self) -> int:
        """For torch, of each worker."""

    def submit(self, job: Job) -> None:
        """Take a job."""

    def finished(self) -> tuple[Job, Done]:
        """Wait for the next job that is done, in whatever order."""

    def __enter__(self) -> Self:
        """Start the workers."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, whatever they are doing."""


def default_workers() -> int:
    """One for a GPU; on a CPU one for every two cores, up to four."""
    cores = os.cpu_count() or 1
    return 1 if torch.cuda.is_available() else max(1, min(MOST_WORKERS, cores // 2))


class LocalPool:
    """Worker processes on this machine; one that dies is replaced, and its cell is a failed one.

    Args:
        workers: how many; None for `default_workers`.
        threads: of each, for torch; None shares out the cores.

    Raises:
        OptionError: if there is less than one of either.
    """

    def __init__(self, workers: int | None = None, *, threads: int | None = None) -> None:
        self.workers = default_workers() if workers is None else workers
        if self.workers < 1 or (threads is not None and threads < 1):
            raise OptionError(f"expected at least 1 worker and 1 thread, got {workers} and {threads}")
        self.threads = threads or max(1, (os.cpu_count() or 1) // self.workers)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Job, Done]] = queue.SimpleQueue()
        self._running = 0
        self._processes: dict[int, WorkerProcess] = {}
        self._guard = threading.Lock()
        self._closed = False

    @property
    def name(self) -> str:
        """Such as "2 workers of 1 thread"."""
        return f"{_count(self.workers, 'worker')} of {_count(self.threads, 'thread')}"

    @property
    def free(self) -> int:
        """Workers without a job."""
        return self.workers - self._running

    @property
    def process_ids(self) -> list[int]:
        """Of the workers that are there now."""
        with self._guard:
            return [process.process_id for process in self._processes.values()]

    def __enter__(self) -> Self:
        for index in range(self.workers):
            threading.Thread(target=self._serve, args=(index,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._guard:
            self._closed = True
            for process in self._processes.values():
                process.end()
            self._processes.clear()
        for _ in range(self.workers):
            self._jobs.put(None)

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._running += 1
        self._jobs.put(job)

    def finished(self) -> tuple[Job, Done]:
        """Wait for the next job that is done."""
        while True:
            try:
                # a timeout lets Ctrl-C through where a wait without one does not
                job, done = self._done.get(timeout=1.0)
            except queue.Empty:
                continue
            self._running -= 1
            return job, done

    def _serve(self, index: int) -> None:
        """A thread for each worker: hand it jobs, and replace it when it dies."""
        while (job := self._jobs.get()) is not None:
            process = self._process(index)
            if process is None:
                return
            try:
                done = process.run(job.to_dict())
            except WorkerDied as death:
                with self._guard:
                    if self._closed:
                        return
                    self._processes.pop(index).end()
                done = Done("failed", error=str(death), details=death.details)
            self._done.put((job, done))

    def _process(self, index: int) -> WorkerProcess | None:
        """The worker, started if there is none; None once the pool is closed."""
        with self._guard:
            if self._closed:
                return None
            if index not in self._processes:
                self._processes[index] = WorkerProcess(threads=self.threads)
            return self._processes[index]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
