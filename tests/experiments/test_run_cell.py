"""A cell is the same run that one would write by hand with the library."""

import json
from dataclasses import replace

import pytest
import torch

import adabet
from adabet.data import load_data, transforms
from adabet.experiments.choice import step_peak, within
from adabet.experiments.outcome import Outcome
from adabet.experiments.run_cell import run_cell
from adabet.experiments.search import budget_cell, selection_cell, training_cell
from adabet.experiments.site import Sites
from adabet.models import load_model, new_head
from tests.experiments.grids import make_grid

SEED, RATE = 1, 0.05


@pytest.fixture(scope="module")
def sites():
    return Sites()


def first_cell(images, method, **values):
    spec = method if isinstance(method, dict) else {"method": method}
    grid = make_grid(methods=[spec], data=[str(images)], **{"epochs": 2, **values})
    return training_cell(grid, grid.entries[0], RATE, SEED)


def run(cell, sites, *, budget=None):
    done = run_cell(cell, sites, budget=budget)
    assert done.status == "done", done.error + done.details
    json.dumps(done.record)
    return Outcome.from_dict(done.record)


def by_hand(images, method, tmp_path, **told):
    """The run of a cell with nothing but the public functions."""
    loaded = load_model("demo")
    splits = load_data(
        images,
        transform_train=transforms(loaded.data_config, train=True),
        transform_eval=transforms(loaded.data_config, train=False),
    )
    torch.manual_seed(SEED)
    new_head(loaded.model, 2)
    loaders = splits.loaders(batch_size=8, seed=SEED)
    if method == "adabet":
        samples = splits.unlabelled(samples=24, seed=SEED)
        told = {"selection": adabet.select("adabet", loaded.model, samples, seed=SEED, **told)}
    else:
        told = {"method": method, **told}
    folder = tmp_path / "run"
    result = adabet.fit(loaded.model, loaders.train, loaders.val, lr=RATE, epochs=2, seed=SEED, run_dir=folder, **told)
    memory = adabet.MemoryReport.from_json((folder / "memory.json").read_text())
    return result, adabet.evaluate(loaded.model, loaders.test), memory


@pytest.mark.parametrize(("method", "told"), [("adabet", {"layer_ratio": 0.3}), ("lisa", {})])
def test_a_cell_is_the_run_that_one_would_write(images, sites, tmp_path, method, told):
    outcome = run(first_cell(images, method, layer_ratios=[0.3]), sites)
    result, test, memory = by_hand(images, method, tmp_path, **told)
    assert outcome.test == test
    assert outcome.val == result.best.val_metrics
    assert outcome.best_epoch == result.best.epoch
    losses = [[(epoch.train_loss, epoch.val_loss) for epoch in found.history] for found in (outcome, result)]
    assert losses[0] == losses[1]
    assert {layer.name for layer in outcome.layers} == set(result.layers)
    assert (outcome.parameters, outcome.turns) == (result.trained_parameters, result.turns)
    assert replace(outcome.memory, inference=None).training.saved == memory.training.saved
    assert 0 < outcome.memory.inference.total < outcome.memory.training.total
    assert outcome.step_seconds > 0
    assert outcome.training_seconds > outcome.step_seconds


def test_the_same_cell_gives_the_same_and_another_seed_does_not(images, sites):
    cell = first_cell(images, "head")
    first, second, other = (run(item, sites) for item in (cell, cell, replace(cell, seed=2)))
    assert first.history[0].train_loss == second.history[0].train_loss != other.history[0].train_loss
    assert first.test == second.test


def test_layers_are_named_with_position_and_place_in_the_ranking(images, sites):
    outcome = run(first_cell(images, "last-k", layer_ratios=[0.3], epochs=1), sites)
    *chosen, head = outcome.layers
    layers = adabet.find_layers(load_model("demo").model, torch.zeros(1, 1, 24, 24))
    names = [layer.name for layer in layers]
    assert [layer.name for layer in chosen] == names[-len(chosen) :]
    assert [layer.position for layer in chosen] == list(range(len(names)))[-len(chosen) :]
    assert [layer.place for layer in chosen] == list(range(len(chosen), 0, -1))
    assert (head.position, head.place) == (None, None)


