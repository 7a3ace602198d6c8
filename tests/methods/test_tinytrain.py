"""TinyTrain against kept activations and a greedy choice by formulas written out again."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adabet
from adabet.errors import AdabetWarning, BudgetError, LayerError, OptionError
from adabet.layers import find_layers
from adabet.memory import MemoryReport, measure_memory
from adabet.methods import Request, choose_tensors, find_method, select
from adabet.methods.tinytrain import backward_macs, units_of
from adabet.models.mcu import NETS, McuNet
from tests.cases.models import SMALL, small_images, small_net, state_of
from tests.methods.slow_fisher import kept_products, slow_channel_sum
from tests.training.nets import make_loaders, make_net

CASES = {case.name: case for case in SMALL}
IMAGES = small_images(12, size=8)
LABELS = torch.arange(12) % 5
BATCHES = [(IMAGES, LABELS)]


class Plain(nn.Module):
    """A chain of convolutions whose costs can be written out by hand."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.c = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.d = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        for layer in (self.a, self.b, self.c, self.d):
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


# parameters, inputs and multiply-accumulates for one sample of 3 x 8 x 8
COSTS = {
    "a": (3 * 8 * 9 + 8, 3 * 64, 3 * 8 * 9 * 64),
    "b": (8 * 16 * 9 + 16, 8 * 64, 8 * 16 * 9 * 16),
    "c": (16 * 9 + 16, 16 * 16, 16 * 9 * 16),
    "d": (16 * 12 + 12, 16 * 16, 16 * 12 * 16),
    "head": (12 * 5 + 5, 12, 12 * 5),
}
CHANNELS = {"a": 8, "b": 16, "c": 16, "d": 12}


def plain():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Plain()


def slow_scores(model):
    """S of every layer and the scores of its channels, from activations that were kept."""
    layers, products = kept_products(model, IMAGES, LABELS)
    most = [max(COSTS[layer.name][place] for layer in layers) for place in (0, 2)]
    scores, channels = {}, {}
    for layer in layers:
        potential, channels[layer.name] = slow_channel_sum(layer, products[layer.name])
        parameters, _, macs = COSTS[layer.name]
        scores[layer.name] = potential / ((parameters / most[0]) * (macs / most[1]))
    return scores, channels


def slow_units(chosen, ratio):
    total = 0
    for name in (*chosen, "head"):
        parameters, inputs, _ = COSTS[name]
        share = 1 if name == "head" else max(1, math.floor(ratio * CHANNELS[name])) / CHANNELS[name]
        total += 3 * round(parameters * share) + inputs
    return total


def slow_backward(chosen, ratio):
    names = list(COSTS)
    first = min(names.index(name) for name in (*chosen, "head"))
    weights = sum(COSTS[n][2] * max(1, math.floor(ratio * CHANNELS[n])) / CHANNELS[n] for n in chosen)
    return weights + COSTS["head"][2] + sum(COSTS[name][2] for name in names[first + 1 :])


def slow_greedy(scores, units, macs, ratio):
    full = 2 * sum(cost[2] for cost in COSTS.values()) - COSTS["a"][2]
    taken = []
    for name in sorted(scores, key=scores.get, reverse=True):
        fits = slow_units([*taken, name], ratio) <= (units or math.inf)
        if fits and slow_backward([*taken, name], ratio) <= (macs or math.inf) * full:
            taken.append(name)
    return set(taken)


SCORES, CHANNEL_SCORES = slow_scores(plain())


