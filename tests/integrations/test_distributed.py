"""Several processes: torchrun starts this very file twice, and what the two did is compared with one process."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import adabet
from adabet.errors import AdabetError, BudgetError, OptionError
from adabet.integrations.distributed import average_gradients, choose_once
from adabet.step import train_step
from tests.training.nets import make_data, make_net

STEPS, PROCESSES = 3, 2
IMAGES, LABELS = make_data(8).tensors
CLOSE = {"atol": 1e-6, "rtol": 1e-5}
"""Sums of float32 in another order."""


def net(seed=0):
    model = make_net(seed)
    model.drop.p = 0.0
    return model


def selection_of(model, kind="layers"):
    if kind == "channels":
        return adabet.rank(model, [IMAGES], channels=0.6).select(layer_ratio=0.5, channel_ratio=0.5)
    return adabet.select("last-k" if kind == "layers" else kind, model, [IMAGES], layer_ratio=0.5)


def optimizer_of(model):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.01)


def one_process(kinds=("layers",) * STEPS):
    """The whole batch in stock autograd; momentum starts anew with each selection."""
    model = net()
    for index, kind in enumerate(kinds):
        if index == 0 or kind != kinds[index - 1]:
            if index:
                applied.restore()  # noqa: F821 - of the turn before
            applied = adabet.apply(model, selection_of(net(), kind))
            optimizer = optimizer_of(model)
        model.train()
        F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
        optimizer.zero_grad()
    applied.restore()
    return model.state_dict()


# What each process does; the name of a function is that of its case.


def mine():
    start = dist.get_rank() * len(IMAGES) // PROCESSES
    return IMAGES[start : start + len(IMAGES) // PROCESSES], LABELS[start : start + len(IMAGES) // PROCESSES]


def lean_step(model, optimizer):
    images, labels = mine()
    with adabet.lean():
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def in_ddp(kind):
    model = net()
    applied = adabet.apply(model, selection_of(model, kind))
    model.train()
    wrapped, optimizer = DistributedDataParallel(model), optimizer_of(model)
    for _ in range(STEPS):
        lean_step(wrapped, optimizer)
    applied.restore()
    return model.state_dict()


def ddp():
    return in_ddp("layers")


def ddp_channels():
    return in_ddp("channels")


def ddp_micro_batches():
    model = net()
    adabet.apply(model, selection_of(model))
    model.train()
    wrapped, optimizer = DistributedDataParallel(model), optimizer_of(model)
    waits = []

    class NoSync:
        def __enter__(self):
            waits.append(1)
            self.inner = wrapped.no_sync()
            return self.inner.__enter__()

        def __exit__(self, *error):
            return self.inner.__exit__(*error)

    for _ in range(STEPS):
        train_step(wrapped, mine(), micro_batch=1, accumulating=NoSync)
        optimizer.step()
        optimizer.zero_grad()
    assert len(waits) == STEPS * (len(IMAGES) // PROCESSES - 1)
    return model.state_dict()


def accelerate_prepare():
    accelerator = Accelerator(cpu=True)
    model = net()
    adabet.apply(model, choose_once(lambda: selection_of(model)))
    model.train()
    loader = DataLoader(TensorDataset(IMAGES, LABELS), len(IMAGES) // PROCESSES)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer_of(model), loader)
    assert isinstance(wrapped, DistributedDataParallel)
    for _ in range(STEPS):
        for images, labels in loader:
            with adabet.lean():
                loss = F.cross_entropy(wrapped(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


CHANGES = ("layers", "head", "full")


def without_wrapper():
    model = net()
    for kind in CHANGES:
        with adabet.apply(model, choose_once(lambda kind=kind: selection_of(model, kind))):
            model.train()
            images, labels = mine()
            with adabet.lean():
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            average_gradients(model.parameters())
            optimizer = optimizer_of(model)
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def gathered(model):
    whole = {name: getattr(tensor, "full_tensor", lambda t=tensor: t)() for name, tensor in model.state_dict().items()}
    return {name: tensor.detach() for name, tensor in whole.items()}


def sharded_model(model):
    mesh = dist.device_mesh.init_device_mesh("cpu", (PROCESSES,))
    for part in (model.conv1, model.norm1, model.conv2, model.head):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return fully_shard(model, mesh=mesh)


def sharded():
    """The first selection is applied before the model is split, the others after."""
    model = net()
    selections = [selection_of(model, kind) for kind in CHANGES]
    applied = adabet.apply(model, selections[0])
    sharded_model(model)
    for index, selection in enumerate(selections):
        if index:
            applied.restore()
            applied = adabet.apply(model, selection)
        model.train()
        lean_step(model, optimizer_of(model))
    return gathered(model)


def fsdp1():
    model = net()
    adabet.apply(model, selection_of(model))
    model.train()
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = optimizer_of(model)
    for _ in range(STEPS):
        lean_step(wrapped, optimizer)
    with FullyShardedDataParallel.summon_full_params(wrapped):
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def fit():
    model = net(seed=dist.get_rank())
    loader = DataLoader(TensorDataset(IMAGES, LABELS), len(IMAGES) // PROCESSES)
    adabet.fit(model, loader, method="last-k", layer_ratio=0.5, lr=0.1, epochs=STEPS, accelerator=Accelerator(cpu=True))
    return model.state_dict()


TRAINING = (ddp, ddp_channels, ddp_micro_batches, accelerate_prepare, without_wrapper, sharded, fsdp1, fit)


def chosen():
    """Of models that differ, by seeds that differ; draws random numbers while it chooses."""
    rank = dist.get_rank()
    model = net(seed=rank)
    torch.manual_seed(7)
    selection = choose_once(
        lambda: (torch.rand(3), adabet.select("random", model, [IMAGES], layer_ratio=0.5, seed=40 + rank))[1]
    )
    after = torch.rand(1).item()
    ranking = choose_once(lambda: adabet.rank(model, [IMAGES]))
    planned = choose_once(lambda: adabet.plan(model, [(IMAGES, LABELS)], memory="1MB"))
    return [selection.to_json(), ranking.to_json(), planned.to_json(), after]


def error_of(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None


def errors():
    def runs_out():
        return adabet.plan(net(), [(IMAGES, LABELS)], memory="1kB")

    def is_unknown():
        return adabet.select("adabett", net(), [IMAGES])

    def breaks():
        raise ZeroDivisionError("by a user's own code")

    def gives_something_else():
        return 3

    model = net()
    wrapped = DistributedDataParallel(model)
    split = sharded_model(net())
    return {
        "budget": error_of(lambda: choose_once(runs_out)),
        "unknown": error_of(lambda: choose_once(is_unknown)),
        "other": error_of(lambda: choose_once(breaks)),
        "type": error_of(lambda: choose_once(gives_something_else)),
        "again": choose_once(lambda: selection_of(net(), "head")).to_json(),
        "apply": error_of(lambda: adabet.apply(wrapped, selection_of(model))),
        "fit": error_of(lambda: adabet.fit(wrapped, [(IMAGES, LABELS)])),
        "fit sharded": error_of(lambda: adabet.fit(split, [(IMAGES, LABELS)], selection=selection_of(net()))),
        "delta": error_of(lambda: adabet.save_delta(split, selection_of(net()), "never-written")),
        "channels": error_of(lambda: adabet.apply(split, selection_of(net(), "channels"))),
    }


def main(folder):
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    for case in TRAINING:
        save_file({name: tensor.contiguous() for name, tensor in case().items()}, folder / f"{case.__name__}{rank}")
    for case in (chosen, errors):
        (folder / f"{case.__name__}{rank}").write_text(json.dumps(case()))
    dist.destroy_process_group()


# What they have to have done.

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The folder in which both processes have written what they did."""
    folder = tmp_path_factory.mktemp("processes")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    done = subprocess.run(
        [*command, "-m", "tests.integrations.test_distributed", str(folder)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


def read(folder, case):
    return [json.loads((folder / f"{case}{rank}").read_text()) for rank in range(PROCESSES)]


@pytest.mark.parametrize("case", [case.__name__ for case in TRAINING])
def test_two_processes_train_as_one_with_the_whole_batch(outcome, case):
    first, second = (load_file(outcome / f"{case}{rank}") for rank in range(PROCESSES))
    if case == "fit":
        model = net()
        loader = DataLoader(TensorDataset(IMAGES, LABELS), len(IMAGES))
        adabet.fit(model, loader, method="last-k", layer_ratio=0.5, lr=0.1, epochs=STEPS)
        expected = model.state_dict()
    else:
        changing = CHANGES if case in ("without_wrapper", "sharded") else ("layers",) * STEPS
        expected = one_process(("channels",) * STEPS if case == "ddp_channels" else changing)
    before = net().state_dict()
    assert first.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
        torch.testing.assert_close(first[name], tensor, **CLOSE)
        assert torch.equal(first[name], before[name]) == torch.equal(tensor, before[name]), f"{name} moved, or did not"
    assert any(not torch.equal(first[name], before[name]) for name in before)


class TestChooseOnce:
    def test_gives_every_process_what_the_main_one_chose(self, outcome):
        first, second = read(outcome, "chosen")
        assert first[:3] == second[:3]
        expected = adabet.select("random", net(), [IMAGES], layer_ratio=0.5, seed=40)
        assert adabet.Selection.from_json(first[0]) == expected
        assert expected != adabet.select("random", net(), [IMAGES], layer_ratio=0.5, seed=41), "the test must tell"

    def test_leaves_the_random_generators_in_step(self, outcome):
        first, second = read(outcome, "chosen")
        assert first[3] == second[3]

    @pytest.mark.parametrize(
        ("case", "kind", "text"),
        [("budget", "BudgetError", "smallest|head"), ("unknown", "UnknownNameError", "did you mean 'adabet'")],
    )
    def test_an_error_reaches_all_as_itself(self, outcome, case, kind, text):
        first, second = (errors[case] for errors in read(outcome, "errors"))
        assert first == second
        assert first[0] == kind
        assert any(word in first[1] for word in text.split("|"))

    def test_an_error_of_other_code_is_named_in_the_others(self, outcome):
        first, second = (errors["other"] for errors in read(outcome, "errors"))
        assert first == ["ZeroDivisionError", "by a user's own code"]
        text = "choosing failed in the main process: ZeroDivisionError: by a user's own code"
        assert second == ["SelectionError", text]

    def test_what_cannot_be_sent_is_refused_everywhere(self, outcome):
        first, second = (errors["type"] for errors in read(outcome, "errors"))
        assert first == second == ["OptionError", "expected choose to give a Selection, a Ranking or a Plan, got int"]

    def test_works_again_after_errors(self, outcome):
        first, second = (errors["again"] for errors in read(outcome, "errors"))
        assert first == second == selection_of(net(), "head").to_json()

    def test_alone_is_the_call_itself(self):
        model = net()
        assert choose_once(lambda: selection_of(model)) == selection_of(model)
        with pytest.raises(BudgetError):
            choose_once(lambda: adabet.plan(model, [(IMAGES, LABELS)], memory="1kB"))

    def test_processes_that_are_not_connected_are_refused(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(OptionError, match=r"expected 2 connected processes .*init_process_group"):
            choose_once(lambda: selection_of(net()))
        with pytest.raises(OptionError, match="2 connected processes"):
            average_gradients([])


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("apply", "expected the model itself, got DistributedDataParallel: give adabet its .module"),
        ("fit", "expected the model itself, got DistributedDataParallel: give adabet its .module"),
        ("fit sharded", "expected a model that this process holds whole, got one that fully_shard has split"),
        ("delta", "expected a model that this process holds whole, got one that fully_shard has split"),
        ("channels", "FSDPConv2d is split over processes by fully_shard"),
    ],
)
def test_what_cannot_work_is_refused(outcome, case, text):
    for errors in read(outcome, "errors"):
        kind, message = errors[case]
        assert message.startswith(text)
        assert issubclass(getattr(adabet.errors, kind), AdabetError)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
