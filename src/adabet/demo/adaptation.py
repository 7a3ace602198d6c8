"""One user's digits, and the reader trained on them: every candidate learning rate, then every seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adabet.demo.digits import Digits, Part, load_part, user_conditions
from adabet.demo.network import demo_model
from adabet.errors import TrainingError
from adabet.layers import forward_call
from adabet.selection import Selection
from adabet.training import fit

BATCH_SIZE = 8

TRAINING_COUNT = 300
"""Labelled digits to train on; the others validate."""

LEARNING_RATES = {"head": (0.1, 0.3, 1.0), "adabet": (0.003, 0.01, 0.03), "full": (0.0003, 0.001, 0.003)}
"""Three candidates for each method, around what suits it: the more layers train, the less they bear."""


@dataclass(frozen=True, eq=False)
class User:
    """One user's digits, as their device sees them.

    Attributes:
        unlabelled: five batches of eight images, to choose layers by.
        labelled: to train on, and to choose a learning rate and an epoch by.
        test: to report on, and for nothing else.
    """

    unlabelled: tuple[Tensor, ...]
    labelled: Digits
    test: Digits

    @classmethod
    def meet(cls) -> "User":
        """Load the digits and put them under the user's conditions."""
        return cls(
            unlabelled=_seen("unlabelled").images.split(BATCH_SIZE), labelled=_seen("labelled"), test=_seen("test")
        )

    def loaders(self, *, seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """A seed's own 300 of the labelled digits to train on, shuffled every epoch, and the others to validate."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.labelled), generator=generator)
        training, validation = (self.labelled[part] for part in (order[:TRAINING_COUNT], order[TRAINING_COUNT:]))
        return (
            DataLoader(_dataset(training), batch_size=BATCH_SIZE, shuffle=True, generator=generator),
            DataLoader(_dataset(validation), batch_size=len(validation)),
        )


def _seen(part: Part) -> Digits:
    clean = load_part(part)
    return Digits(images=user_conditions(clean.images), labels=clean.labels)


def _dataset(digits: Digits) -> TensorDataset:
    return TensorDataset(digits.images, digits.labels)


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


def adapt(
    user: User,
    selection: Selection,
    *,
    learning_rates: Sequence[float],
    seeds: int,
    epochs: int,
    done: Callable[[], None],
) -> Adaptations:
    """Train the pre-trained reader with a selection: all candidate rates with seed 0, the best with all seeds.

    Args:
        user: whose digits.
        selection: what trains.
        learning_rates: the candidates, ascending.
        seeds: how many; seeds are 0, 1, ...
        epochs: passes over the training digits.
        done: called after each training run, of which there are ``len(learning_rates) + seeds - 1``.
    """

    def run(learning_rate: float, seed: int) -> tuple[nn.Module, float]:
        model = demo_model()
        training, validation = user.loaders(seed=seed)
        try:
            result = fit(model, training, validation, selection, lr=learning_rate, epochs=epochs, seed=seed)
            accuracy = result.best.val_metrics["accuracy"]
        except TrainingError:
            # The rate is so high that the loss is no longer finite.
            accuracy = 0.0
        done()
        return model, accuracy

    candidates = {rate: run(rate, seed=0) for rate in learning_rates}
    best = max(learning_rates, key=lambda rate: candidates[rate][1])
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
