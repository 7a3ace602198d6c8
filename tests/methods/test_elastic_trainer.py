import dataclasses
import json
import random
from functools import partial
from itertools import accumulate

import pytest
import torch
from torch import nn

import adabet
from adabet.errors import CheckpointError, DataError, OptionError, SelectionError
from adabet.methods import Moment, find_method, start
from adabet.methods import elastic_trainer as module
from adabet.methods.elastic_probe import find_importance
from adabet.methods.elastic_profile import Profile, TensorTime, profile_backward
from adabet.methods.elastic_solver import backward_ratio, choose, downscale, time_of
from adabet.training import fit
from adabet.training.checkpoint import read_checkpoint
from tests.cases.models import small_images, small_net, state_of
from tests.training.nets import make_loaders, make_net, same, weights_of

BATCHES = [(small_images(6, size=8, seed=seed), torch.tensor([0, 1, 2, 3, 4, 0])) for seed in range(3)]
MACS = {"profile": "macs"}


def sgd(parameters):
    return torch.optim.SGD(list(parameters.values()), lr=0.05, momentum=0.9)


def at(epoch, step=1):
    return Moment(epoch, step, 12, 5, sgd)


def begin(model=None, **options):
    return start("elastic-trainer", small_net() if model is None else model, BATCHES, **MACS | options)


def timed(times):
    """A profile of the small net from a function of the tensors' names."""
    return Profile(
        tuple(TensorTime(name, *times(name)) for name, _ in small_net().named_parameters()), "macs", 4, "cpu"
    )


