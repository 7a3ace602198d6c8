import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from adabet.errors import LeanError
from adabet.lean import lean
from tests.lean.against_stock import compare, kept_bytes

DROPOUTS = {
    "F.dropout": lambda x: F.dropout(x, 0.3),
    "half": F.dropout,
    "nearly all": lambda x: F.dropout(x, 0.99),
    "torch.dropout": lambda x: torch.dropout(x, 0.3, True),
    "module": nn.Dropout(0.2),
    "in place": lambda x: F.dropout(x + 0, 0.3, inplace=True),
    "torch.dropout_": lambda x: torch.dropout_(x + 0, 0.3, True),
    "module in place": lambda x: nn.Dropout(0.2, inplace=True)(x + 0),
}
UNTOUCHED = {
    "not training": lambda x: F.dropout(x + 0, 0.3, training=False),
    "probability 0": lambda x: F.dropout(x + 0, 0.0),
    "probability 1": lambda x: F.dropout(x, 1.0),
    "channels": lambda x: F.dropout2d(x, 0.5),
    "alpha": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "feature alpha": lambda x: F.feature_alpha_dropout(x, 0.5, training=True),
}
INPUTS = {
    "contiguous": lambda: torch.randn(3, 5, 7),
    "channels-last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "empty": lambda: torch.randn(0, 3),
    "a number": lambda: torch.randn(()),
    "bfloat16": lambda: torch.randn(33).bfloat16(),
    "float64": lambda: torch.randn(8, 2).double(),
    "special": lambda: torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0] * 5),
    "longer than a slice": lambda: torch.randn(2**18 + 5),
}


@pytest.mark.parametrize("layout", INPUTS)
@pytest.mark.parametrize("dropout", DROPOUTS.values(), ids=DROPOUTS)
def test_dropout_keeps_one_bit_an_element_and_the_random_numbers(dropout, layout: str) -> None:
    x = INPUTS[layout]().requires_grad_()
    stock, thin = compare(dropout, x)
    assert thin == math.ceil(x.numel() / 8)
    assert stock == x.numel() * x.element_size()


@pytest.mark.parametrize("dropout", DROPOUTS.values(), ids=DROPOUTS)
def test_what_is_drawn_next_stays_the_same(dropout) -> None:
    x = torch.randn(1000, requires_grad=True)
    torch.manual_seed(3)
    dropout(x)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with lean():
        dropout(x)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("dropout", UNTOUCHED.values(), ids=UNTOUCHED)
def test_whatever_gains_nothing_is_left_to_stock(dropout) -> None:
    stock, thin = compare(dropout, torch.randn(2, 3, 4, 5, requires_grad=True))
    assert thin == stock


@pytest.mark.parametrize("dropout", DROPOUTS.values(), ids=DROPOUTS)
def test_slices_and_expanded_inputs(dropout) -> None:
    x = torch.randn(6, 8, requires_grad=True)
    compare(lambda x: dropout(x[:, 1::2]), x)
    compare(lambda x: dropout(x[:1].expand(4, 8)), x)


def test_in_place_is_in_place() -> None:
    with lean():
        before = torch.ones(100, requires_grad=True) + 0
        after = F.dropout(before, 0.5, inplace=True)
    assert after is before
    assert set(before.tolist()) == {0.0, 2.0}


def test_in_place_on_a_view_changes_its_base() -> None:
    def on_a_row(x: Tensor) -> Tensor:
        whole = x + 0
        F.dropout(whole[1], 0.5, inplace=True)
        return whole

    compare(on_a_row, torch.randn(3, 8, requires_grad=True))


def test_in_place_on_a_leaf_is_refused_as_in_stock() -> None:
    with lean(), pytest.raises(RuntimeError, match="leaf Variable"):
        F.dropout(torch.randn(3, requires_grad=True), inplace=True)


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_stock_refuses_what_it_refuses(p: float) -> None:
    with lean(), pytest.raises(ValueError, match="dropout probability"):
        F.dropout(torch.randn(3, requires_grad=True), p)


def test_dropped_activation_is_made_from_what_the_activation_keeps() -> None:
    matrix = torch.randn(3, 8, requires_grad=True)
    x = torch.randn(6, 8, requires_grad=True)
    stock, thin = compare(lambda x: F.linear(F.dropout(F.gelu(x), 0.3), matrix), x, parameters=[matrix])
    assert stock == 3 * x.numel() * 4
    assert thin == x.numel() * 4 + x.numel() // 8


def test_autocast() -> None:
    def in_bfloat16(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.dropout(x @ weight, 0.3)

    compare(in_bfloat16, torch.randn(5, 4, requires_grad=True), torch.randn(4, 3))


def test_double_backward_is_refused() -> None:
    x = torch.randn(3, requires_grad=True)
    with lean():
        y = F.dropout(x)
    with pytest.raises(LeanError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_nothing_is_kept_without_gradients() -> None:
    with lean():
        assert kept_bytes(lambda: F.dropout(torch.randn(9)))[1] == 0


def test_backward_twice_gives_the_same() -> None:
    x = torch.randn(16, requires_grad=True)
    with lean():
        y = F.dropout(x)
    gradient = torch.randn(16)
    first = torch.autograd.grad(y, x, gradient, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(y, x, gradient)[0])


@settings(deadline=None, max_examples=50)
@given(
    shape=st.lists(st.integers(0, 9), max_size=4),
    order=st.randoms(use_true_random=False),
    p=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_any_dropout(shape, order, p, dtype) -> None:
    dims = list(range(len(shape)))
    order.shuffle(dims)
    compare(lambda x: F.dropout(x, p), torch.randn(shape).permute(dims).to(dtype).requires_grad_())
