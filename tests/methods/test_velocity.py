"""Velocity: neurons by how their outputs change, against loops over single numbers, and whole runs."""

import itertools
import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import adabet
from adabet.errors import ActivationError, BudgetError, DataError, LayerError, OptionError
from adabet.memory import measure_memory
from adabet.methods import start
from adabet.methods.velocity import Velocity, similarity
from tests.cases.models import state_of
from tests.methods.drawing import CrashAt, channels_of, convolutions, early_peak, labelled, moment, tokens
from tests.training.nets import make_data, make_loaders, make_net, same, weights_of
from tests.training.test_resume import Crash, without_seconds

LAYERS = ("0", "3", "6", "8", "12")
IMAGES = labelled(3, 12, 12)
CHI_SQUARE_5 = 20.52  # 99.9 % quantile


def velocity(model=None, batches=IMAGES, **options):
    options.setdefault("head", "14")
    options.setdefault("val_batches", batches)
    return start("velocity", convolutions() if model is None else model, batches, **options)


def neurons_of(turn):
    return {name: set(channels) for name, channels in channels_of(turn.selection).items()}


def parameters_of(model, neurons):
    """What the chosen neurons have, counted one by one, with their biases."""
    count = 0
    for name, channels in neurons.items():
        module = model.get_submodule(name)
        for channel in channels:
            count += module.weight[channel].numel() + (0 if module.bias is None else 1)
    return count


def shaken(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def plain_outputs(model, images):
    """Each neuron's outputs for all samples, as a list of numbers, by (layer, neuron)."""
    model.eval()
    found, x = {}, images
    with torch.no_grad():
        for name, module in model.named_children():
            x = module(x)
            if name in LAYERS:
                for neuron in range(x.shape[1]):
                    found[name, neuron] = x[:, neuron].flatten().double().tolist()
    return found


def plain_cosine(now, before):
    if now == before:
        return 1.0
    lengths = math.sqrt(sum(a * a for a in now)) * math.sqrt(sum(b * b for b in before))
    return sum(a * b for a, b in zip(now, before, strict=True)) / lengths if lengths else 0.0


class TestFormula:
    def test_an_example_by_hand(self):
        """For the samples (1, 0) and (0, 1) the outputs of a neuron without bias are its two weights."""
        model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
        samples = [(torch.eye(2), torch.tensor([0, 1]))]
        method = start("velocity", model, samples, head="2", parameters=4, val_batches=samples, samples=2)
        weights = model[0].weight.data
        weights.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
        method.turn(moment(1))
        # cosines with the rows before: 0, 1 / sqrt 2 and 1; those of the rest before the run count as 1
        weights.copy_(torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 5.0]]))
        assert neurons_of(method.turn(moment(2))) == {"0": {0, 1}}
        assert method.velocity.tolist() == pytest.approx([-1.0, 0.5**0.5 - 1, 0.0])
        # cosines: 1, 1 / sqrt 2 and 0; velocities (1 - 0) + 1/2, 0 + (1 - 1 / sqrt 2) / 2, (0 - 1) - 0
        weights.copy_(torch.tensor([[0.0, 3.0], [1.0, 0.0], [5.0, 0.0]]))
        assert neurons_of(method.turn(moment(3))) == {"0": {0, 2}}
        assert method.velocity.tolist() == pytest.approx([1.5, (1 - 0.5**0.5) / 2, -1.0])

    @pytest.mark.parametrize("mu", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("fill", ["prefix", "skip_and_continue"])
    def test_is_what_loops_over_neurons_give(self, mu, fill):
        model, images = convolutions(), torch.cat([images for images, _ in IMAGES])[:8]
        budget = 400
        method = velocity(model, parameters=budget, mu=mu, samples=8, values=None, fill=fill)
        before, phi, speed = plain_outputs(model, images), {}, {}
        method.turn(moment(1))
        for epoch in range(2, 6):
            shaken(model, epoch)
            now = plain_outputs(model, images)
            for key in now:
                cosine = plain_cosine(now[key], before[key])
                speed[key] = (cosine - phi.get(key, 1.0)) - mu * speed.get(key, 0.0)
                phi[key] = cosine
            before = now
            costs = {key: parameters_of(model, {key[0]: {key[1]}}) for key in now}
            expected, spent = {}, 0
            for key in sorted(speed, key=lambda key: -abs(speed[key]) / costs[key]):
                if spent + costs[key] > budget:
                    if fill == "prefix":
                        break
                    continue
                spent += costs[key]
                expected.setdefault(key[0], set()).add(key[1])
            assert neurons_of(method.turn(moment(epoch))) == expected
            assert method.velocity.tolist() == pytest.approx(list(speed.values()), abs=1e-5)
        assert len(expected) > 1

    def test_outputs_that_are_zero_have_rested_or_changed_altogether(self):
        rows = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
        then = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
        assert similarity(rows, then).tolist() == [1.0, 0.0, -1.0]

    def test_a_network_at_rest_has_no_velocity(self):
        method = velocity(parameters=400, values=20)
        for epoch in (1, 2, 3):
            method.turn(moment(epoch))
        assert method.velocity.abs().max() < 1e-12


class TestFirstEpoch:
    def test_chances_are_equal(self):
        model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))
        data = labelled(2, batches=1, samples=2)
        drawn = Counter()
        for seed in range(300):
            method = start("velocity", model, data, head="2", parameters=3, seed=seed, val_batches=data, samples=1)
            (neuron,) = neurons_of(method.turn(moment(1)))["0"]
            drawn[neuron] += 1
        assert sum((drawn[neuron] - 50) ** 2 / 50 for neuron in range(6)) < CHI_SQUARE_5

    def test_follows_the_seed(self):
        first = [neurons_of(velocity(parameters=400, seed=seed).turn(moment(1))) for seed in (0, 1, 0)]
        assert first[0] == first[2] != first[1]


