"""What holds for every method in the registry: one table of options, and the same questions to all of them.

A new method is asked too as soon as it is registered; one that does not train with its defaults needs a line in
`OPTIONS`. What a method chooses is for its own tests, what the loop does with a selection for those of training.
"""

import inspect
import math
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from typer.testing import CliRunner

import adabet
from adabet.cli import app
from adabet.methods import METHODS, Dynamic
from adabet.selection import Choice, Selection
from adabet.training import FitResult
from tests.methods.block_nets import Residual, images, made
from tests.training.nets import same, weights_of
from tests.training.run_and_kill import KillAt

OPTIONS: dict[str, dict[str, Any]] = {
    "adabet": {"samples": 12},
    "auto-freeze": {"intervals": 6},
    "elastic-trainer": {"profile": "macs", "interval": 1, "speedup": 0.7},  # a measured profile differs from run to run
    "lisa": {"interval": 2, "active": 1},
    "lora": {"rank": 2, "where": "last-k"},
    "medyate": {"units": 300},
    "sparse-update": {"samples": 12, "ratios": (0.5, 1.0), "last": 3, "measure": "loss"},
    "trady": {"units": 300},
    "velocity": {"parameters": 0.4, "samples": 8, "values": 8},
}
"""By the name of the method; without a line it trains by its defaults."""

NEEDS_PEFT = ("lora",)
EPOCHS = 3
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
"""Of weights after nine steps, each of which rounds in another way."""


class Attention(nn.Module):
    """Self-attention with a linear layer for each projection."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        return self.proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Attention and two linear layers, with norms before them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """A transformer over the five rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.layers = nn.ModuleList(EncoderLayer(8) for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


NETS = {"convolutions": Residual, "transformer": Encoder}
OPTIMIZERS: list[SGD] = []
"""Those of all runs; the last is the one at work."""


def make_optimizer(parameters) -> SGD:
    OPTIMIZERS.append(SGD(parameters, lr=0.05, momentum=0.9))
    return OPTIMIZERS[-1]


@dataclass
class Notes(KillAt):
    """Sees every step and every selection of a run, and stops the run after a step if it is told to."""

    model: nn.Module
    stop_at: tuple[int, int] = (0, 0)
    selections: list[Selection] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)
    strayed: list[str] = field(default_factory=list)
    states: list[tuple[int, int]] = field(default_factory=list)

    def enter(self, selection: Selection) -> None:
        """A selection is about to go onto the model."""
        self.selections.append(selection)
        self.before = weights_of(self.model)

    def leave(self) -> None:
        """It has come off again."""
        if self.selections:
            self.strayed += strayed(self.before, weights_of(self.model), self.selections[-1])

    def step(self, *, epoch, step, loss):
        optimizer = OPTIMIZERS[-1]
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        assert {id(parameter) for parameter in optimizer.state} <= trained
        held = sum(state["momentum_buffer"].numel() for state in optimizer.state.values())
        self.states.append((held, len(self.selections)))
        if (epoch, step) == self.stop_at:
            raise KeyboardInterrupt


def strayed(before: dict[str, Tensor], after: dict[str, Tensor], selection: Selection) -> list[str]:
    """Tensors that moved though they, or the channels of theirs that moved, were frozen."""
    owner = {name: choice for choice in selection.choices for name in choice.parameters}
    found = []
    for name, tensor in before.items():
        moved = (after[name] != tensor).reshape(tensor.shape)
        if name in owner:
            moved = moved & ~trained_places(moved, name, owner[name])
        if moved.any():
            found.append(name)
    return found


def trained_places(like: Tensor, name: str, choice: Choice) -> Tensor:
    """Where a chosen tensor may move. Input channels are the second axis of a weight; a bias has none."""
    axis = {"out": 0, "in": 1}[choice.axis]
    if choice.channels is None or (axis >= like.dim() and name.endswith("bias")):
        return torch.ones_like(like)
    return torch.zeros_like(like).index_fill(axis, torch.tensor(choice.channels), True)


def noted(method, notes: Notes):
    """The method, with every selection that it makes in a run written down."""

    @wraps(method.start)
    def start(request, **options):
        found = method.start(request, **options)
        if isinstance(found, Dynamic):
            ask = found.turn

            def turn(moment):
                notes.leave()
                turn = ask(moment)
                notes.enter(turn.selection)
                return turn

            found.turn = turn  # type: ignore[method-assign]
        return found

    return replace(method, start=start)


