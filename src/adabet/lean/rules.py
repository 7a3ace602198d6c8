"""The table of lean rules, and what every rule shares: first-order backward passes, spare gradients, autocast."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint
from torch import Tensor

from adabet.errors import LeanError
from adabet.lean.bits import is_dense

RULES: dict[Callable[..., Any], Callable[..., Any]] = {}

Function = TypeVar("Function", bound=Callable[..., Any])


def rule(*operations: Callable[..., Any]) -> Callable[[Function], Function]:
    """Register a function as the lean stand-in for one or more torch operations.

    The stand-in has the signature of what it replaces, decides by ``requires_grad`` what has to be kept,
    and calls the stock operation wherever it has nothing to save. The mode is off while it runs.

    Args:
        operations: torch functions exactly as a ``TorchFunctionMode`` sees them, such as ``torch.conv2d``.
    """

    def register(function: Function) -> Function:
        for operation in operations:
            RULES[operation] = function
        return function

    return register


def first_order(backward: Function) -> Function:
    """Refuse a double backward: what a lean operation keeps is enough for first derivatives only.

    Goes on the ``backward`` of every lean ``torch.autograd.Function``, under ``@staticmethod``.

    Raises:
        LeanError: when the backward pass itself is to be differentiated (``create_graph=True``).
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        if torch.is_grad_enabled():
            raise LeanError(
                "lean operations keep too little for second derivatives, and this backward pass was called with "
                "create_graph=True; run that forward pass outside adabet.lean()"
            )
        return backward(ctx, *gradients)

    return checked  # type: ignore[return-value]  # same signature as what it wraps


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The type to which autocast casts this argument of an operation that it runs in lower precision.

    Returns:
        None where autocast is off for the tensor's device or leaves the tensor alone (float64, not floating).
    """
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    if not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def is_repeated() -> bool:
    """Whether what is saved now will be saved, or is being saved, a second time: inside ``torch.utils.checkpoint``.

    It compares the two times tensor by tensor, so what an operation saves must not depend then on what others saved
    before it, nor change later.
    """
    look = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if look is None:
        return True  # an older torch does not tell; what repeats is right anywhere
    hooks = look(True)
    return hooks is not None and hooks[0].__module__ == torch.utils.checkpoint.__name__


def is_spare(gradient: Tensor) -> bool:
    """Whether a backward pass may overwrite the gradient that it received: nobody else can ever read it.

    To be called straight from a ``backward`` decorated with `first_order`, with the gradient as autograd handed it
    over and no second name for it. True only if the autograd engine holds no other reference (as it does where a
    sum hands one gradient to both its terms), no Python object does (a hook that kept it, a caller that passed
    it in) and no other tensor shares its memory (a view, a split gradient), and if each element has its own.
    """
    return (
        not torch.compiler.is_compiling()
        and _holders(gradient) == holders_of_unshared()
        and _tensors_in_storage(gradient) == 1
        and is_dense(gradient)
    )


def _holders(tensor: Tensor) -> tuple[int, int]:
    """References to a tensor's Python object, and to the tensor behind that."""
    return sys.getrefcount(tensor), tensor._use_count()  # type: ignore[attr-defined, unused-ignore]


def _tensors_in_storage(tensor: Tensor) -> int:
    # Not by way of tensor.untyped_storage(): the Python object that this makes stays as one more reference, and would
    # keep the engine from summing further gradients in place.
    address = torch._C._storage_address(tensor)  # type: ignore[attr-defined]
    return int(torch._C._storage_Use_Count(address))


class _Census(torch.autograd.Function):
    """Counts the references to a gradient that is known to be nobody else's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[tuple[int, int]]) -> Tensor:
        ctx.counts = counts
        return x.clone()

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        _count(ctx.counts, gradient)
        return gradient, None


def _count(counts: list[tuple[int, int]], gradient: Tensor) -> None:
    """Stands where `is_spare` stands in a backward pass, so that it sees as many references."""
    counts.append(_holders(gradient))


@functools.cache
def holders_of_unshared() -> tuple[int, int]:
    """What `_holders` counts for an unshared gradient; measured, for it differs between Python versions."""
    counts: list[tuple[int, int]] = []
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        x = torch.ones(2, requires_grad=True)
        (_Census.apply(x, counts) * x.detach()).backward(torch.ones(2))
    return counts[0]
