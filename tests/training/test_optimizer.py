"""SGDW against the formula and against torch; optimizers by name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adabet.errors import OptionError, UnknownNameError
from adabet.training.optimizer import SGDW, optimizer_factory


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


@settings(deadline=None)
@given(
    start=st.floats(-10, 10),
    gradients=st.lists(st.floats(-10, 10), min_size=1, max_size=5),
    lr=st.floats(0, 1),
    momentum=st.floats(0, 0.99),
    weight_decay=st.floats(0, 1),
)
def test_sgdw_follows_the_formula(start, gradients, lr, momentum, weight_decay):
    weight = parameter(start)
    optimizer = SGDW([weight], lr=lr, momentum=momentum, weight_decay=weight_decay)
    expected, velocity = start, 0.0
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        velocity = momentum * velocity + gradient
        expected = expected * (1 - lr * weight_decay) - lr * velocity
    assert weight.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_sgdw_by_hand():
    weight = parameter(1.0)
    optimizer = SGDW([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    for gradient in (1.0, -2.0):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    # 1 * 0.95 - 0.1 * 1 = 0.85; velocity 0.9 * 1 - 2 = -1.1; 0.85 * 0.95 + 0.11 = 0.9175
    assert weight.item() == pytest.approx(0.9175)


def test_sgdw_without_decay_is_torchs_sgd_bit_for_bit():
    torch.manual_seed(0)
    ours, torchs = nn.Linear(5, 3), nn.Linear(5, 3)
    torchs.load_state_dict(ours.state_dict())
    optimizers = [
        SGDW(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0),
        torch.optim.SGD(torchs.parameters(), lr=0.1, momentum=0.9),
    ]
    for _ in range(3):
        x = torch.randn(4, 5)
        for model, optimizer in zip((ours, torchs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert torch.equal(ours.weight, torchs.weight)


def test_sgdw_keeps_its_groups_decay_and_leaves_tensors_without_gradient_alone():
    moved, unmoved = parameter(1.0), parameter(1.0)
    optimizer = SGDW([{"params": [moved], "weight_decay": 0.2}, {"params": [unmoved]}], lr=0.5)
    moved.grad = torch.zeros(1, dtype=torch.float64)
    optimizer.step()
    assert moved.item() == pytest.approx(0.9)
    assert unmoved.item() == 1.0
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 5e-4]


def test_sgdw_takes_a_closure():
    weight = parameter(2.0)
    optimizer = SGDW([weight], lr=0.1, momentum=0.0, weight_decay=0.5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).detach() == 4.0
    assert weight.item() == pytest.approx(2 * 0.95 - 0.1 * 4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sgdw", SGDW),
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
    ],
)
def test_optimizers_by_name_get_their_options(name, kind):
    optimizer = optimizer_factory(name, lr=0.3, weight_decay=0.2, momentum=0.7)([parameter(1.0)])
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.3
    assert group["weight_decay"] == 0.2
    assert group.get("momentum", 0.7) == 0.7


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'adamw'"):
        optimizer_factory("adamww", lr=0.1, weight_decay=0, momentum=0)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum"])
def test_options_out_of_range(name, value):
    options = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9, name: value}
    with pytest.raises(OptionError, match=f"expected {name} to be a number from 0 up"):
        optimizer_factory("sgdw", **options)
