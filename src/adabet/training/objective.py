"""The loss that is minimised, with labels checked before a GPU sees them."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from adabet.errors import DataError
from adabet.step import IGNORED_LABEL, Loss, computes_loss, labels_of, logits_of


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest logit is that of their label.

    Args:
        logits: ``(samples, classes)``.
        labels: class numbers, ``(samples,)``.

    Examples:
        >>> import torch
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    return int((logits.argmax(dim=1) == labels).sum()) / len(labels)


def has_classes(logits: Tensor, labels: Any) -> bool:
    """Whether this is plain classification: one row of logits and one class number a sample."""
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return False
    return logits.dim() == 2 and labels.shape == logits.shape[:1]


def loss_for(model: nn.Module, batch: Any, loss: Loss | None) -> Loss | None:
    """The loss to use for a batch that still lies on the host.

    Args:
        model: what will run on the batch.
        batch: with its labels.
        loss: the user's, used as it is.

    Returns:
        The user's loss; cross entropy that first compares the batch's labels with the number of classes; or
        None where the model computes its loss itself.

    Raises:
        DataError: if cross entropy is to be used and the batch has no labels.
    """
    if loss is not None or computes_loss(model, batch):
        return loss
    labels = labels_of(batch)
    if not isinstance(labels, Tensor):
        raise DataError("expected batches with labels, (inputs, labels) or a dict with 'labels'; got none")
    # Taken here, on the host: a wrong label in a kernel of a GPU would end the whole process.
    span = None if labels.is_floating_point() else _span(labels)

    def cross_entropy(outputs: Any, targets: Any) -> Tensor:
        logits = logits_of(outputs)
        if span is not None:
            _check_span(span, logits)
        return F.cross_entropy(logits, targets if targets.is_floating_point() else targets.long())

    return cross_entropy


def summed(value: float, loss: Loss | None, samples: int) -> float:
    """A batch's loss summed over its samples, whether the loss is a mean (as most are) or a sum already."""
    return value if getattr(loss, "reduction", "mean") == "sum" else value * samples


def _span(labels: Tensor) -> tuple[int, int] | None:
    counted = labels[labels != IGNORED_LABEL]
    return (int(counted.min()), int(counted.max())) if counted.numel() else None


def _check_span(span: tuple[int, int], logits: Tensor) -> None:
    if logits.dim() < 2:
        raise DataError(
            f"expected logits of shape (samples, classes), got {tuple(logits.shape)}; pass a loss that takes them"
        )
    low, high = span
    classes = logits.shape[1]
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise DataError(
            f"expected labels from 0 to {classes - 1}, since the model tells {classes} classes apart, "
            f"got {wrong}; build the model with as many classes as the data has, or number the labels from 0"
        )