class TestBudget:
    def budgeted(self, images, sites, method):
        cell = first_cell(images, method, budgets=["adabet:0.3"], epochs=1)
        grid = make_grid(methods=[method], data=[str(images)], budgets=["adabet:0.3"], epochs=1)
        budget = run_cell(budget_cell(grid, grid.entries[0]), sites).record["bytes"]
        return cell, budget, run(cell, sites, budget=budget)

    def test_is_the_measured_peak_of_the_method_it_is_named_after(self, images, sites):
        cell, budget, _ = self.budgeted(images, sites, "adabet")
        site = sites.find(cell.model, cell.data)
        model = site.model(0)
        selection = adabet.select("adabet", model, site.splits.unlabelled(samples=24, seed=0), layer_ratio=0.3)
        assert step_peak(replace(cell, seed=0), model, site.batch(8, 0), selection) == budget

    def test_a_ranking_takes_as_many_layers_as_fit(self, images, sites):
        cell, budget, outcome = self.budgeted(images, sites, "size")
        site = sites.find(cell.model, cell.data)
        model, batch = site.model(SEED), site.batch(8, SEED)
        ranking = adabet.rank(model, [batch], method="size")
        peaks = [
            step_peak(cell, model, batch, ranking.select(layer_ratio=count / len(ranking.layers)))
            for count in range(1, len(ranking.layers) + 1)
        ]
        fitting = sum(peak <= budget for peak in peaks)
        assert len(outcome.layers) - 1 == fitting
        assert outcome.memory.training.total == peaks[fitting - 1] <= budget
        assert outcome.budget == budget

    def test_a_layer_that_does_not_fit_by_itself_is_passed_over(self, images, sites):
        cell = first_cell(images, "last-k")
        site = sites.find(cell.model, cell.data)
        model, batch = site.model(SEED), site.batch(8, SEED)
        forward = adabet.rank(model, [batch], method="last-k")
        # the layers nearest to the input, which take most, come first
        ranking = replace(forward, layers=tuple(replace(item, score=-item.score) for item in forward.layers))
        alone = {
            item.layer.name: step_peak(cell, model, batch, replace(ranking, layers=(item,)).select(layer_ratio=1.0))
            for item in ranking.order
        }
        budget = sorted(alone.values())[len(alone) // 2]
        chosen = within(ranking, cell, model, site, budget)
        best = next(name for name, peak in alone.items() if peak <= budget)
        assert best != ranking.order[0].layer.name
        assert best in chosen.layers
        assert all(alone[name] > budget for name in list(alone)[: list(alone).index(best)])
        assert step_peak(cell, model, batch, chosen) <= budget

    def test_that_is_too_small_fails_with_what_it_had_to_be(self, images, sites):
        done = run_cell(first_cell(images, "size", budgets=["1kB"]), sites, budget=1000)
        assert done.status == "failed"
        assert done.error.startswith("1 kB is too little: the head and the cheapest layer take ")


class TestFailures:
    def test_a_loss_that_is_not_finite_is_told_apart(self, images, sites):
        done = run_cell(replace(first_cell(images, "full"), learning_rate=1e9), sites)
        assert (done.status, done.record) == ("diverged", {})
        assert "became" in done.error

    def test_what_a_user_did_wrong_is_one_line(self, images, sites):
        done = run_cell(first_cell(images, "adabet", models=[{"name": "demo", "weights": "none.safetensors"}]), sites)
        assert (done.status, done.details) == ("failed", "")
        assert done.error
        assert "\n" not in done.error

    def test_what_nobody_expected_comes_with_its_traceback(self, images, sites, monkeypatch):
        def breaks(*_, **__):
            raise ZeroDivisionError("nobody\nexpected this")

        monkeypatch.setattr(adabet, "fit", breaks)
        done = run_cell(first_cell(images, "head"), sites)
        assert (done.status, done.error) == ("failed", "ZeroDivisionError: nobody")
        assert "expected this" in done.details

    def test_says_where_it_ran(self, images, sites):
        done = run_cell(first_cell(images, "head", epochs=1), sites)
        assert done.environment["torch"] == torch.__version__
        assert done.environment["threads"] == torch.get_num_threads()


def test_choosing_is_measured(images, sites):
    grid = make_grid(methods=["adabet"], data=[str(images)], selection_memory=True)
    done = run_cell(selection_cell(grid, grid.entries[0]), sites)
    assert done.status == "done", done.error
    assert done.record["seconds"] > 0
    assert done.record["peak"] >= 0