class TestChoice:
    @pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 1.0])
    def test_without_a_budget_is_a_share_of_the_layers_by_score(self, ratio):
        chosen = select("tinytrain", plain(), BATCHES, layer_ratio=ratio)
        best = sorted(SCORES, key=SCORES.get, reverse=True)[: max(1, round(ratio * 4))]
        assert set(chosen.layers) == set(best)
        assert chosen.head == ("head.weight", "head.bias")
        chosen.check(plain())

    @settings(max_examples=40)
    @given(
        units=st.none() | st.integers(slow_units([], 1), 7000),
        macs=st.none() | st.floats(0.001, 1),
        ratio=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    )
    def test_within_budgets_is_the_greedy_one(self, units, macs, ratio):
        options = {"memory_units": units, "macs": macs, "channel_ratio": ratio}
        chosen = select("tinytrain", plain(), BATCHES, layer_ratio=1, **options)
        assert set(chosen.layers) == slow_greedy(SCORES, units, macs, ratio)

    def test_channels_are_those_with_the_largest_potential(self):
        chosen = select("tinytrain", plain(), BATCHES, layer_ratio=1, channel_ratio=0.3)
        for choice in chosen.choices:
            if choice.head:
                assert choice.channels is None
                continue
            scores = CHANNEL_SCORES[choice.layer]
            best = sorted(range(len(scores)), key=lambda channel: -scores[channel])[: int(0.3 * len(scores))]
            assert (set(choice.channels), choice.axis) == (set(best), "out")

    def test_layers_with_their_norms(self):
        apart = select("tinytrain", small_net(), BATCHES, layer_ratio=1)
        assert apart.layers == ("conv1", "conv2", "hidden")
        tied = select("tinytrain", small_net(), BATCHES, layer_ratio=1, tie_norm=True, channel_ratio=0.5)
        assert tied.choices[0].parameters == ("conv1.weight", "conv1.bias", "norm1.weight", "norm1.bias")
        assert tied.choices[0].parameter_count == (3 * 9 + 3) * 6
        tied.check(small_net())
        with adabet.apply(small_net(), tied):
            pass
        competing = select("tinytrain", small_net(), BATCHES, layer_ratio=0.2, norms=True)
        assert {choice.kind for choice in competing.choices if not choice.head} == {"norm"}

    def test_of_the_last_layers_only(self):
        chosen = select("tinytrain", plain(), BATCHES, layer_ratio=1, last=0.5)
        assert chosen.layers == ("c", "d")

    @pytest.mark.parametrize("name", ["timm-resnet", "timm-mobilenetv2", "timm-vit", "timm-convnext", "timm-swin"])
    def test_fits_every_kind_of_model(self, name):
        model, inputs = CASES[name].build().train(), CASES[name].batch(4)
        before = state_of(model)
        chosen = select("tinytrain", model, [(inputs, torch.arange(4))], macs=0.5, channel_ratio=0.5)
        assert state_of(model) == before
        assert 0 < len(chosen.layers) < chosen.candidates
        with adabet.apply(model, chosen):
            nn.functional.cross_entropy(model(inputs), torch.arange(4)).backward()

    def test_of_a_head_of_zeros_is_warned_about(self):
        model = plain()
        nn.init.zeros_(model.head.weight)
        with pytest.warns(AdabetWarning, match="no gradient at any layer"):
            assert select("tinytrain", model, BATCHES, layer_ratio=0.25).layers == ("a",)


class TestCosts:
    def test_are_those_written_out(self):
        layers = find_layers(plain(), IMAGES)
        for layer in (*layers, *layers.head):
            parameters, inputs, macs = COSTS[layer.name]
            assert layer.macs == macs
            assert units_of(layer) == 3 * parameters + inputs
        everything = {layer.name: None for layer in layers}
        assert backward_macs(layers, everything) == slow_backward(list(everything), 1)
        assert backward_macs(layers, {}) == COSTS["head"][2]
        assert units_of(layers.candidates[1], (3, 4)) == 3 * 2 * (8 * 9 + 1) + 8 * 64

    def test_of_mcunet_are_the_published_ones(self):
        """TinyTrain's table gives 44.9 M for a whole backward pass, the gradient with respect to the image included."""
        layers = find_layers(McuNet(NETS["mcunet-5fps"], 10), torch.zeros(1, 3, 128, 128))
        everything = backward_macs(layers, {layer.name: None for layer in layers})
        assert round((everything + layers.candidates[0].macs) / 1e6, 1) == 44.9


