"""What a layer is: the unit of selection."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own, as one forward pass over one sample shows it.

    Attributes:
        name: module path, such as ``"blocks.3.attn"``.
        kind: ``"convolution"``, ``"linear"``, ``"norm"``, ``"attention"``, ``"embedding"``, ``"recurrent"``,
            ``"parameter"`` (parameters held by a container) or ``"other"``.
        parameters: full names of its parameters.
        parameter_count: number of their elements.
        input_size: elements of its input for one sample, summed over calls.
        output_size: elements of its output for one sample, summed over calls.
        in_channels: input channels (features), or None where that has no meaning.
        out_channels: output channels (features), or None where that has no meaning.
        channel_axis: axis of the output that holds the channels, counted from the end (negative), or None.
        macs: multiply-accumulate operations for one sample; additions of a bias are not counted.
        calls: how many times a forward pass runs it.
        output_module: path of the module whose output is the layer's activation.
        input_shape: shape of the layer's input for one sample (first call).
        output_shape: shape of the output of `output_module` for one sample (first call).
        head: whether it is the model's classifier.
    """

    name: str
    kind: str
    parameters: tuple[str, ...]
    parameter_count: int
    input_size: int
    output_size: int
    in_channels: int | None
    out_channels: int | None
    channel_axis: int | None
    macs: int
    calls: int
    output_module: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    head: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Layer":
        """A layer from what `to_dict` gave, also after a round trip through JSON."""
        known = {field.name for field in fields(cls)}
        lists: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**{name: value for name, value in lists.items() if name in known})


@dataclass(frozen=True)
class Layers:
    """All layers of a model in the order in which a forward pass finishes them.

    Attributes:
        candidates: the layers that a method may choose from.
        head: the classifier, which trains whatever is chosen; empty if the model has none of its own.
        unranked: parameters that the model itself holds (such as ``cls_token``): they have no output of their
            own to look at, so only ``full`` trains them.
        never_called: names of layers that a forward pass does not reach.
    """

    candidates: tuple[Layer, ...]
    head: tuple[Layer, ...]
    unranked: tuple[Layer, ...] = ()
    never_called: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.candidates)

    def __len__(self) -> int:
        return len(self.candidates)

    @property
    def head_parameters(self) -> tuple[str, ...]:
        """Full names of the head's parameters."""
        return tuple(name for layer in self.head for name in layer.parameters)
