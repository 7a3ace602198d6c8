"""Activations whose slope takes two values: one bit an element is all that their backward pass needs.

A gate says how its activation runs, what the bit of an element is, and how the gradient follows from it; the last by the
kernel that stock autograd calls, so that gradients are equal to the bit.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from adabet.lean.bits import compare

aten = torch.ops.aten


class Gate(ABC):
    """One activation whose slope takes two values.

    Attributes:
        shows_in_output: the bit can be told from the output; if False, only from the input.
    """

    shows_in_output: ClassVar[bool] = True

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """The stock activation."""

    @abstractmethod
    def apply_(self, x: Tensor) -> Tensor:
        """The stock activation in place."""

    @abstractmethod
    def test(self, part: Tensor) -> Tensor:
        """The bits, as new booleans, of a slice of the output if they show there, else of the input."""

    @abstractmethod
    def backward(self, gradient: Tensor, kept: Tensor, *, out: Tensor) -> None:
        """Write the input's gradient, elementwise.

        Args:
            gradient: the output's.
            kept: the bits as 0 and 1 in uint8, or the whole output in its own type if they show there.
            out: where to; may be ``gradient``.
        """


@dataclass(frozen=True)
class Rectifier(Gate):
    """ReLU: the gradient passes above zero, and at NaN."""

    def apply(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def apply_(self, x: Tensor) -> Tensor:
        return torch.relu_(x)

    def test(self, part: Tensor) -> Tensor:
        return compare(torch.le, part, 0).logical_not_()

    def backward(self, gradient: Tensor, kept: Tensor, *, out: Tensor) -> None:
        aten.threshold_backward.grad_input(gradient, kept, 0, grad_input=out)


@dataclass(frozen=True)
class LeakyRectifier(Gate):
    """Leaky ReLU with a slope that is not negative: the gradient passes whole above zero, else shrunk."""

    slope: float

    def apply(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)

    def apply_(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(x, self.slope)

    def test(self, part: Tensor) -> Tensor:
        return compare(torch.gt, part, 0)

    def backward(self, gradient: Tensor, kept: Tensor, *, out: Tensor) -> None:
        signs = kept.to(gradient.dtype)
        aten.leaky_relu_backward.grad_input(gradient, signs, self.slope, False, grad_input=out)


@dataclass(frozen=True)
class HardTanh(Gate):
    """Hardtanh, and ReLU6 by it: the gradient passes strictly between the bounds, and at NaN."""

    low: float
    high: float

    def apply(self, x: Tensor) -> Tensor:
        return F.hardtanh(x, self.low, self.high)

    def apply_(self, x: Tensor) -> Tensor:
        return F.hardtanh_(x, self.low, self.high)

    def test(self, part: Tensor) -> Tensor:
        cut = compare(torch.le, part, self.low).logical_or_(compare(torch.ge, part, self.high))
        return cut.logical_not_()

    def backward(self, gradient: Tensor, kept: Tensor, *, out: Tensor) -> None:
        if kept.dtype is torch.uint8:
            aten.threshold_backward.grad_input(gradient, kept, 0, grad_input=out)
        else:
            aten.hardtanh_backward.grad_input(gradient, kept, self.low, self.high, grad_input=out)


@dataclass(frozen=True)
class Clamp(Gate):
    """Clamp to numbers: the gradient passes between the bounds and at them, not at NaN."""

    low: float | None
    high: float | None
    shows_in_output: ClassVar[bool] = False

    def apply(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)

    def apply_(self, x: Tensor) -> Tensor:
        return torch.clamp_(x, self.low, self.high)

    def test(self, part: Tensor) -> Tensor:
        if self.low is None:
            return compare(torch.le, part, self.high)
        inside = compare(torch.ge, part, self.low)
        return inside if self.high is None else inside.logical_and_(compare(torch.le, part, self.high))

    def backward(self, gradient: Tensor, kept: Tensor, *, out: Tensor) -> None:
        aten.threshold_backward.grad_input(gradient, kept, 0, grad_input=out)


@dataclass(frozen=True)
class HardSigmoid(Gate):
    """Hardsigmoid: a sixth of the gradient passes strictly between -3 and 3. The bit is 1 elsewhere."""

    shows_in_output: ClassVar[bool] = False

    def apply(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x)

    def apply_(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x, inplace=True)

    def test(self, part: Tensor) -> Tensor:
        inside = compare(torch.gt, part, -3).logical_and_(compare(torch.lt, part, 3))
        return inside.logical_not_()

    def backward(self, gradient: Tensor, kept: Tensor, *, out: Tensor) -> None:
        # To the kernel, 0 lies inside and 3 outside.
        aten.hardsigmoid_backward.grad_input(gradient, kept * 3, grad_input=out)
