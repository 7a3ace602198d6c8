"""Lean with coarse slopes: SiLU, GELU and hardswish keep four bits an element instead of their input.

Outputs are exact. In the backward pass an element's slope is one of sixteen equally spaced numbers, 0 and 1 among them,
the nearest to the true one: off by 1/22 at most (1/14 for hardswish), and by nothing where the activation is flat or
the identity. So an element's gradient is off by at most that part of the gradient that comes in.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from adabet.lean.activation import GELU, HARDSWISH, SILU, Curve
from adabet.lean.bits import Layout, as_vector, slice_elements
from adabet.lean.keeping import is_tracked, may_overwrite
from adabet.lean.mode import lean
from adabet.lean.rules import first_order, is_spare, rule

LEVELS = 16
NIBBLE = 4


class Grid(NamedTuple):
    """Sixteen slopes: ``(level - below_zero) / steps_to_one``."""

    below_zero: int
    steps_to_one: int


NARROW = Grid(2, 11)
WIDE = Grid(4, 7)

# What the low-bit mode runs for an operation: the same by another name, for which there is a rule.
_coarse: dict[Callable[..., Any], Callable[..., Any]] = {}


class low_bit_lean(lean):  # noqa: N801 - a context manager, named as it is used
    """The `lean` mode with coarse slopes of smooth activations, in an eighth of their memory and less.

    Examples:
        >>> x = torch.linspace(-3, 3, 7, requires_grad=True)
        >>> with low_bit_lean():
        ...     y = torch.nn.functional.silu(x)
        >>> torch.autograd.grad(y.sum(), x)[0]
        tensor([-0.0909, -0.0909,  0.0909,  0.5455,  0.9091,  1.0909,  1.0909])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the coarse rule of ``func`` if it has one, else as `lean` does."""
        return super().__torch_function__(_coarse.get(func, func), types, args, kwargs)


class _Coarse(torch.autograd.Function):
    """An activation that keeps its slope in four bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, curve: Curve, grid: Grid, in_place: bool) -> Tensor:
        ctx.layout, ctx.grid = Layout.of(x), grid
        ctx.save_for_backward(_pack_slopes(ctx.layout.arrange(x), curve, grid))
        if not in_place:
            return curve.apply(x)
        ctx.mark_dirty(x)
        return curve.apply_(x)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        overwrite = is_spare(gradient)
        (packed,) = ctx.saved_tensors
        arranged = ctx.layout.arrange(gradient)
        result = arranged if overwrite or arranged is not gradient else torch.empty_like(gradient)
        for (part, place), (out, _) in zip(_slices(arranged, packed), _slices(result, packed), strict=True):
            torch.mul(part, _unpack_slopes(place, ctx.grid, part), out=out)
        return result, None, None, None


def _pack_slopes(x: Tensor, curve: Curve, grid: Grid) -> Tensor:
    """The levels of a dense tensor's slopes, two a byte, in the order of its memory."""
    packed = torch.empty(-(-x.numel() // 2), dtype=torch.uint8, device=x.device)
    for part, place in _slices(x, packed):
        slopes = curve.backward(torch.ones_like(part), part)
        levels = slopes.mul_(grid.steps_to_one).add_(grid.below_zero).round_().clamp_(0, LEVELS - 1).to(torch.uint8)
        half = len(place)
        place.copy_(levels[:half])
        place[: len(part) - half].bitwise_or_(levels[half:] << NIBBLE)
    return packed


def _unpack_slopes(place: Tensor, grid: Grid, like: Tensor) -> Tensor:
    """The slopes of as many elements as ``like`` has, in its type."""
    levels = torch.cat([place & (LEVELS - 1), place >> NIBBLE])[: len(like)]
    return levels.to(like.dtype).sub_(grid.below_zero).div_(grid.steps_to_one)


def _slices(x: Tensor, packed: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Vectors of a dense tensor's elements, each with the bytes for their levels."""
    length = slice_elements(x.device)
    return zip(as_vector(x).split(length), packed.split(length // 2), strict=True)


def _activate(x: Tensor, curve: Curve, grid: Grid, *, in_place: bool = False) -> Tensor:
    if not is_tracked(x) or (in_place and not may_overwrite(x)):
        return curve.apply_(x) if in_place else curve.apply(x)
    y: Tensor = _Coarse.apply(x, curve, grid, in_place)
    return y


def _coarse_rule(operation: Callable[..., Tensor]) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function as the stand-in for an operation in the low-bit mode."""

    @functools.wraps(operation)
    def stock(*args: Any, **options: Any) -> Tensor:
        return operation(*args, **options)

    _coarse[operation] = stock
    return rule(stock)


@_coarse_rule(F.silu)
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.silu``: four bits an element."""
    return _activate(input, SILU, NARROW, in_place=inplace)


@_coarse_rule(F.hardswish)
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """Stand in for ``torch.nn.functional.hardswish``: four bits an element."""
    return _activate(input, HARDSWISH, WIDE, in_place=inplace)


@_coarse_rule(F.gelu)
def gelu(input: Tensor, *, approximate: str = "none") -> Tensor:
    """Stand in for ``torch.nn.functional.gelu``: four bits an element."""
    if approximate not in GELU:
        return F.gelu(input, approximate=approximate)
    return _activate(input, GELU[approximate], NARROW)
