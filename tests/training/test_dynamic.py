"""Methods that select again while training: what the loop does for them."""

import json

import pytest
import torch
from torch import nn

from adabet.errors import CheckpointError, OptionError, RunError
from adabet.methods import Dynamic, Request, Turn, choose_tensors
from adabet.methods.registry import METHODS, register
from adabet.training import fit, load_delta
from adabet.training.checkpoint import read_checkpoint
from tests.training.nets import make_loaders, make_net, same, weights_of
from tests.training.run_and_kill import KillAt

WEIGHTS = ("conv1.weight", "conv2.weight", "norm2.weight", "norm1.bias")


class Rolling(Dynamic):
    """Trains two tensors and some channels, others from turn to turn, and remembers what it has seen."""

    def __init__(self, request: Request, every: int) -> None:
        self.request, self.every_steps = request, every
        self.layers = request.find_layers()
        self.turns, self.norms, self.seen = 0, torch.zeros(()), []

    def due(self, moment):
        return (moment.step - 1) % self.every_steps == 0

    def turn(self, moment):
        names = {WEIGHTS[self.turns % 4], WEIGHTS[(self.turns + 1) % 4]}
        channels = {"conv2": [self.turns % 8, (self.turns + 1) % 8, 7 - self.turns % 3][: 2 + self.turns % 2]}
        self.turns += 1
        assert all(parameter.requires_grad for parameter in self.request.model.parameters())  # nothing is applied
        torch.rand(5)  # what a method draws from the global generator does not change the run
        selection = choose_tensors(
            self.request, self.layers, names, method="rolling", channels={k: set(v) for k, v in channels.items()}
        )
        return Turn(selection, note=f"turn {self.turns}", rates={"conv1.weight": 0.5})

    @property
    def watches(self):
        return True

    def watch(self, moment, gradients):
        self.norms = self.norms + sum(gradient.norm() for gradient in gradients.values())
        self.seen.append((moment.epoch, moment.step, sorted(gradients)))

    def state_dict(self):
        return {"turns": self.turns, "norms": self.norms}

    def load_state_dict(self, state):
        self.turns, self.norms = state["turns"], state["norms"]


made: list[Rolling] = []


@pytest.fixture(autouse=True)
def rolling():
    @register("rolling", needs="nothing", source="a test")
    def start(request: Request, *, steps: int = 4) -> Dynamic:
        """Rolls."""
        made.append(Rolling(request, steps))
        return made[-1]

    yield
    del METHODS["rolling"]
    made.clear()


def train(folder=None, *, resume=False, progress=None, optimizer="adamw", epochs=4, steps=4, keep="best", **options):
    model = make_net()
    result = fit(
        model,
        *make_loaders(),
        method="rolling",
        method_options={"steps": steps},
        optimizer=optimizer,
        lr=0.02,
        epochs=epochs,
        keep=keep,
        run_dir=folder,
        resume=resume,
        progress=progress,
        **options,
    )
    return model, result


class Stop(KillAt):
    def step(self, *, epoch, step, loss):
        if (epoch, step) == self.moment:
            raise KeyboardInterrupt


