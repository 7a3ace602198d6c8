"""Plans fit their budget when measured, use it, and say what they cannot do."""

import pytest
import timm
import torch
from torch import nn

import adabet
from adabet.demo import demo_model
from adabet.errors import BudgetError, DataError, OptionError
from adabet.layers import Layer
from adabet.memory import measure_memory
from adabet.memory.bytes_by_layer import saved_bytes
from adabet.methods.elastic_profile import Profile, TensorTime
from adabet.planning import Plan, plan
from adabet.planning.options import options_of
from adabet.ranking import RankedLayer
from adabet.sizes import parse_size


def batches(size=96, channels=3, classes=4, batch=8):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(batch, channels, size, size, generator=generator),
            torch.randint(0, classes, (batch,), generator=generator),
        )
        for _ in range(5)
    ]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Kernels' scratch depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=4)


@pytest.fixture(scope="module")
def full(resnet):
    data = batches()
    return measure_memory(resnet, data[0], adabet.select("full", resnet, data)).training.total


@pytest.mark.parametrize("share", [0.45, 0.6, 0.8, 1.2])
def test_a_plan_fits_when_its_whole_step_is_measured(resnet, full, share):
    found = plan(resnet, batches(), memory=share * full)
    report = measure_memory(
        resnet,
        batches()[0],
        found.selection,
        micro_batch=found.micro_batch,
        recompute=found.recompute,
    )
    assert report.training.total <= found.budget
    assert found.measured <= found.budget
    whole = len(found.selection.layers) == found.selection.candidates and found.micro_batch == 8
    assert whole or found.used >= 0.8


def test_planning_itself_stays_within_the_budget(resnet, full, monkeypatch):
    totals = []
    measure = measure_memory

    def watched(*arguments, **options):
        report = measure(*arguments, **options)
        totals.append(report.training.total)
        return report

    monkeypatch.setattr("adabet.planning.trials.measure_memory", watched)
    found = plan(resnet, batches(), memory=0.5 * full)
    assert totals
    assert max(totals) <= found.budget


def test_a_short_last_slice_does_not_hide_what_a_sample_costs(monkeypatch):
    # eight samples as 5 + 3 peak lower than as 4 + 4, where the second slice has the first one's gradients beside it
    totals = []
    measure = measure_memory

    def watched(*arguments, **options):
        report = measure(*arguments, **options)
        totals.append(report.training.total)
        return report

    convolutions = [nn.Conv2d(48 if index else 3, 48, 3, padding=1) for index in range(5)]
    layers = [module for convolution in convolutions for module in (convolution, nn.SiLU())]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 4))
    loader = [(torch.randn(8, 3, 12, 12), torch.zeros(8, dtype=torch.long))]
    everything = measure(model, loader[0], adabet.select("full", model, loader, head="12"), inference=False)
    monkeypatch.setattr("adabet.planning.trials.measure_memory", watched)
    for share in (0.89, 0.92, 0.95):
        totals.clear()
        found = plan(model, loader, memory=share * everything.training.total, head="12", method="size")
        assert max(totals) <= found.budget
        assert found.micro_batch in (5, 6, 7)


def test_a_first_guess_that_proves_dear_is_given_up():
    torch.manual_seed(1)
    model = demo_model()
    batches = [(torch.randn(8, 1, 16, 16), torch.randint(0, 10, (8,))) for _ in range(5)]
    # the second trial's five layers, all early, fill this budget; sixteen later ones fit as well
    found = plan(model, batches, memory=560_000)
    assert found.measured <= 560_000
    assert len(found.selection.layers) >= 12


def test_everything_trains_at_once_where_there_is_room(resnet):
    found = plan(resnet, batches(), memory="2GB")
    assert len(found.selection.layers) == found.selection.candidates
    assert found.micro_batch == found.batch_size == 8
    assert not found.recompute


def test_the_method_looks_at_other_batches_if_they_are_given(resnet):
    labelled, others = batches(), [torch.rand(8, 3, 96, 96) ** 4 for _ in range(5)]
    limits = {"memory": "2GB", "layer_ratio": 0.3, "normalize": "none"}  # b1 alone: it depends on the samples
    chosen = adabet.rank(resnet, others, normalize="none").select(layer_ratio=0.3)
    found = plan(resnet, labelled[:1], unlabelled=others, **limits)
    assert set(found.selection.layers) == set(chosen.layers)
    assert set(plan(resnet, labelled, **limits).selection.layers) != set(chosen.layers)


def test_layer_ratio_is_a_limit(resnet):
    found = plan(resnet, batches(), memory="2GB", layer_ratio=0.2)
    assert len(found.selection.layers) == max(1, int(0.2 * found.selection.candidates))


def test_too_small_a_budget_names_one_that_works(resnet):
    with pytest.raises(BudgetError, match="give at least that") as caught:
        plan(resnet, batches(), memory="1MB")
    smallest = str(caught.value).partition("takes ")[2].partition(" with")[0]
    assert plan(resnet, batches(), memory=smallest).measured <= parse_size(smallest)


def test_the_model_is_left_as_it_was(resnet):
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    flags = [(parameter.requires_grad, parameter.grad) for parameter in resnet.parameters()]
    plan(resnet, batches(), memory="80MB", method="last-k")
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    assert flags == [(parameter.requires_grad, parameter.grad) for parameter in resnet.parameters()]


