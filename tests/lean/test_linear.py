from collections.abc import Callable
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from adabet.errors import LeanError
from adabet.lean import lean
from tests.lean.against_stock import kept_bytes

SHAPES = [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6), (0, 6)]
TRAINS = [flags for flags in product([False, True], repeat=3) if any(flags)]


def run(
    function: Callable[..., Tensor], inputs: list[Tensor], trains: tuple[bool, ...], *, in_lean: bool
) -> tuple[list[Tensor | None], int]:
    """Output and gradients, and the bytes that were kept beside weight and bias."""
    leaves = [x.detach().clone().requires_grad_(flag) for x, flag in zip(inputs, trains, strict=True)]
    with lean() if in_lean else nullcontext():
        y, kept = kept_bytes(lambda: function(*leaves), leaves[1:])
    torch.manual_seed(1)
    y.backward(torch.randn_like(y))
    return [y.detach(), *(leaf.grad for leaf in leaves)], kept


def compare(
    function: Callable[..., Tensor], inputs: list[Tensor], trains: tuple[bool, ...], **tolerance: float
) -> tuple[int, int]:
    """Assert that output and gradients are stock's; the bytes that stock and lean keep."""
    stock, kept_by_stock = run(function, inputs, trains, in_lean=False)
    mine, kept = run(function, inputs, trains, in_lean=True)
    for one, other in zip(mine, stock, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, **tolerance)
    return kept_by_stock, kept


def tensors(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype), torch.randn(8, 6), torch.randn(8)]


@pytest.mark.parametrize("trains", TRAINS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_stock_to_the_bit(shape: tuple[int, ...], trains: tuple[bool, ...]) -> None:
    stock, mine = compare(F.linear, tensors(shape), trains, rtol=0, atol=0)
    assert mine == stock == (tensors(shape)[0].numel() * 4 if trains[1] else 0)


@pytest.mark.parametrize("trains", TRAINS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("given_type", [torch.float32, torch.bfloat16])
def test_autocast_keeps_no_copy_of_the_weight(
    shape: tuple[int, ...], trains: tuple[bool, ...], given_type: torch.dtype
) -> None:
    x, weight, bias = tensors(shape, given_type)

    def apply(*arguments: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.linear(*arguments)

    # Sums over a batch are rounded to bfloat16 before or after they are made.
    stock, mine = compare(apply, [x, weight, bias], trains, rtol=2**-7, atol=2**-7)

    assert mine <= stock
    assert mine == (x.numel() * 2 if trains[1] else 0)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    biased=st.booleans(),
    trains=st.sampled_from(TRAINS),
    transpose=st.booleans(),
)
def test_any_linear_after_a_recipe(
    shape: list[int], inputs: int, outputs: int, biased: bool, trains: tuple[bool, ...], transpose: bool
) -> None:
    x, weight, bias = torch.randn(*shape, inputs), torch.randn(outputs, inputs), torch.randn(outputs)

    def apply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h = F.gelu(x.transpose(0, -1).contiguous().transpose(0, -1) if transpose else x)
        y = F.linear(h, weight, bias if biased else None)
        return y + 0 * (x.sum() + weight.sum() + bias.sum())

    compare(apply, [x, weight, bias], trains)


@pytest.mark.parametrize("made", [F.gelu, F.silu, lambda x: F.layer_norm(x, (6,))])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_input_that_can_be_made_again_is_not_kept(made: Callable, dtype: torch.dtype | None) -> None:
    def apply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            return F.linear(made(x * 1), weight, bias)

    inputs = tensors((16, 6))
    stock, mine = compare(apply, inputs, (True, True, True), rtol=1e-2, atol=1e-2)
    assert mine < stock
    statistics = 2 * 16 * 4
    assert mine <= inputs[0].numel() * 4 + statistics


def test_the_bits_of_a_relu_whose_output_is_kept_are_dropped() -> None:
    def apply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(F.relu(x * 1), weight, bias)

    inputs = tensors((16, 6))
    stock, mine = compare(apply, inputs, (True, True, True), rtol=0, atol=0)
    assert mine == stock == inputs[0].numel() * 4


def test_matrix_products_need_no_rule() -> None:
    """What the module's docstring says of stock autograd: a frozen factor's partner is not kept."""
    x, weight = torch.randn(5, 6, requires_grad=True) * 1, torch.randn(6, 8)
    for operation in (
        lambda: x @ weight,
        lambda: torch.addmm(torch.zeros(8), x, weight),
        lambda: torch.bmm(x.unsqueeze(0), weight.unsqueeze(0)),
        lambda: torch.einsum("ni,io->no", x, weight),
    ):
        assert kept_bytes(operation, [weight])[1] == 0
    embedding = nn.Embedding(10, 4)
    indices = torch.tensor([[1, 2, 3]])
    assert kept_bytes(lambda: embedding(indices))[1] == 3 * 8


def test_refuses_double_backward_where_it_keeps_less() -> None:
    x, weight = torch.randn(5, 6, requires_grad=True), torch.randn(8, 6)
    with lean():
        plain = F.linear(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            cast = F.linear(x, weight)
    torch.autograd.grad(plain.sum(), x, create_graph=True)
    with pytest.raises(LeanError, match="create_graph=True"):
        torch.autograd.grad(cast.sum(), x, create_graph=True)


def test_wrong_arguments_raise_what_stock_raises() -> None:
    for x, weight in (
        (torch.ones(5, 7), torch.ones(8, 6)),
        (torch.ones(5, 6, dtype=torch.float64), torch.ones(8, 6)),
        (torch.ones(()), torch.ones(8, 6)),
    ):
        x.requires_grad_()
        with pytest.raises(RuntimeError) as stock:
            F.linear(x, weight)
        with lean(), pytest.raises(RuntimeError) as mine:
            F.linear(x, weight)
        assert str(mine.value) == str(stock.value)


def test_a_vector_of_weights_and_nested_tensors_go_through_stock() -> None:
    x, weight = torch.randn(5, 6, requires_grad=True), torch.randn(6)
    with lean():
        torch.testing.assert_close(F.linear(x, weight), x @ weight)
        nested = torch.nested.nested_tensor([torch.randn(2, 6), torch.randn(3, 6)], layout=torch.jagged)
        assert F.linear(nested, torch.randn(8, 6, requires_grad=True)).is_nested
