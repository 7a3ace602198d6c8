"""Sparse Update: published schemes and sizes, contributions by a plain training, the search by brute force."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import adabet
from adabet.errors import (
    AdabetWarning,
    BudgetError,
    CheckpointError,
    DataError,
    OptionError,
    SelectionError,
    TrainingError,
    UnknownNameError,
)
from adabet.layers import Fingerprint
from adabet.memory import MemoryReport
from adabet.methods import METHODS, Request, select
from adabet.methods.sparse_contributions import Analysis, Contributions, measure_contributions
from adabet.methods.sparse_scheme import Scheme, Site, Sites
from adabet.methods.sparse_search import Evolution, search_scheme
from adabet.methods.units import ChannelCost
from adabet.models.mcu import NETS, McuNet
from adabet.selection import Selection
from tests.cases.models import small_net, state_of

# kB (1024 bytes) of the published schemes, methods.md 4.2
PUBLISHED_KB = {
    "mbv2-w0.35": {"49kB": 49.8, "73kB": 73.9, "99kB": 99.4, "123kB": 123.6, "138kB": 138.2},
    "mcunet-5fps": {"49kB": 49.8, "74kB": 74.8, "99kB": 99.8, "124kB": 125.0, "148kB": 148.4},
    "proxyless-w0.3": {"49kB": 49.7, "74kB": 74.9, "98kB": 98.5, "120kB": 120.2, "148kB": 148.2},
}
IMAGES = [torch.zeros(1, 3, 128, 128)]


def mcu(name):
    torch.manual_seed(0)
    return McuNet(NETS[name], 10)


def labelled(count=64, batch=16, classes=5, *, seed=0):
    """Images whose class is in the brightness of their channels, learnable from the features of a small net."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    shades = torch.randn(classes, 3, 1, 1, generator=torch.Generator().manual_seed(99))
    images = torch.randn(count, 3, 8, 8, generator=draw) + 1.5 * shades[labels]
    return list(zip(images.split(batch), labels.split(batch), strict=True))


def sites_of(model, batches=None, head="auto", **options):
    request = Request(model, batches or labelled(), head=head)
    return Sites.of(model, request.find_layers(), **options)


