"""Where a channel slice lies in a weight, and the full weight built from slice and rest."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Channels:
    """Which part of a tensor a slice is.

    Attributes:
        channels: ascending channel numbers, as the layer's neighbours count them.
        groups: groups of the layer; its first dimension counts them in turn.
        inner: whether channels run along the second dimension of the weight (within the group) rather than the first.
    """

    channels: tuple[int, ...]
    groups: int = 1
    inner: bool = False

    def take(self, whole: Tensor) -> Tensor:
        """Copy of the slice, one row a channel: ``(channels, ...)``."""
        view, index = self._locate(whole)
        return view[index]

    def put(self, whole: Tensor, part: Tensor) -> None:
        """Write a slice, as `take` gave it, into the full tensor."""
        view, index = self._locate(whole)
        view[index] = part

    def select(self, x: Tensor, dim: int) -> Tensor:
        """Copy of the channels of an activation or its gradient, which has all of them along ``dim``."""
        return x.index_select(dim, torch.tensor(self.channels, device=x.device))

    def _locate(self, whole: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        channels = torch.tensor(self.channels, device=whole.device)
        if not self.inner:
            return whole, (channels,)
        by_group = whole.unflatten(0, (self.groups, -1))
        width = whole.shape[1]
        return by_group, (channels // width, slice(None), channels % width)


class SlicedWeight(NamedTuple):
    """What a weight that was built from a slice carries, for operations that can use it."""

    part: Tensor
    place: Channels


def sliced_weight(weight: Tensor) -> SlicedWeight | None:
    """The slice that a full-size weight was built from, or None for any other tensor."""
    return getattr(weight, "_adabet_slice", None)


class _Insert(torch.autograd.Function):
    """Writes a slice into the frozen tensor and returns that, with the gradient going to the slice alone."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, full: Tensor, place: Channels) -> Tensor:
        ctx.place = place
        ctx.save_for_backward(part)
        # The write repeats the same values while the slice stands still, so it must not count as a change to what
        # an earlier pass through the same layer saved: .data has a version counter of its own.
        whole = full.data
        place.put(whole, part)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        _ = ctx.saved_tensors  # raises autograd's own error if the slice was changed since the forward pass
        return ctx.place.take(gradient), None, None


class SliceOf(nn.Module):
    """The parametrization of a sliced parameter: slice in, full tensor out.

    Attributes:
        full: the frozen tensor, brought up to date with the slice at every use.
        place: where in it the slice lies.
        order: names of the layer's parameters before any was sliced.
    """

    full: nn.Parameter

    def __init__(self, full: nn.Parameter, place: Channels, order: tuple[str, ...]) -> None:
        super().__init__()
        self.full = full
        self.place = place
        self.order = order

    def forward(self, part: Tensor) -> Tensor:
        """The full tensor, which tells lean operations of its slice."""
        whole: Tensor = _Insert.apply(part, self.full, self.place)
        whole._adabet_slice = SlicedWeight(part, self.place)  # type: ignore[attr-defined]
        return whole

    def right_inverse(self, whole: Tensor) -> Tensor:
        """The slice of a full tensor that is assigned to the parameter; the rest is taken over."""
        self.full.data.copy_(whole)
        return self.place.take(whole)
