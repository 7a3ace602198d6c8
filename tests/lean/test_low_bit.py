import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from adabet.errors import LeanError
from adabet.lean import lean
from adabet.lean.low_bit import low_bit_lean
from tests.lean.against_stock import kept_bytes

# Each activation with the most that its slope may be off.
ACTIVATIONS = {
    "silu": (F.silu, 1 / 22),
    "gelu": (F.gelu, 1 / 22),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), 1 / 22),
    "hardswish": (F.hardswish, 1 / 14),
    "silu in place": (lambda x: F.silu(x + 0, inplace=True), 1 / 22),
    "hardswish in place": (lambda x: F.hardswish(x + 0, inplace=True), 1 / 14),
}


@pytest.mark.parametrize(("activation", "error"), ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_slopes_are_as_near_as_stated(activation, error: float, dtype) -> None:
    x = torch.linspace(-12, 12, 100_003, dtype=dtype).requires_grad_()
    expected = activation(x)
    with low_bit_lean():
        y, kept = kept_bytes(lambda: activation(x))
    assert torch.equal(y, expected)
    assert kept == -(-x.numel() // 2)
    slopes, exact = (torch.autograd.grad(each.sum(), x)[0].double() for each in (y, expected))
    rounding = torch.finfo(dtype).eps
    assert (slopes - exact).abs().max() <= error + 2 * rounding
    assert (slopes - exact).abs().max() > 0.8 * error
    assert torch.equal(slopes[x > 9], torch.ones_like(slopes[x > 9]))
    assert torch.equal(slopes[x < -9], torch.zeros_like(slopes[x < -9]))


@settings(deadline=None, max_examples=50)
@given(
    shape=st.lists(st.integers(0, 6), max_size=4),
    order=st.randoms(use_true_random=False),
    name=st.sampled_from(sorted(ACTIVATIONS)),
    spread=st.booleans(),
)
def test_any_shape_and_order_of_memory(shape, order, name: str, spread: bool) -> None:
    activation, error = ACTIVATIONS[name]
    dims = list(range(len(shape)))
    order.shuffle(dims)
    x = (torch.randn(shape).permute(dims) * 3).requires_grad_()
    expected = activation(x)
    gradient = torch.tensor(0.5).expand(expected.shape) if spread else torch.randn(expected.shape)
    with low_bit_lean():
        y = activation(x)
    assert torch.equal(y, expected)
    near, exact = (torch.autograd.grad(each, x, gradient)[0] for each in (y, expected))
    assert torch.all((near - exact).abs() <= (error + 1e-6) * gradient.abs())


def test_everything_else_is_as_in_lean() -> None:
    x, scale = torch.randn(64, requires_grad=True), torch.randn(64, requires_grad=True)
    with low_bit_lean():
        _, kept = kept_bytes(lambda: F.relu(x))
        assert kept == 8
    with lean():
        _, kept = kept_bytes(lambda: F.silu(x))
        assert kept == 64 * 4
    with low_bit_lean():
        _, kept = kept_bytes(lambda: F.silu(x) * scale)
    assert kept == 32 + 2 * 64 * 4


def test_longer_than_a_slice() -> None:
    x = torch.randn(2**18 * 2 + 3, requires_grad=True)
    with low_bit_lean():
        y = F.silu(x)
    near, exact = (torch.autograd.grad(each.sum(), x)[0] for each in (y, F.silu(x)))
    assert (near - exact).abs().max() <= 1 / 22 + 1e-6


@pytest.mark.parametrize(("activation", "error"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_double_backward_is_refused(activation, error: float) -> None:
    x = torch.randn(3, requires_grad=True)
    with low_bit_lean():
        y = activation(x)
    with pytest.raises(LeanError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("activation", [F.silu, F.gelu, F.hardswish])
def test_function_transforms_and_no_grad_go_through(activation) -> None:
    x = torch.randn(4, 3)

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: activation(x).sum())(x)

    expected = torch.func.vmap(gradient)(x)
    with low_bit_lean():
        assert torch.equal(torch.func.vmap(gradient)(x), expected)
        with torch.no_grad():
            assert torch.equal(activation(x), activation(x.clone()))


def test_in_place_is_in_place() -> None:
    with low_bit_lean():
        before = torch.ones(5, requires_grad=True) + 0
        after = F.silu(before, inplace=True)
        assert after is before
        with pytest.raises(RuntimeError, match="leaf Variable"):
            F.silu(torch.ones(5, requires_grad=True), inplace=True)