class TestPublishedSchemes:
    @pytest.mark.parametrize(("net", "name"), [(net, name) for net, sizes in PUBLISHED_KB.items() for name in sizes])
    def test_sizes(self, net, name):
        selection = select("sparse-update", mcu(net), IMAGES, scheme=name)
        assert round(selection.options["extra"] / 1024, 1) == PUBLISHED_KB[net][name]

    def test_what_a_scheme_trains(self):
        model = mcu("mcunet-5fps")
        convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        selection = select("sparse-update", model, IMAGES, scheme="49kB")
        weights = {24: 12, 27: 24, 30: 24}  # of 48 input channels each: a quarter, a half, a half
        expected = {f"{name}.bias" for name in convolutions[-20:]} | {"classifier.weight", "classifier.bias"}
        expected |= {f"{convolutions[index]}.weight" for index in weights}
        assert set(selection.parameters) == expected
        kept = {choice.layer: choice.channels for choice in selection.choices if choice.channels is not None}
        assert {name: len(channels) for name, channels in kept.items()} == {
            convolutions[index]: count for index, count in weights.items()
        }
        assert {choice.axis for choice in selection.choices if choice.channels is not None} == {"in"}
        for name, channels in kept.items():
            norms = model.get_submodule(name).weight.detach().double().pow(2).sum((0, 2, 3))
            assert min(norms[list(channels)]) >= max(np.delete(norms.numpy(), channels))
        assert Selection.from_json(selection.to_json()) == selection
        selection.check(model)

    def test_depth_wise_weights_are_chosen_channel_by_channel(self):
        model = mcu("mbv2-w0.35")
        selection = select("sparse-update", model, IMAGES, scheme="49kB")
        (choice,) = [choice for choice in selection.choices if choice.layer == "blocks.16.depthwise"]
        assert len(choice.channels) == 336 // 8
        norms = model.blocks[16].depthwise.weight.detach().double().pow(2).sum((1, 2, 3))
        assert sorted(norms.argsort(descending=True)[: 336 // 8].tolist()) == list(choice.channels)

    def test_other_criteria(self):
        model = mcu("mcunet-5fps")

        def chosen(**options):
            selection = select("sparse-update", model, IMAGES, scheme="49kB", **options)
            return next(c.channels for c in selection.choices if c.layer == "blocks.9.pointwise1")

        assert set(chosen()) | set(chosen(criterion="magnitude-")) == set(range(48))
        drawn = chosen(criterion="random")
        assert drawn == chosen(criterion="random")
        assert drawn not in (chosen(), chosen(criterion="random", seed=1))

    def test_by_default_the_largest_within_the_ratio(self):
        def scheme(**options):
            return select("sparse-update", mcu("mbv2-w0.35"), IMAGES, **options).options["extra"]

        whole = sites_of(mcu("mbv2-w0.35"), IMAGES).extra_bytes(Scheme(51, dict.fromkeys(range(51), 1.0)))
        assert scheme(layer_ratio=0.1) <= 0.1 * whole < scheme(layer_ratio=1.0)
        assert math.floor(scheme(extra="80kB") / 1024) == 73

    def test_a_step_changes_what_was_chosen_and_nothing_else(self):
        model = mcu("proxyless-w0.3")
        before = copy.deepcopy(model)
        selection = select("sparse-update", model, IMAGES, scheme="49kB")
        with adabet.apply(model, selection):
            with adabet.lean():
                loss = F.cross_entropy(model(torch.rand(2, 3, 64, 64)), torch.tensor([1, 2]))
            loss.backward()
            torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
        kept = {choice.layer: choice.channels for choice in selection.choices}
        for name, old in before.named_parameters():
            changed = (model.get_parameter(name) != old).detach()
            layer = name.rpartition(".")[0]
            if name not in selection.parameters:
                assert not changed.any()
            elif name.endswith("weight") and kept[layer] is not None:
                assert set(changed.sum((0, 2, 3)).nonzero().flatten().tolist()) <= set(kept[layer])
        assert (model.blocks[15].pointwise1.weight != before.blocks[15].pointwise1.weight).any()

    def test_a_step_takes_hardly_more_than_inference(self):
        model = mcu("proxyless-w0.3")
        batch = (torch.zeros(2, 3, 128, 128), torch.tensor([1, 2]))
        sparse, full = (
            adabet.measure_memory(model, batch, selection, optimizer="sgd")
            for selection in (
                select("sparse-update", model, IMAGES, scheme="148kB"),
                select("full", model, IMAGES),
            )
        )
        assert sparse.training.over_weights < 1.02 * sparse.inference.over_weights
        assert full.training.over_weights > 2 * sparse.training.over_weights

    def test_a_scheme_of_another_net(self):
        with pytest.raises(UnknownNameError, match="did you mean '99kB'"):
            select("sparse-update", mcu("mcunet-5fps"), IMAGES, scheme="98kB")

    def test_another_model(self):
        with pytest.raises(OptionError, match="of 3 other convolutions and linear layers; give extra="):
            select("sparse-update", small_net(), labelled(), scheme="49kB")

    def test_too_little_for_any(self):
        with pytest.raises(BudgetError, match=r"at least 5\d{4} bytes, what the smallest published scheme takes"):
            select("sparse-update", mcu("mcunet-5fps"), IMAGES, extra="20kB")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"scheme": "49kB", "extra": "49kB"}, "either a scheme, or extra"),
            ({"criterion": "largest", "scheme": "49kB"}, "criterion of magnitude"),
            ({"bits": 0}, "bits of a weight"),
            ({"layer_ratio": 1.5}, "layer_ratio from 0 to 1"),
            ({"scheme": Scheme(3, {5: 1.0})}, "weights of layers 39 to 41"),
            ({"scheme": Scheme(43)}, "biases of 0 to 42 layers"),
            ({"scheme": Scheme(3, {41: 2})}, "ratios from 0 to 1"),
        ],
    )
    def test_options_that_make_no_sense(self, options, message):
        with pytest.raises(OptionError, match=message):
            select("sparse-update", mcu("mcunet-5fps"), IMAGES, **options)


