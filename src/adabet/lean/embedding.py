"""Embeddings whose gradients are added up in place; else stock autograd's, which keep the indices alone."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adabet.lean.adding import added_to
from adabet.lean.rules import first_order, rule


class _Embedding(torch.autograd.Function):
    """Adds the gradients of the rows that were looked up, where stock makes one of the whole table."""

    @staticmethod
    def forward(ctx: Any, indices: Tensor, weight: Tensor, padding: int, added: Tensor) -> Tensor:
        ctx.padding, ctx.added = padding, added
        ctx.save_for_backward(indices)
        return F.embedding(indices, weight)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (indices,), total = ctx.saved_tensors, ctx.added.grad
        if total is None:
            rows = len(ctx.added)
            for_weight = torch.ops.aten.embedding_dense_backward(gradient, indices, rows, ctx.padding, False)
            return None, for_weight, None, None
        counts = indices != ctx.padding
        total.index_put_((indices[counts],), gradient[counts].to(total.dtype), accumulate=True)
        return None, None, None, None


@rule(F.embedding)
def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Stand in for ``torch.nn.functional.embedding``."""
    plain = max_norm is None and not scale_grad_by_freq and not sparse
    added = added_to(weight)
    if not plain or weight.dim() != 2 or added is None:
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    out: Tensor = _Embedding.apply(input, weight, padding, added)
    return out