class TestBudget:
    @hypothesis_settings(max_examples=20)
    @given(
        parameters=st.integers(28, 2000), seed=st.integers(0, 99), fill=st.sampled_from(["prefix", "skip_and_continue"])
    )
    def test_is_never_exceeded(self, parameters, seed, fill):
        model = convolutions()
        method = velocity(model, parameters=parameters, seed=seed, fill=fill, samples=2)
        costs = {name: parameters_of(model, {name: {0}}) for name in LAYERS}
        payable = {name: cost for name, cost in costs.items() if cost <= parameters}
        everything = sum(len(model.get_submodule(name).weight) * cost for name, cost in payable.items())
        for epoch in (1, 2):
            turn = method.turn(moment(epoch))
            turn.selection.check(model)
            used = parameters_of(model, neurons_of(turn))
            assert 0 < used <= parameters
            # no more is left over than the dearest neuron costs, unless there is no further one
            assert used > parameters - max(payable.values()) or used == everything
            assert f"with {used} parameters" in turn.note
            head = sum(parameter.numel() for parameter in model[14].parameters())
            assert turn.selection.parameter_count == used + head
            shaken(model, epoch)

    def test_a_share_is_that_of_all_neurons(self):
        model = convolutions()
        everything = parameters_of(model, {name: range(len(model.get_submodule(name).weight)) for name in LAYERS})
        assert velocity(model, parameters=0.25).budget == everything // 4
        whole = velocity(model, parameters=1).turn(moment(1))
        assert parameters_of(model, neurons_of(whole)) == everything

    def test_neurons_that_alone_are_too_dear_do_not_end_the_draw(self):
        model = convolutions()
        least = min(parameters_of(model, {name: {0}}) for name in LAYERS)
        turn = velocity(model, parameters=least).turn(moment(1))
        assert parameters_of(model, neurons_of(turn)) == least
        with pytest.raises(OptionError, match=f"at least one neuron, {least} of"):
            velocity(model, parameters=least - 1)

    def test_norms_train_on_request(self):
        norms = {f"{layer}.{name}" for layer in (1, 4) for name in ("weight", "bias")}
        affine = velocity(parameters=200, train_bn="affine").turn(moment(1)).selection
        frozen = velocity(parameters=200).turn(moment(1)).selection
        assert norms <= set(affine.parameters)
        assert not norms & set(frozen.parameters)
        assert channels_of(affine) == channels_of(frozen)