class TestExtraBytes:
    def test_by_hand(self):
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),  # 8 x 4 x 4 outputs, the norm's 8 shifts
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Flatten(),
            nn.Linear(128, 2),
        )
        sites = sites_of(model, [torch.zeros(1, 3, 4, 4)], "4")
        head = 128 * 8
        masks = 128 + 8 * 32
        assert sites.extra_bytes(Scheme(0)) * 8 == head
        assert sites.extra_bytes(Scheme(2)) * 8 == head + 2 * masks
        assert sites.extra_bytes(Scheme(2, {0: 1.0})) * 8 == head + 2 * masks + 3 * (8 * 9 + 16) * 8
        assert sites.extra_bytes(Scheme(1, {1: 0.25})) * 8 == head + masks + 2 * (9 + 16) * 8
        wide = sites_of(model, [torch.zeros(1, 3, 4, 4)], "4", bits=32)
        assert wide.extra_bytes(Scheme(1, {1: 0.25})) * 8 == head * 4 + masks + 2 * (9 + 16) * 32

    @pytest.mark.parametrize("tie_norm", [False, True])
    def test_the_shift_of_the_norm_behind_is_a_bias(self, tie_norm):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        options = {"head": "3", "tie_norm": tie_norm}
        selection = select("sparse-update", model, [torch.zeros(1, 3, 4, 4)], scheme=Scheme(1), **options)
        assert selection.parameters == ("1.bias", "3.weight", "3.bias")
        selection = select("sparse-update", model, [torch.zeros(1, 3, 4, 4)], scheme=Scheme(1, {0: 0.7}), **options)
        assert set(selection.parameters) == {"0.weight", "1.bias", "3.weight", "3.bias"}
        with adabet.apply(model, selection):
            sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        assert sorted(sizes.values()) == [2, 4, 32, 2 * 36]


def synthetic(draw, layers=5, ratios=(0.25, 0.5, 1.0), depths=None):
    """A table of random gains and layers of random sizes."""
    items = tuple(
        Site(
            layer=str(index),
            weight=f"{index}.weight",
            bias=f"{index}.bias",
            cost=ChannelCost(8, int(draw.integers(1, 50)), int(draw.integers(1, 50)), 1),
            outputs=int(draw.integers(1, 400)),
            bias_count=int(draw.integers(1, 20)),
        )
        for index in range(layers)
    )
    gains = {item.layer: {ratio: float(draw.normal()) for ratio in ratios} for item in items}
    biases = {depth: float(draw.normal()) for depth in depths or range(1, layers + 1)}
    known = Contributions(tuple(gains), 0.5, biases, gains, Fingerprint("net", 1, 1, ""))
    return Sites(items, head_inputs=10), known


def gain_of(known, scheme):
    gain = known.biases[scheme.biases] if scheme.biases else 0.0
    return gain + sum(known.weights[str(index)][ratio] for index, ratio in scheme.ratios.items())


def every_scheme(sites, known):
    count = len(sites.items)
    for depth in (0, *known.biases):
        last = range(count - depth, count)
        for choice in itertools.product(*((0.0, *known.weights[str(index)]) for index in last)):
            yield Scheme(depth, {index: ratio for index, ratio in zip(last, choice, strict=True) if ratio})


def best_gain(sites, known, extra):
    """The largest gain there is, by dynamic programming over bytes."""
    count = len(sites.items)
    # table[b]: of the layers looked at so far, from the last one on, the largest gain of weights within b bytes
    table, best = np.zeros(extra + 1), 0.0
    for index in reversed(range(count)):
        parts = [table]
        for ratio, gain in known.weights[str(index)].items():
            size = sites.weight_bits(index, ratio) // 8
            parts.append(
                np.concatenate([np.full(min(size, extra + 1), -np.inf), table[: max(0, extra + 1 - size)] + gain])
            )
        table = np.maximum.reduce(parts)
        room = extra - sites.extra_bytes(Scheme(count - index))
        if room >= 0:
            best = max(best, known.biases[count - index] + table[room])
    return best


