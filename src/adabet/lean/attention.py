"""Attention: where stock keeps matrices of attention weights, lean keeps query, key and value and computes them again.

Softmax needs no rule, nor do the products of an attention written out in Python: stock autograd keeps the softmax's
output once for both. Nor do the fused kernels of ``scaled_dot_product_attention``, which keep query, key, value, output
and one number a row. Where those kernels don't serve, as with dropout on a CPU, stock keeps three matrices of weights
and scaled copies of query and key.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from adabet.lean.composite import Composite
from adabet.lean.keeping import is_tracked
from adabet.lean.mode import lean
from adabet.lean.rules import autocast_dtype, rule


@rule(F.scaled_dot_product_attention)
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Stand in for ``torch.nn.functional.scaled_dot_product_attention``: its inputs, where no fused kernel serves."""
    inputs = [None if x is None else x.to(autocast_dtype(x) or x.dtype) for x in (query, key, value, attn_mask)]
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}

    def attend(*inputs: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(*inputs, **options)  # type: ignore[arg-type]

    def attend_written_out(*inputs: Tensor | None) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return attend(*inputs)

    if not any(is_tracked(x) for x in inputs) or not _stock_writes_it_out(inputs, options):
        return attend(*inputs)
    y: Tensor = Composite.apply(attend_written_out, dropout_p > 0, *inputs)
    return y


def _stock_writes_it_out(inputs: list[Tensor | None], options: dict[str, Any]) -> bool:
    """Whether stock attention would run as products and a softmax here, on arguments that it takes."""
    query, key, value, mask = inputs
    ordinary = all(x is not None and x.dim() >= 3 for x in (query, key, value)) and (mask is None or mask.dim() >= 2)
    choose: Callable[..., int] = torch._fused_sdp_choice
    return ordinary and choose(*inputs, **options) == SDPBackend.MATH.value


def _body_of(function: Any) -> Callable[..., Any]:
    """A torch function without its look for overrides, so that a mode sees what it calls instead of the whole."""
    names = {**function.__globals__, "has_torch_function": lambda *_: False}
    body = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


_multi_head_attention_body = _body_of(F.multi_head_attention_forward)


@rule(F.multi_head_attention_forward)
def multi_head_attention_forward(*args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """Stand in for ``torch.nn.functional.multi_head_attention_forward``: the rules of what it is made of."""
    with lean():
        output: tuple[Tensor, Tensor | None] = _multi_head_attention_body(*args, **options)
    return output
