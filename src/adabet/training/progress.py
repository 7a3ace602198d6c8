"""Who hears how training goes: a protocol, and a bar for the terminal."""

from typing import Any, Protocol

from adabet.extras import require
from adabet.training.result import EpochRecord


class Progress(Protocol):
    """Gets told what training does; the library itself never prints.

    The calls come in this order: ``start``, then for each epoch some ``step`` and one ``epoch``, then
    ``stop``, also when training fails or is interrupted.
    """

    def start(self, *, epochs: int, first_epoch: int, steps: int | None) -> None:
        """Training begins: at ``first_epoch`` (from 1), with so many steps an epoch if that is known."""

    def step(self, *, epoch: int, step: int, loss: float) -> None:
        """A step is done, both counted from 1."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch and its validation are done."""

    def stop(self) -> None:
        """Training is over."""


class TerminalProgress:
    """A bar over all steps, and a line per epoch above it, on standard error.

    Args:
        console: a ``rich.console.Console`` to draw on, standard error if None.
    """

    def __init__(self, console: Any = None) -> None:
        rich = require("rich.progress", "a progress bar")
        self._bar = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("loss {task.fields[loss]:.4f}"),
            console=console or require("rich.console", "a progress bar").Console(stderr=True),
            transient=True,
        )
        self._epochs = 0
        self._task: Any = None

    def start(self, *, epochs: int, first_epoch: int, steps: int | None) -> None:
        """Draw the bar."""
        self._epochs = epochs
        total = None if steps is None else epochs * steps
        done = 0 if steps is None else (first_epoch - 1) * steps
        self._bar.start()
        self._task = self._bar.add_task(f"epoch {first_epoch}/{epochs}", total=total, completed=done, loss=0.0)

    def step(self, *, epoch: int, step: int, loss: float) -> None:  # noqa: ARG002 - part of the protocol
        """Move the bar on."""
        self._bar.update(self._task, advance=1, loss=loss, description=f"epoch {epoch}/{self._epochs}")

    def epoch(self, record: EpochRecord) -> None:
        """Print the epoch's line above the bar."""
        figures = [f"train loss {record.train_loss:.4f}"]
        if record.val_loss is not None:
            figures.append(f"val loss {record.val_loss:.4f}")
        figures += [f"val {name} {value:.4f}" for name, value in record.val_metrics.items()]
        self._bar.console.print(
            f"epoch {record.epoch}/{self._epochs}  {'  '.join(figures)}  {record.seconds:.1f} s",
            highlight=False,
        )

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()
