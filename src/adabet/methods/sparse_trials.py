"""Short trainings from the same start, undone afterwards."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adabet.errors import DataError
from adabet.freezing import apply
from adabet.layers import forward_call, sample_count, take_samples
from adabet.layers.batches import device_of, map_tensors
from adabet.memory.unchanged import unchanged
from adabet.methods.registry import Request
from adabet.selection import Selection
from adabet.step import IGNORED_LABEL, computes_loss, labels_of, logits_of, train_step

MEASURES = ("accuracy", "loss")

HELD_OUT_EVERY = 4
"""One sample in so many is held out where there are no validation batches."""


def split_samples(request: Request, samples: int | None) -> tuple[list[Any], Iterable[Any]]:
    """What trains, and what the score is measured on.

    Args:
        request: ``val_batches`` are held out; without them every fourth sample of the batches is.
        samples: at most so many are taken from the batches; None for all.

    Raises:
        DataError: if there are no labels, or too few samples.
    """
    train: list[Any] = []
    held_out: list[Any] = []
    seen = 0
    for batch in request.batches:
        if labels_of(batch) is None:
            raise DataError("expected batches with labels, (inputs, labels) or a dict, to measure contributions on")
        part = batch if samples is None else take_samples(batch, 0, samples - seen)
        count = sample_count(part)
        if request.val_batches is None:
            held = (torch.arange(seen, seen + count) + 1) % HELD_OUT_EVERY == 0
            train += _pick(part, ~held)
            held_out += _pick(part, held)
        else:
            train.append(part)
        seen += count
        if samples is not None and seen >= samples:
            break
    if not train or (request.val_batches is None and not held_out):
        raise DataError(f"expected at least {HELD_OUT_EVERY} samples to measure contributions on, got {seen}")
    return train, held_out if request.val_batches is None else request.val_batches


def score_after(
    request: Request,
    selection: Selection,
    train: Sequence[Any],
    held_out: Iterable[Any],
    *,
    epochs: int,
    rate: float,
    measure: str,
) -> float | None:
    """Train a selection briefly, measure, and undo it.

    Args:
        request: the model, left as it was, and what trains it.
        selection: what trains.
        train: batches to train on, in this order every time.
        held_out: batches to measure on.
        epochs: passes over the training batches.
        rate: learning rate of plain SGD, where the request has no optimizer.
        measure: one of `MEASURES`.

    Returns:
        The held-out accuracy, or the held-out loss with its sign turned; None if the training diverged.

    Raises:
        DataError: if the labels are no class numbers, or there is none.
    """
    model = request.model
    with unchanged(model), _values_put_back(model, selection.parameters):
        torch.manual_seed(request.seed)
        with apply(model, selection):
            converged = _train(request, train, epochs, rate)
        model.eval()
        return _score(request, held_out, measure) if converged else None


@contextmanager
def _values_put_back(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    copies = {name: model.get_parameter(name).detach().clone() for name in names}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, copy in copies.items():
                model.get_parameter(name).copy_(copy)


def _train(request: Request, batches: Sequence[Any], epochs: int, rate: float) -> bool:
    """Train what is free; False as soon as a loss is not finite."""
    model = request.model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        return True
    optimizer = (request.optimizer or partial(torch.optim.SGD, lr=rate))(parameters)
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            loss = train_step(model, batch, request.loss, micro_batch=request.micro_batch)
            if not torch.isfinite(loss):
                return False
            optimizer.step()
    return True


@torch.no_grad()
def _score(request: Request, batches: Iterable[Any], measure: str) -> float | None:
    """Mean accuracy, or mean loss with its sign turned; None if logits or loss are not finite."""
    total, counted = 0.0, 0
    for batch in batches:
        count = sample_count(batch)
        size = request.micro_batch or count
        for start in range(0, count, size):
            part = map_tensors(
                lambda tensor: tensor.to(device_of(request.model)), take_samples(batch, start, start + size)
            )
            outputs = _outputs(request, part)
            logits, labels = logits_of(outputs), labels_of(part)
            if not logits.isfinite().all():
                return None
            if measure == "accuracy":
                answers, labels = _classes(logits, labels)
                total += float((answers == labels).sum())
                counted += int((labels != IGNORED_LABEL).sum())
            else:
                total -= float(_loss(request, part, outputs)) * sample_count(part)
                counted += sample_count(part)
    if not counted:
        raise DataError("expected held-out samples with labels, got none; give val_batches or more batches")
    return total / counted if math.isfinite(total) else None


def _outputs(request: Request, batch: Any) -> Any:
    own_loss = request.loss is None and computes_loss(request.model, batch)
    return request.model(**batch) if own_loss else forward_call(request.model, batch)


def _loss(request: Request, batch: Any, outputs: Any) -> Tensor:
    """The loss as `train_step` takes it."""
    if request.loss is not None:
        return request.loss(outputs, labels_of(batch))
    if computes_loss(request.model, batch):
        loss: Tensor = outputs["loss"]
        return loss
    return F.cross_entropy(logits_of(outputs), labels_of(batch))


def _classes(logits: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
    """The classes that logits stand for, and the labels beside them."""
    if isinstance(labels, Tensor) and not labels.is_floating_point():
        for axis in (1, -1) if logits.dim() > 1 else ():
            answers = logits.argmax(axis)
            if answers.shape == labels.shape:
                return answers, labels
    shape = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
    raise DataError(
        f"expected whole numbers of classes as labels for logits {tuple(logits.shape)}, got {shape}; "
        "give measure='loss' for other tasks"
    )


def _pick(batch: Any, mask: Tensor) -> list[Any]:
    """The samples of a batch that a mask tells, as one batch; none if there are none."""
    count, index = len(mask), mask.nonzero().flatten()
    if not len(index):
        return []
    return [
        map_tensors(
            lambda tensor: tensor[index.to(tensor.device)] if tensor.dim() and len(tensor) == count else tensor, batch
        )
    ]