def test_json_round_trip(resnet):
    found = plan(resnet, batches(), memory="80MB", method="last-k")
    assert Plan.from_json(found.to_json()) == found
    assert "80 MB" in str(found)


def test_bad_input(resnet):
    with pytest.raises(DataError, match="empty"):
        plan(resnet, [], memory="80MB", method="last-k")
    with pytest.raises(OptionError, match=r"'lisa' keeps to no budget.* take one that does .*trady"):
        plan(resnet, batches(), memory="80MB", method="lisa")
    with pytest.raises(OptionError, match="'trady' keeps to a budget by itself"):
        plan(resnet, batches(), memory="80MB", method="trady")
    with pytest.raises(OptionError, match="layer_ratio"):
        plan(resnet, batches(), memory="80MB", layer_ratio=2)
    with pytest.raises(OptionError, match="channel_ratios"):
        plan(resnet, batches(), memory="80MB", channel_ratios=[1.5])
    with pytest.raises(OptionError, match="axis"):
        plan(resnet, batches(), memory="80MB", axis="up")
    with pytest.raises(OptionError, match="time_ratio"):
        plan(resnet, batches(), memory="80MB", time_ratio=0)
    with pytest.raises(OptionError, match="size"):
        plan(resnet, batches(), memory="much")


def test_saved_bytes_are_what_a_real_forward_pass_keeps():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    data = [torch.randn(8, 16)]
    selection = adabet.rank(model, data, method="last-k", head="4").select(layer_ratio=0.5)
    found = saved_bytes(model, selection, data[0][:1])
    layers = {layer.name: layer for layer in adabet.find_layers(model, data[0], head="4")}
    assert found.within(layers["2"]) == 32 * 4  # its input, which the activation before shares
    assert found.within(layers["0"]) == 0
    assert found.since(layers["2"]) == found.total


def test_a_layer_that_does_not_fit_whole_gives_some_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4000), nn.ReLU(), nn.Linear(4000, 4))
    data = [(torch.randn(8, 64), torch.zeros(8, dtype=torch.long))]
    whole = plan(model, data, memory="10MB", method="last-k", head="4", channel_ratios=())
    sliced = {axis: plan(model, data, memory="3MB", method="last-k", head="4", axis=axis) for axis in ("out", "in")}
    assert [choice.channels for choice in whole.selection.choices] == [None] * 3
    for axis, count in (("out", 4000), ("in", 64)):
        choice = next(choice for choice in sliced[axis].selection.choices if choice.layer == "2")
        assert choice.axis == axis
        assert choice.channels is not None
        assert len(choice.channels) in (count // 2, count // 4, count // 8)
        assert sliced[axis].measured <= 3_000_000
        assert "some of their channels" in str(sliced[axis])
    unsliced = plan(model, data, memory="3MB", method="last-k", head="4", channel_ratios=())
    assert "2" not in unsliced.selection.layers


def test_slices_take_the_best_channels_or_spread_evenly():
    layer = Layer("a", "linear", ("a.weight",), 64, 8, 8, 8, 8, -1, 64, 1, "a", (8,), (8,))
    way = {
        "own": 0.0,
        "state": 1.0,
        "budget": 1,
        "channel_ratios": (0.5, 0.25),
        "axis": "out",
        "times": {"a.weight": 8},
    }
    whole, half, quarter = options_of(RankedLayer(layer, 4.0), 4.0, channel_axis=None, **way)
    assert (whole.score, half.score, quarter.score) == (4.0, 2.0, 1.0)
    assert (half.choice.channels, quarter.choice.channels) == ((0, 2, 4, 6), (0, 4))
    # gradient and optimizer state, and a slice is memory of its own
    assert (whole.fixed, half.fixed) == (64 * 4 * 2, 32 * 4 * 3)
    scores = (0.0, 9.0, 0.0, 1.0, 0.0, 0.0, 0.0, 10.0)
    ranked = RankedLayer(layer, 4.0, channel_scores=scores)
    _, half, quarter = options_of(ranked, 4.0, channel_axis="out", **way)
    assert quarter.choice.channels == (1, 7)
    assert half.score == 4.0
    assert quarter.score == pytest.approx(4 * 19 / 20)


def test_time_is_a_limit():
    torch.manual_seed(0)
    model = nn.Sequential(*(item for _ in range(4) for item in (nn.Linear(16, 16), nn.ReLU())), nn.Linear(16, 4))
    data = [(torch.randn(8, 16), torch.zeros(8, dtype=torch.long))]
    names = [name for name, _ in model.named_parameters()]
    profile = Profile(tuple(TensorTime(name, 1.0, 1.0) for name in names), "seconds", 1, "made up")
    way = {"memory": "10MB", "method": "last-k", "head": "8", "profile": profile, "channel_ratios": ()}
    assert plan(model, data, **way).selection.layers == ("0", "2", "4", "6")
    # of 20: the head's own 2, and for each layer its own 2 and 2 to pass the error through what is behind it
    assert plan(model, data, time_ratio=0.5, **way).selection.layers == ("4", "6")
    assert plan(model, data, time_ratio=0.1, **way).selection.layers == ()
    measured = plan(model, data, time_ratio=0.5, **{**way, "profile": None})
    assert "of the time" in str(measured)


def test_times_are_counted_where_measuring_them_does_not_fit(resnet):
    found = plan(resnet, batches(), memory="40MB", time_ratio=0.3, method="last-k")
    assert found.measured <= found.budget
    assert 0 < len(found.selection.layers) < found.selection.candidates
