"""What trains over the course of a run: one selection, or those of a method that selects again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from adabet.errors import AdabetError, CheckpointError, LayerError
from adabet.freezing import Applied, Trained, apply
from adabet.freezing.trained import trained_parameters
from adabet.methods import Dynamic, Moment, Turn
from adabet.selection import Selection
from adabet.training.optimizer import OptimizerFactory
from adabet.training.processes import Processes
from adabet.training.schedule import scale_learning_rates
from adabet.training.switching import Held, carry_over, held_state, make_optimizer


@dataclass(frozen=True)
class TurnRecord:
    """A line of a run's ``turns.jsonl``.

    Attributes:
        epoch: of the first step that trained this selection, from 1.
        step: that step within the epoch, from 1.
        layers: module paths of what trained, the head included.
        parameters: number of elements that trained.
        note: the method's.
    """

    epoch: int
    step: int
    layers: tuple[str, ...]
    parameters: int
    note: str = ""

    @classmethod
    def of(cls, turn: Turn, epoch: int, step: int) -> "TurnRecord":
        """A record of a selection that trains from a moment on."""
        choices = turn.selection.choices
        layers = tuple(choice.layer for choice in choices)
        return cls(epoch, step, layers, turn.selection.parameter_count, turn.note)


class Course:
    """The selection that is on the model, its optimizer, and all that has trained so far.

    Args:
        model: without a selection on it.
        factory: makes the run's optimizer.
        batch_norm: see `adabet.apply`.
        processes: the main one's choice is everybody's.
        dynamic: the method that selects again, or None.
        head_lr_factor: the head's learning rate in units of all else's.

    Attributes:
        turn: what trains.
        touched: full names of all tensors that have trained, in order.
        records: one for each turn.
    """

    def __init__(
        self,
        model: nn.Module,
        factory: OptimizerFactory,
        *,
        batch_norm: str,
        processes: Processes,
        dynamic: Dynamic | None = None,
        head_lr_factor: float = 1.0,
    ) -> None:
        self.model = model
        self.dynamic = dynamic
        self.touched: dict[str, None] = {}
        self.records: list[TurnRecord] = []
        self._factory, self._batch_norm, self._processes = factory, batch_norm, processes
        self._head_lr_factor = head_lr_factor
        self._applied: Applied | None = None
        self._trained: dict[str, Trained] = {}
        self._fresh = False

    @property
    def selection(self) -> Selection:
        """What trains now."""
        return self.turn.selection

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors that train now."""
        return [item.parameter for item in self._trained.values()]

    @property
    def learning_rate(self) -> float:
        """The largest one now, the head's apart; the head's where nothing else trains."""
        head = {id(self._trained[name].parameter) for name in self.selection.head}
        groups = self.optimizer.param_groups
        layers = [group["lr"] for group in groups if any(id(parameter) not in head for parameter in group["params"])]
        return float(max(layers or [group["lr"] for group in groups]))

    def take(self, turn: Turn) -> None:
        """Start with a turn that was made before the run."""
        self._enter(turn, 1, 1)
        self._fresh = True

    def begin_with(self, moment: Moment) -> None:
        """Start with the method's first turn."""
        self.take(self._asked(moment))

    def moment(self, epoch: int, step: int, *, epochs: int, steps: int | None, factor: float) -> Moment:
        """A moment of the run; ``factor`` is that of the schedule on the learning rates."""

        def optimizer(parameters: Mapping[str, nn.Parameter]) -> Optimizer:
            held = held_state(self.optimizer, self._trained) if self._trained else self._held
            trained = {name: Trained.of(parameter) for name, parameter in parameters.items()}
            made = make_optimizer(self._factory, trained, {})
            # what the step changes of the state must not be what the run goes on with
            copies = {name: Held(_copied(item.state), item.was) for name, item in held.items()}
            carry_over(copies, made, trained, {})
            scale_learning_rates(made, factor)
            return made

        return Moment(epoch, step, epochs, steps, optimizer)

    def due(self, moment: Moment) -> bool:
        """Whether the method wants to choose again now."""
        if self.dynamic is None or (self._fresh and moment.starts_run):
            return False
        return self.dynamic.due(moment)

    def begin(self) -> None:
        """Put the selection onto the model and make its optimizer.

        Raises:
            LayerError: if nothing would train.
        """
        self._applied = apply(self.model, self.selection, batch_norm=self._batch_norm)
        self._trained = trained_parameters(self.model, self.selection.parameters)
        if not self._trained:
            raise LayerError("the selection leaves nothing to train; choose layers, or let the head train")
        head = dict.fromkeys(self.selection.head, self._head_lr_factor)
        rates = {name: self.turn.rates.get(name, 1.0) * head.get(name, 1.0) for name in self._trained}
        self.optimizer = make_optimizer(self._factory, self._trained, rates)

    def switch(self, moment: Moment) -> tuple[str, ...]:
        """Let the method choose again, and go on with the optimizer's state of what stays.

        Returns:
            Full names of tensors that train for the first time in this run.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self._held = held_state(self.optimizer, self._trained)
        self.end()
        new = self._enter(self._asked(moment), moment.epoch, moment.step)
        self.begin()
        if not self.turn.fresh:
            carry_over(self._held, self.optimizer, self._trained, self.turn.follow)
        self._held = {}
        return new

    def end(self) -> None:
        """Take the selection off the model; trained values stay."""
        if self._applied is not None:
            self._applied.restore()
        self._applied, self._trained = None, {}

    @property
    def reshapes(self) -> bool:
        """Whether the method changes the shapes of the model's tensors."""
        return self.dynamic is not None and self.dynamic.reshapes

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the model in the shape that it has in the base model."""
        return tensor if self.dynamic is None else self.dynamic.whole(name, tensor)

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss of every step."""
        return None if self.dynamic is None else self.dynamic.penalty()

    @property
    def watches(self) -> bool:
        """Whether the method wants to see gradients."""
        return self.dynamic is not None and self.dynamic.watches

    def watch(self, moment: Moment) -> None:
        """Show the method the gradients of a step."""
        gradients = {
            name: item.parameter.grad for name, item in self._trained.items() if item.parameter.grad is not None
        }
        self._dynamic().watch(moment, gradients)

    def state_dict(self) -> dict[str, Any] | None:
        """All that a resumed run needs of a method that selects again; None for a selection made once."""
        if self.dynamic is None:
            return None
        return {
            "state": self.dynamic.state_dict(),
            "selection": self.selection.to_json(),
            "rates": dict(self.turn.rates),
            "touched": list(self.touched),
            "turns": [asdict(record) for record in self.records],
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state_dict`; the model has its base weights and no selection on it.

        Raises:
            CheckpointError: if the state is not of such a run.
        """
        if state is None:
            raise CheckpointError("the checkpoint is of a run whose selection was made once, this method selects again")
        try:
            self._dynamic().load_state_dict(state["state"])
            self.turn = Turn(Selection.from_json(state["selection"]), rates=state["rates"])
            self.touched = dict.fromkeys(state["touched"])
            self.records = [TurnRecord(**{**record, "layers": tuple(record["layers"])}) for record in state["turns"]]
        except AdabetError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit the method: {error!r}") from error
        self._fresh = True

    def _asked(self, moment: Moment) -> Turn:
        """The method's turn at a moment; what trains is what the main process says.

        Every process asks its own method, since a method may change the model.
        """
        turn = self._dynamic().turn(moment)
        selection, rates = self._processes.from_main((turn.selection.to_json(), dict(turn.rates)))
        return replace(turn, selection=Selection.from_json(selection), rates=rates)

    def _enter(self, turn: Turn, epoch: int, step: int) -> tuple[str, ...]:
        self.turn, self._fresh = turn, False
        self.records.append(TurnRecord.of(turn, epoch, step))
        new = tuple(name for name in turn.selection.parameters if name not in self.touched)
        self.touched.update(dict.fromkeys(new))
        return new

    def _dynamic(self) -> Dynamic:
        if self.dynamic is None:
            raise CheckpointError("the checkpoint is of a method that selects again, this run's selection is made once")
        return self.dynamic

    _held: Mapping[str, Held] = {}
    turn: Turn
    optimizer: Optimizer


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
