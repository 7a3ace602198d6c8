"""What a training run yields: one record per epoch, and the result."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from adabet.errors import CheckpointError, OptionError
from adabet.records import read_record, write_record
from adabet.sizes import format_size

KIND = "adabet/result"


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch did.

    Attributes:
        epoch: counted from 1.
        train_loss: mean over the samples of the epoch, in train mode, while the weights moved.
        val_loss: mean over the validation samples after the epoch, or None without a validation loader.
        val_metrics: the metrics over the validation samples, by name; empty without a validation loader.
        learning_rate: the largest of the layers', the head's apart, at the epoch's last step.
        seconds: wall-clock time of training and validation.
        peak_memory: bytes that the device's allocator had given out at most, or None where it does not tell.
    """

    epoch: int
    train_loss: float
    val_loss: float | None
    val_metrics: Mapping[str, float]
    learning_rate: float
    seconds: float
    peak_memory: int | None

    def to_dict(self) -> dict[str, Any]:
        """Flat and ready for JSON; a metric ``accuracy`` becomes ``val_accuracy``."""
        values = asdict(self)
        metrics = values.pop("val_metrics")
        return values | {f"val_{name}": value for name, value in metrics.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EpochRecord":
        """A record from what `to_dict` gave.

        Raises:
            CheckpointError: if a field is missing.
        """
        plain = ("epoch", "train_loss", "val_loss", "learning_rate", "seconds", "peak_memory")
        missing = [name for name in plain if name not in values]
        if missing:
            raise CheckpointError(f"expected a record of an epoch; it lacks {', '.join(missing)}")
        metrics = {
            name.removeprefix("val_"): value
            for name, value in values.items()
            if name.startswith("val_") and name != "val_loss"
        }
        return cls(**{name: values[name] for name in plain}, val_metrics=metrics)

    def score(self, monitor: str) -> float:
        """What "best" compares, larger is better: a validation metric, or minus the loss for ``"loss"``.

        Raises:
            OptionError: if there is no such metric.
        """
        if monitor == "loss":
            return -(self.train_loss if self.val_loss is None else self.val_loss)
        if monitor not in self.val_metrics:
            known = ", ".join(["loss", *self.val_metrics])
            raise OptionError(f"expected monitor to be one of {known}; got {monitor!r}")
        return self.val_metrics[monitor]


def best_record(history: tuple[EpochRecord, ...], monitor: str) -> EpochRecord:
    """The epoch with the best score; of equals the one with the lower validation loss, then the earliest."""

    def rank(record: EpochRecord) -> tuple[float, float, int]:
        return record.score(monitor), -(record.val_loss or 0.0), -record.epoch

    return max(history, key=rank)


def last_improvement(history: tuple[EpochRecord, ...], monitor: str) -> int:
    """The epoch at which the score last rose above all before; a lower loss at the same score is no rise."""
    return max(history, key=lambda record: (record.score(monitor), -record.epoch)).epoch


@dataclass(frozen=True)
class FitResult:
    """What `adabet.fit` did.

    Attributes:
        method: what chose the layers.
        layers: names of the layers that trained at any time, the head included.
        trained_parameters: number of elements that trained, at most at one time.
        model_parameters: number of elements of the whole model.
        monitor: what "best" means: a validation metric, or ``"loss"``.
        history: one record an epoch.
        kept: whether the model now holds the weights of the ``"best"`` or of the ``"last"`` epoch.
        stopped_early: whether training ended before its epochs because validation no longer improved.
        run_dir: the run folder, if there is one.
        turns: how many selections trained one after the other.

    Examples:
        >>> record = EpochRecord(1, 0.9, 0.7, {"accuracy": 0.75}, 1e-3, 12.0, None)
        >>> result = FitResult("adabet", ("conv", "head"), 120, 1200, "accuracy", (record,), "best")
        >>> print(result)
        adabet: 2 layers, 120 of 1,200 parameters (10.0 %) trained for 1 epoch in 12 s
        best epoch 1: accuracy 0.7500, validation loss 0.7000, training loss 0.9000
        >>> FitResult.from_json(result.to_json()) == result
        True
    """

    method: str
    layers: tuple[str, ...]
    trained_parameters: int
    model_parameters: int
    monitor: str
    history: tuple[EpochRecord, ...] = field(repr=False)
    kept: str
    stopped_early: bool = False
    run_dir: str | None = None
    turns: int = 1

    @property
    def best(self) -> EpochRecord:
        """The best epoch by validation (by training loss where there is no validation)."""
        return best_record(self.history, self.monitor)

    @property
    def last(self) -> EpochRecord:
        """The last epoch."""
        return self.history[-1]

    @property
    def seconds(self) -> float:
        """Wall-clock time of all epochs, those before an interruption included."""
        return math.fsum(record.seconds for record in self.history)

    @property
    def peak_memory(self) -> int | None:
        """Largest peak of any epoch, bytes, or None where the device does not tell."""
        peaks = [record.peak_memory for record in self.history if record.peak_memory is not None]
        return max(peaks, default=None)

    def __str__(self) -> str:
        epochs = "1 epoch" if len(self.history) == 1 else f"{len(self.history)} epochs"
        share = 100 * self.trained_parameters / self.model_parameters
        lines = [
            f"{self.method}: {len(self.layers)} layers, {self.trained_parameters:,} of "
            f"{self.model_parameters:,} parameters ({share:.1f} %) trained for {epochs} "
            f"in {self.seconds:.0f} s",
            f"best {_summary(self.best)}",
        ]
        if self.last != self.best:
            lines.append(f"last {_summary(self.last)}")
        if self.turns > 1:
            lines.append(f"{self.turns} selections one after the other")
        if self.stopped_early:
            epoch = last_improvement(self.history, self.monitor)
            lines.append(f"stopped early: {self.monitor} did not improve after epoch {epoch}")
        if self.peak_memory is not None:
            lines.append(f"peak memory {format_size(self.peak_memory)}")
        if self.run_dir is not None:
            lines.append(f"run folder {self.run_dir}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The result as JSON text."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return write_record(KIND, values | {"history": [record.to_dict() for record in self.history]})

    @classmethod
    def from_json(cls, text: str) -> "FitResult":
        """A result from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no result, or of another version.
        """
        values = read_record(KIND, text)
        try:
            history = tuple(EpochRecord.from_dict(record) for record in values["history"])
            return cls(**{**values, "history": history, "layers": tuple(values["layers"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"this training result lacks or misnames a field: {error}") from error


def _summary(record: EpochRecord) -> str:
    figures = [f"{name} {value:.4f}" for name, value in record.val_metrics.items()]
    if record.val_loss is not None:
        figures.append(f"validation loss {record.val_loss:.4f}")
    figures.append(f"training loss {record.train_loss:.4f}")
    return f"epoch {record.epoch}: {', '.join(figures)}"
