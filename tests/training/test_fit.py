"""`fit` from the first step to the result: what moves, what is kept, what is refused."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from adabet.errors import DataError, LayerError, OptionError, SelectionError, StorageError, TrainingError
from adabet.memory import MemoryReport
from adabet.methods import select
from adabet.planning import Plan
from adabet.selection import Selection
from adabet.training import EpochRecord, FitResult, evaluate, fit, load_delta
from adabet.training.optimizer import SGDW
from tests.training.nets import choose_last, make_data, make_loaders, make_net, same, weights_of

FAST = {"lr": 0.05, "epochs": 3, "batch_norm": "train"}


class Listener:
    """Progress that notes every call."""

    def __init__(self):
        self.calls = []

    def start(self, *, epochs, first_epoch, steps):
        self.calls.append(("start", epochs, first_epoch, steps))

    def step(self, *, epoch, step, loss):
        assert math.isfinite(loss)
        self.calls.append(("step", epoch, step))

    def epoch(self, record: EpochRecord):
        self.calls.append(("epoch", record.epoch))

    def stop(self):
        self.calls.append(("stop",))


def test_it_learns_and_moves_only_what_was_selected():
    model = make_net()
    before = weights_of(model)
    loaders = make_loaders()
    loss = evaluate(model, loaders[1])["loss"]
    selection = choose_last(model)
    result = fit(model, *loaders, selection, lr=0.05, epochs=6, batch_norm="train")
    assert evaluate(model, loaders[1])["loss"] < 0.8 * loss
    after = weights_of(model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    buffers = {f"norm2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved == {*selection.parameters, *buffers}
    assert result.layers == (*selection.layers, "head")
    assert result.trained_parameters == selection.parameter_count
    assert result.model_parameters == 732


def test_by_default_no_batch_norm_changes_its_statistics():
    model = make_net()
    before = weights_of(model)
    fit(model, *make_loaders(), choose_last(model), lr=0.05, epochs=1)
    after = weights_of(model)
    assert torch.equal(after["norm2.running_mean"], before["norm2.running_mean"])
    assert not torch.equal(after["norm2.weight"], before["norm2.weight"])


def test_the_model_is_given_back_as_it_was():
    model = make_net().train()
    model.norm1.eval()
    model.conv1.weight.requires_grad_(False)
    fit(model, *make_loaders(), choose_last(model), **FAST)
    assert model.training
    assert model.norm2.training
    assert not model.norm1.training
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == {"conv1.weight"}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_same_seed_gives_the_same_weights_whatever_else_was_drawn():
    finals = []
    for drawn, seed in ((0, 3), (5, 3), (0, 4)):
        torch.rand(drawn)
        model = make_net()
        fit(model, *make_loaders(), choose_last(model), **FAST, seed=seed)
        finals.append(weights_of(model))
    assert same(finals[0], finals[1])
    assert not same(finals[0], finals[2])


def test_a_run_folder_changes_nothing_in_the_weights(tmp_path):
    """Measuring memory and writing files draw nothing from the run's generators."""
    finals = []
    for folder in (None, tmp_path / "run"):
        model = make_net()
        fit(model, *make_loaders(), **FAST, run_dir=folder, method="random", layer_ratio=0.5)
        finals.append(weights_of(model))
    assert same(*finals)


def test_what_a_run_folder_holds(tmp_path):
    model = make_net()
    result = fit(model, *make_loaders(), choose_last(model), **FAST, keep="last", run_dir=tmp_path / "run")
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "selection.json",
        "memory.json",
        "metrics.jsonl",
        "checkpoint.safetensors",
        "best.safetensors",
        "last.safetensors",
        "result.json",
    }
    assert Selection.from_json((folder / "selection.json").read_text()) == choose_last(model)
    assert FitResult.from_json((folder / "result.json").read_text()) == result
    memory = MemoryReport.from_json((folder / "memory.json").read_text())
    assert memory.trainable == result.trained_parameters
    assert memory.training.total > memory.training.weights == 4 * (732 + 2 * 16) + 2 * 8
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [EpochRecord.from_dict(line) for line in lines] == list(result.history)
    assert set(lines[0]) >= {"epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds"}
    options = json.loads((folder / "config.json").read_text())["options"]
    assert options["lr"] == 0.05
    assert options["batch_size"] == 8
    adapted = make_net()
    load_delta(adapted, folder / "last.safetensors")
    assert same(weights_of(adapted), weights_of(model))


