"""Run a model's forward passes in the lean mode, inside a training loop that is somebody else's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adabet.lean import lean


@contextmanager
def lean_forward(model: nn.Module, *, into_grad: bool = False) -> Iterator[None]:
    """Have every differentiated call of a model run in `adabet.lean`, until the block ends.

    By hooks, so whoever calls the model need not know; calls under ``torch.no_grad``, as in evaluation, run as ever.
    What a backward pass runs again (``torch.utils.checkpoint``) has to enter the mode itself, see `adabet.lean`.

    Args:
        model: called as a whole, one call at a time.
        into_grad: whether gradients may be added where they lie, see `adabet.lean`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> with lean_forward(model):
        ...     loss = model(torch.randn(3, 4)).sum()
        >>> loss.backward()
    """
    entered: list[lean | None] = []

    def enter(*_: Any) -> None:
        mode = lean(into_grad=into_grad) if torch.is_grad_enabled() else None
        if mode is not None:
            mode.__enter__()
        entered.append(mode)

    def leave(*_: Any) -> None:
        mode = entered.pop()
        if mode is not None:
            mode.__exit__(None, None, None)

    hooks = [
        model.register_forward_pre_hook(enter, prepend=True),
        model.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