class TestBytes:
    @pytest.mark.parametrize("fill", ["prefix", "skip_and_continue"])
    @pytest.mark.parametrize(("room", "parameters"), [(20_000, None), (60_000, None), (60_000, 300)])
    def test_no_measured_step_exceeds_them_with_what_is_remembered(self, fill, room, parameters):
        model, batches = early_peak(), labelled(3, 32, 32, samples=8)
        head = adabet.select("head", model, batches, head="11")
        neurons, places = 4 * 32, 16
        remembered = neurons * (8 + 8 + 4 * places * 8) + 8 * batches[0][0][0].nbytes
        budget = measure_memory(model, batches[0], head, inference=False).training.total + remembered + room
        options = {"samples": 8, "head": "11", "val_batches": None, "fill": fill, "parameters": parameters}
        method = velocity(model, batches, memory=budget, **options)
        for epoch in (1, 2, 3):
            turn = method.turn(moment(epoch))
            used = measure_memory(model, batches[0], turn.selection, inference=False).training.total + remembered
            assert used <= budget
            assert parameters is not None or used > budget - room // 3
            assert 0 < parameters_of(model, neurons_of(turn)) <= (parameters or 10**9)
            shaken(model, epoch)

    def test_too_few_name_how_many_are_enough(self):
        model, batches = convolutions(), labelled(3, 32, 32, samples=8)
        with pytest.raises(BudgetError, match=r"200 kB is too little: .* one output channel of '12'") as caught:
            velocity(model, batches, memory=200_000, samples=2).turn(moment(1))
        enough = adabet.sizes.parse_size(str(caught.value).partition("may take ")[2].partition(" with")[0])
        assert neurons_of(velocity(model, batches, memory=enough, samples=2).turn(moment(1)))


class TestSamples:
    def test_so_many_values_of_a_neuron_are_remembered_at_the_same_places(self):
        model, images = convolutions(), IMAGES[0][0][:4]
        method = velocity(model, parameters=400, samples=4, values=10)
        places = []
        for epoch in (1, 2):
            method.turn(moment(epoch))
            outputs, found = plain_outputs(model, images), {}
            for name, rows in method.state_dict()["outputs"].items():
                whole = torch.tensor([outputs[name, neuron] for neuron in range(len(rows))]).float()
                # ceil(10 / 4) numbers of each of the four samples, or all that there are
                assert rows.shape[1] == 4 * min(3, whole.shape[1] // 4)
                found[name] = [_column(whole, column) for column in rows.T]
                assert len(set(found[name])) == rows.shape[1]
            places.append(found)
            shaken(model, 1)
        assert places[0] == places[1]

    def test_they_need_not_come_in_one_batch(self):
        images = torch.cat([images for images, _ in IMAGES])
        turns = []
        for batches in (IMAGES, [(images, None)], [(part, None) for part in images.split(5)]):
            model = convolutions()
            method = velocity(model, IMAGES, parameters=400, samples=9, val_batches=batches)
            method.turn(moment(1))
            shaken(model, 1)
            turns.append(neurons_of(method.turn(moment(2))))
        assert turns[0] == turns[1] == turns[2]

    def test_without_held_out_ones_those_of_training_are_kept(self):
        model = convolutions()
        batches = list(IMAGES)
        method = velocity(model, batches, parameters=400, val_batches=None, samples=5)
        method.turn(moment(1))
        assert torch.equal(method.state_dict()["inputs"], IMAGES[0][0][:5])
        batches.reverse()
        method.turn(moment(2))
        assert method.velocity.abs().max() < 1e-12

    def test_others_than_before_are_refused(self):
        batches = list(IMAGES)
        method = velocity(batches=batches, parameters=400, samples=4)
        method.turn(moment(1))
        batches.reverse()
        with pytest.raises(DataError, match="do not shuffle val_loader"):
            method.turn(moment(2))

    def test_of_tokens_and_leaves_the_model_as_it_was(self):
        model, batches = tokens().train(), labelled(7, 5)
        before = state_of(model)
        method = start("velocity", model, batches, head="head", parameters=300)
        for epoch in (1, 2):
            assert neurons_of(method.turn(moment(epoch)))
        assert state_of(model) == before


def _column(whole, column):
    """The place of a column in the whole outputs."""
    found = (whole - column[:, None]).abs().amax(0)
    assert found.min() < 1e-5
    return int(found.argmin())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"give parameters=.* or memory="),
        ({"parameters": 0}, "got 0"),
        ({"parameters": 100.5}, "got 100.5"),
        ({"parameters": float("nan")}, "got nan"),
        ({"parameters": 100, "mu": 2}, "mu from 0 to 1"),
        ({"parameters": 100, "samples": 0}, "samples and values"),
        ({"parameters": 100, "values": 0}, "samples and values"),
        ({"parameters": 100, "fill": "all"}, "fill"),
        ({"parameters": 100, "train_bn": "eval"}, "train_bn"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(OptionError, match=message):
        velocity(**options)


def test_data_and_models_that_do_not_serve():
    with pytest.raises(DataError, match="empty"):
        velocity(parameters=100, val_batches=[]).turn(moment(1))
    with pytest.raises(LayerError, match="beside the head"):
        start("velocity", nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4)), labelled(3), head="1", parameters=9)
    images = torch.full_like(IMAGES[0][0], float("nan"))
    with pytest.raises(ActivationError, match="expected finite outputs"):
        velocity(parameters=100, val_batches=[(images, None)]).turn(moment(1))


