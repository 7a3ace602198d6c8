"""TraDy: layer values against stock autograd, budgets that no draw exceeds, and the paper's variants."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

import adabet
from adabet.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    LayerError,
    OptionError,
    SelectionError,
    TrainingError,
    UnknownNameError,
)
from adabet.memory import measure_memory
from adabet.memory.measure import OPTIMIZERS
from adabet.methods import LayerImportance, layer_importance, start
from adabet.methods.channel_budget import ChannelBudget
from adabet.methods.channel_gradients import gradient_norms, sliceable
from adabet.methods.layer_choice import top_by_share
from adabet.methods.registry import Request
from adabet.methods.trady import VARIANTS
from adabet.methods.units import channel_costs
from tests.cases.models import state_of
from tests.methods.drawing import CrashAt, channels_of, convolutions, early_peak, labelled, moment, plain_norms, tokens
from tests.training.nets import make_loaders, make_net, same, weights_of
from tests.training.test_resume import Crash, without_seconds

LAYERS = ("0", "3", "6", "8", "12")
IMAGES = labelled(3, 12, 12)
STILL = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0), "epochs": 1, "head": "14"}


def trady(model=None, batches=IMAGES, **options):
    options.setdefault("head", "14")
    return start("trady", convolutions() if model is None else model, batches, **options)


def costs_of(model):
    return channel_costs(model, adabet.find_layers(model, IMAGES[0], head="14"))


def units_of(model, selection):
    costs = costs_of(model)
    return sum(len(channels) * costs[name].space for name, channels in channels_of(selection).items())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Kernels' scratch depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TestImportance:
    @pytest.mark.parametrize("per_step", [False, True])
    @pytest.mark.parametrize("micro_batch", [None, 2])
    def test_is_what_the_formulas_say(self, per_step, micro_batch):
        model = convolutions()
        found = layer_importance(model, IMAGES, per_step_accumulate=per_step, micro_batch=micro_batch, **STILL)
        costs = costs_of(model)
        observed = plain_norms(model, IMAGES, LAYERS, per_step=per_step)
        assert tuple(found.rgn) == tuple(found.lara) == LAYERS
        for name in LAYERS:
            space = costs[name].weight + costs[name].activation
            rgn = sum(sum(norms[name]) / space for norms in observed)
            lara = sum(
                math.sqrt(sum(norm**2 for norm in norms[name])) / (len(norms[name]) * space) for norms in observed
            )
            assert found.rgn[name] == pytest.approx(rgn, rel=1e-4)
            assert found.lara[name] == pytest.approx(lara, rel=1e-4)

    def test_adds_up_over_epochs(self):
        once = layer_importance(convolutions(), IMAGES, **STILL)
        thrice = layer_importance(convolutions(), IMAGES, **{**STILL, "epochs": 3})
        assert thrice.lara == pytest.approx({name: 3 * value for name, value in once.lara.items()})
        assert thrice.rgn == pytest.approx({name: 3 * value for name, value in once.rgn.items()})

    def test_trains_in_between(self):
        """One epoch by hand: SGD over the head, then a pass."""
        model, rate = convolutions(), 0.5
        options = {**STILL, "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=rate)}
        found = layer_importance(model, IMAGES, train="head", **options)
        assert found.lara != pytest.approx(layer_importance(convolutions(), IMAGES, **STILL).lara, rel=1e-3)
        for images, labels in IMAGES:
            model.eval()
            head = model[14]
            loss = nn.functional.cross_entropy(model(images), labels)
            slopes = torch.autograd.grad(loss, list(head.parameters()))
            with torch.no_grad():
                for parameter, slope in zip(head.parameters(), slopes, strict=True):
                    parameter -= rate * slope
        assert found.lara == pytest.approx(layer_importance(model, IMAGES, **STILL).lara, rel=1e-4)

    @pytest.mark.parametrize("train", ["head", "all"])
    def test_leaves_the_model_as_it_was(self, train):
        model = convolutions().train()
        model[0].weight.requires_grad_(False)
        before = state_of(model)
        layer_importance(model, IMAGES, train=train, epochs=2, head="14")
        assert state_of(model) == before

    def test_in_rounds_it_is_the_same(self):
        """Layers may be split over the rounds, and steps counted one by one."""
        model = convolutions()
        request = Request(model, IMAGES, head="14")
        layers = request.find_layers()
        pool = sliceable(model, layers)
        method = trady(model, units=1000)
        rounds = [pool.split(range(first, min(first + 7, pool.size))) for first in range(0, pool.size, 7)]
        for per_step in (False, True):
            whole = gradient_norms(request, pool, method.selection, per_step=per_step)
            parts = gradient_norms(request, pool, method.selection, per_step=per_step, groups=rounds)
            torch.testing.assert_close(parts.channels, whole.channels, rtol=1e-4, atol=1e-9)
            torch.testing.assert_close(parts.layers, whole.layers, rtol=1e-4, atol=1e-9)

    def test_comes_back_from_a_file(self, tmp_path):
        model = convolutions()
        found = layer_importance(model, IMAGES, **STILL)
        found.save(tmp_path / "ranking.json")
        assert LayerImportance.from_json((tmp_path / "ranking.json").read_text()) == found
        assert str(found).splitlines()[2].split()[0] == max(found.lara, key=found.lara.get)
        drawn = [
            trady(model, units=3000, ranking=given, k=2).turn(moment(1)).selection
            for given in (found, dict(found.rgn), tmp_path / "ranking.json", str(tmp_path / "ranking.json"))
        ]
        assert drawn == [drawn[0]] * 4

    def test_refuses_what_it_cannot_use(self, tmp_path):
        model = convolutions()
        found = layer_importance(model, IMAGES, **STILL)
        other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        with pytest.raises(SelectionError, match="made for another model"):
            start("trady", other, labelled(3), head="2", units=50, ranking=found)
        with pytest.raises(CheckpointError, match="lacks or misnames"):
            LayerImportance.from_json(json.dumps({"kind": "adabet/layer importance", "version": 1}))
        with pytest.raises(OptionError, match="expected ranking, a file"):
            trady(units=500, ranking=tmp_path / "missing.json")
        with pytest.raises(UnknownNameError, match="unknown layer in ranking '33'"):
            trady(units=500, ranking={"33": 1.0})
        with pytest.raises(OptionError, match="finite values of at least 0 in ranking, got -1"):
            trady(units=500, ranking={"3": -1.0})
        with pytest.raises(OptionError, match="at least one layer that channels"):
            trady(units=500, ranking={"1": 1.0})
        with pytest.raises(UnknownNameError, match="unknown metric"):
            found.values("norm")
        with pytest.raises(OptionError, match="'all' or 'head'"):
            layer_importance(model, IMAGES, train="none", head="14")

    def test_data_that_does_not_serve(self):
        with pytest.raises(OptionError, match="labels"):
            layer_importance(convolutions(), [IMAGES[0][0]], head="14")
        with pytest.raises(DataError, match="empty"):
            layer_importance(convolutions(), [], head="14")
        images = IMAGES[0][0].clone()
        images[0] = float("nan")
        with pytest.raises(TrainingError, match="became nan in epoch 1, step 1"):
            layer_importance(convolutions(), [(images, IMAGES[0][1])], head="14")
        model = convolutions()
        method = trady(model, [(images, IMAGES[0][1])], units=3000, variant="d-det-rgn")
        with pytest.raises(TrainingError, match="finite gradients"):
            method.turn(moment(1))


def test_97_percent():
    # sum 200; 97 % is 194: 100 + 60 + 30 = 190 is too little, 193 also, 196 is enough
    values = {"a": 3.0, "b": 100.0, "c": 4.0, "d": 60.0, "e": 3.0, "f": 30.0}
    assert top_by_share(values, 0.97) == ("b", "d", "f", "c")
    assert top_by_share(values, 0.95) == ("b", "d", "f")
    assert top_by_share(values, 1.0) == ("b", "d", "f", "c", "a", "e")


class TestUnits:
    @hypothesis_settings(max_examples=25)
    @given(
        units=st.integers(60, 5000),
        seed=st.integers(0, 100),
        fill=st.sampled_from(["prefix", "skip_and_continue"]),
        variant=st.sampled_from(["trady", "d-full-random", "s-full-random", "s-topk-random", "d-topk-random"]),
    )
    def test_are_never_exceeded(self, units, seed, fill, variant):
        model = convolutions()
        method = trady(
            model, IMAGES[:1], units=units, seed=seed, fill=fill, variant=variant, ranking=dict.fromkeys(LAYERS, 1.0)
        )
        for epoch in (1, 2, 3):
            selection = method.turn(moment(epoch)).selection
            selection.check(model)
            used = units_of(model, selection)
            assert 0 < used <= units
            # no more is left over than the dearest channel of those that the budget pays for costs
            spaces = [cost.space for cost in costs_of(model).values() if cost.space <= units]
            everything = sum(cost.total for cost in costs_of(model).values() if cost.space <= units)
            assert used > units - max(spaces) or used == everything

    def test_too_few(self):
        least = min(cost.space for cost in costs_of(convolutions()).values())
        with pytest.raises(OptionError, match=f"from {least} on; got {least - 1}"):
            trady(units=least - 1)
        assert units_of(convolutions(), trady(units=least).turn(moment(1)).selection) == least

    def test_the_weight_s_slices_train_and_the_head(self):
        chosen = trady(units=2000).turn(moment(1)).selection
        assert chosen.method == "trady"
        assert set(chosen.parameters) == {f"{name}.weight" for name in channels_of(chosen)} | {"14.weight", "14.bias"}
        assert {choice.axis for choice in chosen.choices if not choice.head} == {"in"}
        assert chosen.options["units"] == 2000

    @pytest.mark.parametrize(("tie_norm", "norms"), [(False, {"1", "4"}), (True, {"0", "3"})])
    def test_norms_train_on_request(self, tie_norm, norms):
        chosen = trady(units=500, train_bn="affine", tie_norm=tie_norm).turn(moment(1)).selection
        named = {"1.weight", "1.bias", "4.weight", "4.bias"}
        assert named <= set(chosen.parameters)
        assert norms <= set(chosen.layers)
        model = convolutions()
        with adabet.apply(model, chosen):
            assert model[1].weight.requires_grad
            assert not model[0].bias.requires_grad
        frozen = trady(units=500, tie_norm=tie_norm).turn(moment(1)).selection
        assert not named & set(frozen.parameters)


class TestVariants:
    def test_dynamic_ones_draw_every_epoch_and_static_ones_once(self):
        for variant in VARIANTS:
            method = trady(units=1000, variant=variant)
            due = [(epoch, step) for epoch in (1, 2, 3) for step in (1, 2) if method.due(moment(epoch, step))]
            assert due == ([(1, 1)] if variant.startswith("s-") else [(1, 1), (2, 1), (3, 1)])

    @pytest.mark.parametrize("variant", ["trady", "d-topk-random", "s-topk-random"])
    def test_the_top_ones_draw_from_the_layers_with_the_largest_rgn(self, variant):
        method = trady(units=1000, variant=variant, ranking={"12": 3.0, "3": 95.0, "0": 1.0, "6": 1.0, "8": 0.0})
        assert set(method.pool.names) == {"3", "12"}
        drawn = set().union(*(channels_of(method.turn(moment(epoch)).selection) for epoch in range(1, 15)))
        assert drawn == {"3", "12"}
        assert trady(units=1000, variant=variant, k=1, ranking={"12": 3.0, "3": 95.0}).pool.names == ("3",)

    @pytest.mark.parametrize("variant", ["d-full-random", "s-full-random"])
    def test_the_full_ones_draw_from_all(self, variant):
        method = trady(units=1000, variant=variant, ranking={"3": 1.0})
        drawn = set().union(*(channels_of(method.turn(moment(epoch)).selection) for epoch in range(1, 15)))
        assert drawn == set(LAYERS)

    @pytest.mark.parametrize("variant", ["d-det-rgn", "s-det-rgn"])
    def test_the_determined_ones_take_the_highest_rgn(self, variant):
        model = convolutions()
        method = trady(model, units=1500, variant=variant)
        costs = costs_of(model)
        for epoch in (1, 2):
            norms = plain_norms(convolutions() if epoch == 1 else _shaken(convolutions()), IMAGES, LAYERS)[0]
            values = [
                (norm / costs[name].space, name, channel) for name in LAYERS for channel, norm in enumerate(norms[name])
            ]
            expected, spent = {}, 0
            for _, name, channel in sorted(values, reverse=True):
                spent += costs[name].space
                if spent > 1500:
                    break
                expected.setdefault(name, set()).add(channel)
            chosen = channels_of(method.turn(moment(epoch)).selection)
            assert {name: set(channels) for name, channels in chosen.items()} == expected
            _shaken(model)

    def test_gradient_batches_are_a_limit(self):
        model = convolutions()
        both = [
            trady(model, IMAGES[:count], units=1500, variant="d-det-rgn", gradient_batches=1).turn(moment(1)).selection
            for count in (1, 3)
        ]
        assert both[0] == both[1]


def _shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    return model


class TestBytes:
    @pytest.mark.parametrize("variant", ["d-full-random", "trady", "d-det-rgn"])
    @pytest.mark.parametrize(
        ("optimizer", "micro_batch", "train_bn", "budget"),
        [("sgd", None, "frozen", 570_000), ("adam", 2, "frozen", 265_000), ("adam", 2, "affine", 300_000)],
    )
    def test_no_measured_step_exceeds_them(self, variant, optimizer, micro_batch, train_bn, budget):
        model, batches = convolutions(), labelled(3, 32, 32, samples=8)
        method = trady(
            model,
            batches,
            memory=budget,
            variant=variant,
            optimizer=OPTIMIZERS[optimizer],
            micro_batch=micro_batch,
            train_bn=train_bn,
        )
        used = []
        for epoch in (1, 2, 3):
            selection = method.turn(moment(epoch)).selection
            report = measure_memory(
                model, batches[0], selection, optimizer=optimizer, micro_batch=micro_batch, inference=False
            )
            used.append(report.training.total)
        assert max(used) <= budget
        assert variant != "d-full-random" or max(used) > 0.85 * budget

    @pytest.mark.parametrize("micro_batch", [None, 1, 2, 3])
    def test_what_is_measured_is_what_a_whole_step_takes(self, micro_batch):
        """Also with many slices of the batch, of which the method itself runs two, and one that is left over."""
        model, batches = convolutions(), labelled(3, 32, 32, samples=17)
        method = trady(model, batches, memory=10**9, variant="d-full-random", micro_batch=micro_batch)
        step = method._settled().step
        reserve = 0 if micro_batch is None else 512 * (math.ceil(17 / micro_batch) - 2)
        for channels in ({"12": (3,)}, {"3": (0, 5), "8": (1, 2, 7)}, {"0": (1,), "6": tuple(range(8))}):
            selection = method.selection(channels)
            whole = measure_memory(model, batches[0], selection, micro_batch=micro_batch, inference=False)
            # gradients count in any case, though the peak may come before there are any
            most = whole.training.total + reserve + 4 * selection.parameter_count
            assert whole.training.total <= step.measure(channels) <= most
            assert step.measure(channels) <= step.predict(channels)

    @pytest.mark.parametrize("variant", ["d-full-random", "trady"])
    @pytest.mark.parametrize("room", [30_000, 100_000])
    def test_where_a_step_peaks_early_channels_fill_what_is_left(self, variant, room):
        """Behind the widest layer activations are not there yet when most is allocated."""
        model, batches = early_peak(), labelled(3, 32, 32, samples=8)
        head = adabet.select("head", model, batches, head="11")
        least = measure_memory(model, batches[0], head, inference=False).training.total
        method = trady(model, batches, head="11", memory=least + room, variant=variant)
        for epoch in (1, 2):
            selection = method.turn(moment(epoch)).selection
            assert len(channels_of(selection)) > 1
            used = measure_memory(model, batches[0], selection, inference=False).training.total - least
            assert 0.75 * room < used <= room

    def test_layers_are_ranked_with_few_samples_at_once_rather_than_in_many_rounds(self):
        model, batches = early_peak(), labelled(3, 32, 32, samples=8)
        head = adabet.select("head", model, batches, head="11")
        budget = measure_memory(model, batches[0], head, inference=False).training.total + 150_000
        method = trady(model, batches, head="11", memory=budget)
        passes = ChannelBudget(method._all, None, method._step_bytes(method._all), "prefix").passes
        assert len(passes.groups) == 1
        assert passes.micro_batch < 8
        everything = method.selection(passes.groups[0])
        taken = measure_memory(model, batches[0], everything, micro_batch=passes.micro_batch, inference=False)
        assert taken.training.total <= budget
        free = trady(model, batches, head="11", units=10**9)
        wanted, found = (each._layer_values(each._all) for each in (free, method))
        assert found == pytest.approx(wanted, rel=1e-4)

    def test_of_a_transformer(self):
        model, batches = tokens(), labelled(20, 5)
        head = measure_memory(model, batches[0], adabet.select("head", model, batches), inference=False)
        budget = head.training.total + 12_000
        method = start("trady", model, batches, memory=budget, variant="d-full-random")
        for epoch in range(1, 5):
            selection = method.turn(moment(epoch)).selection
            assert channels_of(selection)
            assert measure_memory(model, batches[0], selection, inference=False).training.total <= budget

    def test_more_bytes_more_channels(self):
        batches = labelled(3, 32, 32, samples=8)
        counts = []
        for budget in (540_000, 570_000, 640_000, 5_000_000):
            method = trady(convolutions(), batches, memory=budget, variant="d-full-random")
            counts.append(sum(map(len, channels_of(method.turn(moment(1)).selection).values())))
        assert counts == sorted(set(counts))
        assert counts[-1] == sum(cost.channels for cost in costs_of(convolutions()).values())

    def test_too_few_name_how_many_are_enough(self):
        batches = labelled(3, 32, 32, samples=8)
        with pytest.raises(BudgetError, match="200 kB is too little") as caught:
            trady(convolutions(), batches, memory=200_000).turn(moment(1))
        named = str(caught.value).partition("may take ")[2].partition(" with")[0]
        enough = adabet.sizes.parse_size(named)
        model = convolutions()
        selection = trady(model, batches, memory=enough).turn(moment(1)).selection
        assert channels_of(selection)
        assert measure_memory(model, batches[0], selection, inference=False).training.total <= enough

    def test_both_budgets_are_kept(self):
        model, batches = convolutions(), labelled(3, 32, 32, samples=8)
        for units, memory in ((700, 5_000_000), (1_000_000, 570_000)):
            selection = trady(model, batches, units=units, memory=memory).turn(moment(1)).selection
            costs = channel_costs(model, adabet.find_layers(model, batches[0], head="14"))
            used = sum(len(channels) * costs[name].space for name, channels in channels_of(selection).items())
            assert 0 < used <= units
            assert measure_memory(model, batches[0], selection, inference=False).training.total <= memory

    def test_looking_leaves_the_model_as_it_was(self):
        model = convolutions().train()
        before = state_of(model)
        trady(model, labelled(3, 32, 32, samples=8), memory=600_000).turn(moment(1))
        assert state_of(model) == before


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "give units= .* or memory="),
            ({"units": 0}, "at least 1, got 0"),
            ({"units": 500, "fill": "all"}, "fill"),
            ({"units": 500, "train_bn": "eval"}, "train_bn"),
            ({"units": 500, "share": 0}, "share"),
            ({"units": 500, "k": 0}, "k, layers"),
            ({"units": 500, "gradient_batches": 0}, "gradient_batches"),
        ],
    )
    def test_that_make_no_sense(self, options, message):
        with pytest.raises(OptionError, match=message):
            trady(**options)

    def test_preliminary_of_nothing(self):
        with pytest.raises(OptionError, match="preliminary"):
            trady(units=500, preliminary=0).turn(moment(1))

    def test_an_unknown_variant(self):
        with pytest.raises(UnknownNameError, match="did you mean 's-topk-random'"):
            trady(units=500, variant="s-topk")

    def test_a_model_without_layers_to_draw_from(self):
        model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4))
        with pytest.raises(LayerError, match=r"have no|has none"):
            start("trady", model, labelled(3), head="1", units=100)

    def test_looking_leaves_the_model_as_it_was(self):
        model = convolutions().train()
        before = state_of(model)
        trady(model, units=1000).turn(moment(1))
        assert state_of(model) == before


class TestRuns:
    def test_draws_follow_the_seed_and_the_epoch(self):
        draws = [
            channels_of(trady(units=900, seed=seed, variant="d-full-random").turn(moment(epoch)).selection)
            for seed in (0, 1)
            for epoch in (1, 2)
        ]
        again = channels_of(trady(units=900, seed=1, variant="d-full-random").turn(moment(2)).selection)
        assert again == draws[3]
        assert all(first != second for index, first in enumerate(draws) for second in draws[:index])

    def test_a_resumed_method_draws_from_the_same_layers(self):
        """Also where the weights, and so the gradients, are other ones by then."""
        first = trady(units=1200, k=2)
        first.turn(moment(1))
        model = convolutions()
        with torch.no_grad():
            model[12].weight.zero_()  # no gradient comes past it
        resumed = trady(model, units=1200, k=2)
        assert trady(model, units=1200, k=2).pool.names != first.pool.names
        resumed.load_state_dict(first.state_dict())
        assert resumed.turn(moment(2)).selection == first.turn(moment(2)).selection

    def test_select_gives_the_first_draw(self):
        chosen = adabet.select("trady", convolutions(), IMAGES, units=1200, head="14")
        assert chosen == trady(units=1200).turn(moment(1)).selection

    @pytest.mark.parametrize(
        ("variant", "units", "memory"),
        [("trady", 400, None), ("d-full-random", None, 60_000), ("s-det-rgn", 400, None)],
    )
    def test_a_run_that_crashed_ends_like_one_that_did_not(self, tmp_path, variant, units, memory):
        def train(folder, *, resume=False, progress=None):
            model = make_net()
            result = adabet.fit(
                model,
                *make_loaders(),
                method="trady",
                method_options={"variant": variant, "units": units},
                memory=memory,
                epochs=4,
                keep="last",
                lr=0.05,
                run_dir=tmp_path / folder,
                resume=resume,
                progress=progress,
            )
            return weights_of(model), result

        weights, expected = train("whole")
        with pytest.raises(Crash):
            train("stopped", progress=CrashAt(3, 2))
        resumed, result = train("stopped", resume=True)
        assert same(resumed, weights)
        assert without_seconds(result) == without_seconds(expected)
        turns = [(tmp_path / folder / "turns.jsonl").read_text().splitlines() for folder in ("whole", "stopped")]
        assert turns[0] == turns[1]
        assert [json.loads(line)["epoch"] for line in turns[0]] == ([1] if variant[0] == "s" else [1, 2, 3, 4])
