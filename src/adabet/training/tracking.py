"""Experiment trackers: what training tells, passed on to whatever accelerate knows."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from adabet.errors import MissingExtraError, OptionError, UnknownNameError
from adabet.extras import require
from adabet.training.progress import Progress
from adabet.training.result import EpochRecord

PURPOSE = "tracking a run"

PROJECT = "adabet"
"""What a tracker that keeps no files of its own files a run under."""


class Tracking:
    """Passes losses, metrics and times on to a tracker of accelerate's; one step of it is one training step.

    Args:
        tracker: what `open_tracker` gave.
        options: of the run, noted by the tracker as its configuration.
    """

    def __init__(self, tracker: Any, options: Mapping[str, Any]) -> None:
        self._tracker = tracker
        self._options = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in options.items()
            if value is not None
        }
        self._done = 0

    def start(self, *, epochs: int, first_epoch: int, steps: int | None) -> None:  # noqa: ARG002 - part of the protocol
        """Open the tracker and note the options."""
        self._done = (first_epoch - 1) * (steps or 0)
        self._tracker.start()
        self._tracker.store_init_configuration(self._options)

    def step(self, *, epoch: int, step: int, loss: float) -> None:  # noqa: ARG002 - part of the protocol
        """Pass the step's loss on."""
        self._done += 1
        self._tracker.log({"step_loss": loss}, step=self._done)

    def epoch(self, record: EpochRecord) -> None:
        """Pass the epoch's record on, at its last step."""
        self._tracker.log({name: value for name, value in record.to_dict().items() if value is not None}, self._done)

    def stop(self) -> None:
        """Close the tracker."""
        self._tracker.finish()


class Several:
    """Tells several what training does, in order."""

    def __init__(self, listeners: Sequence[Progress]) -> None:
        self._listeners = tuple(listeners)

    def start(self, *, epochs: int, first_epoch: int, steps: int | None) -> None:
        """Training begins."""
        for listener in self._listeners:
            listener.start(epochs=epochs, first_epoch=first_epoch, steps=steps)

    def step(self, *, epoch: int, step: int, loss: float) -> None:
        """A step is done."""
        for listener in self._listeners:
            listener.step(epoch=epoch, step=step, loss=loss)

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is done."""
        for listener in self._listeners:
            listener.epoch(record)

    def stop(self) -> None:
        """Training is over."""
        for listener in self._listeners:
            listener.stop()


def open_tracker(tracker: Any, run_dir: str | os.PathLike[str] | None) -> Any:
    """A tracker that has not started yet.

    Args:
        tracker: a name that accelerate knows, such as ``"tensorboard"``, or an ``accelerate.tracking.GeneralTracker``.
        run_dir: where trackers that write files do so, in a folder of their name.

    Raises:
        UnknownNameError: if accelerate knows no such tracker.
        MissingExtraError: if it is not installed.
        OptionError: if it writes files and there is no ``run_dir``.
    """
    library = require("accelerate.tracking", PURPOSE)
    if isinstance(tracker, library.GeneralTracker):
        return tracker
    kinds = library.LOGGER_TYPE_TO_CLASS
    if tracker not in kinds:
        raise UnknownNameError("tracker", str(tracker), kinds)
    if tracker not in {str(kind) for kind in library.get_available_trackers()}:
        wanted = "'adabet[tracking]'" if tracker == "tensorboard" else tracker
        raise MissingExtraError(f"{PURPOSE} needs {tracker}, which is not installed: pip install {wanted}")
    if not kinds[tracker].requires_logging_directory:
        return kinds[tracker](PROJECT)
    if run_dir is None:
        raise OptionError(f"expected run_dir, the folder that tracker {tracker!r} writes into")
    return kinds[tracker](tracker, logging_dir=run_dir)
