"""How long layers take in a backward pass, as a plan's limit."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from adabet.layers import Layer
from adabet.methods.elastic_profile import Profile, TensorTime


@dataclass(frozen=True)
class Times:
    """Times of a backward pass and how much of them a plan may take.

    Attributes:
        own: time of each tensor's own gradient, by name.
        reach: for each layer the time that the error takes to get there, in the order of the layers.
        head: time of the head's own gradients.
        total: time of training everything.
        limit: time that a plan may take; infinite if nobody asked.
    """

    own: dict[str, float] = field(default_factory=dict)
    reach: tuple[float, ...] = ()
    head: float = 0.0
    total: float = 0.0
    limit: float = float("inf")


def times_of(profile: Profile, layers: Sequence[Layer], head: Sequence[str], ratio: float) -> Times:
    """What a profile says of the layers that may train.

    The error has to pass all tensors behind a layer to get there, but not the layer itself.

    Args:
        profile: of the model.
        layers: in the order of the forward pass.
        head: full names of the head's tensors.
        ratio: share of the whole time that a plan may take.
    """
    position = {name: index for index, name in enumerate(profile.names)}
    own = dict(zip(profile.names, profile.t_dw, strict=True))
    behind = [0.0]
    for time in reversed(profile.t_dy):
        behind.append(behind[-1] + time)
    behind.reverse()  # behind[i]: from the i-th tensor to the end
    reach = [behind[max((position.get(name, -1) for name in layer.parameters), default=-1) + 1] for layer in layers]
    for index in range(len(reach) - 2, -1, -1):
        reach[index] = max(reach[index], reach[index + 1])
    return Times(own, tuple(reach), sum(own.get(name, 0.0) for name in head), profile.total, ratio * profile.total)


def counted_profile(layers: Sequence[Layer]) -> Profile:
    """A profile by each layer's multiply-accumulates, as many for its own gradient as for passing the error on."""
    tensors = []
    for layer in layers:
        share = layer.macs / max(1, len(layer.parameters))
        tensors += [TensorTime(name, share, share) for name in layer.parameters]
    return Profile(tuple(tensors), "macs", 1, "counted")