class TestSearch:
    @pytest.mark.parametrize("seed", range(8))
    def test_finds_what_brute_force_finds(self, seed):
        draw = np.random.default_rng(seed)
        sites, known = synthetic(draw)
        extra = int(draw.uniform(0.1, 0.8) * sites.extra_bytes(sites.everything))
        fitting = [scheme for scheme in every_scheme(sites, known) if sites.extra_bytes(scheme) <= extra]
        best = max(gain_of(known, scheme) for scheme in fitting)
        assert gain_of(known, search_scheme(sites, known, extra)) == pytest.approx(best)

    @settings(max_examples=30)
    @given(
        st.integers(0, 10_000),
        st.floats(0, 1),
        st.integers(1, 12),
        st.builds(Evolution, st.integers(4, 20), st.integers(0, 5), st.floats(0, 1), st.integers(0, 9)),
    )
    def test_is_never_over_the_budget_and_never_worse_than_the_head_alone(self, seed, share, layers, evolution):
        sites, known = synthetic(np.random.default_rng(seed), layers=layers)
        least, most = sites.extra_bytes(Scheme(0)), sites.extra_bytes(sites.everything)
        extra = least + int(share * (most - least))
        scheme = search_scheme(sites, known, extra, evolution)
        sites.check(scheme)
        assert sites.extra_bytes(scheme) <= extra
        assert gain_of(known, scheme) >= 0
        assert search_scheme(sites, known, extra, evolution) == scheme

    @pytest.mark.parametrize("seed", range(5))
    def test_comes_close_to_the_best_of_many_layers(self, seed):
        draw = np.random.default_rng(seed)
        sites, known = synthetic(draw, layers=40)
        extra = int(0.2 * sites.extra_bytes(sites.everything))
        assert gain_of(known, search_scheme(sites, known, extra)) >= 0.99 * best_gain(sites, known, extra)

    def test_only_measured_depths_and_ratios_are_used(self):
        sites, known = synthetic(np.random.default_rng(0), depths=[2, 4])
        known.weights["3"].clear()
        scheme = search_scheme(sites, known, 10**6)
        assert scheme.biases in (0, 2, 4)
        assert 3 not in scheme.ratios

    def test_not_even_the_head_fits(self):
        sites, known = synthetic(np.random.default_rng(0))
        with pytest.raises(BudgetError, match="at least 10 bytes"):
            search_scheme(sites, known, 9)

    @pytest.mark.parametrize("options", [{"population": 3}, {"generations": -1}, {"mutation": 1.1}])
    def test_options_that_make_no_sense(self, options):
        with pytest.raises(OptionError, match=next(iter(options))):
            Evolution(**options)