class TestMeasuredBudget:
    def peak(self, model, selection):
        return measure_memory(model, BATCHES[0], selection, inference=False).training.total

    def slow(self, budget):
        """The greedy choice, a step measured for each layer."""
        taken = []
        for name in sorted(SCORES, key=SCORES.get, reverse=True):
            tried = [*taken, name]
            names = {f"{layer}.{leaf}" for layer in tried for leaf in ("weight", "bias")}
            request = Request(plain(), BATCHES)
            selection = choose_tensors(request, request.find_layers(), names, method="a trial")
            if self.peak(plain(), selection) <= budget:
                taken = tried
        return set(taken)

    def test_takes_the_layers_that_a_step_has_room_for(self):
        least = self.peak(plain(), select("head", plain(), BATCHES))
        most = self.peak(plain(), select("full", plain(), BATCHES))
        found = []
        for part in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1):
            budget = int(least + part * (most - least))
            chosen = select("tinytrain", plain(), BATCHES, memory=budget)
            assert self.peak(plain(), chosen) <= budget
            assert set(chosen.layers) == self.slow(budget)
            found.append(len(chosen.layers))
        assert found[-1] == 4
        assert len(set(found)) > 2

    @pytest.mark.parametrize("trials", [1, 2, 4])
    def test_takes_no_more_measurements_than_allowed(self, trials, monkeypatch):
        measured = []

        def counting(*arguments, **options):
            measured.append(arguments)
            return measure_memory(*arguments, **options)

        monkeypatch.setattr("adabet.methods.tinytrain.measure_memory", counting)
        budget = self.peak(plain(), select("tinytrain", plain(), BATCHES, layer_ratio=0.25))
        chosen = select("tinytrain", plain(), BATCHES, memory=budget, trials=trials)
        assert self.peak(plain(), chosen) <= budget
        assert len(measured) == 1 + trials  # the head alone comes first
        assert len(chosen.layers) == {1: 0, 2: 0, 4: 1}[trials]  # all four, two, the best alone, then others beside it

    def test_drops_from_what_the_other_budgets_allow(self):
        allowed = select("tinytrain", plain(), BATCHES, macs=0.4)
        assert select("tinytrain", plain(), BATCHES, macs=0.4, memory=10**9).layers == allowed.layers

    def test_below_that_of_the_head(self):
        least = self.peak(plain(), select("head", plain(), BATCHES))
        with pytest.raises(BudgetError, match=rf"memory of at least {least} bytes, .* trains the head alone; got 1000"):
            select("tinytrain", plain(), BATCHES, memory=1000)
        select("tinytrain", plain(), BATCHES, memory=least).check(plain())

    def test_is_kept_by_fit(self, tmp_path):
        net, (train, val) = make_net(), make_loaders()
        assert find_method("tinytrain").budget
        budget = self.peak_of_a_share(net, next(iter(train)))
        adabet.fit(net, train, val, method="tinytrain", memory=budget, epochs=1, seed=0, run_dir=tmp_path)
        report = MemoryReport.from_json((tmp_path / "memory.json").read_text())
        assert 0.5 * budget < report.training.total <= budget

    def peak_of_a_share(self, net, batch):
        chosen = select("tinytrain", net, [batch], layer_ratio=0.25)
        return measure_memory(net, batch, chosen, inference=False).training.total


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"memory_units": 0}, "memory_units of at least 1, got 0"),
            ({"macs": 0.0}, "macs, a share of a whole backward pass, above 0 and up to 1, got 0.0"),
            ({"macs": 1.1}, "above 0 and up to 1, got 1.1"),
            ({"last": 0}, "last, a share of the layers, above 0"),
            ({"gradient_batches": 0}, "gradient_batches of at least 1"),
            ({"trials": 0}, "trials of at least 1"),
            ({"layer_ratio": 1.5}, "layer_ratio from 0 to 1"),
            ({"channel_ratio": 0}, "channel_ratio above 0"),
        ],
    )
    def test_options(self, options, complaint):
        with pytest.raises(OptionError, match=complaint):
            select("tinytrain", plain(), BATCHES, **options)

    def test_budgets_below_those_of_the_head(self):
        with pytest.raises(BudgetError, match="memory_units of at least 207, what the head alone takes; got 206"):
            select("tinytrain", plain(), BATCHES, memory_units=206)
        with pytest.raises(BudgetError, match=r"macs of at least .*, the head's share of a backward pass; got 1e-06"):
            select("tinytrain", plain(), BATCHES, macs=1e-6)

    @pytest.mark.parametrize("options", [{"memory_units": 1}, {"memory_units": 1, "memory": 10**9}])
    def test_budgets_with_no_room_and_no_head(self, options):
        with pytest.raises(BudgetError, match="room for one layer at least"):
            select("tinytrain", plain(), BATCHES, head_as_candidate=True, **options)

    def test_no_layer_that_can_compete(self):
        model = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 5))
        with pytest.raises(LayerError, match="use the method 'head'"):
            select("tinytrain", model, BATCHES, head="2")
