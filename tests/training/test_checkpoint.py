"""Checkpoints hold nested state without pickle."""

import dataclasses

import pytest
import torch

from adabet.errors import CheckpointError
from adabet.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from adabet.training.nested import flatten, unflatten
from adabet.training.random_state import capture_random_state
from adabet.training.result import EpochRecord

CPU = torch.device("cpu")


def make_checkpoint() -> Checkpoint:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.8, 0.9))
    weight.grad = torch.randn(3, 2)
    optimizer.step()
    return Checkpoint(
        epoch=2,
        history=(
            EpochRecord(1, 0.5, 0.4, {"accuracy": 0.5, "f1": 0.1}, 0.1, 1.5, None),
            EpochRecord(2, 0.4, None, {}, 0.05, 1.25, 1234),
        ),
        stopped_early=False,
        weights={"optimizer.0": weight.detach(), "head.bias": torch.ones(2, dtype=torch.bfloat16)},
        base="abc",
        optimizer=optimizer.state_dict(),
        scaler={"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
        method={"draws": [3, 1], "scores": torch.arange(4.0), "nested": {"seen": (True, None)}},
        random=[capture_random_state([], CPU)],
    )


def equal(first, second) -> bool:
    """Whether nested states are equal, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return type(first) is type(second) and all(map(equal, first, second))
    return first == second


def test_what_goes_in_comes_out(tmp_path):
    checkpoint = make_checkpoint()
    write_checkpoint(tmp_path / "c", checkpoint)
    found = read_checkpoint(tmp_path / "c")
    for field in dataclasses.fields(Checkpoint):
        if field.name != "random":
            assert equal(getattr(checkpoint, field.name), getattr(found, field.name)), field.name
    assert found.random[0]["torch"] == checkpoint.random[0]["torch"]
    assert found.random[0]["numpy"] == checkpoint.random[0]["numpy"]


def test_state_that_only_pickle_could_hold_is_refused(tmp_path):
    checkpoint = dataclasses.replace(make_checkpoint(), method={"rng": object()})
    with pytest.raises(CheckpointError, match="holds a object, which cannot be stored without pickle"):
        write_checkpoint(tmp_path / "c", checkpoint)
    assert not (tmp_path / "c").exists()


def test_a_record_that_lacks_a_field(tmp_path):
    from adabet.training.tensor_file import write_tensor_file

    write_tensor_file(tmp_path / "c", "adabet/checkpoint", {}, {"epoch": 1})
    with pytest.raises(CheckpointError, match="is not a whole checkpoint: KeyError"):
        read_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    "state",
    [{}, [], (), {"$tensor": 1}, {1: {2: (3, [4.5, "five", None, True])}}, {(1, 2): "tuple key"}, float("inf")],
)
def test_any_nesting_comes_back(state):
    assert equal(unflatten(*flatten(state, "x")), state)
