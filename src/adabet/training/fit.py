"""`fit`: choose what trains, train it, and keep the result."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn

from adabet.errors import OptionError
from adabet.files import write_text
from adabet.layers import on_bare_model
from adabet.memory import MemoryReport, measure_memory
from adabet.methods import Turn
from adabet.planning import Plan
from adabet.selection import Selection
from adabet.step import Loss
from adabet.training.batches import length_of
from adabet.training.checkpoint import Checkpoint
from adabet.training.choosing import Chooser
from adabet.training.config import describe, short_digest
from adabet.training.course import Course
from adabet.training.delta import load_delta
from adabet.training.evaluation import Metric, modes_kept
from adabet.training.loop import Training
from adabet.training.objective import loss_for
from adabet.training.optimizer import OptimizerFactory, check_head_lr_factor, optimizer_factory
from adabet.training.processes import Processes
from adabet.training.progress import Progress
from adabet.training.random_state import random_state_kept, seed_everything
from adabet.training.result import FitResult
from adabet.training.schedule import Schedule, find_schedule
from adabet.training.start import (
    check_loaders,
    check_options,
    checkpoint_of,
    open_run,
    restore_weights,
    start_run,
)
from adabet.training.tracking import Several, Tracking, open_tracker
from adabet.training.weights import BufferWatch, put_tensors, stored_tensors

UNRECORDED = frozenset(
    {
        *("model", "train_loader", "val_loader", "selection", "accelerator", "mixed_precision"),
        *("micro_batch", "recompute", "run_dir", "resume", "progress", "tracker"),
    }
)
"""Arguments of `fit` that a resumed run may change, or that are recorded in another form."""


@on_bare_model
def fit(
    model: nn.Module,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None = None,
    selection: Selection | Plan | None = None,
    *,
    method: str = "adabet",
    layer_ratio: float | None = None,
    channel_ratio: float = 1.0,
    memory: str | float | None = None,
    method_options: Mapping[str, Any] | None = None,
    batch_norm: Literal["eval", "train"] = "eval",
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    monitor: str | None = None,
    optimizer: str | OptimizerFactory = "sgdw",
    lr: float = 1e-3,
    head_lr_factor: float = 1.0,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    schedule: str | Schedule = "cosine",
    epochs: int = 30,
    early_stop: int | None = None,
    keep: Literal["best", "last"] = "best",
    micro_batch: int | None = None,
    lean: bool = True,
    recompute: bool = False,
    mixed_precision: str | None = None,
    accelerator: Any = None,
    seed: int = 0,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    tracker: Any = None,
) -> FitResult:
    """Choose the layers worth training, train only those, and keep what changed.

    The model is adapted in place and stays on accelerate's device; what is frozen for the run is given back
    as it was. The defaults are the paper's: SGD with decoupled weight decay 5e-4 on every trained tensor,
    momentum 0.9, a cosine over all steps, 30 epochs; its batches of 8 belong to the loader.

    A run folder holds ``config.json``, ``selection.json``, ``turns.jsonl`` (a line for each selection of a method
    that selects again while training), ``metrics.jsonl`` (a line per epoch), ``memory.json`` (what a step allocates,
    on a CPU or CUDA), ``plan.json`` where a plan was made, ``checkpoint.safetensors`` (after every epoch,
    without the frozen base), the deltas ``best.safetensors`` (by ``monitor``) and ``last.safetensors`` and
    ``result.json``. A run that was killed, or stopped by Ctrl-C (which is raised on as ``KeyboardInterrupt``), goes
    on after its last whole epoch with ``resume=True`` and the same arguments; on a CPU it ends with the same bits as
    if it had not stopped, as long as all that is random draws from the generators of python, numpy, torch or the
    loaders (``persistent_workers`` keep theirs to themselves).

    Args:
        model: any module, with the head for the task; what is inside is trained, uncompiled, where ``torch.compile``
            made it. It may not be wrapped for several processes or split over them: processes are seen to here.
        train_loader: batches with labels, ``(inputs, labels)`` or mappings; has to be iterable again every
            epoch.
        val_loader: batches to validate on after each epoch; None leaves validation out.
        selection: what to train; None lets ``method`` choose, on the training batches. A plan also says
            ``micro_batch`` and ``recompute``.
        method: name of a method (`adabet.methods`), if there is no ``selection``.
        layer_ratio: share of the layers that it may choose, in [0, 1]; default: the paper's 0.1, or all that fit
            where ``memory`` is given.
        channel_ratio: share of each chosen layer's output channels that train, in (0, 1].
        memory: bytes, or text such as ``"200MB"``, that a step may take at its peak, everything counted. For methods
            that rank layers it is planned for (`adabet.plan`); those that keep to a budget by themselves are told.
        method_options: more options for the method, such as ``{"samples": 80}``.
        batch_norm: ``"eval"``: every batch-norm keeps its running statistics, chosen ones train scale and
            shift; ``"train"``: chosen ones use the batch's statistics and update their own (see
            `adabet.apply`).
        loss: ``loss(outputs, labels)``; default: the loss that the model computes itself if it does, as those
            of transformers do when a mapping holds labels; otherwise cross entropy.
        metrics: functions ``metric(logits, labels)`` by name, larger is better; default: accuracy where each
            sample has a class number.
        monitor: which metric says what "best" is, or ``"loss"``; default: accuracy if there is one, else the
            loss.
        optimizer: ``"sgdw"``, ``"sgd"``, ``"adam"``, ``"adamw"``, or a function that makes one from a list of
            parameters and brings its own options.
        lr: learning rate at the start.
        head_lr_factor: the head's learning rate in units of ``lr``, above 0. The paper's is 1; a new head on
            pre-trained layers often does better with 10.
        weight_decay: for optimizers by name.
        momentum: for ``"sgdw"`` and ``"sgd"``.
        schedule: ``"cosine"``, ``"constant"``, or ``schedule(step, steps)`` that gives the factor on the
            learning rate.
        epochs: passes over the training batches.
        early_stop: end after so many epochs without a better ``monitor``; needs ``val_loader``.
        keep: which epoch's weights the model holds in the end; without validation always the last.
        micro_batch: samples in memory at once, in validation too; the gradient is that of the whole batch.
        lean: keep for the backward pass only what the selection needs.
        recompute: run repeated blocks again in the backward pass instead of keeping what they need.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``; None takes the accelerator's.
        accelerator: an ``accelerate.Accelerator``, such as ``Accelerator(cpu=True)``; None takes the first
            GPU, if any. With several processes (``accelerate launch``) the main one selects and writes, and
            the loaders, torch ``DataLoader`` then, are shared out: the batch is the loader's times the
            processes.
        seed: for the global generators of python, numpy and torch, which it seeds, and for the method.
        run_dir: folder for this run alone; None writes nothing.
        resume: go on with the run in ``run_dir``.
        progress: is told about steps and epochs, such as `adabet.training.progress.TerminalProgress`.
        tracker: ``"tensorboard"`` (into the run folder), any other that accelerate knows by name, or an
            ``accelerate.tracking.GeneralTracker``; is told losses, metrics and times.

    Returns:
        What happened, epoch by epoch.

    Raises:
        OptionError: if an option is out of range.
        DataError: if a loader is empty, its batches differ in kind or a label is not one of the model's
            classes.
        LayerError: if nothing would train.
        BudgetError: if not even the head fits into ``memory``.
        SelectionError: if the selection is for another model.
        TrainingError: if a loss is not finite; names epoch and step, and the last checkpoint stays as it is.
        RunError: if ``run_dir`` holds a run and ``resume`` is False, holds none and it is True, or was
            started with other options.
        CheckpointError: if the checkpoint to resume from is damaged or does not fit the model.
        StorageError: if the disk refuses; the last checkpoint stays whole.
    """
    arguments = dict(locals())
    if isinstance(selection, Plan) and (micro_batch is not None or recompute or not lean or batch_norm != "eval"):
        raise OptionError("expected a plan without micro_batch, recompute, lean and batch_norm: the plan says them")
    if memory is not None and (not lean or batch_norm != "eval"):
        raise OptionError("expected lean and batch_norm='eval' with memory: budgets are measured that way")
    check_head_lr_factor(head_lr_factor)
    rate = find_schedule(schedule)
    check_options(
        epochs=epochs,
        early_stop=early_stop,
        keep=keep,
        monitor=monitor,
        metrics=["accuracy"] if metrics is None else metrics,
        validated=val_loader is not None,
    )
    check_loaders(train_loader, val_loader, rate)
    make_optimizer = optimizer_factory(optimizer, lr=lr, weight_decay=weight_decay, momentum=momentum)
    processes = Processes(accelerator, mixed_precision)
    chosen_once = selection.selection if isinstance(selection, Plan) else selection
    options = {name: describe(value) for name, value in arguments.items() if name not in UNRECORDED}
    options |= {
        "micro_batch": selection.micro_batch if isinstance(selection, Plan) else micro_batch,
        "recompute": selection.recompute if isinstance(selection, Plan) else recompute,
        "selection": None if chosen_once is None else short_digest(chosen_once.to_json()),
        "mixed_precision": processes.precision,
        "processes": processes.count,
        "batch_size": getattr(train_loader, "batch_size", None),
        "train_batches": length_of(train_loader),
        "val_batches": None if val_loader is None else length_of(val_loader),
    }
    if tracker is not None:
        tracking = Tracking(open_tracker(tracker, run_dir), options)
        progress = tracking if progress is None else Several([progress, tracking])
    chooser = Chooser(
        selection,
        method=method,
        layer_ratio=layer_ratio,
        channel_ratio=channel_ratio,
        memory=memory,
        options={
            **(method_options or {}),
            "seed": seed,
            "loss": loss,
            "optimizer": make_optimizer,
            "micro_batch": micro_batch,
            "val_batches": val_loader,
        },
    )
    run = open_run(None if run_dir is None else Path(run_dir), options, processes, resume=resume)
    model.to(processes.device)
    processes.take_mains(stored_tensors(model).values())
    seed_everything(seed + processes.index)
    buffers = BufferWatch.of(model)
    course = Course(model, make_optimizer, batch_norm=batch_norm, processes=processes, head_lr_factor=head_lr_factor)
    checkpoint = checkpoint_of(run)
    with random_state_kept([train_loader], processes.device):
        way = chooser.choose(model, train_loader, run, processes)
        course.dynamic = way.dynamic
        if way.selection is not None:
            course.take(Turn(way.selection))
        elif checkpoint is not None:
            course.load_state_dict(checkpoint.method)
        else:
            first = course.moment(1, 1, epochs=epochs, steps=length_of(train_loader), factor=1.0)
            course.begin_with(first)
        micro_batch, recompute = way.micro_batch or micro_batch, way.recompute or recompute

        def measure() -> MemoryReport:
            batch = next(iter(train_loader))
            with processes.autocast():
                return measure_memory(
                    model,
                    batch,
                    course.selection,
                    loss=loss_for(model, batch, loss),
                    optimizer=make_optimizer,
                    micro_batch=micro_batch,
                    lean=lean,
                    recompute=recompute,
                    inference=False,
                )

        start_run(run, options, course.selection, measure, processes, plan=way.plan)
    restore_weights(checkpoint, run, model, course.touched)
    training = Training(
        model=model,
        course=course,
        schedule=rate,
        train_loader=processes.share(train_loader, even=True),
        val_loader=None if val_loader is None else processes.share(val_loader, even=False),
        loss=loss,
        metrics=metrics,
        monitor=monitor,
        epochs=epochs,
        micro_batch=micro_batch,
        lean=lean,
        recompute=recompute,
        early_stop=early_stop,
        processes=processes,
        run=run,
        progress=progress if processes.main else None,
        buffers=buffers,
    )
    with modes_kept(model):
        try:
            course.begin()
            _train(training, checkpoint)
        finally:
            course.end()
    return _wind_up(training, keep="last" if val_loader is None or course.reshapes else keep)


def _train(training: Training, checkpoint: Checkpoint | None) -> None:
    if checkpoint is None:
        training.save()
    else:
        training.restore(checkpoint)
    try:
        training.finish()
    except KeyboardInterrupt as stop:
        run = training.run
        kept = "" if run is None else f"; {run.path} holds the last whole epoch: go on with resume=True"
        raise KeyboardInterrupt(f"training was stopped in epoch {len(training.history) + 1}{kept}") from stop


def _wind_up(training: Training, *, keep: Literal["best", "last"]) -> FitResult:
    """Write the last delta and the result, and leave the weights that were asked for in the model."""
    model, course, run = training.model, training.course, training.run
    layers = dict.fromkeys(layer for record in course.records for layer in record.layers)
    result = FitResult(
        method=course.selection.method,
        layers=tuple(layers),
        trained_parameters=max(record.parameters for record in course.records),
        model_parameters=sum(parameter.numel() for parameter in model.parameters()),
        monitor=training.monitored,
        history=tuple(training.history),
        kept=keep,
        stopped_early=training.stopped_early,
        run_dir=None if run is None else str(run.path),
        turns=len(course.records),
    )
    if run is not None and training.processes.main:
        training.save_delta(run.last)
        write_text(run.result, result.to_json() + "\n")
    training.processes.wait()
    if keep == "best" and result.best != result.last:
        if run is None:
            put_tensors(model, training.best_weights)
        else:
            load_delta(model, run.best)
    return result