def spoil_last_epoch(step: int, steps: int) -> float:
    """Uphill in the last of four epochs."""
    return 1.0 if step < steps * 3 // 4 else -2.0


@pytest.mark.parametrize("with_folder", [False, True])
def test_the_best_epochs_weights_are_kept(tmp_path, with_folder):
    options = {**FAST, "epochs": 4, "schedule": spoil_last_epoch}
    model, last = make_net(), make_net()
    loaders = make_loaders()
    result = fit(model, *loaders, choose_last(model), **options, run_dir=tmp_path / "r" if with_folder else None)
    assert result.best.epoch < 4
    assert result.kept == "best"
    measured = evaluate(model, loaders[1])
    assert measured["accuracy"] == result.best.val_metrics["accuracy"] > result.last.val_metrics["accuracy"]
    assert measured["loss"] == pytest.approx(result.best.val_loss)
    fit(last, *make_loaders(), choose_last(last), **options, keep="last")
    assert evaluate(last, loaders[1])["loss"] == pytest.approx(result.last.val_loss)


def test_without_validation_the_last_weights_are_kept():
    model = make_net()
    result = fit(model, make_loaders()[0], selection=choose_last(model), **FAST)
    assert result.kept == "last"
    assert result.monitor == "loss"
    assert result.last.val_loss is None
    assert result.last.val_metrics == {}


def test_early_stop_counts_epochs_without_a_better_one():
    model, listener = make_net(), Listener()
    result = fit(model, *make_loaders(), choose_last(model), lr=0.0, epochs=9, early_stop=2, progress=listener)
    assert result.stopped_early
    assert [record.epoch for record in result.history] == [1, 2, 3]
    assert "stopped early: accuracy did not improve after epoch 1" in str(result)


def test_progress_hears_everything_in_order():
    model, listener = make_net(), Listener()
    fit(model, *make_loaders(), choose_last(model), epochs=2, progress=listener)
    steps = [[("step", epoch, step) for step in range(1, 7)] for epoch in (1, 2)]
    expected = [("start", 2, 1, 6), *steps[0], ("epoch", 1), *steps[1], ("epoch", 2), ("stop",)]
    assert listener.calls == expected


def test_the_learning_rate_follows_the_cosine_step_by_step():
    seen = []

    class Noting(SGDW):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    model = make_net()
    result = fit(model, *make_loaders(), choose_last(model), epochs=2, optimizer=lambda params: Noting(params, lr=0.5))
    assert seen == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 12)) for step in range(12)])
    assert [record.learning_rate for record in result.history] == [seen[5], seen[11]]


def test_the_head_learns_at_its_own_rate():
    moved = []
    for options in ({}, {"head_lr_factor": 10.0}):
        model = make_net()
        model.drop.p = 0.0
        before = weights_of(model)
        loader = [next(iter(DataLoader(make_data(), 8)))]  # one step
        result = fit(model, loader, None, choose_last(model), lr=0.01, epochs=1, optimizer="sgd", **options)
        assert result.last.learning_rate == pytest.approx(0.01)
        moved.append({name: after - before[name] for name, after in weights_of(model).items()})
    assert moved[0]["head.weight"].any()
    assert moved[0]["conv2.weight"].any()
    for name in moved[0]:
        factor = 10 if name.startswith("head") else 1
        torch.testing.assert_close(moved[1][name], factor * moved[0][name], atol=1e-6, rtol=1e-3)


