import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from adabet.errors import LeanError
from adabet.lean import lean
from tests.lean.against_stock import compare, kept_bytes, run

GATES = {
    "relu": F.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": Tensor.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardtanh with bounds": lambda x: F.hardtanh(x, -0.25, 2.0),
    "leaky relu": F.leaky_relu,
    "leaky relu with a slope": lambda x: F.leaky_relu(x, negative_slope=0.3),
    "leaky relu, flat": lambda x: F.leaky_relu(x, 0.0),
    "hardsigmoid": F.hardsigmoid,
    "torch.clamp": lambda x: torch.clamp(x, -0.5, 0.5),
    "Tensor.clamp": lambda x: x.clamp(min=0),
    "torch.clip": lambda x: torch.clip(x, max=1.5),
    "Tensor.clip": lambda x: x.clip(0.25, 0.75),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0.25),
    "Tensor.clamp_min": lambda x: x.clamp_min(0.25),
    "torch.clamp_max": lambda x: torch.clamp_max(x, 0.25),
    "Tensor.clamp_max": lambda x: x.clamp_max(0.25),
    "crossed clamp": lambda x: x.clamp(0.5, -0.5),
}
GATES_IN_PLACE = {
    "relu": lambda x: F.relu(x, inplace=True),
    "torch.relu_": torch.relu_,
    "Tensor.relu_": Tensor.relu_,
    "relu6": lambda x: F.relu6(x, inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, inplace=True),
    "hardtanh_": lambda x: F.hardtanh_(x, 0.0, 0.5),
    "leaky relu": lambda x: F.leaky_relu(x, 0.2, inplace=True),
    "leaky_relu_": F.leaky_relu_,
    "hardsigmoid": lambda x: F.hardsigmoid(x, inplace=True),
    "torch.clamp_": lambda x: torch.clamp_(x, 0, 1),
    "Tensor.clamp_": lambda x: x.clamp_(0, 1),
    "torch.clip_": lambda x: torch.clip_(x, 0, 1),
    "Tensor.clip_": lambda x: x.clip_(min=0.5),
    "torch.clamp_min_": lambda x: torch.clamp_min_(x, 0),
    "Tensor.clamp_min_": lambda x: x.clamp_min_(0),
    "torch.clamp_max_": lambda x: torch.clamp_max_(x, 0),
    "Tensor.clamp_max_": lambda x: x.clamp_max_(0),
}
CURVES = {
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
}
CURVES_IN_PLACE = {
    "silu": lambda x: F.silu(x, inplace=True),
    "hardswish": lambda x: F.hardswish(x, inplace=True),
}
UNTOUCHED = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "mish": F.mish,
    "elu": F.elu,
    "leaky relu with a negative slope": lambda x: F.leaky_relu(x, -0.1),
    "clamp to tensors": lambda x: torch.clamp(x, torch.zeros(()), torch.ones(())),
}
INPUTS = {
    "contiguous": lambda: torch.randn(3, 5, 7),
    "channels-last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "permuted": lambda: torch.randn(4, 3, 2).permute(2, 0, 1),
    "empty": lambda: torch.randn(0, 3),
    "a number": lambda: torch.randn(()),
    "bfloat16": lambda: torch.randn(33).bfloat16(),
    "float64": lambda: torch.randn(8, 2).double(),
    "special": lambda: torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 0.25, 0.5, 1.0, -1.0, 3.0, -3.0, 6.0]),
    "longer than a slice": lambda: torch.randn(2**18 + 5),
}


def an_input(name: str) -> Tensor:
    torch.manual_seed(1)
    return INPUTS[name]().requires_grad_()


@pytest.mark.parametrize("layout", INPUTS)
@pytest.mark.parametrize("gate", GATES)
def test_gate_keeps_one_bit_an_element(gate: str, layout: str) -> None:
    x = an_input(layout)
    stock, thin = compare(GATES[gate], x)
    assert stock == x.numel() * x.element_size()
    assert thin == math.ceil(x.numel() / 8)


@pytest.mark.parametrize("layout", INPUTS)
@pytest.mark.parametrize("gate", GATES_IN_PLACE)
def test_gate_in_place_keeps_one_bit_an_element(gate: str, layout: str) -> None:
    x = an_input(layout)
    _, thin = compare(lambda x: GATES_IN_PLACE[gate](x + 0), x)
    assert thin == math.ceil(x.numel() / 8)


