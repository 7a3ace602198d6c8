"""Optimizers by name; the paper's is SGD with decoupled weight decay."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from adabet.errors import OptionError, UnknownNameError

OptimizerFactory = Callable[[Sequence[Any]], Optimizer]
"""Makes an optimizer for a list of parameters, or of groups of them, as torch's own do."""


class SGDW(torch.optim.SGD):
    """SGD with momentum and decoupled weight decay.

    Every step first shrinks the parameters by ``1 - lr * weight_decay`` and then takes an SGD step whose
    gradient and momentum know nothing of the decay. As the learning rate follows a schedule, so does the
    decay.

    Args:
        params: parameters or groups of them, as for `torch.optim.SGD`.
        lr: learning rate.
        momentum: factor of the running sum of gradients.
        weight_decay: decay per step in units of the learning rate.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), Algorithm 1; the decay is multiplied by the learning rate as
    in `torch.optim.AdamW`.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> weight.grad = torch.tensor([1.0])
        >>> SGDW([weight], lr=0.1, momentum=0.0, weight_decay=0.5).step()
        >>> round(weight.item(), 6)  # 2 * (1 - 0.1 * 0.5) - 0.1 * 1
        1.8
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 5e-4
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Decay, then step; ``closure`` recomputes the loss first if it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.mul_(1 - group["lr"] * group["weight_decay"])
                group["weight_decay"] = 0.0
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss


def check_head_lr_factor(factor: float) -> None:
    """Make sure that the head's learning rate is a sensible multiple of all else's.

    Raises:
        OptionError: if it is not a finite number above 0.
    """
    if not 0 < factor < math.inf:
        raise OptionError(f"expected head_lr_factor to be a number above 0, got {factor!r}")


def optimizer_factory(
    optimizer: str | OptimizerFactory, *, lr: float, weight_decay: float, momentum: float
) -> OptimizerFactory:
    """What makes the optimizer, by name or as the user gave it.

    Args:
        optimizer: ``"sgdw"`` (the paper's), ``"sgd"``, ``"adam"``, ``"adamw"``, or a function that takes the
            list of parameters; such a function brings its own options and the three below are not used.
        lr: learning rate.
        weight_decay: applied to every trained tensor, biases and norms included, as in the paper.
        momentum: of ``"sgdw"`` and ``"sgd"``.

    Raises:
        UnknownNameError: if no optimizer has that name.
        OptionError: if an option is out of range.
    """
    if not isinstance(optimizer, str):
        return optimizer
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("momentum", momentum)):
        if not 0 <= value < math.inf:
            raise OptionError(f"expected {name} to be a number from 0 up, got {value!r}")
    kinds: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
        "sgdw": (SGDW, {"momentum": momentum}),
        "sgd": (torch.optim.SGD, {"momentum": momentum}),
        # The multi-tensor default of torch's Adam holds temporaries as large as all parameters together.
        "adam": (torch.optim.Adam, {"foreach": False}),
        "adamw": (torch.optim.AdamW, {"foreach": False}),
    }
    if optimizer not in kinds:
        raise UnknownNameError("optimizer", optimizer, kinds)
    kind, options = kinds[optimizer]

    def make(parameters: Sequence[Any]) -> Optimizer:
        return kind(parameters, lr=lr, weight_decay=weight_decay, **options)

    make.__name__ = optimizer
    return make
