"""What a step of training everything would do: how much each tensor would lower the loss of one batch."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adabet.errors import OptionError, TrainingError
from adabet.layers.batches import device_of
from adabet.step import Loss, train_step

IMPORTANCE = ("update", "magnitude", "gradient")
MODES = ("eval", "train")

MakeOptimizer = Callable[[Mapping[str, nn.Parameter]], Optimizer]


@contextmanager
def probing(model: nn.Module, *, train: bool = False) -> Iterator[dict[str, nn.Parameter]]:
    """Let everything train for a moment; afterwards restore flags, gradients, modes, buffers and random state.

    Args:
        model: any module.
        train: whether it runs in train mode, with dropout and the statistics of the batch.

    Yields:
        The parameters that can have a gradient, by full name; none has one yet.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if train else []
    device = device_of(model)
    parameters = {name: item for name, item in model.named_parameters() if item.is_floating_point()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            model.train(train)
            for parameter in parameters.values():
                parameter.requires_grad_(True)
                parameter.grad = None
            with torch.enable_grad():
                yield parameters
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for parameter, flag, gradient in flags:
                parameter.requires_grad_(flag)
                parameter.grad = gradient
            for module, training in modes:
                module.training = training


def find_importance(
    model: nn.Module,
    batch: Any,
    optimizer: MakeOptimizer,
    *,
    kind: str = "update",
    mode: str = "eval",
    loss: Loss | None = None,
    micro_batch: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """How much each tensor is worth training; the largest magnitude is 1.

    For ``"update"``: gradients g0 of the batch's loss, one step of the optimizer from w0 to w1, gradients g1 of the
    same loss at w1, and ``-sum(g1 * (w1 - w0))`` for each tensor; positive where the step lowers the loss. The weights
    are put back bit for bit. ``"magnitude"`` is ``sum(|w0|)``, ``"gradient"`` is ``sum(|g0|)``.

    It takes as much memory as training everything by that optimizer, and a copy of the weights; the activations
    are those of ``micro_batch`` samples.

    Args:
        model: any module; left as it was.
        batch: with labels.
        optimizer: makes what takes the step, with the state that it has had so far.
        kind: one of the three.
        mode: ``"eval"``, or ``"train"`` for dropout (the same units in both passes) and, in batch-norms, the statistics
            of the batch.
        loss: see `train_step`.
        micro_batch: see `train_step`.
        seed: of what dropout draws.

    Returns:
        By full parameter name; 0 for what has no gradient.

    Raises:
        OptionError: if there is no such kind or mode, or the batch has no labels.
        TrainingError: if a gradient is not finite.
    """
    if kind not in IMPORTANCE:
        raise OptionError(f"expected importance to be one of {', '.join(IMPORTANCE)}, got {kind!r}")
    if mode not in MODES:
        raise OptionError(f"expected mode to be one of {', '.join(MODES)}, got {mode!r}")
    with probing(model, train=mode == "train") as parameters:
        if kind == "magnitude":
            return _scaled({name: _magnitude(parameter) for name, parameter in parameters.items()})

        def backward() -> None:
            _seed(device_of(model), seed)
            train_step(model, batch, loss, micro_batch=micro_batch)

        backward()
        if kind == "gradient":
            return _scaled({name: _magnitude(parameter.grad) for name, parameter in parameters.items()})
        return _scaled(_by_update(parameters, optimizer, backward))


def _by_update(
    parameters: Mapping[str, nn.Parameter], make: MakeOptimizer, backward: Callable[[], None]
) -> dict[str, float]:
    """What one step of the optimizer does for the loss, tensor by tensor; the gradients at w0 are there."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        make(parameters).step()
        for parameter in parameters.values():
            parameter.grad = None
        backward()
        return {name: -_product(item.grad, item.detach() - before[name]) for name, item in parameters.items()}
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


def _product(gradient: Tensor | None, change: Tensor) -> float:
    """To first order, what a change of a tensor adds to the loss."""
    if gradient is None:
        return 0.0
    dense = gradient.to_dense() if gradient.layout != torch.strided else gradient
    return float((dense * change).sum(dtype=torch.float64))


def _magnitude(tensor: Tensor | None) -> float:
    if tensor is None:
        return 0.0
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    return float(dense.abs().sum(dtype=torch.float64))


def _scaled(values: dict[str, float]) -> dict[str, float]:
    """The values over their largest magnitude."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"expected finite numbers to judge tensors by, {name!r} gives {value}; lower the learning rate or look "
                "for samples that are not finite"
            )
    largest = max(map(abs, values.values()), default=0.0) or 1.0
    return {name: value / largest for name, value in values.items()}


def _seed(device: torch.device, seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
