"""Before the first step: options are checked, the run folder is opened, the selection is made."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from adabet.errors import CheckpointError, DataError, OptionError
from adabet.memory import MemoryReport
from adabet.selection import Selection
from adabet.training.batches import length_of
from adabet.training.checkpoint import Checkpoint, read_checkpoint
from adabet.training.config import environment
from adabet.training.processes import Processes
from adabet.training.run_folder import RunFolder
from adabet.training.schedule import Schedule, constant
from adabet.training.weights import check_tensors, put_tensors, tensors_named


def check_options(
    *, epochs: int, early_stop: int | None, keep: str, monitor: str | None, metrics: Iterable[str], validated: bool
) -> None:
    """Refuse options that make no sense.

    Raises:
        OptionError: naming the option.
    """
    if epochs < 1:
        raise OptionError(f"expected at least 1 epoch, got {epochs}")
    if early_stop is not None and (early_stop < 1 or not validated):
        raise OptionError(f"expected early_stop of at least 1 epoch, with a val_loader; got {early_stop}")
    if keep not in ("best", "last"):
        raise OptionError(f"expected keep to be 'best' or 'last', got {keep!r}")
    scores = ["loss", *(metrics if validated else ())]
    if monitor is not None and monitor not in scores:
        raise OptionError(f"expected monitor to be one of {', '.join(scores)}; got {monitor!r}")


def check_loaders(train_loader: Iterable[Any], val_loader: Iterable[Any] | None, schedule: Schedule) -> None:
    """Refuse loaders that are empty, can be iterated once only, or do not know a length that is needed.

    Raises:
        DataError: naming the loader.
        OptionError: if the schedule needs the number of steps and the loader does not know it.
    """
    for name, loader in (("training", train_loader), ("validation", val_loader)):
        if isinstance(loader, Iterator):
            raise DataError(f"the {name} loader can be iterated once only; give a DataLoader or a list of batches")
        if loader is not None and length_of(loader) == 0:
            raise DataError(f"the {name} loader is empty; give one with at least one batch")
    if schedule is not constant and length_of(train_loader) is None:
        raise OptionError("expected a training loader with a length; give one, or take schedule='constant'")


def open_run(
    run_dir: Path | None, options: Mapping[str, Any], processes: Processes, *, resume: bool
) -> RunFolder | None:
    """The run folder, checked by the main process; all processes have to see the same folder.

    Raises:
        OptionError: if there is nothing to resume since no folder was given.
        RunError: see `RunFolder.free` and `RunFolder.resume`.
    """
    if run_dir is None:
        if resume:
            raise OptionError("expected run_dir, the folder of the run to resume")
        return None
    if processes.main:
        if resume:
            RunFolder.resume(run_dir, options)
        else:
            RunFolder.free(run_dir)
    processes.wait()
    return RunFolder(run_dir)


def start_run(
    run: RunFolder | None,
    options: Mapping[str, Any],
    selection: Selection,
    measure: Callable[[], MemoryReport],
    processes: Processes,
    *,
    plan: str | None = None,
) -> None:
    """Measure what a step allocates, where torch can tell, and write the run's first files."""
    if run is not None and processes.main:
        known = run.memory.is_file() or processes.device.type not in ("cpu", "cuda")
        memory = None if known else measure().to_json()
        run.start(options, environment(processes.device), selection=selection.to_json(), plan=plan, memory=memory)
    processes.wait()


def checkpoint_of(run: RunFolder | None) -> Checkpoint | None:
    """The run's checkpoint, if it has one.

    Raises:
        CheckpointError: if it is damaged.
    """
    return None if run is None or not run.checkpoint.is_file() else read_checkpoint(run.checkpoint)


def restore_weights(
    checkpoint: Checkpoint | None, run: RunFolder | None, model: nn.Module, names: Iterable[str]
) -> None:
    """Put a checkpoint's weights into the model.

    Args:
        checkpoint: of this run, or None.
        run: where it lies, for messages.
        model: with its base weights.
        names: full names of the tensors that have trained.

    Raises:
        CheckpointError: if it was not made on this model; the model is unchanged then.
    """
    if checkpoint is None or run is None:
        return
    missing = tensors_named(model, names).keys() - checkpoint.weights.keys()
    if missing:
        raise CheckpointError(f"{run.checkpoint} does not hold {min(missing)}, which this run trains")
    check_tensors(model, checkpoint.weights, checkpoint.base, str(run.checkpoint))
    put_tensors(model, checkpoint.weights)
