"""What a cell gave, as it is stored."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from adabet.errors import CheckpointError
from adabet.memory import MemoryReport
from adabet.training.result import EpochRecord

Status = Literal["done", "diverged", "failed"]


@dataclass(frozen=True)
class TrainedLayer:
    """A layer that trained.

    Attributes:
        name: its path in the model.
        position: among the candidates in the order of a forward pass, from 0; None for the head, and where the
            method names no candidates.
        place: in the method's ranking, the best being 1; None where it ranks no layers.
        score: what the method measured; None where it ranks no layers.
        turns: in how many of the run's selections it was.
    """

    name: str
    position: int | None
    place: int | None
    score: float | None
    turns: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a training run gave.

    Attributes:
        monitor: the metric that says what is best, ``"accuracy"``.
        val: metrics of the best epoch on validation, in [0, 1].
        test: metrics on test of the weights that were kept, in [0, 1], and the mean ``loss``.
        best_epoch: from 1.
        history: one record an epoch.
        memory: of the first selection's step, and of inference; None where the device does not tell.
        layers: that trained at any time, in the order of the model, the head included.
        parameters: elements that trained, at most at one time.
        model_parameters: elements of the whole model.
        turns: how many selections trained one after the other.
        budget: bytes that the method was to keep to, or None.
        selection_seconds: processor time of choosing; None for methods that choose while training.
        selection_wall_seconds: the same by the clock.
        step_seconds: processor time of a step, data loading included, median.
        step_wall_seconds: the same by the clock.
        training_seconds: processor time of all of training, selecting again and validation included.
        training_wall_seconds: the same by the clock.
        test_images: how many were tested on; None where it was not noted.
    """

    monitor: str
    val: Mapping[str, float]
    test: Mapping[str, float]
    best_epoch: int
    history: tuple[EpochRecord, ...] = field(repr=False)
    memory: MemoryReport | None = field(repr=False)
    layers: tuple[TrainedLayer, ...] = field(repr=False)
    parameters: int
    model_parameters: int
    turns: int
    budget: int | None
    selection_seconds: float | None
    selection_wall_seconds: float | None
    step_seconds: float
    step_wall_seconds: float
    training_seconds: float
    training_wall_seconds: float
    test_images: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON takes it."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values | {
            "history": [record.to_dict() for record in self.history],
            "memory": None if self.memory is None else json.loads(self.memory.to_json()),
            "layers": [asdict(layer) for layer in self.layers],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Outcome":
        """An outcome from what `to_dict` gave.

        Raises:
            CheckpointError: if a field is missing or unknown.
        """
        try:
            memory = None if values["memory"] is None else MemoryReport.from_json(json.dumps(values["memory"]))
            history = tuple(EpochRecord.from_dict(record) for record in values["history"])
            layers = tuple(TrainedLayer(**layer) for layer in values["layers"])
            return cls(**{**values, "memory": memory, "history": history, "layers": layers})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"an outcome in these results lacks or misnames a field: {error}") from error


@dataclass(frozen=True)
class SelectionCost:
    """What choosing takes, in a process of its own that gives freed memory back.

    Attributes:
        peak: bytes by which memory rose: resident memory, on CUDA what its allocator gave out; None if nobody tells.
        seconds: processor time.
        wall_seconds: the same by the clock.
    """

    peak: int | None
    seconds: float
    wall_seconds: float


@dataclass(frozen=True)
class Done:
    """What a worker hands back for a cell.

    Attributes:
        status: ``"done"``; ``"diverged"`` for a loss that was not finite; ``"failed"``.
        record: of an `Outcome`, a `SelectionCost`, or ``{"bytes": n}`` of a budget; empty unless done.
        error: one line, unless done.
        details: the whole traceback of an error that was not expected, or empty.
        environment: versions, device, host and threads.
        started: seconds since 1970.
        seconds: by the clock, loading included.
    """

    status: Status
    record: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    details: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    started: float = 0.0
    seconds: float = 0.0
