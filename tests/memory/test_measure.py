"""Measurements against plain loops, hand counts and the rule that nothing of the user's changes."""

import copy
import dataclasses
import hashlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import adabet
from adabet.errors import CheckpointError, OptionError, TrainingError, UnknownNameError
from adabet.memory import MemoryReport, Peak, measure_memory, measure_peak

FLOAT = 4
SAMPLES = 8


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6(inplace=True)),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.Hardswish()),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.Sequential(nn.Linear(100, 16), nn.Unflatten(1, (1, 16)), layer, nn.Flatten(), nn.Linear(16, 10))


class Checkpointed(nn.Module):
    """Two blocks that run again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(100, 100), nn.GELU()) for _ in range(2))
        self.head = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (100,)),
    "convolutional": (convolutional, (3, 20, 20)),
    "attention": (attention, (100,)),
    "checkpointed": (Checkpointed, (100,)),
}


def case(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    build, shape = NETS[name]
    return build(), (torch.randn(SAMPLES, *shape), torch.randint(10, (SAMPLES,)))


def plain_loop(model: nn.Module, batch: tuple[Tensor, Tensor], steps: int = 2) -> None:
    """Training as anybody writes it."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    for _ in range(steps):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("frozen", [(), ("0.", "1.")], ids=["all", "last"])
@pytest.mark.parametrize("name", NETS)
def test_the_peak_is_that_of_a_plain_loop(name: str, frozen: tuple[str, ...]) -> None:
    model, batch = case(name)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(not parameter_name.startswith(frozen or "-"))
    twin = copy.deepcopy(model)
    report = measure_memory(model, batch, lean=False)
    assert report.training.over_weights == measure_peak(lambda: plain_loop(twin, batch))


@pytest.mark.parametrize("name", NETS)
def test_inference_is_a_plain_forward_pass(name: str) -> None:
    model, batch = case(name)
    twin = copy.deepcopy(model).eval()

    def forward() -> Tensor:
        with torch.no_grad():
            output: Tensor = twin(batch[0])
        return output

    report = measure_memory(model, batch, lean=False)
    assert report.inference is not None
    assert report.inference.over_weights == report.inference.workspace == measure_peak(forward)
    assert report.inference.total == report.inference.workspace + report.training.weights + report.training.inputs
    assert measure_memory(model, batch, lean=False, inference=False).inference is None


def test_categories_counted_by_hand() -> None:
    model, batch = case("perceptron")
    report = measure_memory(model, batch, lean=False)
    weights = FLOAT * (100 * 50 + 50 + 50 * 10 + 10)
    assert report.training.weights == weights
    assert report.training.inputs == SAMPLES * 100 * FLOAT + SAMPLES * 8
    # At the peak, when the optimizer steps, gradients are whole and activations are gone.
    assert report.training.gradients == report.training.optimizer == weights
    assert report.training.saved == 0
    # ReLU's result, which the second layer saves too; the log-softmax; and the loss's weight, a scalar.
    assert report.layers == {"1": SAMPLES * 50 * FLOAT, "(loss)": SAMPLES * 10 * FLOAT + FLOAT}
    assert report.saved == sum(report.layers.values())
    assert report.trainable == weights // FLOAT


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 0), ("sgd momentum", 1), ("adam", 2), ("adamw", 2)])
def test_the_optimizers_state_of_the_first_step_is_there_in_the_second(optimizer: str, states: int) -> None:
    model, batch = case("perceptron")
    report = measure_memory(model, batch, optimizer=optimizer)
    steps = sum(FLOAT for _ in model.parameters()) if states == 2 else 0
    assert report.training.optimizer == states * report.training.weights + steps
    assert report.optimizer == optimizer


def test_an_optimizer_of_the_users_gets_what_trains() -> None:
    model, batch = case("perceptron")
    model[0].requires_grad_(False)
    seen: list[Any] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        seen.extend(parameters)
        return torch.optim.Adagrad(parameters)

    report = measure_memory(model, batch, optimizer=optimizer)
    assert [id(parameter) for parameter in seen] == [id(parameter) for parameter in model[2].parameters()]
    assert report.optimizer == "optimizer"


@pytest.mark.parametrize("name", NETS)
def test_saved_bytes_are_what_autograd_holds_after_a_forward_pass(name: str) -> None:
    model, batch = case(name)
    outside = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers(), *batch)}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    report = measure_memory(model, batch, lean=False)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(batch[0]), batch[1])
    assert report.saved == sum(size for address, size in held.items() if address not in outside)
    assert set(report.layers) <= {path for path, _ in model.named_modules()} | {"(loss)", "(model)"}
    loss.backward()


def test_only_layers_behind_the_first_trainable_one_hold_anything() -> None:
    model, batch = case("convolutional")
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    report = measure_memory(model.eval(), batch, lean=False)
    assert set(report.layers) == {"6", "(loss)"}


