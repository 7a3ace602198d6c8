import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from adabet.errors import LeanError
from adabet.lean import lean
from tests.lean.against_stock import compare, kept_bytes

N, C, H, W = 2, 3, 4, 5
WHOLE, GATE = N * C * H * W * 4, N * C * 4

PRODUCTS = {
    "a * b": operator.mul,
    "torch.mul": torch.mul,
    "torch.multiply": torch.multiply,
    "Tensor.mul": Tensor.mul,
    "Tensor.multiply": Tensor.multiply,
    "Tensor.__mul__": Tensor.__mul__,
    "Tensor.__rmul__": Tensor.__rmul__,
}
PRODUCTS_IN_PLACE = {
    "a *= b": operator.imul,
    "Tensor.mul_": Tensor.mul_,
    "Tensor.multiply_": Tensor.multiply_,
}


def image(*, trains: bool = True, channels_last: bool = False) -> Tensor:
    torch.manual_seed(2)
    x = torch.randn(N, C, H, W)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_(
        trains
    )


def gate(*, trains: bool = True) -> Tensor:
    torch.manual_seed(3)
    return torch.rand(N, C, 1, 1).requires_grad_(trains)


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize(("x_trains", "gate_trains"), [(True, True), (True, False), (False, True)])
def test_a_product_keeps_each_factor_for_the_other(product, x_trains: bool, gate_trains: bool) -> None:
    x, scale = image(trains=x_trains), gate(trains=gate_trains)
    stock, thin = compare(product, x, scale)
    assert thin == stock == gate_trains * WHOLE + x_trains * GATE


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", [F.silu, F.hardswish, F.gelu])
def test_squeeze_and_excitation_keeps_the_image_once(product, activation, channels_last: bool) -> None:
    def block(x: Tensor, scale: Tensor) -> Tensor:
        return product(activation(x), scale)

    stock, thin = compare(block, image(channels_last=channels_last), gate())
    assert stock == 2 * WHOLE + GATE
    assert thin == WHOLE + GATE


@pytest.mark.parametrize("product", PRODUCTS_IN_PLACE.values(), ids=PRODUCTS_IN_PLACE)
@pytest.mark.parametrize("channels_last", [False, True])
def test_squeeze_and_excitation_in_place_keeps_the_image_once(product, channels_last: bool) -> None:
    def block(x: Tensor, scale: Tensor) -> Tensor:
        return product(F.silu(x), scale)

    stock, thin = compare(block, image(channels_last=channels_last), gate())
    assert stock == 2 * WHOLE + GATE
    assert thin == WHOLE + GATE


@pytest.mark.parametrize("product", PRODUCTS_IN_PLACE.values(), ids=PRODUCTS_IN_PLACE)
@pytest.mark.parametrize("prepare", [torch.clone, F.silu])
def test_in_place_is_in_place(product, prepare) -> None:
    x, scale = image(), gate()
    with lean():
        before = prepare(x)
        address = before.data_ptr()
        after = product(before, scale)
    assert after is before
    assert after.data_ptr() == address
    assert torch.equal(after, prepare(x) * scale)


def test_a_gate_that_is_made_again_in_place() -> None:
    def block(x: Tensor, scale: Tensor) -> Tensor:
        return (x + 0).mul_(F.silu(scale))

    stock, thin = compare(block, image(), gate())
    assert stock == WHOLE + 2 * GATE
    assert thin == WHOLE + GATE


def test_in_place_on_a_view_changes_its_base() -> None:
    def on_a_sample(x: Tensor, scale: Tensor) -> Tensor:
        y = F.silu(x)
        y[0].mul_(scale[0])
        return y

    compare(on_a_sample, image(), gate())


def test_in_place_on_a_leaf_is_refused_as_in_stock() -> None:
    with lean(), pytest.raises(RuntimeError, match="leaf Variable"):
        image().mul_(gate())


