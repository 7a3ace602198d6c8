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
        unit: samples that are in memory at once in any case; micro-batches are counted in these.
        batch_size: how many of them the whole batch holds.
        largest: the highest peak of any trial, in bytes.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        budget: int,
        optimizer: str | OptimizerFactory,
        loss: Loss | None,
        *,
        unit: int = 1,
    ) -> None:
        self.model, self.batch, self.budget = model, batch, budget
        self.optimizer, self.loss = optimizer, loss
        self.samples = sample_count(inputs_of(batch))
        self.unit = min(unit, self.samples)
        self.batch_size = self.samples // self.unit
        self.largest = 0

    def run(self, selection: Selection, *, micro_batch: int, recompute: bool = False) -> MemoryReport:
        """One step over two slices: the second has the gradient of the first beside it, as any later one has."""
        samples = min(self.samples, 2 * micro_batch * self.unit)
        part = self.batch if samples == self.samples else take_samples(self.batch, 0, samples)
        report = measure_memory(
            self.model,
            part,
            selection,
            loss=self.loss,
            optimizer=self.optimizer,
            micro_batch=micro_batch * self.unit,
            recompute=recompute,
            inference=False,
        )
        rest = report.training.inputs * (self.samples - samples) // samples
        report = replace(report, training=replace(report.training, inputs=report.training.inputs + rest))
        self.largest = max(self.largest, report.training.total)
        return report