def test_micro_batches_divide_what_is_saved() -> None:
    model, batch = case("convolutional")
    model.eval()
    whole = measure_memory(model, batch)
    half = measure_memory(model, batch, micro_batch=SAMPLES // 2)
    assert half.saved == pytest.approx(whole.saved / 2, rel=0.01)
    assert half.training.total < whole.training.total
    assert half.micro_batch == SAMPLES // 2


def test_lean_saves_no_more_than_stock() -> None:
    model, batch = case("convolutional")
    model.eval()
    model[0].requires_grad_(False)
    lean, stock = (measure_memory(model, batch, lean=mode) for mode in (True, False))
    assert lean.saved < stock.saved
    assert lean.training.total <= stock.training.total


def test_recomputed_blocks_hold_only_their_inputs() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(100, 400), nn.Tanh(), nn.Linear(400, 100)) for _ in range(4)]
    wrapped = [Wrapped(block) for block in blocks]
    model, batch = nn.Sequential(*wrapped, nn.Linear(100, 10)), case("perceptron")[1]
    plain, again = (measure_memory(model, batch, recompute=recompute, lean=False) for recompute in (False, True))
    assert again.recompute
    assert not plain.recompute
    assert {name for name in plain.layers if name.startswith("0.")} == {"0.inner.1"}
    # The first block's input is the batch; the others' are what the block before gave.
    assert plain.saved - again.saved == 4 * SAMPLES * 400 * FLOAT
    assert {name: size for name, size in again.layers.items() if name != "(loss)"} == dict.fromkeys(
        ["1", "2", "3", "4"], SAMPLES * 100 * FLOAT
    )


class Wrapped(nn.Module):
    """A block that is no container."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_mappings_with_labels() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.BertForSequenceClassification(config)
    batch = {"input_ids": torch.randint(30, (4, 6)), "labels": torch.tensor([0, 1, 1, 0])}
    report = measure_memory(model, batch)
    assert report.batch_size == 4
    assert report.training.inputs == 4 * 6 * 8 + 4 * 8
    assert any(name.startswith("bert.encoder.layer.0") for name in report.layers)


def test_a_selection_is_put_on_and_taken_off() -> None:
    model, batch = case("convolutional")
    selection = adabet.select("head", model, [batch], head="6")
    report = measure_memory(model, batch, selection)
    assert report.trainable == 24 * 10 + 10
    assert report.training.optimizer == report.trainable * FLOAT
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert measure_memory(model, batch, selection, micro_batch=2).micro_batch == 2, "batch-norms stay in eval mode"


@pytest.mark.parametrize(
    ("axis", "sliced"), [("out", (3 * 9 + 1) * 8 + (16 * 9 + 1) * 12), ("in", 16 * 9 + 16 + 24 * 8 * 9 + 24)]
)
def test_a_slice_of_channels_costs_the_slice(axis: str, sliced: int) -> None:
    model, batch = case("convolutional")
    everything = adabet.select("random", model, [batch], layer_ratio=1.0, head="6")
    whole = measure_memory(model, batch, everything)
    channels = {"0.0": tuple(range(8 if axis == "out" else 1)), "2.0": tuple(range(12 if axis == "out" else 8))}
    choices = (choice for choice in everything.choices if choice.layer in channels or choice.head)
    selection = dataclasses.replace(
        everything,
        choices=tuple(dataclasses.replace(c, channels=channels.get(c.layer), axis=axis) for c in choices),
    )
    report = measure_memory(model, batch, selection)
    assert report.trainable == sliced + 24 * 10 + 10
    assert report.training.optimizer == report.trainable * FLOAT
    biases = 16 + 24 if axis == "in" else 0
    assert report.training.weights == whole.training.weights + FLOAT * (sliced - biases)


def fingerprint(model: nn.Module) -> str:
    """Everything that somebody could notice."""
    found = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found.update(f"{name} {id(tensor)} {tensor.requires_grad} {tensor.stride()}".encode())
        found.update(tensor.detach().numpy().tobytes())
        found.update(b"" if tensor.grad is None else f"{id(tensor.grad)}".encode() + tensor.grad.numpy().tobytes())
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found.update(f"{name} {module.training} {list(map(len, hooks))}".encode())
    found.update(torch.get_rng_state().numpy().tobytes())
    found.update(repr((random.getstate(), np.random.get_state())).encode())
    return found.hexdigest()


class Restless(nn.Module):
    """Draws from every random state, replaces a buffer, and stores what no buffer should: an infinite gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = convolutional()
        self.scale = nn.Parameter(torch.tensor(-0.0))
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + random.random() + float(np.random.rand())
        return self.inner(x) + self.scale.abs().sqrt() + torch.rand(())


