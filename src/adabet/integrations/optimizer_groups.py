"""Take what does not train out of an optimizer that a trainer has made before the selection was known."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from adabet.errors import OptionError
from adabet.freezing import trained_parameters
from adabet.selection import Selection


class Narrowed:
    """An optimizer that is left with what a selection trains, until `restore`.

    Frozen parameters leave its groups; where only channels of a layer train, their slice takes the place of the whole
    tensor, with whatever state was loaded for it. The groups themselves stay, so that schedulers go on working. Its
    ``state_dict`` speaks of the groups as they were before: what a run saves fits the optimizer that the next run's
    trainer makes before it knows what trains.

    Args:
        optimizer: made for the whole model, or for part of it.
        model: with the selection applied.
        before: the model's parameters by name, as they were without the selection.
        selection: what trains.

    Raises:
        OptionError: if the optimizer lacks a tensor that trains.
    """

    def __init__(
        self, optimizer: Optimizer, model: nn.Module, before: dict[str, nn.Parameter], selection: Selection
    ) -> None:
        self._optimizer = optimizer
        trained = trained_parameters(model, selection.parameters)
        self._given = [list(group["params"]) for group in optimizer.param_groups]
        held = {id(parameter) for group in self._given for parameter in group}
        missing = [name for name, item in trained.items() if not {id(before.get(name)), id(item.parameter)} & held]
        if missing:
            raise OptionError(
                f"expected an optimizer that holds all that may train, it lacks {missing[0]!r}: unfreeze the model "
                "before the optimizer is made"
            )
        self._stand_in = {id(before[name]): item.parameter for name, item in trained.items() if name in before}
        frozen = {id(parameter) for parameter in before.values()} - self._stand_in.keys()
        frozen -= {id(item.parameter) for item in trained.values()}
        for group in optimizer.param_groups:
            group["params"] = [self._now(item) for item in group["params"] if id(item) not in frozen]
        for parameter in self._flat():
            self._move_state(parameter, self._now(parameter))
        self._hook = optimizer.register_state_dict_post_hook(self._as_given)

    def restore(self) -> None:
        """Give the optimizer back what it had; state of slices, which fits no whole tensor, is dropped."""
        self._hook.remove()
        for group, given in zip(self._optimizer.param_groups, self._given, strict=True):
            group["params"] = given
        for parameter in self._flat():
            if self._now(parameter) is not parameter:
                self._optimizer.state.pop(self._now(parameter), None)

    def _flat(self) -> Iterable[Any]:
        return [parameter for group in self._given for parameter in group]

    def _now(self, parameter: Any) -> Any:
        return self._stand_in.get(id(parameter), parameter)

    def _move_state(self, old: Any, new: Any) -> None:
        if old is not new and old in self._optimizer.state:
            self._optimizer.state[new] = self._optimizer.state.pop(old)

    def _as_given(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """What a ``state_dict`` would be with the groups as they were given."""
        numbers = {id(self._now(parameter)): number for number, parameter in enumerate(self._flat())}
        kept = [numbers[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        groups = [
            {**group, "params": [numbers[id(self._now(parameter))] for parameter in given]}
            for group, given in zip(state["param_groups"], self._given, strict=True)
        ]
        return {**state, "state": {kept[index]: item for index, item in state["state"].items()}, "param_groups": groups}
