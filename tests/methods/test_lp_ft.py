"""LP-FT: when the head trains alone, and what follows."""

import pytest
import torch
from torch import nn

import adabet
from adabet.errors import LayerError, OptionError
from adabet.methods import start
from adabet.methods.lp_ft import start_lp_ft
from tests.methods.block_nets import EVERYTHING, HEAD, Residual, images, made, moment, request_for, trained
from tests.training.nets import make_loaders, make_net, same, weights_of
from tests.training.run_and_kill import KillAt


def switch_of(epochs, steps=6, **options):
    method = start_lp_ft(request_for(), **options)
    moments = [(epoch, step) for epoch in range(1, epochs + 1) for step in range(1, steps + 1)]
    return [at for at in moments if method.due(moment(*at, epochs=epochs, steps=steps))]


@pytest.mark.parametrize(
    ("epochs", "share", "second"),
    [(10, 0.5, (6, 1)), (3, 0.5, (2, 1)), (2, 0.5, (2, 1)), (10, 0.01, (2, 1)), (10, 0.99, (10, 1)), (1, 0.5, (1, 4))],
)
def test_the_switch(epochs, share, second):
    assert switch_of(epochs, share=share) == [(1, 1), second]


def test_what_trains():
    method = start_lp_ft(request_for())
    first, second = method.turn(moment(1)), method.turn(moment(6))
    assert trained(first) == HEAD
    assert first.rates == {}
    assert trained(second) == EVERYTHING
    assert second.rates == dict.fromkeys(EVERYTHING, 0.1)
    assert second.fresh


def test_a_single_epoch_of_unknown_length():
    method = start_lp_ft(request_for())
    with pytest.raises(OptionError, match="at least 2 epochs"):
        method.due(moment(1, 2, epochs=1, steps=None))
    assert method.due(moment(1, 1, epochs=1, steps=None))


@pytest.mark.parametrize("options", [{"share": 0}, {"share": 1}, {"rate": 0}, {"rate": float("nan")}])
def test_options(options):
    with pytest.raises(OptionError, match=r"expected (share|rate)"):
        start("lp-ft", made(Residual), images(), **options)


def test_no_head():
    with pytest.raises(LayerError, match="trains the head first"):
        start("lp-ft", nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), images(), head=None)


def test_select_gives_the_first_stage():
    assert set(adabet.select("lp-ft", made(Residual), images()).parameters) == HEAD


class Look(KillAt):
    """Notes the weights after each epoch, and stops at a step."""

    def __init__(self, model, *at):
        super().__init__(*at)
        self.model, self.weights = model, []

    def step(self, *, epoch, step, loss):
        if (epoch, step) == self.moment:
            raise KeyboardInterrupt

    def epoch(self, record):
        self.weights.append(weights_of(self.model))


def run(folder, at=(0, 0), **options):
    model = make_net()
    look = Look(model, *at)
    adabet.fit(model, *make_loaders(), method="lp-ft", epochs=4, lr=0.05, run_dir=folder, progress=look, **options)
    return model, look


def test_a_run_moves_the_head_first_and_resumes_with_the_same_bits(tmp_path):
    base = weights_of(make_net())
    whole, look = run(tmp_path / "whole", optimizer="adam", keep="last")
    moved = [{name for name in base if not torch.equal(base[name], weights[name])} for weights in look.weights]
    assert moved[1] == {"head.weight", "head.bias"}
    assert moved[2] == {name for name, _ in whole.named_parameters()}
    for number, at in enumerate([(2, 3), (3, 2), (4, 1)]):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(number), at, optimizer="adam", keep="last")
        resumed, _ = run(tmp_path / str(number), optimizer="adam", keep="last", resume=True)
        assert same(weights_of(resumed), weights_of(whole))
