"""Which layers channels are drawn from: by re-weighted gradient norms, as a record that serves many runs."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from adabet.errors import CheckpointError, OptionError, SelectionError, UnknownNameError
from adabet.files import write_text
from adabet.layers import Fingerprint, fingerprint
from adabet.records import read_record, write_record
from adabet.tables import table

KIND = "adabet/layer importance"
METRICS = ("rgn", "lara")


@dataclass(frozen=True)
class LayerImportance:
    """How much the layers of a network matter for fine-tuning, from a preliminary run on some task.

    The order of layers hardly depends on the task, so one record serves all target tasks.

    Attributes:
        rgn: re-weighted gradient norm by layer, summed over epochs: the sum of its channels' gradient norms over the
            units of one channel.
        lara: the norm of the layer's gradient over the units of all its channels, summed over epochs.
        fingerprint: of the model.
        epochs: of the preliminary run.
        options: what it was told, for the record.

    Source: RGN: Quelennec et al., TraDy, equation 8; LaRa: Quelennec et al., MeDyate, equation 9.
    """

    rgn: Mapping[str, float]
    lara: Mapping[str, float]
    fingerprint: Fingerprint
    epochs: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def values(self, metric: str) -> Mapping[str, float]:
        """The values of one metric, ``"rgn"`` or ``"lara"``."""
        if metric not in METRICS:
            raise UnknownNameError("metric", metric, METRICS)
        return self.rgn if metric == "rgn" else self.lara

    def check(self, model: nn.Module, head: tuple[str, ...]) -> None:
        """Make sure that the record is of a model like this.

        Raises:
            SelectionError: if it is not.
        """
        found = fingerprint(model, head)
        if found.digest != self.fingerprint.digest:
            raise SelectionError(
                f"this layer ranking was made for another model: expected {self.fingerprint}, got {found}; "
                "make one with adabet.methods.layer_importance"
            )

    def to_json(self) -> str:
        """The record as JSON text."""
        return write_record(KIND, asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "LayerImportance":
        """A record from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no such record, or of another version.
        """
        values = read_record(KIND, text)
        try:
            return cls(**{**values, "fingerprint": Fingerprint(**values["fingerprint"])})
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"this layer ranking lacks or misnames a field: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record to a file, which the option ``ranking`` of the methods takes.

        Raises:
            StorageError: if it cannot be written.
        """
        write_text(path, self.to_json() + "\n")

    def __str__(self) -> str:
        order = sorted(self.lara, key=lambda name: -self.lara[name])
        rows = [(name, f"{self.rgn[name]:.3g}", f"{self.lara[name]:.3g}") for name in order]
        return f"{len(order)} layers from {self.epochs} epochs, best LaRa first\n" + table(
            ("layer", "RGN", "LaRa"), rows
        )


Given = LayerImportance | Mapping[str, float] | str | os.PathLike[str]
"""A ranking made before: the record, a value for each layer, or a file that holds the record."""


def given_values(given: Given, metric: str, model: nn.Module, head: tuple[str, ...]) -> dict[str, float]:
    """The values of a ranking that was made before.

    Raises:
        OptionError: if the file is not there, or a value is negative or not finite.
        CheckpointError: if the file holds something else.
        SelectionError: if it is of another model.
    """
    if isinstance(given, str | os.PathLike):
        try:
            given = LayerImportance.from_json(Path(given).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"expected ranking, a file with a layer ranking, got {given}: {error}") from error
    if isinstance(given, LayerImportance):
        given.check(model, head)
        given = given.values(metric)
    for name, value in given.items():
        if not math.isfinite(value) or value < 0:
            raise OptionError(f"expected finite values of at least 0 in ranking, got {value} for {name!r}")
    return dict(given)


def best_first(values: Mapping[str, float]) -> list[str]:
    """Layer names, best first; among equals in the order given."""
    return sorted(values, key=lambda name: -values[name])


def top_by_share(values: Mapping[str, float], share: float) -> tuple[str, ...]:
    """The fewest best layers that hold a share of the sum of all values.

    Args:
        values: by layer, not negative.
        share: above 0 and up to 1; TraDy's is 0.97.

    Source: Quelennec et al., TraDy, appendix D.5.

    Examples:
        >>> top_by_share({"a": 1.0, "b": 90.0, "c": 7.5, "d": 1.5}, 0.97)
        ('b', 'c')
    """
    if not 0 < share <= 1:
        raise OptionError(f"expected share, of the layers' summed values, above 0 and up to 1, got {share}")
    order = best_first(values)
    goal, held = share * sum(values.values()), 0.0
    for count, name in enumerate(order, start=1):
        held += values[name]
        # the sum in another order may differ in its last digits
        if held >= goal * (1 - 1e-12):
            return tuple(order[:count])
    return tuple(order)


def top_by_budget(
    values: Mapping[str, float], totals: Mapping[str, float], budget: float, alpha: float
) -> tuple[str, ...]:
    """The fewest best layers of whose channels the budget pays for at most a share; all if it pays for more.

    Args:
        values: by layer.
        totals: what all channels of a layer cost.
        budget: in the same unit.
        alpha: share above 0 and up to 1; MeDyate's is 0.2.

    Source: Quelennec et al., MeDyate, equation 10.

    Examples:
        >>> top_by_budget({"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 300, "b": 200, "c": 900}, 100, 0.2)
        ('a', 'b')
    """
    if not 0 < alpha <= 1:
        raise OptionError(f"expected alpha, the budget's share of the channels to draw from, above 0, got {alpha}")
    order = best_first(values)
    held = 0.0
    for count, name in enumerate(order, start=1):
        held += totals[name]
        if budget <= alpha * held:
            return tuple(order[:count])
    return tuple(order)


def top_count(values: Mapping[str, float], count: int) -> tuple[str, ...]:
    """So many of the best layers, or all if there are fewer."""
    if count < 1:
        raise OptionError(f"expected k, layers to draw from, of at least 1, got {count}")
    return tuple(best_first(values)[:count])
