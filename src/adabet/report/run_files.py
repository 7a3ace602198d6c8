"""What a run folder holds, finished or not, read as a whole."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from adabet.errors import AdabetError, CheckpointError
from adabet.memory import MemoryReport
from adabet.planning import Plan
from adabet.ranking import Ranking
from adabet.records import read_record
from adabet.report.task import RANKING, TASK, Task
from adabet.selection import Selection
from adabet.training.course import TurnRecord
from adabet.training.result import EpochRecord, FitResult, best_record
from adabet.training.run_folder import KIND, RunFolder

TEST = "test.json"
"""What the command line found on the test images."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it.

    Attributes:
        path: the folder.
        options: what it was started with.
        environment: versions and device.
        selection: what trains, or trained first; None where the run was stopped before it was written.
        history: a record for each epoch that is done.
        turns: one for each selection of a method that selects again.
        memory: what a step allocated, None where the device does not tell.
        plan: for a budget, or None.
        ranking: of all layers, or None if it was not kept.
        task: model and data by name, or None if it was not kept.
        test: metrics on the test images, or None.
        result: of a finished run, otherwise None.
        delta: file name of what the model holds in the end, or of the best epoch so far; None if there is none.
    """

    path: Path
    options: Mapping[str, Any]
    environment: Mapping[str, Any]
    selection: Selection | None
    history: tuple[EpochRecord, ...]
    turns: tuple[TurnRecord, ...]
    memory: MemoryReport | None
    plan: Plan | None
    ranking: Ranking | None
    task: Task | None
    test: Mapping[str, float] | None
    result: FitResult | None
    delta: str | None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.result is not None

    @property
    def monitor(self) -> str:
        """What "best" means in this run."""
        if self.result is not None:
            return self.result.monitor
        given = self.options.get("monitor")
        if given is not None:
            return str(given)
        return "accuracy" if self.history and "accuracy" in self.history[0].val_metrics else "loss"

    @property
    def best(self) -> EpochRecord | None:
        """The best epoch so far."""
        return best_record(self.history, self.monitor) if self.history else None

    @property
    def method(self) -> str:
        """Who chose."""
        return str(self.options.get("method", "unknown")) if self.selection is None else self.selection.method


def read_run(path: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        CheckpointError: if it is none, or one of its files is damaged or of another version; names the file.
    """
    run = RunFolder(path)
    if not run.config.is_file():
        raise CheckpointError(f"expected a run folder, {path} has no {run.config.name}")
    config = _read(run.config, lambda text: read_record(KIND, text))
    if config is None or not all(isinstance(config.get(name), dict) for name in ("options", "environment")):
        raise CheckpointError(f"{run.config} cannot be used: it lacks options or environment")
    result = _read(run.result, FitResult.from_json)
    history = _read(run.metrics, lambda text: tuple(map(EpochRecord.from_dict, _lines(text)))) or ()
    kept = run.best if result is None or result.kept == "best" else run.last
    return RunRecord(
        path=path,
        options=config["options"],
        environment=config["environment"],
        selection=_read(run.selection, Selection.from_json),
        history=history if result is None else result.history,
        turns=_read(run.turns, lambda text: tuple(map(_turn, _lines(text)))) or (),
        memory=_read(run.memory, MemoryReport.from_json),
        plan=_read(run.plan, Plan.from_json),
        ranking=_read(path / RANKING, Ranking.from_json),
        task=_read(path / TASK, Task.from_json),
        test=_read(path / TEST, _metrics),
        result=result,
        delta=kept.name if kept.is_file() else None,
    )


def _read(path: Path, parse: Callable[[str], Value]) -> Value | None:
    """A file's value, None if it is not there."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"could not read {path}: {error.strerror}") from error
    except (AdabetError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def _lines(text: str) -> list[Mapping[str, Any]]:
    values = [json.loads(line) for line in text.splitlines() if line]
    if not all(isinstance(value, dict) for value in values):
        raise CheckpointError("expected a JSON object in each line")
    return values


def _turn(values: Mapping[str, Any]) -> TurnRecord:
    return TurnRecord(**{**values, "layers": tuple(values["layers"])})


def _metrics(text: str) -> Mapping[str, float]:
    return {str(name): float(value) for name, value in json.loads(text).items()}