def test_gated_linear_unit_costs_its_two_halves() -> None:
    def block(x: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        return F.linear(F.silu(x) * up, weight)

    x, up, weight = (torch.randn(shape, requires_grad=True) for shape in ((6, 8), (6, 8), (3, 8)))
    stock, thin = compare(block, x, up, weight)
    assert stock == 4 * 6 * 8 * 4 + 3 * 8 * 4
    assert thin == 2 * 6 * 8 * 4 + 3 * 8 * 4


def test_root_mean_square_norm_written_out_keeps_its_input() -> None:
    def block(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        return F.linear(scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)), weight)

    x, scale, weight = (torch.randn(shape, requires_grad=True) for shape in ((6, 8), (8,), (3, 8)))
    stock, thin = compare(block, x, scale, weight)
    assert stock - thin == 2 * 6 * 8 * 4


@pytest.mark.parametrize("scaled", [lambda x: x * 1.5, lambda x: 1.5 * x, lambda x: x.mul_(1.5), lambda x: -2 * x])
def test_a_number_is_no_obstacle(scaled) -> None:
    stock, thin = compare(lambda x, gate: scaled(F.silu(x)) * gate, image(), gate())
    assert stock == 2 * WHOLE + GATE
    assert thin == WHOLE + GATE


def test_dropped_paths_keep_one_number_a_sample() -> None:
    def block(x: Tensor) -> Tensor:
        path = x.new_empty(N, 1, 1, 1).bernoulli_(0.5).div_(0.5)
        return x * path

    stock, thin = compare(block, image())
    assert thin == stock == N * 4


@pytest.mark.parametrize(
    "operation", [operator.truediv, operator.add, operator.sub, torch.div, lambda x, y: 1 / (x.square() + 1) + y]
)
def test_other_arithmetic_is_left_to_stock(operation) -> None:
    stock, thin = compare(operation, image(), gate())
    assert thin == stock


@pytest.mark.parametrize(
    "other", [torch.randint(0, 3, (W,)), torch.rand(W).double(), torch.rand(W).bfloat16(), True, 2]
)
def test_mixed_types(other) -> None:
    compare(lambda x, scale: (F.silu(x) * other) * scale, image(), gate())


def test_complex_factors_go_through() -> None:
    compare(lambda x, scale: torch.view_as_real(F.silu(x) * torch.complex(scale, scale)), image(), gate())


def test_a_factor_by_itself() -> None:
    stock, thin = compare(lambda x: F.silu(x) * F.silu(x), image())
    assert thin == WHOLE < stock
    stock, thin = compare(lambda x: (y := F.silu(x)) * y, image())
    assert thin == WHOLE < stock


def test_autocast() -> None:
    def block(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.silu(x @ weight) * scale

    stock, thin = compare(block, image(), gate(), torch.randn(W, W))
    assert thin < stock


def test_output_given_by_the_caller_goes_to_stock() -> None:
    room = torch.empty(N, C, H, W)
    with lean():
        assert torch.mul(image(trains=False), gate(trains=False), out=room) is room
        with pytest.raises(RuntimeError, match="out="):
            torch.mul(F.silu(image()), gate(), out=room)


def test_double_backward_is_refused() -> None:
    x, scale = image(), gate()
    with lean():
        y = F.silu(x) * scale
    with pytest.raises(LeanError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), scale, create_graph=True)


def test_nothing_is_kept_without_gradients() -> None:
    with lean():
        assert kept_bytes(lambda: F.silu(image(trains=False)) * gate(trains=False))[1] == 0


def test_backward_twice_gives_the_same() -> None:
    x, scale = image(), gate()
    with lean():
        y = F.silu(x) * scale
    gradient = torch.randn_like(y)
    first = torch.autograd.grad(y, (x, scale), gradient, retain_graph=True)
    second = torch.autograd.grad(y, (x, scale), gradient)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@settings(deadline=None, max_examples=60)
@given(
    ones=st.lists(st.booleans(), min_size=3, max_size=3),
    extra=st.integers(0, 2),
    trains=st.tuples(st.booleans(), st.booleans()).filter(any),
    made=st.tuples(st.booleans(), st.booleans()),
)
def test_any_broadcast(ones, extra, trains, made) -> None:
    shape = [1 if one else size for one, size in zip(ones, (3, 2, 4), strict=True)]
    a = torch.randn(3, 2, 4).requires_grad_(trains[0])
    b = torch.randn([2] * extra + shape).requires_grad_(trains[1])

    def product(a: Tensor, b: Tensor) -> Tensor:
        return (F.silu(a) if made[0] else a) * (F.gelu(b) if made[1] else b)

    stock, thin = compare(product, a, b)
    assert thin <= stock
