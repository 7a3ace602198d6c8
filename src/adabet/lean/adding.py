"""Gradients of the later micro-batches, added to the sum of the earlier ones where that lies.

Autograd makes the gradient of a weight and then adds it to ``.grad``, so that the two are in memory at once. For the
matrices of a large linear layer, an embedding, or a convolution that works as a linear layer, that is more than a small
micro-batch saves in activations; their products can be added up in place.
"""

from contextvars import ContextVar

import torch
from torch import Tensor

from adabet.lean.rules import is_repeated

ADDING = ContextVar("ADDING", default=False)
"""Whether operations that run now may add to ``.grad`` by themselves, see `adabet.lean`."""


def added_to(weight: Tensor) -> Tensor | None:
    """The weight whose ``.grad`` an operation that runs now may add to, None if that is autograd's to do.

    A hook on the weight waits for a gradient of its own; and `torch.utils.checkpoint` runs an operation twice, the
    second time maybe elsewhere. The operation keeps the weight itself: what it saves comes back as another tensor.
    """
    adds = (
        ADDING.get()
        and weight.requires_grad
        and weight.is_leaf
        and not weight._backward_hooks
        and not getattr(weight, "_post_accumulate_grad_hooks", None)
        and not is_repeated()
    )
    return weight if adds else None


def product_gradient(first: Tensor, second: Tensor, dtype: torch.dtype, added: Tensor | None) -> Tensor | None:
    """``first @ second``, the gradient of a matrix; None if it was added to the gradient that is there.

    Args:
        first: a matrix.
        second: a matrix.
        dtype: of the weight.
        added: what `added_to` said.
    """
    if added is None or added.grad is None:
        return (first @ second).to(dtype)
    add_product(added.grad, first, second)
    return None


def add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    """``total += first @ second``, of matrices; only where their types differ is there a matrix between."""
    if first.dtype == total.dtype:
        total.addmm_(first, second)
    else:
        total.add_(first @ second)
