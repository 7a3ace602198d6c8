"""A score for every layer, by one method, and the selections that follow from it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from adabet.errors import CheckpointError, OptionError, SelectionError
from adabet.layers import Fingerprint, Layer
from adabet.records import read_record, write_record
from adabet.selection import Axis, Choice, Selection
from adabet.tables import table

KIND = "adabet/ranking"
AXES = ("out", "in")
SLICEABLE = frozenset({"convolution", "linear", "norm"})
"""Kinds of layers of which single channels can train; of the others all channels do."""

NUMBERS_OR_NAN = ("agreement", "score_agreement")


@dataclass(frozen=True)
class RankedLayer:
    """A layer with what a method found out about it.

    Attributes:
        layer: the layer.
        score: what the method measured, such as the Betti number; more is better.
        cost: what the score is divided by, such as the number of activations.
        spread: standard deviation of the score over sub-clouds of the samples; 0 if there is no sampling in it.
        channel_scores: the same score for each channel, or None if channels were not looked at.
    """

    layer: Layer
    score: float
    cost: float = 1.0
    spread: float = 0.0
    channel_scores: tuple[float, ...] | None = None

    @property
    def priority(self) -> float:
        """Score per cost, by which layers are ordered."""
        return self.score / self.cost


@dataclass(frozen=True)
class Ranking:
    """A score for every layer of a model.

    Layers of equal priority are ordered as a forward pass runs them, the earlier first, as the paper's reference
    code does; channels of equal score by their index.

    Attributes:
        method: name of the method.
        layers: every candidate, in the order of a forward pass.
        head: the classifier, which trains whatever is chosen.
        unranked: layers that only ``full`` trains, see `Layers.unranked`.
        fingerprint: of the model.
        samples: number of samples looked at, 0 if none.
        agreement: mean Spearman correlation between the priorities that halves of the samples give, NaN if unknown.
        score_agreement: the same for the scores alone, without their cost.
        notes: what a user should know of this ranking, in words.
        options: what the method was told, for the record.
        fixed_ratio: for a method that always takes the same share of the layers, that share.
        channel_axis: whose channels the channel scores are of, ``"out"`` or ``"in"``; None if there are none.
    """

    method: str
    layers: tuple[RankedLayer, ...]
    head: tuple[Layer, ...]
    fingerprint: Fingerprint
    unranked: tuple[Layer, ...] = ()
    samples: int = 0
    agreement: float = math.nan
    score_agreement: float = math.nan
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    fixed_ratio: float | None = None
    channel_axis: str | None = None

    @property
    def order(self) -> tuple[RankedLayer, ...]:
        """The layers, best first."""
        return tuple(sorted(self.layers, key=lambda ranked: -ranked.priority))

    def count(self, layer_ratio: float) -> int:
        """How many layers a ratio stands for: ``max(1, floor(ratio * L))``.

        Raises:
            OptionError: if the ratio is outside 0 to 1.
        """
        if not 0 <= layer_ratio <= 1:
            raise OptionError(f"expected a layer_ratio from 0 to 1, got {layer_ratio}")
        if self.fixed_ratio is not None:
            return round(self.fixed_ratio * len(self.layers))
        # the small addend keeps 0.29 * 100 from becoming 28
        return max(1, math.floor(layer_ratio * len(self.layers) + 1e-9))

    def select(self, *, layer_ratio: float = 0.1, channel_ratio: float = 1.0, axis: Axis = "out") -> Selection:
        """The best layers, the head, and of each layer the best channels.

        Args:
            layer_ratio: share of the layers, the paper's rho; ``max(1, floor(ratio * L))`` layers.
            channel_ratio: share of the channels of each chosen layer, rho_ch; ``max(1, floor(ratio * C))`` of
                them. The head trains whole, and so do attention blocks and embeddings.
            axis: ``"out"`` for output channels (as the paper), ``"in"`` for input channels.

        Raises:
            OptionError: if a ratio is outside its range.
            SelectionError: if channels are asked for that this ranking has not looked at.
        """
        if not 0 < channel_ratio <= 1:
            raise OptionError(f"expected a channel_ratio above 0 and up to 1, got {channel_ratio}")
        if axis not in AXES:
            raise OptionError(f"expected an axis of 'out' or 'in', got {axis!r}")
        chosen = {ranked.layer.name for ranked in self.order[: self.count(layer_ratio)]}
        choices = [
            Choice.of(ranked.layer, self._channels(ranked, channel_ratio, axis), axis)
            for ranked in self.layers
            if ranked.layer.name in chosen
        ]
        if self.fixed_ratio == 1:
            choices += [Choice.of(layer) for layer in self.unranked]
        choices += [Choice.of(layer) for layer in self.head]
        if not choices:
            raise SelectionError(
                f"{self.method!r} selects nothing: the model has no head to train; give the classifier's path as head= "
                "or choose another method"
            )
        return Selection(
            method=self.method,
            choices=tuple(choices),
            fingerprint=self.fingerprint,
            candidates=len(self.layers),
            options={**self.options, "layer_ratio": layer_ratio, "channel_ratio": channel_ratio},
        )

    def _channels(self, ranked: RankedLayer, ratio: float, axis: Axis) -> tuple[int, ...] | None:
        """The best channels of a layer, in ascending order; None for all."""
        if ratio == 1 or self.fixed_ratio is not None or ranked.layer.kind not in SLICEABLE:
            return None
        scores = ranked.channel_scores
        if scores is None or axis != self.channel_axis:
            raise SelectionError(
                f"this ranking by {self.method!r} has no scores for the {axis}put channels of {ranked.layer.name!r}; "
                f"rank by 'adabet' with axis={axis!r} and channels=, the share of the best layers to slice"
            )
        count = max(1, math.floor(ratio * len(scores) + 1e-9))
        best = sorted(range(len(scores)), key=lambda channel: -scores[channel])[:count]
        return tuple(sorted(best))

    def with_note(self, note: str) -> "Ranking":
        """The same ranking with one more note."""
        return replace(self, notes=(*self.notes, note))

    def to_json(self) -> str:
        """The ranking as JSON text."""
        values = asdict(self)
        for name in NUMBERS_OR_NAN:
            values[name] = None if math.isnan(values[name]) else values[name]
        return write_record(KIND, values)

    @classmethod
    def from_json(cls, text: str) -> "Ranking":
        """A ranking from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no ranking, or of another version.
        """
        values = read_record(KIND, text)
        try:
            layers = tuple(
                RankedLayer(
                    **{
                        **item,
                        "layer": Layer.from_dict(item["layer"]),
                        "channel_scores": None if item["channel_scores"] is None else tuple(item["channel_scores"]),
                    }
                )
                for item in values["layers"]
            )
            return cls(
                **{
                    **values,
                    "layers": layers,
                    "head": tuple(map(Layer.from_dict, values["head"])),
                    "unranked": tuple(map(Layer.from_dict, values["unranked"])),
                    "fingerprint": Fingerprint(**values["fingerprint"]),
                    **{name: math.nan if values[name] is None else values[name] for name in NUMBERS_OR_NAN},
                    "notes": tuple(values["notes"]),
                }
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(f"this ranking file lacks or misnames a field: {error}") from error

    def __str__(self) -> str:
        rows = [
            (
                ranked.layer.name,
                ranked.layer.kind,
                f"{ranked.score:g}",
                f"{ranked.spread:.1f}",
                f"{ranked.cost:g}",
                f"{ranked.priority:.3g}",
            )
            for ranked in self.order
        ]
        looked = f" from {self.samples} samples" if self.samples else ""
        notes = "".join(f"\n- {note}" for note in self.notes)
        text = table(("layer", "kind", "score", "spread", "cost", "priority"), rows)
        return f"{self.method}: {len(self.layers)} layers{looked}, best first\n{text}{notes}"
