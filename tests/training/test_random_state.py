"""All generators are captured and put back."""

import json
import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from adabet.errors import CheckpointError
from adabet.training.random_state import (
    capture_random_state,
    random_state_kept,
    restore_random_state,
    seed_everything,
)
from tests.training.nets import make_data

CPU = torch.device("cpu")


def draw(*generators: torch.Generator) -> list[float]:
    own = [torch.rand(1, generator=generator).item() for generator in generators]
    # gauss() and standard_normal() keep every second number back.
    return [random.random(), random.gauss(0, 1), np.random.standard_normal(), torch.rand(1).item(), *own]


def loaders_of_every_kind():
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    data = make_data()
    batches = BatchSampler(RandomSampler(data, generator=generators[2]), 4, drop_last=False)
    return generators, [
        DataLoader(data, 4, shuffle=True, generator=generators[0]),
        DataLoader(data, 4, sampler=RandomSampler(data, generator=generators[1])),
        DataLoader(data, batch_sampler=batches),
        [1, 2, 3],
    ]


def test_what_was_drawn_is_drawn_again_after_json():
    generators, loaders = loaders_of_every_kind()
    draw(*generators)
    state = json.loads(json.dumps(capture_random_state(loaders, CPU)))
    first = [draw(*generators) for _ in range(3)]
    assert [draw(*generators) for _ in range(3)] != first
    restore_random_state(state, loaders, CPU)
    assert [draw(*generators) for _ in range(3)] == first


def test_a_block_leaves_no_trace():
    generators, loaders = loaders_of_every_kind()
    seed_everything(3)
    with random_state_kept(loaders, CPU):
        draw(*generators)
    found = draw(*generators)
    seed_everything(3)
    assert draw(*loaders_of_every_kind()[0]) == found


@pytest.mark.parametrize("key", ["python", "numpy", "torch"])
def test_a_state_that_is_damaged(key):
    state = capture_random_state([], CPU) | {key: "zz"}
    with pytest.raises(CheckpointError, match="random state cannot be used"):
        restore_random_state(state, [], CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_devices_generator_counts():
    device = torch.device("cuda")
    state = json.loads(json.dumps(capture_random_state([], device)))
    first = torch.rand(3, device=device)
    restore_random_state(state, [], device)
    assert torch.equal(torch.rand(3, device=device), first)