@dataclass
class Run:
    """What became of one."""

    name: str
    net: str
    folder: Path | None
    notes: Notes
    weights: dict[str, Tensor]
    result: FitResult

    @property
    def turns(self) -> str | None:
        """The record of selections, if the method makes several."""
        path = self.folder and self.folder / "turns.jsonl"
        return path.read_text() if path and path.is_file() else None


def train(name: str, net: str, folder: Path | None, *, stop_at: tuple[int, int] = (0, 0), **options: Any) -> Run:
    model = made(NETS[net])
    notes = Notes(model, stop_at)
    method = METHODS[name]
    METHODS[name] = noted(method, notes)
    options = {"method_options": OPTIONS.get(name), "layer_ratio": 0.4, **options}
    try:
        result = adabet.fit(
            model,
            images(3),
            images(3),  # what is measured to help on these does help
            method=name,
            optimizer=make_optimizer,
            epochs=EPOCHS,
            keep="last",
            run_dir=folder,
            progress=notes,
            **options,
        )
    finally:
        METHODS[name] = method
    if folder is not None and METHODS[name].kind != "selects again":
        notes.selections.append(Selection.from_json((folder / "selection.json").read_text()))
        notes.before = weights_of(made(NETS[net]))
    notes.leave()
    return Run(name, net, folder, notes, weights_of(model), result)


@pytest.fixture(scope="module", params=[(name, net) for name in METHODS for net in NETS], ids="-".join)
def run(request, tmp_path_factory):
    """A whole run of each method on each network."""
    name, net = request.param
    if name in NEEDS_PEFT:
        pytest.importorskip("peft")
    return train(name, net, tmp_path_factory.mktemp("run"))


def test_it_trains(run):
    assert [record.epoch for record in run.result.history] == [1, 2, 3]
    assert all(math.isfinite(record.train_loss) for record in run.result.history)
    assert run.result.history[-1].train_loss < run.result.history[0].train_loss
    assert run.result.method == run.name


def test_what_is_frozen_stays(run):
    assert run.notes.strayed == []


def test_the_optimizer_remembers_what_trains_and_no_more(run):
    counts = [selection.parameter_count for selection in run.notes.selections]
    assert [held for held, _ in run.notes.states] == [counts[max(turn, 1) - 1] for _, turn in run.notes.states]


@pytest.mark.parametrize("options", [{"lean": False}, {"micro_batch": 2}], ids=["without lean", "micro-batches"])
def test_lean_and_micro_batches_change_nothing(run, options):
    other = train(run.name, run.net, None, **options)
    assert other.result.turns == run.result.turns
    assert other.result.layers == run.result.layers
    assert other.weights.keys() == run.weights.keys()
    for name, tensor in run.weights.items():
        torch.testing.assert_close(
            other.weights[name], tensor, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_stopped_run_ends_with_the_same_bits(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(run.name, run.net, tmp_path, stop_at=(3, 2))
    resumed = train(run.name, run.net, tmp_path, resume=True)
    assert same(resumed.weights, run.weights)
    assert resumed.turns == run.turns


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", [method.name for method in METHODS.values() if method.budget])
def test_a_budget_is_kept_by_every_selection(name, net, tmp_path):
    own = {key: value for key, value in OPTIONS.get(name, {}).items() if key != "units"}

    def peak(selection: Selection) -> int:
        report = adabet.measure_memory(made(NETS[net]), images(1)[0], selection, optimizer=make_optimizer)
        return report.training.total

    least, most = (peak(adabet.select(method, made(NETS[net]), images(1))) for method in ("head", "full"))
    budget = (least + most) // 2
    run = train(name, net, tmp_path, memory=budget, layer_ratio=1.0, method_options=own)
    peaks = [peak(selection) for selection in run.notes.selections]
    assert max(peaks) <= budget
    assert max(peaks) > least


@pytest.mark.parametrize("name", METHODS)
def test_it_says_where_it_comes_from(name):
    text = inspect.getdoc(METHODS[name].start) or ""
    assert "Source: " in text
    shown = CliRunner().invoke(app, ["methods", name])
    assert shown.exit_code == 0
    assert METHODS[name].summary in " ".join(shown.stdout.split())
