"""AutoFreeze: intervals, and what freezes after gradients that are made up by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adabet
from adabet.errors import CheckpointError, LayerError, OptionError
from adabet.methods import start
from adabet.methods.auto_freeze import first_moving, start_auto_freeze
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
from tests.training.nets import same, weights_of
from tests.training.run_and_kill import KillAt

SHAPES = {name: parameter.shape for name, parameter in made(Residual).named_parameters()}


def boundaries(epochs, steps, intervals):
    method = start_auto_freeze(request_for(), intervals=intervals)
    moments = [(epoch, step) for epoch in range(1, epochs + 1) for step in range(1, steps + 1)]
    return [at for at in moments if method.due(moment(*at, epochs=epochs, steps=steps))]


def test_intervals():
    assert boundaries(2, 6, 4) == [(1, 1), (1, 4), (2, 1), (2, 4)]
    # 7 steps in 3 parts: 2, 2 and 3
    assert boundaries(1, 7, 3) == [(1, 1), (1, 3), (1, 5)]
    assert boundaries(1, 3, 10) == [(1, 1), (1, 2), (1, 3)]
    assert boundaries(2, 3, 1) == [(1, 1)]


def gradients(*sizes):
    """Each unit's gradients sum to a size in absolute value; alternating signs within."""
    found = {}
    for unit, size in zip(UNITS, sizes, strict=True):
        total = sum(SHAPES[name].numel() for name in unit)
        for name in unit:
            signs = torch.ones(SHAPES[name].numel())
            signs[::2] = -1
            found[name] = (signs * size / total).view(SHAPES[name])
    return {**found, "head.weight": torch.ones(3, 6), "scale": torch.ones(1, 4, 1, 1)}


def play(method, rows, begin=1):
    """A run with one interval, and one step, an epoch: turns by epoch."""
    turns = []
    for epoch, sizes in enumerate(rows, start=begin):
        at = moment(epoch, epochs=10, steps=1)
        assert method.due(at)
        turns.append(method.turn(at))
        method.watch(at, gradients(*sizes))
    return turns


ROWS = [
    (1, 1, 1),
    (1.1, 1.4, 1.2),  # changes 0.1, 0.4, 0.2: the threshold is 0.2, the second unit is the first to reach it
    (9, 1.4, 1.5),  # of the two that are left 0 and 0.25: the third is the first to reach 0.125
    (9, 9, 9),
    (9, 9, 9),
]


def test_a_prefix_freezes_after_two_intervals():
    method = start_auto_freeze(request_for())
    turns = play(method, ROWS)
    late = HEAD | REST
    expected = [EVERYTHING, EVERYTHING, late | UNITS[1] | UNITS[2], late | UNITS[2], late | UNITS[2]]
    assert [trained(turn) for turn in turns] == expected
    assert turns[2].note == "1 of 3 blocks frozen, change of gradients 0.1, 0.4, 0.2, threshold 0.2"
    assert all(not turn.fresh and turn.rates == {} for turn in turns)


@pytest.mark.parametrize("sums", ["signed", "absolute"])
@pytest.mark.parametrize("after", range(1, 5))
def test_state_round_trips(sums, after):
    method = start_auto_freeze(request_for(), sums=sums)
    play(method, ROWS[:after])
    again = start_auto_freeze(request_for(), sums=sums)
    again.load_state_dict(method.state_dict())
    left = ROWS[after:]
    assert play(again, left, after + 1) == play(method, left, after + 1)
    with pytest.raises(CheckpointError, match="another method"):
        again.load_state_dict({})


@pytest.mark.parametrize(("sums", "changes", "frozen"), [("signed", "0, 1, 1", 1), ("absolute", "0, 0, 0", 0)])
def test_gradients_that_point_to_and_fro(sums, changes, frozen):
    """Two steps an interval; in the second interval those of the last two units cancel."""
    method = start_auto_freeze(request_for(), sums=sums)
    for epoch, rows in enumerate([[(1, 1, 1), (1, 1, 1)], [(1, 1, 1), (1, -1, -1)]], start=1):
        for step, sizes in enumerate(rows, start=1):
            method.watch(moment(epoch, step), gradients(*sizes))
        note = method.turn(moment(epoch + 1)).note
    assert f"change of gradients {changes}, " in note
    assert method.frozen == frozen


def test_steps_that_are_not_finite_do_not_count():
    method = start_auto_freeze(request_for())
    method.watch(moment(1), gradients(1, 2, 3))
    method.watch(moment(1), gradients(1, float("nan"), 3))
    method.turn(moment(2))
    assert method._before == pytest.approx([1, 2, 3])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.floats(0, 100))
def test_the_threshold_is_numpys_percentile(rates, percentile):
    index, threshold = first_moving(rates, percentile)
    assert threshold == pytest.approx(np.percentile(rates, percentile))
    assert rates[index] >= threshold
    assert all(rate < threshold for rate in rates[:index])


def test_infinite_changes():
    assert first_moving([0.0, float("inf"), float("inf")], 60) == (1, float("inf"))


@pytest.mark.parametrize("options", [{"intervals": 0}, {"percentile": -1}, {"percentile": 101}, {"sums": "none"}])
def test_options(options):
    with pytest.raises(OptionError, match=f"expected {next(iter(options))}"):
        start("auto-freeze", made(Residual), images(), **options)


def test_what_it_needs():
    with pytest.raises(OptionError, match="the training loader does not know its length"):
        start_auto_freeze(request_for()).due(moment(1, 2, steps=None))
    with pytest.raises(LayerError, match="at least 2 blocks"):
        start("auto-freeze", torch.nn.Sequential(torch.nn.Linear(5, 3)), [torch.zeros(2, 5)], head=None)


class Stop(KillAt):
    def step(self, *, epoch, step, loss):
        if (epoch, step) == self.moment:
            raise KeyboardInterrupt


def run(folder, at=(0, 0), **options):
    model = made(Text)
    adabet.fit(
        model,
        texts(),
        method="auto-freeze",
        method_options={"intervals": 7},
        epochs=6,
        lr=0.05,
        optimizer="adamw",
        run_dir=folder,
        progress=Stop(*at),
        **options,
    )
    return model


@pytest.mark.parametrize("at", [(2, 3), (4, 2), (6, 4)])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, at):
    """24 steps in 7 intervals: most epochs end within one."""
    whole = run(tmp_path / "whole")
    turns = (tmp_path / "whole" / "turns.jsonl").read_text()
    assert "1 of 3 blocks frozen" in turns or "2 of 3 blocks frozen" in turns
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", at)
    resumed = run(tmp_path / "stopped", resume=True)
    assert same(weights_of(resumed), weights_of(whole))
    assert (tmp_path / "stopped" / "turns.jsonl").read_text() == turns
