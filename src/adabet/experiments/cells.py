"""The smallest piece of a grid's work: one that is done whole or not at all."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from adabet.errors import CheckpointError
from adabet.experiments.specs import DataSpec, MethodSpec, ModelSpec, Settings, Share

Kind = Literal["train", "budget", "selection"]


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        kind: ``"train"``: select, train and test once; ``"budget"``: measure a step that a budget is named after;
            ``"selection"``: what choosing takes at its peak, in a process of its own.
        model: what is adapted.
        data: what to.
        method: who chooses.
        share: how much may train, or None.
        seed: of head, samples, selection and order.
        learning_rate: of a training run, otherwise None.
        settings: how it trains.
    """

    kind: Kind
    model: ModelSpec
    data: DataSpec
    method: MethodSpec
    share: Share | None
    seed: int
    learning_rate: float | None
    settings: Settings

    @property
    def key(self) -> str:
        """Names the cell by all that it depends on; the labels that tables show are no part of it."""
        values = self.to_dict()
        for spec in ("model", "data", "method"):
            del values[spec]["label"]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def to_dict(self) -> dict[str, Any]:
        """The cell as JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cell":
        """A cell from what `to_dict` gave.

        Raises:
            CheckpointError: if a field is missing or unknown.
        """
        kinds = {"model": ModelSpec, "data": DataSpec, "method": MethodSpec, "settings": Settings}
        try:
            specs: dict[str, Any] = {name: kind(**values[name]) for name, kind in kinds.items()}
            share = None if values["share"] is None else Share(**values["share"])
            return cls(**{**values, **specs, "share": share})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"a cell of these results lacks or misnames a field: {error}") from error

    def __str__(self) -> str:
        share = "" if self.share is None else f" ({self.share})"
        what = {"budget": "its budget", "selection": "memory of choosing"}
        how = what.get(self.kind) or f"lr {self.learning_rate:g}"
        return f"{self.method.label}{share} on {self.model.label}, {self.data.label}: {how}, seed {self.seed}"