def test_slices_of_a_batch_give_the_whole_batchs_step():
    finals = []
    for micro_batch in (None, 3):
        model = make_net()
        model.drop.p = 0.0
        fit(model, *make_loaders(), choose_last(model), lr=0.05, epochs=1, micro_batch=micro_batch)
        finals.append(weights_of(model))
    for name in finals[0]:
        torch.testing.assert_close(finals[0][name], finals[1][name])


def test_a_plan_says_how_to_train():
    seen = []
    model = make_net()
    model.drop.p = 0.0
    plain, loaders = make_net(), make_loaders()
    plain.drop.p = 0.0
    selection = choose_last(model)
    plan = Plan(selection, 3, 8, False, 10**6, 1, 1, "sgd momentum", 10**6)
    handle = model.head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    fit(model, *loaders, plan, lr=0.05, epochs=1)
    handle.remove()
    assert max(seen) == 3
    fit(plain, *make_loaders(), selection, lr=0.05, epochs=1, micro_batch=3)
    assert same(weights_of(model), weights_of(plain))
    with pytest.raises(OptionError, match="expected a plan without micro_batch, recompute, lean"):
        fit(model, *loaders, plan, micro_batch=2)


@pytest.mark.parametrize("way", [{"lean": False}, {"batch_norm": "train"}])
def test_a_budget_is_kept_in_the_way_that_it_was_measured(way):
    with pytest.raises(OptionError, match="expected lean and batch_norm='eval' with memory"):
        fit(make_net(), *make_loaders(), memory="10MB", **way)


def test_lean_and_stock_autograd_train_alike():
    finals = []
    for lean in (True, False):
        model = make_net()
        fit(model, *make_loaders(), choose_last(model), **FAST, lean=lean)
        finals.append(weights_of(model))
    for name in finals[0]:
        torch.testing.assert_close(finals[0][name], finals[1][name])


def test_a_method_chooses_when_there_is_no_selection(tmp_path):
    model = make_net()
    result = fit(
        model,
        *make_loaders(),
        method="size",
        layer_ratio=0.25,
        method_options={"tie_norm": True},
        epochs=1,
        run_dir=tmp_path / "run",
    )
    expected = select("size", make_net(), make_loaders()[0], layer_ratio=0.25, tie_norm=True)
    assert result.method == "size"
    assert result.layers == (*expected.layers, "head")


def test_only_some_channels_train():
    model = make_net()
    before = weights_of(model)
    loaders = make_loaders()
    options = {"method": "adabet", "layer_ratio": 1.0, "channel_ratio": 0.25}
    result = fit(model, *loaders, **options, lr=0.05, epochs=2)
    after = weights_of(model)
    assert after.keys() == before.keys()
    changed = (after["conv2.weight"] != before["conv2.weight"]).flatten(1).any(1)
    assert int(changed.sum()) == 2
    assert result.trained_parameters < 732 / 2


def test_channels_and_a_run_folder(tmp_path):
    """The deltas, the checkpoint and the best weights are of full size."""
    options = {"layer_ratio": 1.0, "channel_ratio": 0.25, "lr": 0.05, "epochs": 4, "schedule": spoil_last_epoch}
    plain, model = make_net(), make_net()
    fit(plain, *make_loaders(), **options)
    result = fit(model, *make_loaders(), **options, run_dir=tmp_path / "run")
    assert result.best != result.last
    assert same(weights_of(model), weights_of(plain))
    adapted = make_net()
    load_delta(adapted, tmp_path / "run" / "best.safetensors")
    assert same(weights_of(adapted), weights_of(model))


