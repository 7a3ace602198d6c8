"""Compiled models train as stock does in any order; a changed selection counts; names are the bare model's."""

import copy

import pytest
import torch
from torch.nn import functional as F

import adabet
from tests.cases.models import state_of
from tests.training.nets import make_data, make_loaders, make_net, same, weights_of

IMAGES, LABELS = make_data(8).tensors
BACKEND = "aot_eager"
"""It traces the backward pass too; the one that generates code takes minutes here."""


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def net():
    model = make_net()
    model.drop.p = 0.0
    return model


def choose(kind, model):
    if kind == "channels":
        return adabet.rank(model, [IMAGES], channels=0.6).select(layer_ratio=0.5, channel_ratio=0.5)
    return adabet.select(kind, model, [IMAGES], layer_ratio=0.5)


def step(call, model, lean=True, lr=0.1):
    """A step of SGD; what got a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if lean:
        with adabet.lean():
            loss = F.cross_entropy(call(IMAGES), LABELS)
    else:
        loss = F.cross_entropy(call(IMAGES), LABELS)
    loss.backward()
    with torch.no_grad():
        for parameter in trained:
            parameter -= lr * parameter.grad
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return got


def moved(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def compiled_before(model, selection):
    return torch.compile(model, backend=BACKEND), adabet.apply(model, selection)


def compiled_after(model, selection):
    applied = adabet.apply(model, selection)
    return torch.compile(model, backend=BACKEND), applied


def compiled_in_place(model, selection):
    model.compile(backend=BACKEND)
    return model, adabet.apply(model, selection)


def applied_to_the_wrapper(model, selection):
    compiled = torch.compile(model, backend=BACKEND)
    return compiled, adabet.apply(compiled, selection)


@pytest.mark.parametrize("kind", ["last-k", "channels"])
@pytest.mark.parametrize("order", [compiled_before, compiled_after, compiled_in_place, applied_to_the_wrapper])
def test_every_order_trains_as_stock_does(order, kind):
    model, stock = net(), net()
    selection = choose(kind, net())
    assert any(choice.channels is not None for choice in selection.choices) == (kind == "channels")
    before = weights_of(model)
    call, applied = order(model, selection)
    with applied, adabet.apply(stock, selection):
        for _ in range(2):
            call.train()
            stock.train()
            assert step(call, model) == step(stock, stock, lean=False)
    assert moved(model, before) == set(selection.parameters)
    for name, tensor in stock.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_selection_that_changes_after_compilation_counts(in_place):
    """Each of them trains what it names and nothing else, with what was compiled for the ones before still there."""
    model = net()
    call = model if in_place else torch.compile(model, backend=BACKEND)
    if in_place:
        model.compile(backend=BACKEND)
    call.train()
    step(call, model)
    for kind in ("last-k", "channels", "head", "full"):
        selection, before = choose(kind, model), weights_of(model)
        with adabet.apply(call, selection):
            call.train()
            step(call, model)
            moving = moved(model, before)
        assert moving == set(selection.parameters), kind


class TestBatchNormsOfACompiledModel:
    """Nothing but their mode differs between these calls, so no other guard can be what notices it."""

    def test_stay_in_eval_mode_when_a_selection_comes(self):
        model = net()
        call = torch.compile(model, backend=BACKEND)
        call.train()
        step(call, model)
        plain, before = copy.deepcopy(model), weights_of(model)
        selection = choose("full", net())
        with adabet.apply(model, selection), adabet.apply(plain, selection):
            model.train()
            plain.train()
            torch.testing.assert_close(call(IMAGES), plain(IMAGES))
        assert torch.equal(model.norm1.running_mean, before["norm1.running_mean"])

    def test_use_the_batch_again_when_it_has_gone(self):
        model = net()
        call = torch.compile(model, backend=BACKEND)
        with adabet.apply(model, choose("full", net())):
            model.train()
            step(call, model)
        plain, before = copy.deepcopy(model), weights_of(model)
        model.train()
        plain.train()
        torch.testing.assert_close(call(IMAGES), plain(IMAGES))
        assert not torch.equal(model.norm1.running_mean, before["norm1.running_mean"])


@pytest.fixture(params=["wrapper", "in place"])
def already_run(request):
    """A compiled model that has run before, in eval mode and without gradients, so that new hooks are not seen."""
    model = net().eval()
    call = model
    if request.param == "wrapper":
        call = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
    with torch.no_grad():
        call(IMAGES)
        call(IMAGES[:1])
    return call


class TestVerbsLookInside:
    def test_find_layers(self, already_run):
        assert adabet.find_layers(already_run, IMAGES) == adabet.find_layers(net(), IMAGES)

    @pytest.mark.parametrize("method", ["adabet", "fisher"])
    def test_rank(self, already_run, method):
        batches = [(IMAGES, LABELS)]
        expected = adabet.rank(net(), batches, method=method)
        assert adabet.rank(already_run, batches, method=method).to_json() == expected.to_json()
        named = adabet.rank(model=already_run, batches=batches, method=method)
        assert named.to_json() == expected.to_json()

    def test_select_and_plan(self, already_run):
        assert adabet.select("last-k", already_run, [IMAGES]) == adabet.select("last-k", net(), [IMAGES])
        batches = [(IMAGES, LABELS)]
        expected = adabet.plan(net(), batches, memory="1MB")
        assert adabet.plan(already_run, batches, memory="1MB").selection == expected.selection

    def test_measure_memory_measures_the_lean_step(self, already_run):
        before = state_of(already_run)
        selection = choose("last-k", net())
        lean = adabet.measure_memory(already_run, (IMAGES, LABELS), selection)
        expected = adabet.measure_memory(net(), (IMAGES, LABELS), selection)
        assert (lean.training.saved, lean.layers) == (expected.training.saved, expected.layers)
        assert state_of(already_run) == before

    def test_fit_gives_the_weights_and_a_delta_of_the_bare_model(self, already_run, tmp_path):
        expected, bare = net(), net()
        options = {"method": "last-k", "layer_ratio": 0.5, "lr": 0.1, "epochs": 2, "keep": "last"}
        adabet.fit(expected, *make_loaders(), **options)
        result = adabet.fit(already_run, *make_loaders(), run_dir=tmp_path / "run", **options)
        assert result.layers[-1] == "head"
        adabet.load_delta(bare, tmp_path / "run" / "last.safetensors")
        assert same(weights_of(bare), weights_of(expected))
        torch.testing.assert_close(already_run.eval()(IMAGES), expected.eval()(IMAGES))

    def test_deltas(self, already_run, tmp_path):
        selection, path = choose("head", net()), tmp_path / "delta.safetensors"
        with torch.no_grad():
            already_run.head.bias += 1
        adabet.save_delta(already_run, selection, path)
        bare, compiled = net(), torch.compile(net(), backend="eager")
        adabet.load_delta(bare, path)
        adabet.load_delta(compiled, path)
        assert torch.equal(bare.head.bias, already_run.head.bias)
        assert torch.equal(compiled.head.bias, already_run.head.bias)

    def test_and_leave_it_compiled(self, already_run):
        adabet.rank(already_run, [IMAGES])
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        with torch.no_grad():
            already_run(IMAGES)
        assert graphs >= 1
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        assert already_run._compiled_call_impl is not None or isinstance(already_run, torch._dynamo.OptimizedModule)
