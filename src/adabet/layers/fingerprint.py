"""Tell whether two models have the same layers."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Fingerprint:
    """What identifies a model's architecture, without its head (whose size changes with the task).

    Attributes:
        model: class of the model.
        tensors: number of parameters tensors outside the head.
        parameters: number of their elements.
        digest: SHA-256 over their names and shapes, shortened.
    """

    model: str
    tensors: int
    parameters: int
    digest: str

    def __str__(self) -> str:
        return f"{self.model} ({self.tensors} tensors, {self.parameters:,} parameters, {self.digest})"


def fingerprint(model: nn.Module, head_parameters: Collection[str] = ()) -> Fingerprint:
    """The fingerprint of a model.

    Args:
        model: any module.
        head_parameters: full names of the parameters that do not count.

    Examples:
        >>> print(fingerprint(nn.Linear(3, 2)))
        Linear (2 tensors, 8 parameters, ...)
    """
    shapes = [
        (name, tuple(tensor.shape), tensor.numel())
        for name, tensor in model.named_parameters()
        if name not in head_parameters
    ]
    text = "\n".join(f"{name} {shape}" for name, shape, _ in shapes)
    return Fingerprint(
        model=type(model).__name__,
        tensors=len(shapes),
        parameters=sum(count for *_, count in shapes),
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
    )