@pytest.mark.parametrize("operation", [*GATES_IN_PLACE.values(), *CURVES_IN_PLACE.values()])
def test_in_place_is_in_place(operation) -> None:
    x = torch.randn(4, 5, requires_grad=True)
    with lean():
        before = x + 0
        after = operation(before)
    assert after is before
    assert after._version > 0
    assert torch.equal(after, operation(x.detach().clone()))


@pytest.mark.parametrize("operation", [*GATES_IN_PLACE.values(), *CURVES_IN_PLACE.values()])
def test_in_place_on_a_view_changes_its_base(operation) -> None:
    def on_a_row(x: Tensor) -> Tensor:
        whole = x + 0
        operation(whole[1])
        return whole

    compare(on_a_row, torch.randn(3, 8, requires_grad=True))


@pytest.mark.parametrize("operation", [*GATES_IN_PLACE.values(), *CURVES_IN_PLACE.values()])
def test_in_place_on_a_leaf_is_refused_as_in_stock(operation) -> None:
    with lean(), pytest.raises(RuntimeError, match="leaf Variable"):
        operation(torch.randn(3, requires_grad=True))


@pytest.mark.parametrize("operation", [F.relu, F.silu])
def test_in_place_change_of_what_is_kept_is_noticed(operation) -> None:
    x = torch.randn(4, requires_grad=True)
    with lean():
        y = operation(x) * torch.ones(4, requires_grad=True)
        with torch.no_grad():
            x.add_(1)
    if operation is F.relu:
        y.sum().backward()
    else:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("layout", INPUTS)
@pytest.mark.parametrize("curve", CURVES)
def test_curve_keeps_its_input(curve: str, layout: str) -> None:
    x = an_input(layout)
    stock, thin = compare(CURVES[curve], x)
    assert thin == stock == x.numel() * x.element_size()


@pytest.mark.parametrize("layout", INPUTS)
@pytest.mark.parametrize("curve", CURVES_IN_PLACE)
def test_curve_in_place_keeps_its_input(curve: str, layout: str) -> None:
    x = an_input(layout)
    stock, thin = compare(lambda x: CURVES_IN_PLACE[curve](x + 0), x)
    assert thin == stock == x.numel() * x.element_size()


@pytest.mark.parametrize("operation", UNTOUCHED)
def test_whatever_gains_nothing_is_left_to_stock(operation: str) -> None:
    stock, thin = compare(UNTOUCHED[operation], torch.randn(6, 5, requires_grad=True))
    assert thin == stock


@pytest.mark.parametrize("operation", [*GATES.values(), *CURVES.values()])
def test_slices_and_expanded_inputs(operation) -> None:
    x = torch.randn(6, 8, requires_grad=True)
    compare(lambda x: operation(x[:, 1::2]), x)
    compare(lambda x: operation(x[:1].expand(4, 8)), x)