def test_batches_that_are_mappings_and_a_model_that_computes_its_loss():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, features, labels=None):
            logits = self.head(torch.relu(self.body(features)))
            return {"loss": None if labels is None else F.cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    features = torch.randn(40, 6)
    labels = features[:, :3].argmax(1)
    batches = [
        {"features": features[start : start + 8], "labels": labels[start : start + 8]} for start in range(0, 40, 8)
    ]
    model = WithLoss()
    result = fit(model, batches, batches, method="full", lr=0.3, epochs=10)
    assert result.best.val_metrics["accuracy"] > 0.8


def test_regression_is_monitored_by_its_loss():
    torch.manual_seed(0)
    features = torch.randn(32, 4)
    batches = [(features[start : start + 8], features[start : start + 8, :2] * 2) for start in range(0, 32, 8)]
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    result = fit(model, batches, batches, method="full", loss=F.mse_loss, lr=0.05, epochs=5, monitor=None)
    assert result.monitor == "loss"
    assert result.best.val_loss == min(record.val_loss for record in result.history)
    assert result.best.val_metrics == {}


def test_a_metric_of_the_users_says_what_is_best():
    scores = iter([0.1, 0.9, 0.5])
    model = make_net()
    data = make_data(8, seed=2)
    result = fit(
        model,
        make_loaders()[0],
        DataLoader(data, 8),
        choose_last(model),
        **FAST,
        metrics={"made_up": lambda logits, labels: next(scores)},
        monitor="made_up",
    )
    assert result.best.epoch == 2
    assert result.monitor == "made_up"


def test_a_loss_that_is_not_finite_names_epoch_and_step(tmp_path):
    model, listener = make_net(), Listener()
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    kept = []

    def loss(outputs, labels):
        steps = sum(call[0] == "step" for call in listener.calls)
        if steps == 6 and not kept and outputs.requires_grad:
            kept.append(checkpoint.read_bytes())
        return F.cross_entropy(outputs, labels) * (float("nan") if steps == 8 and outputs.requires_grad else 1)

    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 2, step 3; lower lr"):
        fit(model, *make_loaders(), choose_last(model), **FAST, loss=loss, run_dir=tmp_path / "run", progress=listener)
    assert checkpoint.read_bytes() == kept[0]
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert listener.calls[-1] == ("stop",)


def test_a_validation_loss_that_is_not_finite(tmp_path):
    model = make_net()

    def loss(outputs, labels):
        return F.cross_entropy(outputs, labels) / (1 if outputs.requires_grad else 0)

    with pytest.raises(TrainingError, match="the validation loss became inf in epoch 1"):
        fit(model, *make_loaders(), choose_last(model), **FAST, loss=loss)


def test_labels_out_of_range():
    model = make_net()
    batches = [(torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 7]))]
    with pytest.raises(DataError, match=r"expected labels from 0 to 3, .* got 7; build the model with as many"):
        fit(model, batches, selection=choose_last(model), **FAST)


def test_loaders_that_cannot_be_used():
    model = make_net()
    selection = choose_last(model)
    train_loader, val_loader = make_loaders()
    with pytest.raises(DataError, match="the training loader is empty"):
        fit(model, [], val_loader, selection)
    with pytest.raises(DataError, match="the validation loader is empty"):
        fit(model, train_loader, [], selection)
    with pytest.raises(DataError, match="the training loader can be iterated once only"):
        fit(model, iter(train_loader), val_loader, selection)


class Stream(IterableDataset):
    """Samples without a known number; none at all in some epochs."""

    def __init__(self, counts):
        self.counts = iter(counts)

    def __iter__(self):
        data = make_data(next(self.counts))
        return iter([data[index] for index in range(len(data))])


def test_a_loader_without_a_length_needs_a_constant_rate():
    model = make_net()
    selection = choose_last(model)
    with pytest.raises(OptionError, match="expected a training loader with a length"):
        fit(model, DataLoader(Stream([9, 9]), 4), selection=selection, epochs=2)
    result = fit(model, DataLoader(Stream([9, 9]), 4), selection=selection, epochs=2, schedule="constant")
    assert len(result.history) == 2


def test_a_loader_that_runs_dry():
    model = make_net()
    loader = DataLoader(Stream([9, 0]), 4)
    with pytest.raises(DataError, match="expected training batches, the loader gave none in epoch 2"):
        fit(model, loader, selection=choose_last(model), epochs=2, schedule="constant")


