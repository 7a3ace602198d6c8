"""Run an operation in stock autograd and in lean, on the same inputs, and compare all that a user could see."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adabet.lean import lean


@dataclass
class Run:
    """What came out of one forward and one backward pass."""

    output: Tensor
    gradients: list[Tensor | None]
    kept: int


def kept_bytes(function: Callable[[], Any], parameters: Sequence[Tensor] = ()) -> tuple[Any, int]:
    """What a function returns, and the bytes that autograd keeps for it: each memory once, parameters not at all."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    free = {tensor.untyped_storage().data_ptr() for tensor in parameters}
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return result, sum(size for address, size in memory.items() if address not in free)


def run(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    in_lean: bool,
    parameters: Sequence[Tensor] = (),
    spread: bool = False,
) -> Run:
    """Run a function of tensors forward and backward, with the same random numbers each time.

    Args:
        function: of copies of ``inputs``, which require gradients where those do.
        inputs: tensors; the copies have their layout.
        in_lean: in the lean mode or not.
        parameters: tensors that are in memory anyway.
        spread: hand the output a gradient that is expanded from one number.
    """
    leaves = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    torch.manual_seed(0)
    with lean() if in_lean else nullcontext():
        output, kept = kept_bytes(lambda: function(*leaves), parameters)
    one = torch.full((), 0.5, dtype=output.dtype)
    gradient = one.expand(output.shape) if spread else torch.randn(output.shape, dtype=output.dtype)
    wanted = [x for x in leaves if x.requires_grad] + [x for x in parameters if x.requires_grad]
    gradients = torch.autograd.grad(output, wanted, gradient, allow_unused=True)
    return Run(output.detach(), list(gradients), kept)


def compare(function: Callable[..., Tensor], *inputs: Tensor, parameters: Sequence[Tensor] = ()) -> tuple[int, int]:
    """Assert equality to the bit with stock autograd; the bytes that stock and lean keep."""
    for spread in (False, True):
        stock, thin = (
            run(function, inputs, in_lean=in_lean, parameters=parameters, spread=spread) for in_lean in (False, True)
        )
        assert_same(thin.output, stock.output)
        assert layout(thin.output) == layout(stock.output)
        for mine, its in zip(thin.gradients, stock.gradients, strict=True):
            assert (mine is None) == (its is None)
            if its is not None:
                assert_same(mine, its)
    return stock.kept, thin.kept


def layout(tensor: Tensor) -> list[int]:
    """Strides, where they say anything."""
    return [step for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1 and tensor.numel() > 0]


def assert_same(mine: Tensor, its: Tensor) -> None:
    """Equal in type, shape and every bit of every number, NaN included."""
    assert mine.dtype is its.dtype
    assert mine.shape == its.shape
    torch.testing.assert_close(mine, its, rtol=0, atol=0, equal_nan=True)