def test_only_what_is_selected_moves_in_each_step():
    model = make_net()
    before = weights_of(model)
    fit(model, *make_loaders(), method="rolling", epochs=1, lr=0.02, method_options={"steps": 100}, weight_decay=0.0)
    moved = {name for name, tensor in weights_of(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {"conv1.weight", "conv2.weight", "head.weight", "head.bias"}
    changed = (model.conv2.weight != before["conv2.weight"]).any(dim=(0, 2, 3)).nonzero().flatten().tolist()
    assert changed == [0, 1]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("optimizer", ["sgdw", "adamw"])
@pytest.mark.parametrize("at", [(1, 3), (2, 1), (3, 2), (4, 6)])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path, optimizer, at):
    whole, expected = train(tmp_path / "whole", optimizer=optimizer)
    norms = made[-1].norms
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", optimizer=optimizer, progress=Stop(*at))
    resumed, result = train(tmp_path / "stopped", optimizer=optimizer, resume=True)
    assert same(weights_of(resumed), weights_of(whole))
    assert torch.equal(made[-1].norms, norms)
    assert result.turns == expected.turns == 8
    for name in ("best", "last"):
        models = make_net(), make_net()
        for folder, model in zip(("whole", "stopped"), models, strict=True):
            load_delta(model, tmp_path / folder / f"{name}.safetensors")
        assert same(weights_of(models[0]), weights_of(models[1]))
    assert (tmp_path / "whole" / "turns.jsonl").read_text() == (tmp_path / "stopped" / "turns.jsonl").read_text()


def test_the_folder_tells_every_turn(tmp_path):
    _, result = train(tmp_path, epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "turns.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"], line["note"]) for line in lines] == [
        (1, 1, "turn 1"),
        (1, 5, "turn 2"),
        (2, 1, "turn 3"),
        (2, 5, "turn 4"),
    ]
    assert lines[0]["layers"] == ["conv1", "conv2", "head"]
    assert result.layers == ("conv1", "conv2", "head", "norm2", "norm1")
    assert "4 selections one after the other" in str(result)


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize("with_folder", [True, False])
def test_the_best_epoch_is_kept_though_other_tensors_trained_later(tmp_path, with_folder, batch_norm):
    """The metric makes the first epoch the best; later ones train tensors that it did not know."""
    scores: dict[int, float] = {}

    def falling(logits, labels):
        return scores.setdefault(len(made[-1].seen), -float(len(made[-1].seen)))

    after_first = {}

    class Watching(Stop):
        def step(self, *, epoch, step, loss): ...

        def epoch(self, record):
            if record.epoch == 1:
                after_first.update(weights_of(made[-1].request.model))

    model, result = train(
        tmp_path / "run" if with_folder else None,
        metrics={"falling": falling},
        monitor="falling",
        batch_norm=batch_norm,
        steps=6,
        progress=Watching(0, 0),
    )
    assert result.best.epoch == 1
    assert result.turns > 2
    assert same(weights_of(model), after_first)
    if with_folder:
        for name in ("best", "last"):
            load_delta(again := make_net(), tmp_path / "run" / f"{name}.safetensors")
            assert same(weights_of(again), after_first) == (name == "best")


def test_state_of_what_stays_goes_on_and_of_what_leaves_is_dropped(tmp_path):
    """Momentum of a tensor in both turns is carried; one that left and came back starts anew."""
    seen = {}

    class Spy(Rolling):
        def turn(self, moment):
            turn = super().turn(moment)
            named = {name: dict(self.request.model.named_parameters())[name] for name in WEIGHTS}
            optimizer = moment.optimizer(named)
            seen[self.turns] = {
                name: optimizer.state[parameter].get("momentum_buffer") for name, parameter in named.items()
            }
            return turn

    @register("rolling", needs="nothing", source="a test")
    def start(request: Request, *, steps: int = 4) -> Dynamic:
        """Rolls."""
        made.append(Spy(request, steps))
        return made[-1]

    train(optimizer="sgdw", epochs=2)
    assert all(value is None for value in seen[1].values())
    # turn 1: conv1 and conv2 (channels 0, 1); turn 2: conv2 (1, 2, 6) and norm2; turn 3: norm2 and norm1
    assert {name for name, value in seen[2].items() if value is not None} == {"conv1.weight", "conv2.weight"}
    rows = seen[2]["conv2.weight"].abs().sum((0, 2, 3))
    assert rows[:2].min() > 0
    assert rows[2:].max() == 0
    assert {name for name, value in seen[3].items() if value is not None} == {"conv2.weight", "norm2.weight"}
    rows = seen[3]["conv2.weight"].abs().sum((0, 2, 3)).nonzero().flatten().tolist()
    assert rows == [1, 2, 6]
    assert {name for name, value in seen[4].items() if value is not None} == {"norm2.weight", "norm1.bias"}


def test_channel_rows_move_with_their_channels():
    """A slice of every channel in three turns gives the same momentum as one that never changed."""

    class Same(Dynamic):
        def __init__(self, request):
            self.request, self.layers, self.count = request, request.find_layers(), 0

        def due(self, moment):
            return moment.step in (1, 3, 5)

        def turn(self, moment):
            self.count += 1
            whole = {"conv2": range(8)} if self.count != 2 else None
            return Turn(choose_tensors(self.request, self.layers, {"conv2.weight"}, method="same", channels=whole))

    @register("rolling", needs="nothing", source="a test")
    def start(request: Request) -> Dynamic:
        """Rolls."""
        return Same(request)

    models = []
    for method, options in (("rolling", {}), ("once", {})):
        if method == "once":
            request_model = make_net()
            request = Request(request_model, [torch.zeros(2, 1, 6, 6)])
            selection = choose_tensors(request, request.find_layers(), {"conv2.weight"}, method="same")
            fit(request_model, *make_loaders(), selection, epochs=2, lr=0.02, **options)
            models.append(request_model)
        else:
            model = make_net()
            fit(model, *make_loaders(), method=method, epochs=2, lr=0.02, **options)
            models.append(model)
    for name, tensor in weights_of(models[0]).items():
        torch.testing.assert_close(tensor, weights_of(models[1])[name], rtol=1e-4, atol=1e-6)