class TestSelection:
    @pytest.mark.parametrize("speedup", [0.4, 0.533, 0.7, 0.9])
    def test_is_the_best_within_the_time(self, speedup):
        """Put together by hand from the parts: profile, importance, solver."""
        model = small_net()
        selection = begin(model, speedup=speedup).turn(at(1)).selection
        profile = profile_backward(model, BATCHES[0], unit="macs")
        worth = find_importance(model, BATCHES[0], sgd, seed=1)
        names = profile.names
        head = {names.index("head.weight"), names.index("head.bias")}
        ratio = backward_ratio(speedup)
        chosen = choose([worth[name] for name in names], profile.t_dw, profile.t_dy, ratio, always=head)
        assert set(selection.parameters) == {names[index] for index in head | set(chosen)}
        t_dw, t_dy, disco = downscale(profile.t_dw, profile.t_dy)
        assert time_of({*chosen, *head}, t_dw, t_dy) <= ratio * disco * (t_dw.sum() + t_dy.sum())
        selection.check(model)

    def test_all_the_time_trains_all_that_lowers_the_loss(self):
        model = small_net()
        selection = begin(model, speedup=1.0, disco=False).turn(at(1)).selection
        worth = find_importance(model, BATCHES[0], sgd, seed=1)
        helping = {name for name, value in worth.items() if value > 0}
        assert set(selection.parameters) == helping | {"head.weight", "head.bias"}

    def test_head_always_trains(self):
        # times that leave no room for anything else, nor for the head
        turn = begin(profile=timed(lambda name: (1.0, 98.0 * (name == "head.bias")))).turn(at(1))
        assert turn.selection.parameters == ("head.weight", "head.bias")
        assert turn.selection.layers == ()
        assert turn.note == "2 of 14 tensors, 89% of the whole backward pass"

    def test_head_as_a_candidate(self):
        times = timed(lambda name: (1000.0 if name == "head.weight" else 1.0, 0.0))
        assert "head.weight" in begin(profile=times).turn(at(1)).selection.head
        competing = begin(head_as_candidate=True, profile=times).turn(at(1)).selection
        assert "head.weight" not in competing.parameters
        assert competing.layers
        far = begin(head_as_candidate=True, profile=timed(lambda name: (1.0, 1000.0 * (name == "head.bias"))))
        with pytest.raises(OptionError, match=r"room for a tensor.*head_as_candidate"):
            far.turn(at(1))

    def test_without_room_goes_on_with_what_trained_last(self):
        dynamic = begin(head_as_candidate=True, profile="macs")
        first = dynamic.turn(at(1)).selection
        dynamic.profile = timed(lambda name: (1.0, 1000.0 * name.startswith("head")))
        assert dynamic.turn(at(5)).selection.parameters == first.parameters

    def test_trains_tensors_that_the_model_itself_holds(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.shift = nn.Parameter(torch.zeros(4))
                self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

            def forward(self, inputs):
                return self.head(self.body(inputs).relu() + self.shift)

        batch = (torch.randn(8, 3), torch.arange(8) % 2)
        selection = adabet.select("elastic-trainer", Net(), [batch], **MACS, importance="magnitude", speedup=1.0)
        assert "body.weight" in selection.parameters
        moved = adabet.select("elastic-trainer", Net(), [batch], **MACS, importance="gradient", speedup=1.0)
        assert "shift" in moved.parameters

    @pytest.mark.parametrize("importance", ["update", "magnitude", "gradient"])
    @pytest.mark.parametrize("solver", ["exact", "reference"])
    def test_options_are_kept_for_the_record(self, importance, solver):
        selection = begin(importance=importance, solver=solver, quanta=500).turn(at(1)).selection
        assert selection.method == "elastic-trainer"
        assert selection.options["importance"] == importance
        assert selection.options["solver"] == solver
        assert selection.options["quanta"] == 500
        assert adabet.Selection.from_json(selection.to_json()) == selection

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_changes_nothing(self, mode):
        model = small_net().train()
        before = state_of(model)
        begin(model, mode=mode).turn(at(1))
        assert state_of(model) == before

    def test_on_a_transformer(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed = nn.Linear(6, 8)
                self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
                self.head = nn.Linear(8, 3)

            def forward(self, tokens):
                return self.head(self.block(self.embed(tokens)).mean(1))

        torch.manual_seed(0)
        model = Net()
        batch = (torch.randn(6, 5, 6), torch.arange(6) % 3)
        # whatever the machine measures for a net this small, a speedup of 1 has room
        for profile, speedup in (("macs", 0.95), ("measured", 1.0)):
            selection = adabet.select("elastic-trainer", model, [batch], profile=profile, speedup=speedup)
            selection.check(model)
            assert selection.layers


class TestSchedule:
    def test_chooses_at_the_start_of_every_interval(self):
        dynamic = begin(interval=3)
        due = [(epoch, step) for epoch in range(1, 9) for step in (1, 2) if dynamic.due(at(epoch, step))]
        assert due == [(1, 1), (4, 1), (7, 1)]
        assert find_method("elastic-trainer").kind == "selects again"

    def test_default_interval_is_the_papers(self):
        assert [epoch for epoch in range(1, 13) if begin().due(at(epoch))] == [1, 5, 9]


class TestProfileOption:
    def test_is_measured_once_and_kept_over_a_resume(self, monkeypatch):
        model = small_net()
        # the times of a net this small are mostly noise: a speedup of 1 has room whatever they are
        measured = start("elastic-trainer", model, BATCHES, speedup=1.0)
        first = measured.turn(at(1)).selection
        assert measured.profile.unit == "seconds"
        assert measured.profile.forward > 0
        state = json.loads(json.dumps(measured.state_dict()))

        def refuse(*_, **__):
            raise AssertionError("made the profile again")

        monkeypatch.setattr(module, "profile_backward", refuse)
        resumed = start("elastic-trainer", model, BATCHES, speedup=1.0)
        resumed.load_state_dict(state)
        assert resumed.profile == measured.profile
        assert resumed.turn(at(1)).selection == first
        assert measured.turn(at(5)).selection == resumed.turn(at(5)).selection

    def test_ratio_uses_the_measured_times(self):
        dynamic = begin(speedup=0.3, profile=dataclasses.replace(begin_profile(), forward=1.0, backward=9.0))
        room = backward_ratio(0.3, 1.0, 9.0)
        assert room == pytest.approx(0.3 * (1 + 1 / 9) - 1 / 9)
        dynamic.turn(at(1))
        with pytest.raises(OptionError, match=r"above 0\.500"):
            begin(speedup=0.5, profile=dataclasses.replace(begin_profile(), forward=9.0, backward=9.0)).turn(at(1))

    def test_from_a_file_or_an_object(self, tmp_path):
        profile = begin_profile()
        path = tmp_path / "profile.json"
        path.write_text(profile.to_json(), encoding="utf-8")
        given = [begin(profile=option) for option in (profile, path, str(path))]
        assert all(dynamic.profile == profile for dynamic in given)
        assert len({dynamic.turn(at(1)).selection.parameters for dynamic in given}) == 1
        assert begin(profile=path).turn(at(1)).selection.options["profile"] == "given"

    def test_of_another_model(self):
        foreign = Profile((TensorTime("elsewhere.weight", 1.0, 1.0),), "macs", 4, "cpu")
        with pytest.raises(SelectionError, match=r"another model.*elsewhere\.weight.*SmallNet"):
            begin(profile=foreign).turn(at(1))

    def test_that_is_no_profile(self, tmp_path):
        with pytest.raises(OptionError, match=r"measured, macs.*absent"):
            begin(profile=tmp_path / "absent.json")
        other = tmp_path / "other.json"
        other.write_text("{}", encoding="utf-8")
        with pytest.raises(CheckpointError, match="kind"):
            begin(profile=other)


def begin_profile():
    return profile_backward(small_net(), BATCHES[0], unit="macs")


class TestRefuses:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"speedup": 1 / 3}, "above 0.333"),
            ({"speedup": 2.0}, "up to 1"),
            ({"speedup": 0.0, "profile": "measured"}, "above 0"),
            ({"interval": 0}, "interval"),
            ({"quanta": 0}, "quanta"),
            ({"profile_samples": 0}, "profile_samples"),
            ({"importance": "random"}, "update, magnitude, gradient"),
            ({"solver": "greedy"}, "exact, reference"),
            ({"mode": "test"}, "eval, train"),
            ({"memory": 10**6}, "budget"),
            ({"every": 2}, "every"),
        ],
    )
    def test_options(self, options, message):
        with pytest.raises(OptionError, match=message):
            begin(**options)

    def test_no_batches(self):
        with pytest.raises(DataError, match="empty"):
            start("elastic-trainer", small_net(), [])

    def test_no_labels(self):
        dynamic = start("elastic-trainer", small_net(), [BATCHES[0][0]], **MACS)
        with pytest.raises(OptionError, match="labels"):
            dynamic.turn(at(1))

    def test_a_foreign_checkpoint(self):
        with pytest.raises(CheckpointError, match="another method"):
            begin().load_state_dict({"draws": 3})


