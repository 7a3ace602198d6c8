"""CONTRIBUTING shows new methods: its very code runs here, is registered, and trains by name."""

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import adabet
from adabet.cli import app
from adabet.methods import METHODS
from tests.methods.block_nets import Residual, images, made
from tests.training.nets import weights_of
from tests.training.run_and_kill import KillAt

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def registered():
    """The methods that CONTRIBUTING shows."""
    known = dict(METHODS)
    for block in BLOCKS:
        exec(compile(block, "CONTRIBUTING.md", "exec"), {"__name__": "contributed"})
    yield
    METHODS.clear()
    METHODS.update(known)


def test_a_method_takes_less_than_40_lines():
    assert len(BLOCKS) == 2
    assert all(block.count("\n") < 40 for block in BLOCKS)


@pytest.mark.parametrize(("name", "kind"), [("largest", "ranks layers"), ("alternate", "selects again")])
def test_it_is_listed_and_described(name, kind):
    assert METHODS[name].kind == kind
    for arguments, said in ((["methods"], name), (["methods", name], METHODS[name].summary)):
        shown = CliRunner().invoke(app, arguments)
        assert shown.exit_code == 0
        assert said in shown.stdout


class EachEpoch(KillAt):
    """Notes the weights after each epoch."""

    def __init__(self, model):
        super().__init__(0, 0)
        self.model, self.weights = model, [weights_of(model)]

    def epoch(self, record):
        self.weights.append(weights_of(self.model))


def moved_by_epoch(method, **options):
    """Layers beside the head that moved, epoch by epoch."""
    model = made(Residual)
    look = EachEpoch(model)
    adabet.fit(model, images(2), method=method, epochs=3, lr=0.05, progress=look, **options)
    return [
        {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])} - {"head"}
        for before, after in zip(look.weights, look.weights[1:], strict=False)
    ]


def test_the_ranking_trains_its_best():
    modules = dict(Residual().named_modules())
    sizes = {path: sum(p.numel() for p in module.parameters(recurse=False)) for path, module in modules.items()}
    largest = max(sizes, key=sizes.__getitem__)
    assert largest == "deep.0.conv"
    assert moved_by_epoch("largest", layer_ratio=0.1) == [{largest}] * 3


def test_the_dynamic_one_takes_turns():
    odd = {"stem", "units.0.norm", "units.1.norm", "deep.0.conv", "norm"}
    even = {"units.0.conv", "units.1.conv", "down", "deep.0.norm"}
    assert moved_by_epoch("alternate") == [odd, even, odd]
    assert moved_by_epoch("alternate", method_options={"epochs": 2}) == [odd, odd, even]
