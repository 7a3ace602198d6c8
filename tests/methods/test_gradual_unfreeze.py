"""Gradual unfreezing: which tensors train in which epoch, by hand."""

import pytest
from torch import nn

import adabet
from adabet.errors import OptionError
from adabet.methods import start
from adabet.methods.gradual_unfreeze import start_gradual_unfreeze
from tests.methods.block_nets import (
    EVERYTHING,
    HEAD,
    REST,
    UNITS,
    Residual,
    Text,
    images,
    made,
    moment,
    request_for,
    texts,
    trained,
)

BY_EPOCH = [
    HEAD,
    HEAD | REST | UNITS[2],
    HEAD | REST | UNITS[2] | UNITS[1],
    HEAD | REST | UNITS[2] | UNITS[1] | UNITS[0],
    EVERYTHING,
]


def test_one_more_block_every_epoch():
    method = start_gradual_unfreeze(request_for())
    for epoch, expected in enumerate(BY_EPOCH, start=1):
        assert method.due(moment(epoch))
        assert not method.due(moment(epoch, 2))
        turn = method.turn(moment(epoch))
        assert trained(turn) == expected
        assert turn.rates == {}
    assert not method.due(moment(6))


def test_rates_fall_towards_the_input():
    rates = start_gradual_unfreeze(request_for(), decay=2.6).turn(moment(5)).rates
    assert set(rates) == EVERYTHING
    for name, depth in [
        ("head.bias", 0),
        ("norm.weight", 1),
        ("down.bias", 1),
        ("units.1.conv.weight", 2),
        ("scale", 4),
    ]:
        assert rates[name] == pytest.approx(1 / 2.6**depth)


def test_without_a_head_the_last_block_is_first():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten())
    method = start_gradual_unfreeze(request_for(model, head=None))
    assert trained(method.turn(moment(1))) == {"2.weight", "2.bias"}
    assert trained(method.turn(moment(2))) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert not method.due(moment(3))


@pytest.mark.parametrize("decay", [0, 0.9, float("inf")])
def test_decay(decay):
    with pytest.raises(OptionError, match="expected decay"):
        start("gradual-unfreeze", made(Residual), images(), decay=decay)


def test_a_run_of_a_transformer():
    model = made(Text)
    result = adabet.fit(
        model, texts(), method="gradual-unfreeze", method_options={"decay": 2.6}, epochs=6, lr=0.01, optimizer="adam"
    )
    # head, three layers, the embedding; nothing more in the sixth epoch
    assert result.turns == 5
    assert result.trained_parameters == sum(parameter.numel() for parameter in model.parameters())
