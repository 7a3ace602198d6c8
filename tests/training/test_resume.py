"""A run that was killed ends with the same bits as one that was not."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adabet.errors import CheckpointError, RunError
from adabet.training import fit, load_delta
from adabet.training.checkpoint import read_checkpoint
from tests.training.nets import choose_last, make_data, make_loaders, make_net, same, weights_of
from tests.training.run_and_kill import EPOCHS, KillAt, train


def without_seconds(result):
    return [dataclasses.replace(record, seconds=0) for record in result.history]


@pytest.mark.parametrize("optimizer", ["sgdw", "adamw"])
def test_kill_9_during_epoch_3(tmp_path, optimizer):
    whole, expected = train(tmp_path / "whole", optimizer)
    command = [sys.executable, "-m", "tests.training.run_and_kill", tmp_path / "killed", optimizer, "3", "4"]
    killed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_checkpoint(tmp_path / "killed" / "checkpoint.safetensors").epoch == 2

    resumed, result = train(tmp_path / "killed", optimizer, resume=True)
    assert same(weights_of(resumed), weights_of(whole))
    assert without_seconds(result) == without_seconds(expected)
    assert [record.epoch for record in result.history] == list(range(1, EPOCHS + 1))
    for name in ("best", "last"):
        assert same_delta(tmp_path / "whole" / f"{name}.safetensors", tmp_path / "killed" / f"{name}.safetensors")
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, EPOCHS + 1))


def same_delta(first: Path, second: Path) -> bool:
    models = make_net(), make_net()
    for model, path in zip(models, (first, second), strict=True):
        load_delta(model, path)
    return same(weights_of(models[0]), weights_of(models[1]))


class Crash(BaseException):
    """Stands for a power cut: nothing in adabet catches it."""


def test_a_crash_at_any_write_can_be_resumed(tmp_path, monkeypatch):
    """Stops just before and just after each rename of a run, and goes on from there."""
    whole, expected = train(tmp_path / "whole", "sgdw", epochs=2)
    replace, writes = Path.replace, 0

    def crash_at(limit: int, *, after: bool) -> None:
        nonlocal writes
        writes = 0

        def crashing(self: Path, target: Path) -> Path:
            nonlocal writes
            writes += 1
            if writes == limit and not after:
                raise Crash
            moved = replace(self, target)
            if writes == limit:
                raise Crash
            return moved

        monkeypatch.setattr(Path, "replace", crashing)

    crash_at(0, after=True)
    train(tmp_path / "counted", "sgdw", epochs=2)
    total = writes
    assert total >= 6 + 2 * 2
    # The first write is the config: before it, there is no run to resume.
    for limit, after in [(1, True), *((limit, after) for limit in range(2, total + 1) for after in (False, True))]:
        folder = tmp_path / f"{limit}-{after}"
        crash_at(limit, after=after)
        with pytest.raises(Crash):
            train(folder, "sgdw", epochs=2)
        monkeypatch.setattr(Path, "replace", replace)
        resumed, result = train(folder, "sgdw", epochs=2, resume=True)
        assert same(weights_of(resumed), weights_of(whole)), (limit, after)
        assert without_seconds(result) == without_seconds(expected)
        assert same_delta(folder / "best.safetensors", tmp_path / "whole" / "best.safetensors")
        assert not list(folder.glob(".*"))


class StopAt(KillAt):
    def step(self, *, epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == self.moment:
            raise KeyboardInterrupt


def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path):
    whole, _ = train(tmp_path / "whole", "sgdw")
    with pytest.raises(KeyboardInterrupt, match=r"stopped in epoch 4; .* go on with resume=True"):
        train(tmp_path / "stopped", "sgdw", progress=StopAt(4, 1))
    resumed, _ = train(tmp_path / "stopped", "sgdw", resume=True)
    assert same(weights_of(resumed), weights_of(whole))


def test_ctrl_c_gives_the_model_back_unfrozen(tmp_path):
    model = make_net()
    with pytest.raises(KeyboardInterrupt, match=r"stopped in epoch 1$"):
        fit(model, *make_loaders(), choose_last(model), epochs=2, progress=StopAt(1, 2))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_resuming_a_finished_run_gives_its_result_again(tmp_path):
    whole, expected = train(tmp_path / "run", "sgdw")
    again, result = train(tmp_path / "run", "sgdw", resume=True)
    assert result == expected
    assert same(weights_of(again), weights_of(whole))


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    train(tmp_path / "run", "sgdw")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(RunError, match="already holds a run: resume it, or choose another folder"):
        train(tmp_path / "run", "sgdw")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_resuming_with_other_options_names_them(tmp_path):
    train(tmp_path / "run", "sgdw")
    with pytest.raises(RunError, match=r"other options: optimizer \('sgdw' then, 'adam' now\);"):
        train(tmp_path / "run", "adam", resume=True)
    model = make_net()
    with pytest.raises(RunError, match=r"batch_norm .* epochs \(5 then, 9 now\), keep .*, lr \(0.05 then, 0.001 now\)"):
        fit(model, *make_loaders(), choose_last(model), epochs=9, run_dir=tmp_path / "run", resume=True)
    with pytest.raises(RunError, match=r"batch_size .* selection .* train_batches"):
        fit(
            model,
            *make_loaders(batch_size=4),
            choose_last(model, 0.2),
            batch_norm="train",
            lr=0.05,
            epochs=EPOCHS,
            keep="last",
            run_dir=tmp_path / "run",
            resume=True,
        )


def test_no_run_to_resume(tmp_path):
    with pytest.raises(RunError, match=r"expected a run to resume in .*; it has no config.json"):
        train(tmp_path / "run", "sgdw", resume=True)


def resume_after_two_epochs(folder: Path, model=None):
    """Stop a run in epoch 3, and go on with it on another model."""
    if not folder.exists():
        with pytest.raises(KeyboardInterrupt):
            train(folder, "sgdw", progress=StopAt(3, 1))
    model = model or make_net()
    fit(
        model,
        *make_loaders(),
        choose_last(model),
        batch_norm="train",
        lr=0.05,
        epochs=EPOCHS,
        keep="last",
        run_dir=folder,
        resume=True,
    )


def test_a_truncated_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", "sgdw", progress=StopAt(3, 1))
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is not a whole file of tensors"):
        resume_after_two_epochs(tmp_path / "run")


def test_a_delta_in_the_place_of_a_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", "sgdw", progress=StopAt(3, 1))
    folder = tmp_path / "run"
    (folder / "checkpoint.safetensors").write_bytes((folder / "best.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="expected a file of kind 'adabet/checkpoint', got 'adabet/delta'"):
        resume_after_two_epochs(folder)


def test_a_config_that_is_damaged(tmp_path):
    train(tmp_path / "run", "sgdw")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not the config of a run"):
        train(tmp_path / "run", "sgdw", resume=True)


def test_other_base_weights_are_noticed_and_nothing_changes(tmp_path):
    other = make_net(seed=9)
    before = weights_of(other)
    with pytest.raises(CheckpointError, match="was made on other base weights"):
        resume_after_two_epochs(tmp_path / "run", other)
    assert same(weights_of(other), before)


def test_loaders_with_other_generators_are_noticed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", "sgdw", progress=StopAt(3, 1))
    model, (train_loader, _) = make_net(), make_loaders()
    unshuffled = torch.utils.data.DataLoader(make_data(30, seed=2), 16)
    with pytest.raises(CheckpointError, match="loaders had 1 random generators of their own, these have 0"):
        fit(
            model,
            train_loader,
            unshuffled,
            choose_last(model),
            batch_norm="train",
            lr=0.05,
            epochs=EPOCHS,
            keep="last",
            run_dir=tmp_path / "run",
            resume=True,
        )
