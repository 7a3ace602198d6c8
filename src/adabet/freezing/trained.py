"""What trains in a model with a selection on it, by the names that its tensors have without one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from adabet.freezing.channels import Channels, SliceOf


@dataclass(frozen=True)
class Trained:
    """A tensor that an optimizer is given.

    Attributes:
        parameter: the tensor: the model's own, or a slice with one row a channel.
        place: where the slice lies in the whole tensor, None if all of it trains.
        shape: of ``parameter``, also after something else has taken its place in the model.
        whole: shape of the whole tensor.
    """

    parameter: nn.Parameter
    place: Channels | None
    shape: torch.Size
    whole: torch.Size

    @classmethod
    def of(cls, parameter: nn.Parameter) -> "Trained":
        """A parameter that trains whole."""
        return cls(parameter, None, parameter.shape, parameter.shape)


def trained_parameters(model: nn.Module, names: Iterable[str]) -> dict[str, Trained]:
    """The tensors behind full parameter names, each once; of a sliced one its slice.

    Args:
        model: with its selection applied.
        names: of parameters, as the model has them without slices.
    """
    found: dict[str, Trained] = {}
    seen: set[int] = set()
    for name in names:
        owner, _, leaf = name.rpartition(".")
        trained = _trained(model.get_submodule(owner), leaf)
        if id(trained.parameter) not in seen:
            seen.add(id(trained.parameter))
            found[name] = trained
    return found


def _trained(module: nn.Module, name: str) -> Trained:
    if not parametrize.is_parametrized(module, name):
        return Trained.of(module.get_parameter(name))
    stack = cast(parametrize.ParametrizationList, module.parametrizations[name])  # type: ignore[index]
    part = cast(nn.Parameter, stack.original)
    slice_ = stack[0]
    if not isinstance(slice_, SliceOf):  # the user's own parametrization: its original is what trains
        return Trained.of(part)
    return Trained(part, slice_.place, part.shape, slice_.full.shape)