def test_learning_rates_of_single_tensors():
    """Half the rate on one tensor halves its first step, and only its."""
    steps = []
    batch = [next(iter(make_loaders()[0]))]
    for rate in (1.0, 0.5):

        class Once(Dynamic):
            def __init__(self, request, rate=rate):
                self.request, self.rate = request, rate

            def turn(self, moment):
                layers = self.request.find_layers()
                chosen = choose_tensors(self.request, layers, {"conv1.weight", "conv2.weight"}, method="once")
                return Turn(chosen, rates={"conv1.weight": self.rate})

        @register("rolling", needs="nothing", source="a test")
        def start(request: Request) -> Dynamic:
            """Rolls."""
            return Once(request)

        model = make_net()
        before = weights_of(model)
        fit(model, batch, method="rolling", epochs=1, lr=0.1, optimizer="sgd", weight_decay=0.0)
        steps.append({name: tensor - before[name] for name, tensor in weights_of(model).items()})
    torch.testing.assert_close(steps[1]["conv1.weight"], steps[0]["conv1.weight"] / 2)
    torch.testing.assert_close(steps[1]["conv2.weight"], steps[0]["conv2.weight"])


def test_a_penalty_adds_its_gradient_once_a_step():
    class Shrinking(Dynamic):
        def __init__(self, request):
            self.request = request

        def turn(self, moment):
            return Turn(choose_tensors(self.request, self.request.find_layers(), {"conv1.weight"}, method="shrink"))

        def penalty(self):
            return 3.0 * self.request.model.conv1.weight.square().sum() / 2

    @register("rolling", needs="nothing", source="a test")
    def start(request: Request) -> Dynamic:
        """Rolls."""
        return Shrinking(request)

    batch = [next(iter(make_loaders()[0]))]
    moved = []
    for method, micro_batch in (("rolling", None), ("rolling", 3), ("head", None)):
        model = make_net()
        before = model.conv1.weight.detach().clone()
        options = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "micro_batch": micro_batch}
        model.drop.p = 0.0
        fit(model, batch, method=method, epochs=1, lr=0.1, **options)
        moved.append(model.conv1.weight.detach() - before)
    torch.testing.assert_close(moved[0], moved[1])
    assert moved[2].abs().max() == 0
    # beside the loss's own gradient the step has 0.1 * 3 * weight
    assert torch.nn.functional.cosine_similarity(moved[0].flatten(), -before.flatten(), dim=0) > 0.5


def test_selecting_again_every_few_epochs(tmp_path):
    model = make_net()
    result = fit(
        model,
        *make_loaders(),
        method="random",
        layer_ratio=0.3,
        method_options={"every": 2},
        epochs=5,
        run_dir=tmp_path,
    )
    lines = [json.loads(line) for line in (tmp_path / "turns.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 3, 5]
    assert result.turns == 3
    with pytest.raises(OptionError, match="method that ranks layers"):
        fit(make_net(), *make_loaders(), method="rolling", method_options={"every": 2}, epochs=1)


def test_a_checkpoint_of_another_kind_of_method(tmp_path):
    train(tmp_path / "run", epochs=1)
    assert read_checkpoint(tmp_path / "run" / "checkpoint.safetensors").method["turns"]
    with pytest.raises(RunError, match=r"other options: .*method"):
        fit(make_net(), *make_loaders(), method="head", epochs=1, run_dir=tmp_path / "run", resume=True)


def test_a_damaged_state_is_refused(tmp_path, monkeypatch):
    train(tmp_path / "run", epochs=1)
    monkeypatch.setattr(Rolling, "load_state_dict", lambda self, state: state["missing"])
    with pytest.raises(CheckpointError, match="does not fit the method"):
        train(tmp_path / "run", epochs=1, resume=True)


def test_ctrl_c_gives_the_model_back_unsliced():
    model = make_net()
    with pytest.raises(KeyboardInterrupt):
        fit(model, *make_loaders(), method="rolling", epochs=2, progress=Stop(2, 2))
    assert type(model.conv2) is nn.Conv2d
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
