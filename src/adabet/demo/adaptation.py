"""One user's digits, and the reader trained on them: every candidate learning rate, then every seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adabet.demo.digits import Digits, Part, load_part, user_conditions
from adabet.demo.network import demo_model
from adabet.layers import forward_call
from adabet.selection import Selection
from adabet.training import fit

BATCH_SIZE = 8

LEARNING_RATES = (0.03, 0.1, 0.3)
"""Candidates for every method, around what suits each; the head alone gains nothing from more than 0.3."""


@dataclass(frozen=True, eq=False)
class User:
    """One user's digits, as their device sees them.

    Attributes:
        unlabelled: five batches of eight images, to choose layers by.
        training: to train on.
        validation: to choose a learning rate and an epoch on.
        test: to report on, and for nothing else.
    """

    unlabelled: tuple[Tensor, ...]
    training: Digits
    validation: Digits
    test: Digits

    @classmethod
    def meet(cls) -> "User":
        """Load the digits and put them under the user's conditions."""
        return cls(
            unlabelled=_seen("unlabelled").images.split(BATCH_SIZE),
            training=_seen("training"),
            validation=_seen("validation"),
            test=_seen("test"),
        )

    def training_batches(self, *, seed: int) -> DataLoader[Any]:
        """Training digits with labels in batches of eight, shuffled by the seed."""
        digits = TensorDataset(self.training.images, self.training.labels)
        order = torch.Generator().manual_seed(seed)
        return DataLoader(digits, batch_size=BATCH_SIZE, shuffle=True, generator=order)


def _seen(part: Part) -> Digits:
    clean = load_part(part)
    return Digits(images=user_conditions(clean.images), labels=clean.labels)


@dataclass(frozen=True, eq=False)
class Adaptations:
    """What training with one selection gave.

    Attributes:
        learning_rate: the candidate that read most validation digits right; of equals the smallest.
        validation: each candidate with its validation accuracy, in [0, 1], at the first seed.
        models: an adapted reader for each seed, all trained with ``learning_rate``.
    """

    learning_rate: float
    validation: tuple[tuple[float, float], ...]
    models: tuple[nn.Module, ...]


def adapt(user: User, selection: Selection, *, seeds: int, epochs: int, done: Callable[[], None]) -> Adaptations:
    """Train the pre-trained reader with a selection: all candidate rates with seed 0, the best with all seeds.

    Args:
        user: whose digits.
        selection: what trains.
        seeds: how many; seeds are 0, 1, ...
        epochs: passes over the training digits.
        done: called after each training run, of which there are ``len(LEARNING_RATES) + seeds - 1``.
    """

    def run(learning_rate: float, seed: int) -> tuple[nn.Module, float]:
        model = demo_model()
        validation = [(user.validation.images, user.validation.labels)]
        result = fit(
            model, user.training_batches(seed=seed), validation, selection,
            lr=learning_rate, epochs=epochs, seed=seed,
        )  # fmt: skip
        done()
        return model, result.best.val_metrics["accuracy"]

    candidates = {rate: run(rate, seed=0) for rate in LEARNING_RATES}
    best = max(LEARNING_RATES, key=lambda rate: candidates[rate][1])
    others = [run(best, seed)[0] for seed in range(1, seeds)]
    return Adaptations(
        learning_rate=best,
        validation=tuple((rate, accuracy) for rate, (_, accuracy) in candidates.items()),
        models=(candidates[best][0], *others),
    )


def read(model: nn.Module, images: Tensor) -> Tensor:
    """The digits that a model takes images for, ``(n,)``, int64."""
    model.eval()
    with torch.no_grad():
        logits: Tensor = forward_call(model, images)
    return logits.argmax(dim=1).cpu()