class Stop(Exception):
    """Ends a run at a step, as a crash would."""


class StopAt:
    """Progress that stops a run."""

    def __init__(self, epoch):
        self.at = epoch

    def start(self, **_): ...

    def step(self, *, epoch, step, loss):
        if (epoch, step) == (self.at, 2):
            raise Stop

    def epoch(self, record): ...

    def stop(self): ...


class TestFit:
    def train(self, folder, **options):
        model = make_net()
        method_options = {"interval": 2, "speedup": 0.6} | options.pop("method_options", {})
        result = fit(
            model,
            *make_loaders(),
            method="elastic-trainer",
            method_options=method_options,
            lr=0.05,
            epochs=4,
            keep="last",
            run_dir=folder,
            **options,
        )
        return model, result

    def test_trains_what_it_chose(self, tmp_path):
        initial = weights_of(make_net())
        model, result = self.train(tmp_path / "run", method_options=MACS)
        turns = [json.loads(line) for line in (tmp_path / "run" / "turns.jsonl").read_text().splitlines()]
        assert [turn["epoch"] for turn in turns] == [1, 3]
        assert all("of the whole backward pass" in turn["note"] for turn in turns)
        trained = weights_of(model)
        moved = {name.rpartition(".")[0] for name in trained if not torch.equal(trained[name], initial[name])}
        assert moved == {layer for turn in turns for layer in turn["layers"]}
        assert result.history[-1].epoch == 4

    @pytest.mark.parametrize("profile", ["macs", "measured"])
    def test_resumes_to_the_same_bits(self, tmp_path, monkeypatch, profile):
        # every reading is one to two seconds after the last: forward passes leave room for a speedup of 0.9
        gaps = random.Random(0)
        clock = accumulate(iter(lambda: gaps.uniform(1, 2), None))
        monkeypatch.setattr(module, "profile_backward", partial(profile_backward, clock=lambda: next(clock)))
        options = {"method_options": {"profile": profile, "speedup": 0.9}}
        with pytest.raises(Stop):
            self.train(tmp_path / "stopped", progress=StopAt(3), **options)
        # a measured profile, also by this clock, differs from run to run: the whole run gets that of the stopped one
        kept = Profile.from_json(profile_in(tmp_path / "stopped"))
        whole, _ = self.train(tmp_path / "whole", method_options={"profile": kept, "speedup": 0.9})
        resumed, _ = self.train(tmp_path / "stopped", resume=True, **options)
        assert profile_in(tmp_path / "stopped") == profile_in(tmp_path / "whole")
        assert same(weights_of(resumed), weights_of(whole))


def profile_in(folder):
    return read_checkpoint(folder / "checkpoint.safetensors").method["state"]["profile"]
