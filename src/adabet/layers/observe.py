"""Look at a model without leaving a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from adabet.layers.batches import device_of


@contextmanager
def observing(model: nn.Module) -> Iterator[list[torch.utils.hooks.RemovableHandle]]:
    """Put a model into eval mode without gradients; afterwards restore modes, hooks and random state.

    Yields:
        A list: every hook handle appended to it is removed at the end, whatever happens.
    """
    modes = [(module, module.training) for module in model.modules()]
    handles: list[torch.utils.hooks.RemovableHandle] = []
    device = device_of(model)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        try:
            model.eval()
            yield handles
        finally:
            for handle in handles:
                handle.remove()
            for module, training in modes:
                module.training = training