def test_batches_of_unequal_keys():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def forward(self, images, mask=None):
            return self.net(images)

    model = Keywords()
    images, labels = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 3])
    batches = [{"images": images, "labels": labels}, {"images": images, "mask": images, "labels": labels}]
    with pytest.raises(DataError, match="expected every training batch to have the keys images, labels; number 2"):
        fit(model, batches, method="full", epochs=1)


def test_nothing_to_train():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 4))
    selection = select("full", model, [torch.zeros(2, 1, 6, 6)], head=None)
    selection = dataclasses.replace(selection, choices=())
    with pytest.raises(LayerError, match="the selection leaves nothing to train"):
        fit(model, make_loaders()[0], selection=selection)


def test_a_selection_for_another_model():
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 4))
    with pytest.raises(SelectionError, match="was made for another model"):
        fit(other, make_loaders()[0], selection=choose_last(make_net()))


def test_a_run_that_never_started_leaves_no_folder(tmp_path):
    """So that the corrected call can use the same one."""
    batches = [(torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 7]))]
    for options in ({"epochs": 0}, {"micro_batch": 0}, {"train_loader": batches}):
        model = make_net()
        arguments = {"train_loader": make_loaders()[0], "selection": choose_last(model), **options}
        with pytest.raises((OptionError, DataError)):
            fit(model, **arguments, run_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "expected at least 1 epoch, got 0"),
        ({"early_stop": 0}, "expected early_stop of at least 1 epoch, with a val_loader; got 0"),
        ({"keep": "first"}, "expected keep to be 'best' or 'last', got 'first'"),
        ({"resume": True}, "expected run_dir, the folder of the run to resume"),
        ({"mixed_precision": "fp8"}, "expected mixed_precision to be 'no', 'fp16' or 'bf16', got 'fp8'"),
        ({"optimizer": "sgdd"}, "unknown optimizer 'sgdd'; did you mean 'sgd"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"lr": -1.0}, "expected lr to be a number from 0 up"),
        ({"head_lr_factor": math.inf}, "expected head_lr_factor to be a number above 0, got inf"),
        ({"micro_batch": 0}, "expected micro_batch of at least 1 sample, got 0"),
        ({"batch_norm": "frozen"}, "expected batch_norm to be 'eval' or 'train', got 'frozen'"),
        ({"monitor": "f1"}, "expected monitor to be one of loss, accuracy; got 'f1'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    model = make_net()
    with pytest.raises((OptionError, LookupError), match=message):
        fit(model, *make_loaders(), choose_last(model), **options)


def test_a_disk_that_fills_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    model, listener = make_net(), Listener()
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    import safetensors.torch

    save_file, written = safetensors.torch.save_file, []

    def full(tensors, path, metadata=None):
        if "checkpoint" in path.name:
            written.append(checkpoint.read_bytes() if checkpoint.exists() else b"")
            if len(written) == 3:
                path.write_bytes(b"half a fil")
                raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(StorageError, match="No space left on device; the file that stood there is whole"):
        fit(model, *make_loaders(), choose_last(model), **FAST, run_dir=tmp_path / "run", progress=listener)
    assert ("epoch", 1) in listener.calls
    assert ("epoch", 2) not in listener.calls
    assert checkpoint.read_bytes() == written[2] != b""
    assert not list((tmp_path / "run").glob(".*"))

    monkeypatch.undo()
    whole, resumed = make_net(), make_net()
    fit(whole, *make_loaders(), choose_last(whole), **FAST)
    fit(resumed, *make_loaders(), choose_last(resumed), **FAST, run_dir=tmp_path / "run", resume=True)
    assert same(weights_of(whole), weights_of(resumed))


def test_a_run_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    model = make_net()
    with pytest.raises(StorageError, match="could not make the run folder"):
        fit(model, *make_loaders(), choose_last(model), run_dir=tmp_path / "file" / "run")
