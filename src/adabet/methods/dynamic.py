"""Methods that choose again while a run trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from adabet.selection import Selection


@dataclass(frozen=True)
class Moment:
    """Where a run stands when it asks its method; just before a step.

    Attributes:
        epoch: the epoch that the step belongs to, from 1.
        step: the step within the epoch, from 1.
        epochs: epochs of the whole run.
        steps: steps of an epoch, or None if the loader does not know its length.
        optimizer: makes an optimizer for whole parameters, by full name, at this moment's learning rates and with
            the state that they have had so far in the run; stepping it changes the parameters and nothing else.
    """

    epoch: int
    step: int
    epochs: int
    steps: int | None
    optimizer: Callable[[Mapping[str, nn.Parameter]], Optimizer]

    @property
    def starts_epoch(self) -> bool:
        """Whether the step is an epoch's first."""
        return self.step == 1

    @property
    def starts_run(self) -> bool:
        """Whether nothing has been trained yet."""
        return self.step == 1 and self.epoch == 1


@dataclass(frozen=True)
class Turn:
    """What trains from a moment on.

    Attributes:
        selection: layers, tensors and channels.
        rates: factors on the learning rate by full parameter name; 1 for those that are not named.
        fresh: forget the optimizer's state, also of what goes on training.
        follow: for parameters whose shape the method has changed, how their optimizer state changes with them.
        note: one line for the record, such as what the selection was drawn from.
    """

    selection: Selection
    rates: Mapping[str, float] = field(default_factory=dict)
    fresh: bool = False
    follow: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    note: str = ""


class Dynamic:
    """A method at work in a run. Subclasses override what they need.

    The order of calls: before every step `due`, and where that says so `turn`; in the forward pass `penalty`; after the
    backward pass `watch`; after the optimizer's step nothing; after a whole epoch `state_dict`. When a
    run is resumed, `load_state_dict` comes first, on the model with its base weights.
    """

    def due(self, moment: Moment) -> bool:
        """Whether to choose again at this moment; must be true at the start of a run."""
        return moment.starts_run

    def turn(self, moment: Moment) -> Turn:
        """Choose.

        The model has no selection on it, and its weights are the run's; gradients may be made and are dropped. Global
        random state and the loaders' are put back afterwards, so draw from generators of your own, seeded by the
        request's seed and the moment: that way a resumed run draws the same.
        """
        raise NotImplementedError

    @property
    def watches(self) -> bool:
        """Whether `watch` wants the gradients."""
        return False

    def watch(self, moment: Moment, gradients: Mapping[str, Tensor]) -> None:
        """See the gradients of a step that is about to be taken.

        Args:
            moment: of the step.
            gradients: by full parameter name; of a slice of channels, one row a channel in ascending order.
        """

    def penalty(self) -> Tensor | None:
        """What is added to the loss of every step, a scalar, or None."""
        return None

    @property
    def reshapes(self) -> bool:
        """Whether the method changes the shapes of the model's tensors; a run then keeps its last epoch's weights."""
        return False

    def whole(self, name: str, tensor: Tensor) -> Tensor:  # noqa: ARG002 - for methods that change shapes
        """A tensor of the model in the shape that it had before the run, for methods that change shapes."""
        return tensor

    def state_dict(self) -> dict[str, Any]:
        """What the method has to remember over a kill: tensors, numbers, texts, lists and dicts of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
