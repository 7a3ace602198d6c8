"""Learning rates over a run."""

import math

import pytest
import torch

from adabet.errors import UnknownNameError
from adabet.training.schedule import constant, cosine, find_schedule, scale_learning_rates


def test_cosine_is_torchs_annealing():
    weight = torch.nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=50)
    for step in range(50):
        assert cosine(step, 50) == pytest.approx(reference.param_groups[0]["lr"], abs=1e-12)
        assert cosine(step, 50) == pytest.approx(0.5 * (1 + math.cos(math.pi * step / 50)))
        reference.step()
        scheduler.step()


def test_cosine_stays_down_after_the_last_step():
    assert cosine(60, 50) == cosine(50, 50) == 0.0


def test_schedules_by_name_and_by_function():
    assert find_schedule("cosine") is cosine
    assert find_schedule("constant") is constant
    assert find_schedule(max) is max
    assert constant(7, 9) == 1.0
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        find_schedule("cosin")


def test_every_group_scales_from_its_own_rate():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 0.2}, {"params": weights[1:], "lr": 4.0}])
    for factor in (1.0, 0.5, 0.25):
        scale_learning_rates(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.2 * factor, 4.0 * factor]