@pytest.mark.parametrize("failure", [None, "loss", "optimizer"])
@pytest.mark.parametrize("chosen", [False, True], ids=["as it stands", "selection"])
@pytest.mark.parametrize("lean", [True, False])
def test_nothing_of_the_users_changes(lean: bool, chosen: bool, failure: str | None) -> None:
    torch.manual_seed(0)
    model = Restless()
    model.inner[0][0].weight.data = model.inner[0][0].weight.to(memory_format=torch.channels_last)
    model.inner[2].eval()
    model.inner[0][1].requires_grad_(False)
    model.inner[6].weight.grad = torch.randn(10, 24)
    batch = torch.randn(SAMPLES, 3, 20, 20), torch.randint(10, (SAMPLES,))

    class Failing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            raise FloatingPointError

    def fail(outputs: Tensor, labels: Tensor) -> Tensor:
        raise FloatingPointError

    selection = adabet.select("head", model, [batch], head="inner.6") if chosen else None
    before = fingerprint(model)
    options: dict[str, Any] = {
        None: {},
        "loss": {"loss": fail},
        "optimizer": {"optimizer": lambda parameters: Failing(parameters, lr=1.0)},
    }[failure]
    if failure:
        with pytest.raises(FloatingPointError):
            measure_memory(model, batch, selection, lean=lean, **options)
    else:
        report = measure_memory(model, batch, selection, lean=lean)
        assert report.training.resident is not None
    assert fingerprint(model) == before


def test_the_same_measurement_gives_the_same_bytes() -> None:
    model, batch = case("convolutional")
    first, second = (measure_memory(model, batch) for _ in range(2))
    assert first.layers == second.layers
    assert first.training.total == second.training.total


def test_a_measurement_does_not_depend_on_those_before_it() -> None:
    """Whose first layer kept the whole batch, where this one keeps a channel of it."""
    model, batch = case("convolutional")
    everything = adabet.select("random", model, [batch], layer_ratio=1.0, head="6")
    choices = [dataclasses.replace(c, channels=(1,), axis="in") for c in everything.choices if c.layer == "0.0"]
    selection = dataclasses.replace(everything, choices=(*choices, *(c for c in everything.choices if c.head)))
    before = measure_memory(model, batch, selection)
    measure_memory(model, batch, everything)
    after = measure_memory(model, batch, selection)
    assert after.layers == before.layers
    assert after.layers["0.0"] == batch[0][:, 1].nbytes


def test_json_and_back() -> None:
    model, batch = case("convolutional")
    for report in (measure_memory(model, batch), measure_memory(model, batch, inference=False)):
        assert MemoryReport.from_json(report.to_json()) == report
    with pytest.raises(CheckpointError, match="kind"):
        MemoryReport.from_json("{}")
    with pytest.raises(CheckpointError, match="lacks or misnames"):
        MemoryReport.from_json(report.to_json().replace('"saved"', '"spared"'))


def test_the_text() -> None:
    report = MemoryReport(
        model="Net",
        device="cpu",
        batch_size=8,
        micro_batch=2,
        lean=True,
        recompute=True,
        optimizer="sgd momentum",
        trainable=1234,
        training=Peak(1000, 200, 30, 4, 5_000_000, 60_000, 7_000_000),
        inference=Peak(1000, 200, 0, 0, 0, 50_000, 60_000),
        saved=5_500_000,
        layers={f"block.{number}": number * 100_000 for number in range(1, 11)} | {"(loss)": 64},
    )
    assert str(report) == TEXT
    assert report.training.total == 5_061_234
    assert report.training.over_weights == 5_060_034


TEXT = """\
Net, batch 8 in slices of 2, cpu, lean and recomputing, sgd momentum, 1,234 parameters train

at the peak of           training  inference
weights                      1 kB       1 kB
inputs                      200 B      200 B
gradients                    30 B        0 B
optimizer state               4 B        0 B
saved activations            5 MB        0 B
workspace                   60 kB      50 kB
peak                      5.06 MB    51.2 kB
resident memory rose by      7 MB      60 kB

kept for backward by  5.5 MB
block.10                1 MB
block.9               900 kB
block.8               800 kB
block.7               700 kB
block.6               600 kB
block.5               500 kB
block.4               400 kB
block.3               300 kB
block.2               200 kB
block.1               100 kB
1 more                  64 B"""


def test_what_makes_no_sense() -> None:
    model, batch = case("perceptron")
    with pytest.raises(UnknownNameError, match="did you mean 'adam'"):
        measure_memory(model, batch, optimizer="adamv")
    with pytest.raises(OptionError, match="cpu or cuda device, got meta"):
        measure_memory(model.to("meta"), batch)
    model, batch = case("perceptron")
    with pytest.raises(TrainingError, match="trainable"):
        measure_memory(model.requires_grad_(False), batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NETS)
def test_on_cuda(name: str) -> None:
    model, batch = case(name)
    report = measure_memory(model.cuda(), batch, lean=False)
    batch = batch[0].cuda(), batch[1].cuda()
    assert report.training.workspace >= 0
    plain = measure_peak(lambda: plain_loop(model, batch), device="cuda")
    assert report.training.over_weights == pytest.approx(plain, rel=0.01)
