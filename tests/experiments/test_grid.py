"""A grid is checked whole before anything runs."""

import json

import pytest

from adabet.errors import OptionError, UnknownNameError
from adabet.experiments import Grid, MethodSpec, Share, read_grid
from adabet.experiments.cells import Cell
from adabet.experiments.search import training_cell
from adabet.methods import METHODS
from tests.experiments.grids import make_grid


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": ["adabett"]}, "unknown method 'adabett'; did you mean 'adabet'?"),
        ({"methods": [{"method": "adabet", "options": {"sample": 3}}]}, "did you mean 'samples'?"),
        ({"methods": [{"method": "adabet", "fit": {"leen": True}}]}, "did you mean 'lean'?"),
        ({"methods": [{"method": "adabet", "colour": "red"}]}, "an entry of methods takes no 'colour'"),
        ({"methods": ["head", "head"]}, "'head' twice; give each a label of its own"),
        ({"methods": []}, "at least one of methods"),
        ({"methods": "head"}, "expected a list of methods, got 'head'"),
        ({"methods": [3]}, "expected each of methods as a name"),
        ({"epoch": 3}, "a grid takes no 'epoch'"),
        ({"epochs": 0}, "epochs of at least 1, got 0"),
        ({"epochs": "three"}, "epochs of at least 1, got 'three'"),
        ({"head_lr_factor": 0.0}, "head_lr_factor to be a number above 0, got 0.0"),
        ({"seeds": 0}, "at least one of seeds"),
        ({"seeds": [1, 1]}, "'1' twice"),
        ({"seeds": [-1]}, "seeds of whole numbers from 0"),
        ({"learning_rates": [0.0]}, "learning rates above zero"),
        ({"layer_ratios": [1.5]}, "layer_ratio from 0 to 1, got 1.5"),
        ({"layer_ratios": ["a lot"]}, "layer_ratio from 0 to 1, got 'a lot'"),
        ({"budgets": ["200XB"]}, "expected a size such as '200MB'"),
        ({"budgets": ["trady:0.1"]}, "a method that ranks layers"),
        ({"budgets": ["nobody:0.1"]}, "unknown method 'nobody'"),
        ({"search": "downhill"}, "search to be uphill or all, got 'downhill'"),
        ({"data": [{"name": "images", "max_train": 0}]}, "max_train of at least 1, got 0"),
        ({"models": [""]}, "name of a model as text, got ''"),
    ],
)
def test_says_in_one_line_what_is_wrong(values, message):
    with pytest.raises((OptionError, UnknownNameError)) as error:
        make_grid(**values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_lines_are_models_data_methods_and_shares_and_each_method_without_a_knob_is_one_line():
    grid = make_grid(methods=["adabet", "head", "trady"], data=["one", "two"], layer_ratios=[0.1, 0.2], budgets=["1MB"])
    lines = [(entry.data.label, entry.method.label, entry.share and str(entry.share)) for entry in grid.entries]
    of_one = [
        *(("adabet", "0.1"), ("adabet", "0.2"), ("adabet", "1MB")),
        ("head", None),
        ("trady", "1MB"),
    ]
    assert lines == [(data, *rest) for data in ("one", "two") for rest in of_one]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_knows_which_shares_concern_it(name):
    method = MethodSpec(name)
    by_ratio, by_memory = method.takes(Share(layer_ratio=0.1)), method.takes(Share(memory="1MB"))
    if METHODS[name].budget:
        assert by_memory
    if name in ("full", "head"):
        assert not by_ratio
        assert not by_memory


def test_comes_back_from_json():
    grid = make_grid(
        models=[{"name": "demo", "label": "reader", "image_size": 24}],
        methods=[{"method": "adabet", "label": "b1", "options": {"normalize": "none"}, "fit": {"momentum": 0.0}}],
        budgets=["adabet:0.1"],
        layer_ratios=[0.3],
        epochs=7,
        head_lr_factor=10.0,
    )
    again = Grid.from_dict(json.loads(json.dumps(grid.to_dict())))
    assert again == grid
    assert [entry.share for entry in again.entries] == [Share(layer_ratio=0.3), Share(memory="adabet:0.1")]


def test_a_file_may_be_toml_or_json_and_name_variables_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PHOTOS", "/somewhere/photos")
    toml, plain = tmp_path / "grid.toml", tmp_path / "grid.json"
    toml.write_text(
        'methods = ["head"]\nseeds = 2\nepochs = 3\n[[models]]\nname = "demo"\n[[data]]\nname = "$PHOTOS"\n'
    )
    plain.write_text(
        json.dumps({"methods": ["head"], "seeds": [0, 1], "epochs": 3, "models": ["demo"], "data": ["$PHOTOS"]})
    )
    first, second = (Grid.from_dict(read_grid(path)) for path in (toml, plain))
    assert first == second
    assert first.data[0].name == "/somewhere/photos"
    assert first.data[0].label == "photos"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("grid.toml", "methods = [", "is no TOML"),
        ("grid.json", "{", "is no JSON"),
        ("grid.json", "[]", "names and values, got a list"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(OptionError, match=message):
        read_grid(tmp_path / name)


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(OptionError, match="could not read the grid"):
        read_grid(tmp_path / "grid.toml")


class TestKey:
    def cell(self, **values):
        grid = make_grid(**values)
        return training_cell(grid, grid.entries[0], 0.01, 0)

    def test_is_the_same_for_the_same_cell_whatever_the_labels(self):
        plain = self.cell()
        labelled = self.cell(
            methods=[{"method": "adabet", "label": "ours"}], models=[{"name": "demo", "label": "reader"}], seeds=5
        )
        assert plain.key == labelled.key

    @pytest.mark.parametrize(
        "values",
        [
            {"epochs": 9},
            {"layer_ratios": [0.2]},
            {"budgets": ["1MB"], "shares": []},
            {"methods": [{"method": "adabet", "options": {"samples": 8}}]},
            {"methods": [{"method": "adabet", "fit": {"momentum": 0.0}}]},
            {"data": [{"name": "images", "max_train": 8}]},
            {"models": [{"name": "demo", "image_size": 32}]},
        ],
    )
    def test_differs_for_whatever_the_result_depends_on(self, values):
        assert self.cell(**values).key != self.cell().key

    def test_survives_json(self):
        cell = self.cell(budgets=["adabet:0.5"])
        assert Cell.from_dict(json.loads(json.dumps(cell.to_dict()))).key == cell.key
