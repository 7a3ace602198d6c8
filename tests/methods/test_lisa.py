"""LISA: how many blocks, which always train, and that draws depend on the step alone."""

from collections import Counter

import pytest

import adabet
from adabet.errors import CheckpointError, OptionError
from adabet.methods import start
from adabet.methods.lisa import start_lisa
from tests.methods.block_nets import (
    HEAD,
    REST,
    STEM,
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


def walk(method, steps, per_epoch=6):
    """What trains at each turn of a run, by step."""
    turns = {}
    for index in range(method._steps, steps):
        at = moment(index // per_epoch + 1, index % per_epoch + 1, steps=None)
        if method.due(at):
            turns[index] = trained(method.turn(at))
        method.watch(at, {})
    return turns


def drawn(names):
    """Which units are whole in a set of names; the others have to be out."""
    inside = [index for index, unit in enumerate(UNITS) if unit <= names]
    assert names == STEM.union(REST, HEAD, *(UNITS[index] for index in inside))
    return tuple(inside)


def test_two_units_of_three_every_four_steps():
    turns = walk(start_lisa(request_for(seed=5), interval=4), 21)
    assert list(turns) == [0, 4, 8, 12, 16, 20]
    assert all(len(drawn(names)) == 2 for names in turns.values())


def test_all_subsets_are_drawn_about_equally_often():
    found = Counter(map(drawn, walk(start_lisa(request_for(), interval=1), 600).values()))
    assert set(found) == {(0, 1), (0, 2), (1, 2)}
    # 200 each; 5 standard deviations are 58
    assert all(142 < count < 258 for count in found.values())


def test_seeds_differ_and_state_round_trips():
    whole = walk(start_lisa(request_for(), interval=1), 40)
    assert walk(start_lisa(request_for(), interval=1), 40) == whole
    assert walk(start_lisa(request_for(seed=1), interval=1), 40) != whole
    first, second = start_lisa(request_for(), interval=1), start_lisa(request_for(), interval=1)
    begun = walk(first, 17)
    second.load_state_dict(first.state_dict())
    assert {**begun, **walk(second, 40)} == whole
    with pytest.raises(CheckpointError, match="another method"):
        second.load_state_dict({})


@pytest.mark.parametrize("options", [{"active": 0}, {"interval": 0}, {"active": 4}])
def test_options(options):
    with pytest.raises(OptionError, match="expected active"):
        start("lisa", made(Residual), images(), **options)


class Stop(KillAt):
    def step(self, *, epoch, step, loss):
        if (epoch, step) == self.moment:
            raise KeyboardInterrupt


def run(folder, at=(0, 0), **options):
    model = made(Text)
    method = {"method": "lisa", "method_options": {"interval": 3, "active": 1}}
    result = adabet.fit(
        model, texts(), epochs=4, lr=0.01, optimizer="adamw", run_dir=folder, progress=Stop(*at), **method, **options
    )
    return model, result


@pytest.mark.parametrize("at", [(2, 2), (3, 3)])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, at):
    whole, result = run(tmp_path / "whole")
    # 16 steps
    assert result.turns == 6
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", at)
    resumed, _ = run(tmp_path / "stopped", resume=True)
    assert same(weights_of(resumed), weights_of(whole))
    assert (tmp_path / "whole" / "turns.jsonl").read_text() == (tmp_path / "stopped" / "turns.jsonl").read_text()
