"""Leave a user's model as it was."""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from adabet.layers.batches import device_of


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore, after the block, all of a model but its parameters' values, and the random states.

    Buffers (bit by bit), training modes, ``requires_grad``, ``.grad``; the random states of torch (on the CPU
    and the model's device), of NumPy and of Python. The block starts without gradients. Whoever changes the
    values of parameters puts them back: a copy of all weights would be most of a small budget.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.to("cpu", copy=True))
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    device = device_of(model)
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for parameter, _, _ in parameters:
                parameter.grad = None
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
            for module, name, buffer, copy in buffers:
                module._buffers[name] = buffer.copy_(copy)
            for module, training in modes:
                module.training = training
            for parameter, requires_grad, gradient in parameters:
                parameter.requires_grad_(requires_grad)
                parameter.grad = gradient


@contextmanager
def values_kept(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Put the parameters' values back after the block.

    They wait in a file: copies in memory, of all that trains, could be more than a budget has room for.

    Raises:
        OSError: if there is no room for the file.
    """
    parameters = [parameter for parameter in parameters if parameter.numel()]
    with tempfile.TemporaryFile() as file:
        for parameter in parameters:
            file.write(_bytes_of(parameter.detach().cpu()))
        file.seek(0)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter in parameters:
                    stored = torch.frombuffer(bytearray(file.read(parameter.nbytes)), dtype=parameter.dtype)
                    parameter.copy_(stored.view(parameter.shape))


def _bytes_of(tensor: Tensor) -> memoryview:
    array: np.ndarray[tuple[int], np.dtype[np.uint8]] = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return array.data
