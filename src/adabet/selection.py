"""What will train: the one noun that everything else takes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import nn

from adabet.errors import CheckpointError, SelectionError
from adabet.layers import Fingerprint, Layer, fingerprint
from adabet.records import read_record, write_record
from adabet.tables import table

KIND = "adabet/selection"
Axis = Literal["out", "in"]


@dataclass(frozen=True)
class Choice:
    """One layer of a selection.

    Attributes:
        layer: module path; empty for parameters that the model itself holds.
        kind: see `Layer.kind`.
        parameters: full names of the tensors that train.
        parameter_count: number of their elements that train.
        channels: the channels that train, None for all.
        axis: ``"out"`` or ``"in"``: which channels those are.
        head: whether this is the head, which trains whatever is chosen.
    """

    layer: str
    kind: str
    parameters: tuple[str, ...]
    parameter_count: int
    channels: tuple[int, ...] | None = None
    axis: Axis = "out"
    head: bool = False

    @classmethod
    def of(cls, layer: Layer, channels: tuple[int, ...] | None = None, axis: Axis = "out") -> "Choice":
        """A whole layer, or some of its channels, as a choice."""
        total = layer.out_channels if axis == "out" else layer.in_channels
        share = 1.0 if channels is None or not total else len(channels) / total
        # the bias (and a tied norm), one number for each output channel, has no input channels: it trains whole
        has_inputs = axis == "in" and layer.kind in ("convolution", "linear")
        whole = (len(layer.parameters) - 1) * (layer.out_channels or 0) if has_inputs else 0
        return cls(
            layer=layer.name,
            kind=layer.kind,
            parameters=layer.parameters,
            parameter_count=whole + round((layer.parameter_count - whole) * share),
            channels=channels,
            axis=axis,
            head=layer.head,
        )


@dataclass(frozen=True)
class Selection:
    """The layers, and for each the channels, that will train.

    Attributes:
        method: name of the method that chose.
        choices: what it chose, in the order of a forward pass, the head last.
        fingerprint: of the model that it was chosen for.
        candidates: how many layers there were to choose from, the head apart.
        options: what the method was told, for the record.
    """

    method: str
    choices: tuple[Choice, ...]
    fingerprint: Fingerprint
    candidates: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Full names of all tensors that train, the head's included."""
        return tuple(name for choice in self.choices for name in choice.parameters)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the chosen layers, without the head."""
        return tuple(choice.layer for choice in self.choices if not choice.head)

    @property
    def head(self) -> tuple[str, ...]:
        """Full names of the head's parameters."""
        return tuple(name for choice in self.choices if choice.head for name in choice.parameters)

    @property
    def parameter_count(self) -> int:
        """Number of elements that train."""
        return sum(choice.parameter_count for choice in self.choices)

    def check(self, model: nn.Module) -> None:
        """Make sure that the selection was made for a model like this.

        Raises:
            SelectionError: with the first difference.
        """
        shapes = dict(model.named_parameters())
        for name in self.parameters:
            if name not in shapes:
                raise SelectionError(
                    f"this selection was made for another model: it trains {name!r}, which {type(model).__name__} "
                    f"does not have; it was made for {self.fingerprint}"
                )
        found = fingerprint(model, self.head)
        if found.digest != self.fingerprint.digest:
            raise SelectionError(
                f"this selection was made for another model: expected {self.fingerprint}, got {found}; "
                "rank this model's own layers"
            )

    def to_json(self) -> str:
        """The selection as JSON text."""
        return write_record(KIND, asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Selection":
        """A selection from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no selection, or of another version.
        """
        values = read_record(KIND, text)
        try:
            choices = tuple(
                Choice(
                    **{
                        **choice,
                        "parameters": tuple(choice["parameters"]),
                        "channels": None if choice["channels"] is None else tuple(choice["channels"]),
                    }
                )
                for choice in values["choices"]
            )
            return cls(**{**values, "choices": choices, "fingerprint": Fingerprint(**values["fingerprint"])})
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"this selection file lacks or misnames a field: {error}") from error

    def __str__(self) -> str:
        rows = [
            (
                choice.layer or "(the model's own)",
                "head" if choice.head else choice.kind,
                "all" if choice.channels is None else f"{len(choice.channels)} {choice.axis}",
                f"{choice.parameter_count:,}",
            )
            for choice in self.choices
        ]
        head = " and the head" if self.head else ""
        title = (
            f"{self.method}: {len(self.layers)} of {self.candidates} layers{head}, "
            f"{self.parameter_count:,} of {self._all_parameters():,} parameters train"
        )
        return f"{title}\n" + table(("layer", "kind", "channels", "parameters"), rows)

    def _all_parameters(self) -> int:
        head = sum(choice.parameter_count for choice in self.choices if choice.head)
        return self.fingerprint.parameters + head
