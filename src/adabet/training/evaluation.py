"""Loss and metrics of a model over a loader: means over samples, not over batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from adabet.errors import DataError, OptionError
from adabet.layers.batches import device_of, forward_call, map_tensors, sample_count, take_samples
from adabet.step import Loss, labels_of, logits_of
from adabet.training.batches import checked
from adabet.training.objective import accuracy, has_classes, loss_for, summed

Metric = Callable[[Tensor, Any], Tensor | float]
"""``metric(logits, labels)``: its mean over the samples of a batch."""


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    micro_batch: int | None = None,
) -> dict[str, float]:
    """Loss and metrics of a model over a loader, in eval mode and without gradients.

    Every batch counts by its number of samples, so a short last batch does not weigh too much.

    Args:
        model: runs on the device that it is on.
        loader: batches with labels: ``(inputs, labels)`` or mappings with ``labels``.
        loss: ``loss(outputs, labels)``, a mean over the batch; default as in `adabet.fit`.
        metrics: functions of logits and labels by name; default: accuracy, where each sample has a class
            number.
        micro_batch: samples in memory at once; None takes each batch whole.

    Returns:
        ``"loss"`` and each metric by its name.

    Raises:
        DataError: if the loader is empty, or a batch has other keys than the first or labels out of range.

    Examples:
        >>> model = nn.Identity()
        >>> evaluate(model, [(torch.eye(3), torch.tensor([0, 1, 1]))])["accuracy"]
        0.666...
    """
    sums = sum_over(model, loader, loss=loss, metrics=metrics, micro_batch=micro_batch)
    return means_of(sums, "the loader")


def sum_over(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Loss | None,
    metrics: Mapping[str, Metric] | None,
    micro_batch: int | None,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, float]:
    """What `evaluate` divides: ``"samples"``, and the sums over them of the loss and of each metric.

    Args:
        model: runs on the device that it is on; its modules' modes are restored afterwards.
        loader: batches with labels.
        loss: as for `evaluate`.
        metrics: as for `evaluate`.
        micro_batch: as for `evaluate`.
        precision: context for each forward pass, such as autocast.
    """
    terms: dict[str, list[float]] = {"samples": [], "loss": []}
    with modes_kept(model), torch.no_grad():
        model.eval()
        for batch in _slices(checked(loader, "evaluation"), micro_batch):
            count = sample_count(batch)
            with precision():
                value, outputs, labels = _forward(model, batch, loss)
            terms["samples"].append(count)
            terms["loss"].append(summed(float(value), loss, count))
            chosen = _default_metrics(outputs, labels) if metrics is None else metrics
            for name, metric in chosen.items():
                terms.setdefault(name, []).append(float(metric(logits_of(outputs), labels)) * count)
    return {name: math.fsum(values) for name, values in terms.items()}


def means_of(sums: Mapping[str, float], loader_name: str) -> dict[str, float]:
    """Means from what `sum_over` gave, possibly added up over processes.

    Raises:
        DataError: if there was no sample.
    """
    samples = sums["samples"]
    if not samples:
        raise DataError(f"expected at least one batch with a sample in it, {loader_name} gave none")
    return {name: total / samples for name, total in sums.items() if name != "samples"}


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Let the block put modules into train or eval mode; afterwards each is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _slices(batches: Iterable[Any], size: int | None) -> Iterator[Any]:
    """Batches cut into pieces of at most so many samples."""
    for batch in batches:
        count = sample_count(batch)
        step = min(size or count, count)
        for start in range(0, count, max(step, 1)):
            yield take_samples(batch, start, start + step) if step < count else batch


def _forward(model: nn.Module, batch: Any, loss: Loss | None) -> tuple[Tensor, Any, Any]:
    """Loss, outputs and labels of one batch, on the model's device."""
    device = device_of(model)
    objective = loss_for(model, batch, loss)
    labels = map_tensors(lambda tensor: tensor.to(device), labels_of(batch))
    if objective is None:
        outputs = model(**map_tensors(lambda tensor: tensor.to(device), dict(batch)))
        return outputs["loss"], outputs, labels
    outputs = forward_call(model, batch)
    return objective(outputs, labels), outputs, labels


def _default_metrics(outputs: Any, labels: Any) -> dict[str, Metric]:
    try:
        return {"accuracy": accuracy} if has_classes(logits_of(outputs), labels) else {}
    except OptionError:
        return {}
