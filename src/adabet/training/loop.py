"""The training loop: epochs of exact steps, validation, and a checkpoint after each."""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adabet.errors import CheckpointError, DataError, TrainingError
from adabet.layers.batches import sample_count
from adabet.methods import Moment
from adabet.step import Loss, train_step
from adabet.training.batches import checked, length_of
from adabet.training.checkpoint import Checkpoint, write_checkpoint
from adabet.training.course import Course
from adabet.training.delta import extend_delta, save_delta
from adabet.training.evaluation import Metric, means_of, modes_kept, sum_over
from adabet.training.objective import loss_for, summed
from adabet.training.processes import Processes
from adabet.training.progress import Progress
from adabet.training.random_state import capture_random_state, random_state_kept, restore_random_state
from adabet.training.result import EpochRecord, best_record, last_improvement
from adabet.training.run_folder import RunFolder
from adabet.training.schedule import Schedule, scale_learning_rates
from adabet.training.weights import BufferWatch, base_digest, persistent_buffers, tensors_named


@dataclass
class Training:
    """One run, from its first step or from a checkpoint to its last epoch.

    Attributes:
        model: on its device.
        course: what trains, and the optimizer.
        schedule: factor on the learning rate at each step.
        train_loader: this process's part.
        val_loader: this process's part, or None.
        loss: the user's, or None for the default.
        metrics: the user's by name, or None for the default.
        monitor: what "best" compares, or None for accuracy where there is one, else the loss.
        epochs: how many in all.
        micro_batch: samples in memory at once, or None for the whole batch.
        lean: whether forward passes run in the lean mode.
        recompute: whether repeated blocks run again in the backward pass.
        early_stop: epochs without a better score after which to stop, or None.
        processes: device, precision and the other processes.
        run: where files go, or None.
        progress: who is told, or None.
        buffers: the model's buffers before training.
        history: a record for each epoch that is done.
        stopped_early: whether early stopping has ended the run.
        best_weights: copies of what had moved after the best epoch, where no run folder holds them.
    """

    model: nn.Module
    course: Course
    schedule: Schedule
    train_loader: Iterable[Any]
    val_loader: Iterable[Any] | None
    loss: Loss | None
    metrics: Mapping[str, Metric] | None
    monitor: str | None
    epochs: int
    micro_batch: int | None
    lean: bool
    recompute: bool
    early_stop: int | None
    processes: Processes
    run: RunFolder | None
    progress: Progress | None
    buffers: BufferWatch
    history: list[EpochRecord] = field(default_factory=list)
    stopped_early: bool = False
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device = self.processes.device
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.processes.precision == "fp16")
        self._steps = length_of(self.train_loader)

    @property
    def monitored(self) -> str:
        """What "best" compares in this run."""
        if self.monitor is not None:
            return self.monitor
        return "accuracy" if self.history and "accuracy" in self.history[0].val_metrics else "loss"

    @property
    def best(self) -> EpochRecord:
        """The best epoch so far."""
        return best_record(tuple(self.history), self.monitored)

    def finish(self) -> None:
        """Train all epochs that are left."""
        if self.progress is not None:
            self.progress.start(epochs=self.epochs, first_epoch=len(self.history) + 1, steps=self._steps)
        try:
            while len(self.history) < self.epochs and not self.stopped_early:
                self._epoch(len(self.history) + 1)
        finally:
            self.course.optimizer.zero_grad(set_to_none=True)
            if self.progress is not None:
                self.progress.stop()

    def save(self) -> None:
        """Write the checkpoint, then what follows from it: a kill in between is made good by resuming."""
        random = self.processes.from_all(capture_random_state(self._loaders, self.processes.device))
        if self.run is None or not self.processes.main:
            return
        weights = self._moved()
        checkpoint = Checkpoint(
            epoch=len(self.history),
            history=tuple(self.history),
            stopped_early=self.stopped_early,
            weights=weights,
            base=base_digest(self.model, weights.keys()),
            optimizer=self.course.optimizer.state_dict(),
            scaler=self._scaler.state_dict(),
            method=self.course.state_dict(),
            random=random,
        )
        write_checkpoint(self.run.checkpoint, checkpoint)
        self._write_records()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint whose weights are in the model.

        Raises:
            CheckpointError: if it does not fit this run.
        """
        if len(checkpoint.random) != self.processes.count:
            raise CheckpointError(
                f"the checkpoint is of a run with {len(checkpoint.random)} processes, these are {self.processes.count}"
            )
        try:
            self.course.optimizer.load_state_dict(dict(checkpoint.optimizer))
            self._scaler.load_state_dict(dict(checkpoint.scaler))
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit the optimizer: {error}") from error
        restore_random_state(checkpoint.random[self.processes.index], self._loaders, self.processes.device)
        self.history = list(checkpoint.history)
        self.stopped_early = checkpoint.stopped_early
        if self.processes.main:
            self._write_records()

    @property
    def _loaders(self) -> list[Iterable[Any]]:
        return [self.train_loader] if self.val_loader is None else [self.train_loader, self.val_loader]

    def _moved(self) -> dict[str, Tensor]:
        """Tensors that have trained and buffers that changed."""
        return tensors_named(self.model, (*self.course.touched, *self.buffers.changed(self.model)))

    def _write_records(self) -> None:
        if self.run is None:
            return
        self.run.write_lines(self.run.metrics, (record.to_dict() for record in self.history))
        if self.course.dynamic is not None:
            self.run.write_lines(self.run.turns, map(asdict, self.course.records))
        if self.history and self.best.epoch == len(self.history):
            self.save_delta(self.run.best)

    def save_delta(self, path: Path) -> None:
        """Write what has moved so far."""
        save_delta(
            self.model,
            self.course.selection,
            path,
            buffers=self.buffers.changed(self.model),
            parameters=self.course.touched,
            whole=self.course.whole,
        )

    def _epoch(self, number: int) -> None:
        started = time.perf_counter()
        on_gpu = self.processes.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.processes.device)
        train_loss = self._train(number)
        measured = self._validate(number)
        record = EpochRecord(
            epoch=number,
            train_loss=train_loss,
            val_loss=measured.pop("loss", None),
            val_metrics=measured,
            learning_rate=self.course.learning_rate,
            seconds=time.perf_counter() - started,
            peak_memory=torch.cuda.max_memory_allocated(self.processes.device) if on_gpu else None,
        )
        self.history.append(self.processes.from_main(record))
        if self.run is None and self.val_loader is not None and self.best.epoch == number:
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in self._moved().items()}
        stale = number - last_improvement(tuple(self.history), self.monitored)
        self.stopped_early = self.early_stop is not None and stale >= self.early_stop
        self.save()
        if self.progress is not None:
            self.progress.epoch(self.history[-1])

    def _train(self, epoch: int) -> float:
        """One pass over the training batches; returns the mean loss over their samples."""
        self.model.train()
        sums = {"samples": 0.0, "loss": 0.0}
        self._choose(self._moment(epoch, 1))  # before the loader starts, since the method may want to look at it
        for step, batch in enumerate(self._training_batches(epoch), start=1):
            moment = self._moment(epoch, step)
            if step > 1:
                self._choose(moment)
            scale_learning_rates(self.course.optimizer, self._factor(epoch, step))
            value = self._step(batch, moment)
            count = sample_count(batch)
            sums["samples"] += count
            sums["loss"] += summed(value, self.loss, count)
            if self.progress is not None:
                self.progress.step(epoch=epoch, step=step, loss=value)
        return means_of(self.processes.add_up(sums), f"the training loader in epoch {epoch}")["loss"]

    def _factor(self, epoch: int, step: int) -> float:
        """On the learning rate; without a length the rate is constant, and asks for no total."""
        return self.schedule((epoch - 1) * (self._steps or 0) + step - 1, self.epochs * (self._steps or step))

    def _moment(self, epoch: int, step: int) -> Moment:
        factor = self._factor(epoch, step)
        return self.course.moment(epoch, step, epochs=self.epochs, steps=self._steps, factor=factor)

    def _choose(self, moment: Moment) -> None:
        """Let a method that selects again do so, if it wants to."""
        if not self.course.due(moment):
            return
        with random_state_kept(self._loaders, self.processes.device), modes_kept(self.model):
            new = self.course.switch(moment)
        self.model.train()
        if new and self.history:
            self._keep_in_best(new)

    def _keep_in_best(self, names: Collection[str]) -> None:
        """Tensors that are about to leave their base values get these in the best epoch's weights."""
        owners = {name.rpartition(".")[0] for name in names}
        buffers = [name for name in persistent_buffers(self.model) if name.rpartition(".")[0] in owners]
        if self.run is None:
            for name, tensor in tensors_named(self.model, (*names, *buffers)).items():
                self.best_weights.setdefault(name, tensor.detach().cpu().clone())
        elif self.processes.main and not self.course.reshapes:
            extend_delta(self.model, self.run.best, (*names, *buffers))

    def _step(self, batch: Any, moment: Moment) -> float:
        def backward(value: Tensor) -> None:
            with self.processes.plain():
                self._scaler.scale(value).backward()

        with self.processes.autocast():
            objective = loss_for(self.model, batch, self.loss)
            loss = train_step(
                self.model,
                batch,
                objective,
                micro_batch=self.micro_batch,
                lean=self.lean,
                recompute=self.recompute,
                backward=backward,
                into_grad=True,
            )
        value = float(loss)
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss became {value} in epoch {moment.epoch}, step {moment.step}; lower lr, or look for "
                "samples that are not finite; the weights are those before this step"
            )
        penalty = self.course.penalty()
        if penalty is not None:
            backward(penalty)
        self.processes.average_gradients(self.course.parameters)
        if self.course.watches:
            self._scaler.unscale_(self.course.optimizer)
            self.course.watch(moment)
        self._scaler.step(self.course.optimizer)
        self._scaler.update()
        self.course.optimizer.zero_grad(set_to_none=True)
        return value

    def _training_batches(self, epoch: int) -> Iterator[Any]:
        for part in (self.train_loader, getattr(self.train_loader, "sampler", None)):
            if part is not None and hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        empty = True
        for batch in checked(self.train_loader, "training"):
            empty = False
            yield batch
        if empty:
            raise DataError(f"expected training batches, the loader gave none in epoch {epoch}")

    def _validate(self, epoch: int) -> dict[str, float]:
        if self.val_loader is None:
            return {}
        # Batch-norms that train have seen other batches in each process.
        self.processes.take_mains(persistent_buffers(self.model).values())
        sums = sum_over(
            self.model,
            self.val_loader,
            loss=self.loss,
            metrics=self.metrics,
            micro_batch=self.micro_batch,
            precision=self.processes.autocast,
        )
        means = means_of(self.processes.add_up(sums), "the validation loader")
        for name, value in means.items():
            if not math.isfinite(value):
                raise TrainingError(f"the validation {name} became {value} in epoch {epoch}; lower lr")
        return means
