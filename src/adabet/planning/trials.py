"""Training steps that are really taken, and what they took."""

from dataclasses import replace
from typing import Any

from torch import nn

from adabet.layers import inputs_of, sample_count, take_samples
from adabet.memory import MemoryReport, measure_memory
from adabet.memory.measure import OptimizerFactory
from adabet.selection import Selection
from adabet.step import Loss


class Trials:
    """Measures steps with selections of one model, on one batch.

    Attributes:
        batch_size: samples of the whole batch.
        largest: the highest peak of any trial, in bytes.
    """

    def __init__(
        self, model: nn.Module, batch: Any, budget: int, optimizer: str | OptimizerFactory, loss: Loss | None
    ) -> None:
        self.model, self.batch, self.budget = model, batch, budget
        self.optimizer, self.loss = optimizer, loss
        self.batch_size = sample_count(inputs_of(batch))
        self.largest = 0

    def run(self, selection: Selection, *, micro_batch: int, recompute: bool = False) -> MemoryReport:
        """One step over two slices: the second has the gradient of the first beside it, as any later one has."""
        samples = min(self.batch_size, 2 * micro_batch)
        part = self.batch if samples == self.batch_size else take_samples(self.batch, 0, samples)
        report = measure_memory(
            self.model,
            part,
            selection,
            loss=self.loss,
            optimizer=self.optimizer,
            micro_batch=micro_batch,
            recompute=recompute,
            inference=False,
        )
        rest = report.training.inputs * (self.batch_size - samples) // samples
        report = replace(report, training=replace(report.training, inputs=report.training.inputs + rest))
        self.largest = max(self.largest, report.training.total)
        return report
