"""The same cells on a Ray cluster: each is a task with its resources stated, and only this process writes results."""

import socket
from collections import Counter
from dataclasses import asdict
from functools import cache
from types import TracebackType
from typing import Any, Self

from adabet.errors import OptionError
from adabet.experiments.outcome import Done
from adabet.experiments.work import Job, Workplace
from adabet.extras import require
from adabet.sizes import format_size

PATIENCE = 10
"""Seconds that a cluster gets to answer."""

ATTEMPTS = 4
"""How often a cell is handed out at most when its worker or node is lost."""


class RayPool:
    """Runs cells as tasks on a Ray cluster; one whose worker or node is lost is handed out again.

    Every node needs adabet, and the data and weights at the same paths.

    Args:
        address: of the cluster, such as ``"auto"`` or ``"ray://head:10001"``.
        threads: CPUs that a cell takes, and torch's threads in it.
        gpus: that a cell takes.
        memory: bytes that a cell takes.

    Attributes:
        lost: how many times a cell was handed out again.

    Raises:
        OptionError: if a number makes no sense; on entering, if there is no such cluster.
        MissingExtraError: if Ray is not installed.
    """

    def __init__(self, address: str, *, threads: int = 1, gpus: float = 0, memory: int = 2 * 10**9) -> None:
        if threads < 1 or gpus < 0 or memory < 1:
            raise OptionError(f"expected threads of at least 1, gpus from 0 up, some memory; got {threads}, {gpus}")
        self._ray = require("ray", "a comparison on a cluster")
        self.threads, self._address, self._gpus, self._memory = threads, address, gpus, memory
        self._tasks: dict[Any, Job] = {}
        self._attempts: Counter[str] = Counter()
        self.lost = 0
        self._own = False
        self._remote: Any = None

    @property
    def name(self) -> str:
        """Such as "Ray, 1 CPU and 2 GB a cell"."""
        cpus = "1 CPU" if self.threads == 1 else f"{self.threads} CPUs"
        gpus = f", {self._gpus:g} GPU" if self._gpus else ""
        return f"Ray, {cpus}{gpus} and {format_size(self._memory)} a cell"

    @property
    def free(self) -> int:
        """How many more cells the cluster has room for now; at least one is always handed out, and waits there."""
        resources = self._ray.cluster_resources()
        room = [resources.get("CPU", 0) // self.threads, resources.get("memory", 0) // self._memory]
        if self._gpus:
            room.append(resources.get("GPU", 0) // self._gpus)
        return max(1, int(min(room))) - len(self._tasks)

    def __enter__(self) -> Self:
        self._own = not self._ray.is_initialized()
        if self._own:
            try:
                _check_reachable(self._address)
                self._ray.init(self._address, log_to_driver=False, logging_level="error", configure_logging=False)
            except (ValueError, RuntimeError, OSError) as error:
                reason = str(error).partition("\n")[0]
                raise OptionError(
                    f"no Ray cluster at {self._address!r} ({reason}); `ray start --head` starts one"
                ) from error
        self._check_room()
        task = self._ray.remote(_run)
        self._remote = task.options(num_cpus=self.threads, num_gpus=self._gpus, memory=self._memory, max_retries=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._tasks.clear()
        if self._own:
            self._ray.shutdown()

    def _check_room(self) -> None:
        """Refuse what would wait for ever.

        Raises:
            OptionError: if no node has what a cell takes.
        """
        needs = {"CPU": self.threads, "GPU": self._gpus, "memory": self._memory}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(node.get(kind, 0) >= amount for kind, amount in needs.items()) for node in nodes):
            if self._own:
                self._ray.shutdown()
            raise OptionError(f"none of the cluster's {len(nodes)} nodes has what a cell takes: {self.name[5:]}")

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._attempts[job.cell.key] += 1
        self._tasks[self._remote.remote(job.to_dict())] = job

    def finished(self) -> tuple[Job, Done]:
        """Wait for the next job that is done; a lost one is handed out again."""
        while True:
            ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=1.0)
            for task in ready:
                job = self._tasks.pop(task)
                done = self._result(task, job)
                if done is not None:
                    return job, done

    def _result(self, task: Any, job: Job) -> Done | None:
        """What a task gave; None if it was lost and handed out again."""
        errors = self._ray.exceptions
        try:
            return Done(**self._ray.get(task))
        except errors.RayTaskError as error:
            return Done("failed", error=f"the cluster could not run it: {_last_line(error)}", details=str(error))
        except errors.OutOfMemoryError as error:
            return Done("failed", error="the cluster's node ran out of memory, and Ray ended it", details=str(error))
        except errors.RayError as error:
            if self._attempts[job.cell.key] < ATTEMPTS:
                self.lost += 1
                self.submit(job)
                return None
            lost = f"its worker was lost {ATTEMPTS} times ({type(error).__name__})"
            return Done("failed", error=lost, details=str(error))


def _run(values: dict[str, Any]) -> dict[str, Any]:
    """The task: runs on a node of the cluster."""
    return asdict(_workplace().run(values))


@cache
def _workplace() -> Workplace:
    """A Ray worker's own; it lives as long as its process, so models and images stay loaded between tasks."""
    return Workplace()


def _check_reachable(address: str) -> None:
    """Knock at the door of ``host:port`` before Ray does, which would wait for minutes.

    Raises:
        OSError: if nobody answers.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]