def train(model=None, *, held_out=True, **options):
    model = make_net() if model is None else model
    model.drop.p = 0.0
    loaders = make_loaders()[0], DataLoader(make_data(30, seed=2), 16) if held_out else None
    settings = {"lr": 0.05, "epochs": 3, "keep": "last", "weight_decay": 0.0, **options}
    result = adabet.fit(
        model, *loaders, method="velocity", method_options={"parameters": 200, "samples": 8}, **settings
    )
    return model, result


@pytest.fixture
def turns(monkeypatch):
    """What every turn of a run chose, the weights before it, and the momentum of the two convolutions there."""
    seen = []
    original = Velocity.turn

    def turn(self, now):
        model = self._request.model
        optimizer = now.optimizer({"conv1.weight": model.conv1.weight, "conv2.weight": model.conv2.weight})
        momenta = {
            name: optimizer.state[getattr(model, name).weight].get("momentum_buffer") for name in ("conv1", "conv2")
        }
        found = original(self, now)
        seen.append((neurons_of(found), weights_of(model), momenta))
        return found

    monkeypatch.setattr(Velocity, "turn", turn)
    return seen


class TestRuns:
    def test_only_the_chosen_neurons_move_in_each_epoch(self, tmp_path, turns):
        model, result = train(run_dir=tmp_path)
        lines = [json.loads(line) for line in (tmp_path / "turns.jsonl").read_text().splitlines()]
        assert [(line["epoch"], line["step"]) for line in lines] == [(1, 1), (2, 1), (3, 1)]
        assert result.turns == 3
        states = [weights for _, weights, _ in turns] + [weights_of(model)]
        for (chosen, before, _), after in zip(turns, states[1:], strict=True):
            for name in ("conv1", "conv2"):
                for kind in ("weight", "bias"):
                    change = (after[f"{name}.{kind}"] - before[f"{name}.{kind}"]).flatten(1 if kind == "weight" else 0)
                    moved = change.abs().amax(1) if kind == "weight" else change.abs()
                    assert set(moved.nonzero().flatten().tolist()) == chosen.get(name, set())
            assert not torch.equal(before["head.weight"], after["head.weight"])
            assert torch.equal(before["norm1.weight"], after["norm1.weight"])
        assert any(first[0] != second[0] for first, second in itertools.pairwise(turns))

    def test_the_optimizer_forgets_what_is_dropped(self, turns):
        train(epochs=5)
        assert turns[0][2] == {"conv1": None, "conv2": None}
        dropped = 0
        for index, (_, _, momenta) in enumerate(turns[1:], start=1):
            former = turns[index - 1][0]
            for name, buffer in momenta.items():
                rows = set() if buffer is None else set(buffer.flatten(1).abs().amax(1).nonzero().flatten().tolist())
                assert rows == former.get(name, set())
                dropped += len(former.get(name, set()) - turns[index][0].get(name, set()))
        assert dropped > 0

    @pytest.mark.parametrize("options", [{"micro_batch": 3}, {"lean": False}])
    def test_lean_steps_in_slices_are_the_same(self, turns, options):
        torch.manual_seed(0)
        expected, _ = train()
        whole = [chosen for chosen, _, _ in turns]
        turns.clear()
        torch.manual_seed(0)
        found, _ = train(**options)
        assert [chosen for chosen, _, _ in turns] == whole
        for name, tensor in weights_of(expected).items():
            torch.testing.assert_close(weights_of(found)[name], tensor, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("held_out", [True, False])
    def test_a_run_that_crashed_ends_like_one_that_did_not(self, tmp_path, held_out):
        options = {"epochs": 4, "optimizer": "adamw", "held_out": held_out}
        whole, expected = train(run_dir=tmp_path / "whole", **options)
        for at in ((1, 3), (3, 2)):
            folder = tmp_path / f"stopped {at}"
            with pytest.raises(Crash):
                train(run_dir=folder, progress=CrashAt(*at), **options)
            resumed, result = train(run_dir=folder, resume=True, **options)
            assert same(weights_of(resumed), weights_of(whole))
            assert without_seconds(result) == without_seconds(expected)
            assert (folder / "turns.jsonl").read_text() == (tmp_path / "whole" / "turns.jsonl").read_text()

    def test_select_gives_the_first_draw(self):
        chosen = adabet.select("velocity", convolutions(), IMAGES, parameters=300, head="14", val_batches=IMAGES)
        assert chosen == velocity(parameters=300).turn(moment(1)).selection
