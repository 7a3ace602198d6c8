"""What limits a plan beside its memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from adabet.errors import OptionError
from adabet.layers import Layer
from adabet.methods.elastic_profile import Profile
from adabet.planning.options import CHANNEL_RATIOS
from adabet.planning.times import Times, times_of
from adabet.ranking import AXES
from adabet.selection import Axis, Selection


@dataclass(frozen=True)
class Settings:
    """Limits of a plan.

    Attributes:
        layer_ratio: share of the layers that may train at most.
        channel_ratios: shares of its channels that a layer may train if it does not fit whole; none for whole layers.
        axis: whether those are output or input channels.
        time_ratio: share of the time of a backward pass through everything that a plan's may take; None for no limit.
        profile: times of the backward pass; needed for that.

    Raises:
        OptionError: if a ratio is outside its range, or there is no such axis.
    """

    layer_ratio: float = 1.0
    channel_ratios: Sequence[float] = CHANNEL_RATIOS
    axis: Axis = "out"
    time_ratio: float | None = None
    profile: Profile | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.layer_ratio <= 1:
            raise OptionError(f"expected a layer_ratio from 0 to 1, got {self.layer_ratio}")
        if not all(0 < ratio < 1 for ratio in self.channel_ratios):
            raise OptionError(f"expected channel_ratios between 0 and 1, got {tuple(self.channel_ratios)}")
        if self.axis not in AXES:
            raise OptionError(f"expected an axis of 'out' or 'in', got {self.axis!r}")
        if self.time_ratio is not None and not 0 < self.time_ratio <= 1:
            raise OptionError(f"expected a time_ratio above 0 and up to 1, got {self.time_ratio}")

    def times(self, layers: Sequence[Layer], head: Selection) -> Times:
        """The limit in time for these layers."""
        if self.time_ratio is None or self.profile is None:
            return Times()
        return times_of(self.profile, layers, head.head, self.time_ratio)