def plain_score(model, batches, trained, *, rate, masks=None):
    """Held-out loss with its sign turned after plain training of some tensors, every fourth sample held out."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    held = torch.arange(len(images)) % 4 == 3
    for start in range(0, len(images), 16):
        part = slice(start, start + 16)
        use = ~held[part]
        model.zero_grad()
        F.cross_entropy(model(images[part][use]), labels[part][use]).backward()
        with torch.no_grad():
            for name in trained:
                parameter = model.get_parameter(name)
                parameter -= rate * parameter.grad * (masks or {}).get(name, 1.0)
    with torch.no_grad():
        return -float(F.cross_entropy(model(images[held]), labels[held]))


def still_net():
    """A small net without dropout, which draws nothing while it trains."""
    net = small_net()
    net.drop.p = 0.0
    return net


class TestContributions:
    def test_gains_are_those_of_plain_trainings(self):
        model, batches = still_net(), labelled()
        request = Request(model, batches)
        known = measure_contributions(request, Analysis(rate=0.1, measure="loss", ratios=(0.5, 1.0)))
        head = ["head.weight", "head.bias"]
        baseline = plain_score(model, batches, head, rate=0.1)
        assert known.layers == ("conv1", "conv2", "hidden")
        assert known.baseline == pytest.approx(baseline, abs=1e-5)
        two = plain_score(model, batches, [*head, "hidden.bias", "conv2.bias"], rate=0.1)
        assert known.biases[2] == pytest.approx(two - baseline, abs=1e-5)
        norms = model.hidden.weight.detach().norm(dim=0)
        mask = torch.zeros(12)
        mask[norms.argsort(descending=True)[:6]] = 1.0
        half = plain_score(model, batches, [*head, "hidden.weight"], rate=0.1, masks={"hidden.weight": mask})
        assert known.weights["hidden"][0.5] == pytest.approx(half - baseline, abs=1e-5)
        assert set(known.biases) == {1, 2, 3}
        assert {layer: set(gains) for layer, gains in known.weights.items()} == {
            "conv1": {0.5, 1.0},
            "conv2": {0.5, 1.0},
            "hidden": {0.5, 1.0},
        }

    def test_accuracy_of_given_batches(self):
        model, validation = still_net(), labelled(20, seed=1)
        request = Request(model, labelled(), val_batches=validation)
        known = measure_contributions(request, Analysis(rate=1e-9, depths=(1,), last=1, ratios=(1,)))
        images, labels = (torch.cat(parts) for parts in zip(*validation, strict=True))
        with torch.no_grad():
            right = (model.eval()(images).argmax(1) == labels).double().mean()
        assert known.baseline == pytest.approx(float(right))
        assert known.biases == {1: 0.0}
        assert known.weights == {"hidden": {1.0: 0.0}}

    def test_changes_nothing_and_says_how_far_it_is(self):
        model = small_net().train()
        before, told = state_of(model), []
        request = Request(model, labelled(), progress=lambda *counts: told.append(counts), micro_batch=5)
        measure_contributions(request, Analysis(depths=(1, 3), ratios=(0.5,), epochs=2))
        assert state_of(model) == before
        assert told == [(done, 5) for done in range(1, 6)]

    def test_the_same_twice(self):
        first, second = (
            measure_contributions(Request(small_net(), labelled(), seed=3), Analysis(rate=0.1)) for _ in range(2)
        )
        assert first == second

    def test_ratios_that_keep_the_same_channels_are_measured_once(self):
        analysis = Analysis(ratios=(0.1, 0.4, 0.5, 0.6, 1.0))
        found = [(scheme.ratios) for scheme in analysis.schemes(sites_of(small_net())) if scheme.ratios]
        # conv1 has 3 input channels: 0, 1, 1, 1 and 3 of them
        assert [ratios[0] for ratios in found if 0 in ratios] == [0.4, 1.0]

    def test_the_given_optimizer_and_loss_train(self):
        made, losses = [], []

        def optimizer(parameters):
            made.append(sum(parameter.numel() for parameter in parameters))
            return torch.optim.SGD(parameters, lr=0.1)

        def loss(outputs, labels):
            losses.append(len(outputs))
            return F.mse_loss(outputs, F.one_hot(labels, 5).float())

        request = Request(small_net(), labelled(), optimizer=optimizer, loss=loss)
        measure_contributions(request, Analysis(depths=(1,), last=1, ratios=(0.5,), measure="loss"))
        assert made == [105, 105 + 20, 105 + 20 * 6]
        assert sum(losses) == 3 * 64

    def test_a_training_that_diverges_leaves_its_part_out(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, 5))
        request = Request(net, labelled(), head="3", optimizer=WildUnlessTheHead)
        known = measure_contributions(request, Analysis(ratios=(1.0,)))
        assert known.biases == {}
        assert known.weights == {}
        assert search_scheme(sites_of(net), known, 10**6) == Scheme(0)

    def test_a_head_that_diverges(self):
        with pytest.raises(TrainingError, match="give a lower one"):
            measure_contributions(Request(small_net(), labelled()), Analysis(rate=1e38, epochs=3))

    @pytest.mark.parametrize(
        ("batches", "message"),
        [
            ([images for images, _ in labelled()], "batches with labels"),
            (labelled(3), "at least 4 samples"),
            ([(images, labels.float()) for images, labels in labelled()], "whole numbers of classes"),
        ],
    )
    def test_batches_that_cannot_be_used(self, batches, message):
        def loss(outputs, labels):
            return outputs.mean()

        with pytest.raises(DataError, match=message):
            measure_contributions(Request(small_net(), batches, loss=loss), Analysis(depths=(1,), last=1))

    @pytest.mark.parametrize(
        "options",
        [{"epochs": 0}, {"samples": 0}, {"last": 0}, {"rate": 0}, {"ratios": ()}, {"ratios": (2,)}, {"measure": "f1"}],
    )
    def test_options_that_make_no_sense(self, options):
        with pytest.raises(OptionError, match=next(iter(options))):
            Analysis(**options)

    @pytest.mark.parametrize("depths", [(0,), (4,)])
    def test_depths_that_there_are_not(self, depths):
        with pytest.raises(OptionError, match="depths from 1 to 3 layers"):
            measure_contributions(Request(small_net(), labelled()), Analysis(depths=depths))

    def test_json(self):
        _, known = synthetic(np.random.default_rng(0))
        assert Contributions.from_json(known.to_json()) == known
        with pytest.raises(CheckpointError, match="lacks or misnames"):
            Contributions.from_json('{"kind": "adabet/contributions", "version": 1}')

    def test_of_another_model(self):
        known = measure_contributions(Request(small_net(), labelled()), Analysis(depths=(1,), last=1))
        # another number of classes is the same model
        assert select("sparse-update", small_net(3), labelled(classes=3), contributions=known, extra="1kB")
        other = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 5))
        with pytest.raises(SelectionError, match="measured on another model"):
            select("sparse-update", other, labelled(), contributions=known, extra="1kB")


class WildUnlessTheHead(torch.optim.SGD):
    """Makes everything but a lone head of two tensors infinite."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.0 if len(parameters) == 2 else math.inf)


