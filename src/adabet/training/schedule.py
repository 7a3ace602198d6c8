"""How the learning rate moves over a run, step by step."""

import math
from collections.abc import Callable

from torch.optim import Optimizer

from adabet.errors import UnknownNameError

Schedule = Callable[[int, int], float]
"""``schedule(step, steps)``: factor on the learning rate at a step (from 0) of a run of so many steps."""


def cosine(step: int, steps: int) -> float:
    """Half a cosine from 1 at the first step towards 0 after the last one.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, one period without restarts.

    Examples:
        >>> [round(cosine(step, 4), 3) for step in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def constant(step: int, steps: int) -> float:  # noqa: ARG001 - the signature of a schedule
    """Always 1."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "constant": constant}


def find_schedule(schedule: str | Schedule) -> Schedule:
    """A schedule by name, or the function that was given.

    Raises:
        UnknownNameError: if no schedule has that name.
    """
    if not isinstance(schedule, str):
        return schedule
    if schedule not in SCHEDULES:
        raise UnknownNameError("schedule", schedule, SCHEDULES)
    return SCHEDULES[schedule]


def scale_learning_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to a factor of the one that it started with."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
