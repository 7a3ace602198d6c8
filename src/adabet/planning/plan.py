"""A selection with the way to train it, for a memory budget."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adabet.errors import CheckpointError
from adabet.records import read_record, write_record
from adabet.selection import Selection
from adabet.sizes import format_size

KIND = "adabet/plan"


@dataclass(frozen=True)
class Plan:
    """What to train and how, so that the peak of a step stays within a budget.

    Attributes:
        selection: what trains.
        micro_batch: samples in memory at once; the gradient is that of the whole batch.
        batch_size: samples of a whole batch.
        recompute: whether repeated blocks run again in the backward pass.
        budget: bytes that a step may take at its peak, everything counted.
        predicted: bytes that it was expected to take.
        measured: bytes that it took when it was tried.
        optimizer: what it was tried with.
        full: bytes that training everything with the whole batch at once is expected to take.
        notes: what the budget bought and what was given up for it, in words.
        options: what the planner was told, for the record.
    """

    selection: Selection
    micro_batch: int
    batch_size: int
    recompute: bool
    budget: int
    predicted: int
    measured: int
    optimizer: str
    full: int
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def used(self) -> float:
        """Share of the budget that is used."""
        return self.measured / self.budget

    def to_json(self) -> str:
        """The plan as JSON text."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return write_record(KIND, values | {"selection": json.loads(self.selection.to_json())})

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """A plan from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no plan, or of another version.
        """
        values = read_record(KIND, text)
        try:
            selection = Selection.from_json(json.dumps(values["selection"]))
            return cls(**{**values, "selection": selection, "notes": tuple(values["notes"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"this plan file lacks or misnames a field: {error}") from error

    def __str__(self) -> str:
        chosen = self.selection
        way = f"{self.micro_batch} of {self.batch_size} samples at once"
        way += ", blocks recomputed" if self.recompute else ""
        head = " and the head" if chosen.head else ""
        lines = [
            f"plan for {format_size(self.budget)}: a step took {format_size(self.measured)} ({self.used:.0%})",
            f"trains {len(chosen.layers)} of {chosen.candidates} layers by {chosen.method!r}{head}, "
            f"{chosen.parameter_count:,} parameters; {way}",
            *(f"- {note}" for note in self.notes),
        ]
        return "\n".join(lines)