@pytest.mark.parametrize("operation", [*GATES.values(), *CURVES.values()])
def test_autocast(operation) -> None:
    def in_bfloat16(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return operation(x @ weight)

    compare(in_bfloat16, torch.randn(5, 4, requires_grad=True), torch.randn(4, 3))


@pytest.mark.parametrize("operation", [F.relu, F.relu6, F.leaky_relu, F.hardtanh])
def test_bits_go_once_the_output_is_kept(operation) -> None:
    x, scale = torch.randn(64, requires_grad=True), torch.randn(64, requires_grad=True)
    stock, thin = compare(lambda x, scale: operation(x) * scale, x, scale)
    assert thin == 2 * 64 * 4 <= stock


@pytest.mark.parametrize("curve", [*CURVES.values(), *CURVES_IN_PLACE.values()])
def test_output_costs_nothing_more_where_the_input_is_kept(curve) -> None:
    x, scale = torch.randn(64, requires_grad=True), torch.randn(64, requires_grad=True)
    stock, thin = compare(lambda x, scale: curve(x + 0) * scale, x, scale)
    assert stock == 3 * 64 * 4
    assert thin == 2 * 64 * 4


@pytest.mark.parametrize("gate", [F.relu, F.hardsigmoid, lambda x: x.clamp(-0.5, 0.5)])
def test_gate_of_a_curve_is_made_from_what_the_curve_keeps(gate) -> None:
    x, scale = torch.randn(64, requires_grad=True), torch.randn(64, requires_grad=True)
    _, thin = compare(lambda x, scale: gate(F.silu(x)) * scale, x, scale)
    assert thin == 2 * 64 * 4 + 64 // 8


@pytest.mark.parametrize("operation", [*CURVES.values(), *CURVES_IN_PLACE.values(), F.relu, F.relu6])
def test_activation_of_a_norm_is_made_from_what_the_norm_keeps(operation) -> None:
    x, scale = torch.randn(8, 16, requires_grad=True), torch.randn(16, requires_grad=True)

    def layer(x: Tensor, scale: Tensor) -> Tensor:
        return operation(F.layer_norm(x, (16,))) * scale

    bits = 128 // 8 if operation in (F.relu, F.relu6) else 0
    assert compare(layer, x, scale)[1] == (128 + 2 * 8 + 16) * 4 + bits


def test_an_output_changed_outside_autograd_is_not_made_again() -> None:
    def changed(x: Tensor, scale: Tensor) -> Tensor:
        y = F.silu(x)
        with torch.no_grad():
            y.add_(1)
        return y * scale

    compare(changed, torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True))


def test_bits_stay_where_the_output_was_changed() -> None:
    def changed(x: Tensor, scale: Tensor) -> Tensor:
        y = F.relu(x)
        y.add_(1)
        return y * scale

    x, scale = torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True)
    thin = run(changed, [x, scale], in_lean=True)
    assert thin.kept == 8 // 8 + 2 * 8 * 4
    assert torch.equal(thin.output, (x.relu() + 1) * scale)


@pytest.mark.parametrize("operation", [*GATES.values(), *CURVES.values()])
def test_backward_twice_gives_the_same(operation) -> None:
    x = torch.randn(16, requires_grad=True)
    with lean():
        y = operation(x)
    gradient = torch.randn(16)
    first = torch.autograd.grad(y, x, gradient, retain_graph=True)
    given = gradient.clone()
    assert torch.equal(first[0], torch.autograd.grad(y, x, gradient)[0])
    assert torch.equal(gradient, given)


@pytest.mark.parametrize("operation", [*GATES.values(), *CURVES.values()])
def test_double_backward_is_refused(operation) -> None:
    x = torch.randn(3, requires_grad=True)
    with lean():
        y = operation(x)
    with pytest.raises(LeanError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("operation", [*GATES.values(), *CURVES.values()])
def test_nothing_is_kept_without_gradients(operation) -> None:
    with lean():
        assert kept_bytes(lambda: operation(torch.randn(9)))[1] == 0
        with torch.no_grad():
            assert kept_bytes(lambda: operation(torch.randn(9, requires_grad=True)))[1] == 0


@pytest.mark.parametrize("operation", [*GATES.values(), *CURVES.values()])
def test_function_transforms_go_through(operation) -> None:
    x = torch.randn(4, 3)
    expected = torch.func.vmap(torch.func.grad(lambda x: operation(x).sum()))(x)
    with lean():
        assert torch.equal(torch.func.vmap(torch.func.grad(lambda x: operation(x).sum()))(x), expected)


@pytest.mark.parametrize("arguments", [(2.0, 1.0), (1, -1)])
def test_stock_refuses_what_it_refuses(arguments) -> None:
    with lean(), pytest.raises(ValueError, match="min_val"):
        F.hardtanh(torch.randn(3, requires_grad=True), *arguments)


def test_stock_refuses_a_clamp_without_bounds() -> None:
    with lean(), pytest.raises(RuntimeError, match="must not be None"):
        torch.clamp(torch.randn(3, requires_grad=True))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(0, 6), max_size=5),
    order=st.randoms(use_true_random=False),
    gate=st.sampled_from([*GATES.values(), *CURVES.values()]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_any_shape_and_order_of_memory(shape, order, gate, dtype) -> None:
    dims = list(range(len(shape)))
    order.shuffle(dims)
    x = (torch.randn(shape).permute(dims) * 2).to(dtype).requires_grad_()
    compare(gate, x)
