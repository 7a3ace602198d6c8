"""The ways in which a layer can be taken: whole, or some of its channels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adabet.ranking import RankedLayer
from adabet.selection import Axis, Choice

BYTES = 4
"""Of an element of a gradient."""

SLICED = ("convolution", "linear")
"""Kinds of layers of which channels are taken: the others have few parameters, or no channels."""

CHANNEL_RATIOS = (0.5, 0.25, 0.125)
"""Shares of its channels that a layer may train if it does not fit whole."""

LEAST = 0.005
"""Share of the budget that a layer takes at least to be offered in slices."""


@dataclass(frozen=True)
class Option:
    """A way to take a layer, and what that costs beside what comes before it.

    Attributes:
        choice: what would train.
        score: what that is worth.
        fixed: bytes whatever the micro-batch: its gradient, the optimizer's state, and a slice's own memory.
        gradient: bytes of its gradient, which a later slice of a batch computes before it is added to the first's.
        own: bytes that it keeps of a sample's activations.
        time: of its own gradient, in the unit of the profile.
    """

    choice: Choice
    score: float
    fixed: float
    gradient: float
    own: float
    time: float = 0.0


def options_of(
    ranked: RankedLayer,
    score: float,
    *,
    own: float,
    state: float,
    budget: int,
    channel_ratios: Sequence[float],
    axis: Axis,
    channel_axis: str | None,
    times: Mapping[str, float],
) -> tuple[Option, ...]:
    """The whole layer, and its slices.

    A slice is worth its share of the layer's score: that of the channels' own scores if the method has looked at them,
    else that of their number. So a set of best score takes whole layers as long as they fit, and slices for the rest.
    The channels are the best by their scores; without scores they are spread evenly over the layer, since the order of
    channels says nothing, but layers that hold several things one after the other (queries, keys, values) get some of
    each.

    Args:
        ranked: the layer.
        score: what the whole layer is worth.
        own: bytes of activations that its gradient needs, for one sample.
        state: bytes of optimizer state for a byte of gradient.
        budget: bytes; layers that take next to nothing of it are not sliced.
        channel_ratios: shares of the channels.
        axis: whether they are of the layer's output or input; of the input, a slice keeps only its share of the input.
        channel_axis: which channels the channel scores are of.
        times: of each tensor's own gradient.
    """
    layer = ranked.layer
    time = sum(times.get(name, 0.0) for name in layer.parameters)
    size = layer.parameter_count * BYTES
    whole = Option(Choice.of(layer), score, size * (1 + state), size, own, time)
    count = (layer.out_channels if axis == "out" else layer.in_channels) or 0
    if layer.kind not in SLICED or count < 2 or whole.fixed + size + layer.input_size * BYTES < LEAST * budget:
        return (whole,)
    scores = ranked.channel_scores if axis == channel_axis else None
    found = [whole]
    for ratio in channel_ratios:
        channels = _channels(scores, count, max(1, math.floor(ratio * count + 1e-9)))
        share = len(channels) / count
        total = sum(scores) if scores else 0.0
        worth = sum(scores[channel] for channel in channels) / total if scores and total else share
        choice = Choice.of(layer, channels, axis)
        size = choice.parameter_count * BYTES
        keeps = own if axis == "out" else min(own, share * layer.input_size * BYTES)
        found.append(Option(choice, score * worth, size * (2 + state), size, keeps, time * share))
    return tuple(found)


def _channels(scores: Sequence[float] | None, count: int, wanted: int) -> tuple[int, ...]:
    """So many channels in ascending order."""
    if scores is None:
        return tuple(index * count // wanted for index in range(wanted))
    return tuple(sorted(sorted(range(count), key=lambda channel: -scores[channel])[:wanted]))