class TestAnyModel:
    def test_within_extra(self):
        options = {"measure": "loss", "rate": 0.1}
        sizes = []
        for extra in (200, 800, 3000):
            selection = select("sparse-update", still_net(), labelled(), extra=extra, **options)
            assert selection.options["extra"] <= extra
            sizes.append(selection.parameter_count)
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]

    def test_a_file_is_measured_once(self, tmp_path):
        path = tmp_path / "contributions.json"
        told = []
        options = {"measure": "loss", "rate": 0.1, "extra": 2000, "contributions": str(path)}
        first = select("sparse-update", still_net(), labelled(), progress=lambda *_: told.append(1), **options)
        assert told
        unlabelled = [images for images, _ in labelled()]
        assert select("sparse-update", still_net(), unlabelled, **options) == first
        path.write_text("nothing")
        with pytest.raises(CheckpointError, match="not JSON"):
            select("sparse-update", still_net(), labelled(), **options)

    def test_keeps_to_a_measured_peak(self):
        model, batches = still_net(), labelled()
        known = measure_contributions(Request(model, batches), Analysis(measure="loss", rate=0.1))

        def peak(selection):
            return adabet.measure_memory(model, batches[0], selection).training.total

        head, full = (peak(select(name, model, batches)) for name in ("head", "full"))
        chosen = [
            select("sparse-update", model, batches, memory=memory, contributions=known)
            for memory in (head, (head + full) // 2, 2 * full)
        ]
        assert [peak(selection) for selection in chosen] <= [head, (head + full) // 2, 2 * full]
        assert peak(chosen[1]) <= (head + full) // 2
        sizes = [selection.options["extra"] for selection in chosen]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]
        with pytest.raises(BudgetError, match=rf"at least {head} bytes"):
            select("sparse-update", model, batches, memory=head - 1, contributions=known)

    def test_attention_blocks_stay_frozen_unless_their_projections_are_layers(self):
        encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, 2))
        batch = (torch.zeros(2, 3, 8), torch.tensor([0, 1]))
        selection = select("sparse-update", model, [batch], head="2", scheme=Scheme(2, {1: 0.5}))
        assert set(selection.parameters) == {
            *("0.linear1.bias", "0.linear2.weight", "0.linear2.bias"),
            *("2.weight", "2.bias"),
        }

    def test_says_so_if_nothing_gains(self):
        known = measure_contributions(Request(still_net(), labelled()), Analysis(rate=1e-9, ratios=(1.0,)))
        with pytest.warns(AdabetWarning, match="the head trains alone"):
            selection = select("sparse-update", still_net(), labelled(), contributions=known, extra="1kB")
        assert selection.layers == ()

    def test_a_model_without_a_head(self):
        known = measure_contributions(
            Request(still_net(), labelled(), head=None), Analysis(measure="loss", rate=0.1, ratios=(1.0,))
        )
        assert known.layers[-1] == "head"
        selection = select("sparse-update", still_net(), labelled(), head=None, contributions=known, extra="9kB")
        assert selection.head == ()
        assert "head" in selection.layers


def test_is_in_the_registry():
    method = METHODS["sparse-update"]
    assert method.kind == "selects"
    assert method.budget
    assert "scheme" in method.options


def test_trains():
    model = still_net()
    frozen = model.conv1.weight.detach().clone()
    result = adabet.fit(
        model,
        labelled(128),
        labelled(40, seed=1),
        method="sparse-update",
        method_options={"scheme": Scheme(1, {2: 0.5})},
        epochs=3,
        lr=0.05,
    )
    assert torch.equal(model.conv1.weight, frozen)
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_trains_within_a_budget(tmp_path):
    batches = labelled()
    head, full = (
        adabet.measure_memory(still_net(), batches[0], select(name, still_net(), batches)).training.total
        for name in ("head", "full")
    )
    memory = (head + full) // 2
    adabet.fit(
        still_net(),
        batches,
        method="sparse-update",
        method_options={"measure": "loss", "rate": 0.1, "ratios": (0.5, 1.0)},
        memory=memory,
        epochs=1,
        keep="last",
        run_dir=tmp_path / "run",
    )
    chosen = Selection.from_json((tmp_path / "run/selection.json").read_text())
    assert chosen.method == "sparse-update"
    assert chosen.layers
    report = MemoryReport.from_json((tmp_path / "run/memory.json").read_text())
    assert report.training.total <= memory
