"""What a worker does with a job, on this machine or on another."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from adabet.experiments.cells import Cell
from adabet.experiments.outcome import Done
from adabet.experiments.process import WorkerDied, WorkerProcess
from adabet.experiments.run_cell import run_cell
from adabet.experiments.site import Sites

GIVES_MEMORY_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Makes glibc return freed memory at once, so that resident memory follows what is in use."""


@dataclass(frozen=True)
class Job:
    """A cell as it goes to a worker.

    Attributes:
        cell: what to run.
        budget: bytes that its method has to keep to, or None.
        threads: for torch.
        alone: whether the worker is a process for this cell alone, in which resident memory can be measured.
    """

    cell: Cell
    budget: int | None
    threads: int
    alone: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON takes it."""
        values = {"budget": self.budget, "threads": self.threads, "alone": self.alone}
        return {"cell": self.cell.to_dict(), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Job":
        """A job from what `to_dict` gave."""
        return cls(**{**values, "cell": Cell.from_dict(values["cell"])})


class Workplace:
    """A worker's inside: keeps the last model and data loaded between jobs."""

    def __init__(self) -> None:
        self._sites = Sites()

    def run(self, values: Mapping[str, Any]) -> Done:
        """Do a job, given as `Job.to_dict` gives it."""
        job = Job.from_dict(values)
        if job.cell.kind == "selection" and not job.alone:
            done = run_alone(job)
        else:
            torch.set_num_threads(job.threads)
            done = run_cell(job.cell, self._sites, budget=job.budget)
        return replace(done, environment={**done.environment, "host": socket.gethostname()})


def run_alone(job: Job) -> Done:
    """Do a job in a fresh process that gives freed memory back at once."""
    with WorkerProcess(threads=job.threads, environment=GIVES_MEMORY_BACK) as process:
        try:
            return process.run(replace(job, alone=True).to_dict())
        except WorkerDied as death:
            return Done("failed", error=str(death), details=death.details)
