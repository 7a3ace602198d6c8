"""Small grids, results that are known beforehand, and a pool that runs nothing."""

from collections.abc import Callable
from typing import Any

from adabet.experiments.cells import Cell
from adabet.experiments.grid import Grid
from adabet.experiments.outcome import Done
from adabet.experiments.work import Job
from adabet.training.result import EpochRecord

RATES = (0.001, 0.01, 0.1)


def make_grid(**values: Any) -> Grid:
    """Two methods on the demo model, two seeds, three rates, nothing measured in processes of its own."""
    plain: dict[str, Any] = {
        "models": ["demo"],
        "data": ["images"],
        "methods": ["adabet", "head"],
        "learning_rates": RATES,
        "seeds": 2,
        "selection_memory": False,
    }
    return Grid.from_dict(plain | values)


def record(val: float, test: float, *, val_loss: float = 1.0, peak: int = 1000) -> dict[str, Any]:
    """What a training run gives, as it is stored."""
    epoch = EpochRecord(1, 1.5, val_loss, {"accuracy": val}, 0.01, 2.0, None)
    return {
        "monitor": "accuracy",
        "val": {"accuracy": val},
        "test": {"accuracy": test, "loss": 0.7},
        "best_epoch": 1,
        "history": [epoch.to_dict()],
        "memory": memory(peak),
        "layers": [{"name": "conv", "position": 0, "place": 1, "score": 3.0, "turns": 1}],
        "parameters": 120,
        "model_parameters": 1200,
        "turns": 1,
        "budget": None,
        "selection_seconds": 0.5,
        "selection_wall_seconds": 0.6,
        "step_seconds": 0.02,
        "step_wall_seconds": 0.03,
        "training_seconds": 4.0,
        "training_wall_seconds": 5.0,
    }


def memory(peak: int) -> dict[str, Any]:
    """A memory report whose step takes so many bytes."""
    zero = {"weights": 0, "inputs": 0, "gradients": 0, "optimizer": 0, "saved": 0}
    return {
        **{"kind": "adabet/memory", "version": 1, "model": "Net", "device": "cpu", "batch_size": 8, "micro_batch": 8},
        **{"lean": True, "recompute": False, "optimizer": "sgd", "trainable": 120, "saved": 0, "layers": {}},
        **{"training": {**zero, "workspace": peak, "resident": None}, "inference": None},
    }


def scored(score: Callable[[Cell], float]) -> Callable[[Job], Done]:
    """Answers for jobs: training runs get the score on validation and test, the others some bytes."""

    def answer(job: Job) -> Done:
        if job.cell.kind == "budget":
            return Done("done", {"bytes": 5000})
        if job.cell.kind == "selection":
            return Done("done", {"peak": 4000, "seconds": 0.1, "wall_seconds": 0.1})
        value = score(job.cell)
        return Done("done", record(value, value), started=1.0, seconds=2.0)

    return answer


class FakePool:
    """Answers jobs in an order of its own; can be interrupted in the middle."""

    name = "2 workers of 1 thread"
    threads = 1

    def __init__(
        self,
        answer: Callable[[Job], Done],
        *,
        workers: int = 2,
        last_first: bool = False,
        stop_after: int | None = None,
    ) -> None:
        self.answer, self.workers, self.last_first, self.stop_after = answer, workers, last_first, stop_after
        self.waiting: list[Job] = []
        self.seen: list[Job] = []
        self.ended = False

    @property
    def free(self) -> int:
        return self.workers - len(self.waiting)

    def __enter__(self) -> "FakePool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended = True

    def submit(self, job: Job) -> None:
        assert self.free > 0
        self.waiting.append(job)
        self.seen.append(job)

    def finished(self) -> tuple[Job, Done]:
        if self.stop_after is not None and len(self.seen) - len(self.waiting) >= self.stop_after:
            raise KeyboardInterrupt
        job = self.waiting.pop(-1 if self.last_first else 0)
        return job, self.answer(job)
