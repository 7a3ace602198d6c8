"""Surgical statistics against a plain computation with torch.autograd, and what trains because of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adabet
from adabet.errors import CheckpointError, DataError, OptionError, TrainingError
from adabet.methods import start
from adabet.methods.auto_rgn import signal_to_noise, start_auto_rgn, start_auto_snr
from tests.methods.block_nets import EVERYTHING, HEAD, Residual, Text, images, made, moment, request_for, texts, trained
from tests.training.nets import make_loaders, make_net, same, weights_of
from tests.training.run_and_kill import KillAt

NORMS = {name for name in EVERYTHING if ".norm." in name or name.startswith("norm.")}


def plain(model, batches, statistic):
    """Mean over the batches of a statistic of each tensor, by stock autograd and numpy."""
    model.eval()
    names, parameters = zip(*model.named_parameters(), strict=True)
    rows = []
    for inputs, labels in batches:
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), labels), parameters)
        rows.append([statistic(g.numpy(), p.detach().numpy()) for g, p in zip(gradients, parameters, strict=True)])
    return dict(zip(names, np.mean(rows, axis=0), strict=True))


def rgn(gradient, parameter):
    norm = np.linalg.norm(parameter)
    return np.linalg.norm(gradient) / norm if norm else np.nan


def snr(gradient, _):
    return np.mean(gradient**2 / (np.var(gradient, axis=0, ddof=1) + 1e-8)) if len(gradient) > 1 else np.inf


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_rates_are_relative_gradient_norms(micro_batch):
    model = made(Residual)
    turn = start_auto_rgn(request_for(model, micro_batch=micro_batch)).turn(moment(1))
    found = plain(model, images()[:5], rgn)
    expected = {name: value for name, value in found.items() if name not in NORMS | HEAD}
    largest = max(expected.values())
    assert trained(turn) == EVERYTHING - NORMS
    assert turn.rates == pytest.approx({name: value / largest for name, value in expected.items()}, rel=1e-4)
    assert max(turn.rates.values()) == 1
    assert turn.fresh


def test_the_head_competes_where_it_is_a_candidate():
    model = made(Residual)
    turn = start_auto_rgn(request_for(model, head_as_candidate=True), mini_batches=2).turn(moment(1))
    found = plain(model, images()[:2], rgn)
    largest = max(value for name, value in found.items() if name not in NORMS)
    assert turn.rates["head.weight"] == pytest.approx(found["head.weight"] / largest, rel=1e-4)


def test_tensors_that_start_at_zero_train_at_the_full_rate_for_good():
    model = made(Residual)
    nn.init.zeros_(model.down.bias)
    method = start_auto_rgn(request_for(model))
    method.turn(moment(1))
    with torch.no_grad():
        model.down.bias.add_(1e-6)  # its relative gradient would be huge now
    again = start_auto_rgn(request_for(model))
    again.load_state_dict(method.state_dict())
    turns = [part.turn(moment(2)) for part in (method, again)]
    assert turns[0].rates == turns[1].rates
    assert "down.bias" in trained(turns[0])
    assert "down.bias" not in turns[0].rates
    assert sorted(turns[0].rates.values())[-2] > 1e-3
    assert start_auto_rgn(request_for(model)).turn(moment(2)).rates["down.bias"] == 1
    with pytest.raises(CheckpointError, match="another method"):
        again.load_state_dict({})


def test_what_reaches_the_threshold_trains():
    model = made(Residual)
    found = plain(model, images()[:5], snr)
    turn = start_auto_snr(request_for(model)).turn(moment(1))
    expected = {name for name, value in found.items() if value >= 0.95 and name not in NORMS}
    assert trained(turn) == expected | HEAD
    assert 0 < len(expected - HEAD) < len(EVERYTHING - NORMS - HEAD)
    assert turn.rates == {}
    assert turn.fresh


def test_where_nothing_reaches_it():
    model = made(Residual)
    assert trained(start_auto_snr(request_for(model), threshold=1e12).turn(moment(1))) - HEAD <= {
        "scale",
        "stem.weight",
    }
    turn = start_auto_snr(request_for(model, head_as_candidate=True), threshold=1e30).turn(moment(1))
    assert len(trained(turn)) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=2, max_size=6))
def test_signal_to_noise_is_numpys(rows):
    gradient = torch.tensor(rows, dtype=torch.float64)
    assert float(signal_to_noise(gradient, gradient)) == pytest.approx(snr(gradient.numpy(), None), rel=1e-9)


@pytest.mark.parametrize("name", ["auto-rgn", "auto-snr"])
def test_the_model_is_left_as_it_was(name):
    model = made(Residual).train()
    model.stem.weight.requires_grad_(False)
    before, state = weights_of(model), torch.get_rng_state()
    adabet.select(name, model, images())
    assert same(weights_of(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["stem.weight"]


@pytest.mark.parametrize("name", ["auto-rgn", "auto-snr"])
def test_errors(name):
    with pytest.raises(OptionError, match="expected mini_batches"):
        start(name, made(Residual), images(), mini_batches=0)
    with pytest.raises(OptionError, match="labels"):
        adabet.select(name, made(Residual), [inputs for inputs, _ in images()])
    model = made(Residual)
    with torch.no_grad():
        model.down.bias[0] = float("inf")
    with pytest.raises(TrainingError, match="expected finite gradients"):
        adabet.select(name, model, images())
    with pytest.raises(DataError, match="empty"):
        adabet.select(name, made(Residual), [])


def test_a_negative_threshold():
    with pytest.raises(OptionError, match="expected threshold"):
        start("auto-snr", made(Residual), images(), threshold=-1)


class Stop(KillAt):
    def step(self, *, epoch, step, loss):
        if (epoch, step) == self.moment:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["auto-rgn", "auto-snr"])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, name):
    def run(folder, at=(0, 0), **options):
        model = make_net()
        adabet.fit(
            model, *make_loaders(), method=name, epochs=3, lr=0.02, optimizer="adam", run_dir=folder,
            progress=Stop(*at), **options,
        )  # fmt: skip
        return weights_of(model)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", (3, 2))
    assert same(run(tmp_path / "stopped", resume=True), whole)


def test_a_transformer_trains():
    model = made(Text)
    before = weights_of(model)
    adabet.fit(model, texts(), method="auto-rgn", epochs=1, lr=0.01, weight_decay=0.0)
    moved = {name for name, value in weights_of(model).items() if not torch.equal(value, before[name])}
    assert "embed.weight" in moved
    assert not any("norm" in name for name in moved)
