"""What the demo found: frozen, printable, and to JSON and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from adabet.errors import CheckpointError
from adabet.ranking import Ranking
from adabet.records import read_record, write_record
from adabet.selection import Selection
from adabet.sizes import format_size
from adabet.tables import table

KIND = "adabet/demo"


@dataclass(frozen=True)
class MethodOutcome:
    """How one way of choosing layers fared.

    Attributes:
        method: its name in the registry of methods.
        label: its name for people.
        trained_layers: layers that train, the head included.
        trained_parameters: numbers that train, the head's included.
        learning_rate: the candidate that read most validation digits right; of equals the smallest.
        validation: pairs of a candidate learning rate and its validation accuracy, in [0, 1], with the first seed.
        accuracies: test accuracy, in [0, 1], of each seed.
        memory: measured peak of one training step in bytes, weights included.
    """

    method: str
    label: str
    trained_layers: int
    trained_parameters: int
    learning_rate: float
    validation: tuple[tuple[float, float], ...]
    accuracies: tuple[float, ...]
    memory: int

    @property
    def accuracy(self) -> float:
        """Mean test accuracy over the seeds, in [0, 1]."""
        return fmean(self.accuracies)

    @property
    def spread(self) -> float:
        """Standard deviation of the test accuracy over the seeds (n - 1); 0 for one seed."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MethodOutcome":
        """An outcome from its fields as JSON knows them."""
        validation = tuple((rate, accuracy) for rate, accuracy in values["validation"])
        return cls(**{**values, "validation": validation, "accuracies": tuple(values["accuracies"])})


@dataclass(frozen=True)
class Reading:
    """One test digit: what it is, and what the reader takes it for before and after AdaBet's adaptation."""

    digit: int
    before: int
    after: int


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo shows.

    Attributes:
        ranking: AdaBet's, of the reader's layers under the user's conditions.
        selection: what AdaBet chose.
        methods: head only, AdaBet and all layers, in this order.
        clean: accuracy on the test digits as the reader knows them, in [0, 1].
        before: accuracy on the same digits under the user's conditions, with nothing trained.
        inference_memory: measured peak of a forward pass of one training batch in bytes, weights included.
        readings: the test digits that the picture shows.
        training: number of labelled samples trained on.
        test: number of test samples.
        epochs: passes over the training samples.
        picture: where the picture is.
        seconds: how long it took, imports apart.
    """

    ranking: Ranking
    selection: Selection
    methods: tuple[MethodOutcome, ...]
    clean: float
    before: float
    inference_memory: int
    readings: tuple[Reading, ...]
    training: int
    test: int
    epochs: int
    picture: str
    seconds: float

    @property
    def seeds(self) -> int:
        """Number of runs for each method."""
        return len(self.methods[0].accuracies)

    def to_json(self) -> str:
        """The result as JSON text."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["ranking"] = json.loads(self.ranking.to_json())
        values["selection"] = json.loads(self.selection.to_json())
        values["methods"] = [asdict(outcome) for outcome in self.methods]
        values["readings"] = [asdict(reading) for reading in self.readings]
        return write_record(KIND, values)

    @classmethod
    def from_json(cls, text: str) -> "DemoResult":
        """A result from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no demo's result, or of another version.
        """
        values = read_record(KIND, text)
        try:
            return cls(
                **{
                    **values,
                    "ranking": Ranking.from_json(json.dumps(values["ranking"])),
                    "selection": Selection.from_json(json.dumps(values["selection"])),
                    "methods": tuple(map(MethodOutcome.from_dict, values["methods"])),
                    "readings": tuple(Reading(**reading) for reading in values["readings"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"this demo's result lacks or misnames a field: {error}") from error

    def __str__(self) -> str:
        return "\n\n".join([self._ranking(), self._outcomes(), f"picture: {self.picture}"])

    def _ranking(self) -> str:
        """The layers, best first, those that AdaBet trains marked."""
        rows = [
            (
                f"* {ranked.layer.name}" if ranked.layer.name in self.selection.layers else f"  {ranked.layer.name}",
                ranked.layer.kind,
                f"{ranked.score:g}",
                f"{ranked.cost:g}",
                f"{ranked.priority:.5f}",
            )
            for ranked in self.ranking.order
        ]
        title = f"{self.ranking.samples} unlabelled digits rank the layers (* chosen):"
        notes = [f"- {note}" for note in self.ranking.notes]
        return "\n".join([title, table(("  layer", "kind", "b1", "outputs", "b1 / outputs"), rows), *notes])

    def _outcomes(self) -> str:
        rows = [("nothing", "0", "0", "", f"{self.before:.1%}", format_size(self.inference_memory))]
        rows += [
            (
                outcome.label,
                str(outcome.trained_layers),
                f"{outcome.trained_parameters:,}",
                f"{outcome.learning_rate:g}",
                f"{outcome.accuracy:.1%} ± {outcome.spread:.1%}",
                format_size(outcome.memory),
            )
            for outcome in self.methods
        ]
        title = (
            f"{self.test} test digits, {self.clean:.1%} of them read right as the reader knows them; under the "
            f"user's conditions, after {self.epochs} epochs on {self.training} digits, {self.seeds} seeds:"
        )
        return f"{title}\n" + table(("trained", "layers", "parameters", "lr", "read right", "peak memory"), rows)
