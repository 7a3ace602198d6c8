"""Another selection in the middle of a run: what trains, by name, and the optimizer's state that goes along."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adabet.freezing import Trained
from adabet.training.optimizer import OptimizerFactory


@dataclass(frozen=True)
class Held:
    """What an optimizer knows of one tensor: its state, and where in the whole tensor that lies."""

    state: Mapping[str, Any]
    was: Trained


def make_optimizer(factory: OptimizerFactory, trained: Mapping[str, Trained], rates: Mapping[str, float]) -> Optimizer:
    """An optimizer for what trains; one group of parameters for each factor on the learning rate.

    Args:
        factory: the run's.
        trained: by full name.
        rates: factors on the learning rate by full name; 1 where not named.
    """
    if not any(rates.get(name, 1.0) != 1.0 for name in trained):
        return factory([item.parameter for item in trained.values()])
    groups: dict[float, list[Tensor]] = {}
    for name, item in trained.items():
        groups.setdefault(rates.get(name, 1.0), []).append(item.parameter)
    optimizer = factory([{"params": parameters} for parameters in groups.values()])
    for rate, group in zip(groups, optimizer.param_groups, strict=True):
        group["lr"] = group["lr"] * rate
    return optimizer


def held_state(optimizer: Optimizer, trained: Mapping[str, Trained]) -> dict[str, Held]:
    """The optimizer's state by the full names of what it trains."""
    return {
        name: Held(dict(optimizer.state[item.parameter]), item)
        for name, item in trained.items()
        if optimizer.state.get(item.parameter)
    }


@torch.no_grad()
def carry_over(
    held: Mapping[str, Held],
    optimizer: Optimizer,
    trained: Mapping[str, Trained],
    follow: Mapping[str, Callable[[Tensor], Tensor]],
) -> None:
    """Give a new optimizer the state of what goes on training; what has just come in starts anew.

    Args:
        held: what `held_state` gave.
        optimizer: the new one, without state.
        trained: what it trains, by full name.
        follow: for tensors whose shape has changed, how state changes with them.
    """
    for name, item in trained.items():
        if name not in held or not _overlap(held[name].was, item):
            continue
        was = held[name].was
        optimizer.state[item.parameter] = {
            key: _moved(value, was, item, follow.get(name)) if _is_rows(value, was) else value
            for key, value in held[name].state.items()
        }


def _is_rows(value: Any, was: Trained) -> bool:
    """Whether an entry of the state has an element for each of the tensor's own."""
    return isinstance(value, Tensor) and value.shape == was.shape


def _overlap(was: Trained, now: Trained) -> bool:
    if was.place is None or now.place is None:
        return True
    return bool(set(was.place.channels) & set(now.place.channels))


def _moved(value: Tensor, was: Trained, now: Trained, follow: Callable[[Tensor], Tensor] | None) -> Tensor:
    """State of one tensor from its old place to its new one; zero for channels that were not there."""
    if was.place == now.place and follow is None:
        return value
    if was.place is not None and now.place is not None and follow is None:
        rows = {channel: row for row, channel in enumerate(was.place.channels)}
        moved = value.new_zeros((len(now.place.channels), *value.shape[1:]))
        for row, channel in enumerate(now.place.channels):
            if channel in rows:
                moved[row] = value[rows[channel]]
        return moved
    whole = value
    if was.place is not None:
        whole = value.new_zeros(was.whole)
        was.place.put(whole, value)
    whole = whole if follow is None else follow(whole)
    return whole.clone() if now.place is None else now.place.take(whole)
