"""What to keep of a tensor so that a backward pass can have it, in the fewest new bytes.

An operation that needs one of its inputs again asks `keep` what to save for it. Often that input can be made again, to
the bit and at little cost, from something that is in memory anyway: ``silu`` keeps its own input, so whoever needs
``silu``'s output can save that input too, for nothing, and apply ``silu`` once more. And where the output itself has to
be saved, the one bit an element that ``relu`` kept has become superfluous.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from adabet.lean.bits import is_dense
from adabet.lean.rules import is_repeated


@dataclass(frozen=True)
class Kept:
    """What stands for one tensor until the backward pass.

    Attributes:
        tensors: what to save, by ``ctx.save_for_backward``.
        rebuild: called with ``tensors``, gives the tensor that they stand for, detached.
    """

    tensors: tuple[Tensor, ...]
    rebuild: Callable[..., Tensor]

    @property
    def is_itself(self) -> bool:
        """Whether the tensor is saved as it is; if not, ``rebuild`` gives it in new memory."""
        return self.rebuild is Tensor.detach

    def then(self, function: Callable[[Tensor], Tensor]) -> "Kept":
        """What stands for ``function`` of the tensor; it must give the same bits each time."""
        rebuild = self.rebuild  # not self, which would hold the tensors longer than the node that saves them
        return Kept(self.tensors, lambda *tensors: function(rebuild(*tensors)))


NOTHING = Kept((), lambda: torch.empty(0))


@dataclass(frozen=True)
class _Recipe:
    """How to make an output again, valid while what it is made from is there and neither is overwritten.

    It holds no tensors: in a block that will run again nobody else does, and the output may live on.
    """

    sources: tuple[TensorWeakRef, ...]
    rebuild: Callable[..., Tensor]
    versions: tuple[int, ...]

    def for_output(self, output: Tensor) -> Kept | None:
        tensors = [source() for source in self.sources]
        there = tuple(tensor for tensor in tensors if tensor is not None)
        if len(there) < len(tensors) or self.versions != _versions(output, there):
            return None
        return Kept(there, self.rebuild)


_recipes = WeakTensorKeyDictionary()
_masks = WeakTensorKeyDictionary()


def keep(tensor: Tensor) -> Kept:
    """What to save for a tensor that will be needed in the backward pass; the caller does save it.

    The gradients stay the same to the bit: a tensor is made again by the operation that made it first.

    Examples:
        >>> pre_activation = torch.randn(4, requires_grad=True)
        >>> activation = torch.nn.functional.silu(pre_activation)
        >>> keep(activation).tensors[0] is activation
        True
        >>> remember(activation, keep(pre_activation).then(torch.nn.functional.silu))
        >>> keep(activation).tensors[0] is pre_activation
        True
    """
    made = recipe(tensor)
    if made is not None:
        return made
    _drop_mask(tensor)
    return as_it_is(tensor)


def together(function: Callable[[Tensor, Tensor], Tensor], first: Kept, second: Kept) -> Kept:
    """What stands for ``function`` of two tensors; it must give the same bits each time."""
    split, one, other = len(first.tensors), first.rebuild, second.rebuild
    return Kept(
        (*first.tensors, *second.tensors),
        lambda *tensors: function(one(*tensors[:split]), other(*tensors[split:])),
    )


def as_it_is(tensor: Tensor) -> Kept:
    """The tensor itself, for one that its operation keeps for its own backward pass anyway."""
    return Kept((tensor,), Tensor.detach)


def recipe(tensor: Tensor) -> Kept | None:
    """How the tensor can be made again from what others keep anyway, if it can."""
    noted: _Recipe | None = _recipes.get(tensor)
    return None if noted is None else noted.for_output(tensor)


def remember(output: Tensor, kept: Kept) -> None:
    """Note how an output can be made again from tensors that its own autograd node keeps until its backward pass.

    The note goes with the tensor object: a view, a copy or a change in place has none.

    Args:
        output: what an operation returned.
        kept: what it is made from and how. ``rebuild`` must return the same bits.
    """
    sources = tuple(TensorWeakRef(tensor) for tensor in kept.tensors)
    _recipes[output] = _Recipe(sources, kept.rebuild, _versions(output, kept.tensors))


def remember_mask(output: Tensor, mask: Tensor) -> None:
    """Note that an operation saved ``mask`` only because nobody kept its output, from which it could tell as much.

    Once somebody does keep the output, the mask's memory goes back and the saved tensor is the output instead: the
    operation finds the output's type there in its backward pass, not uint8.
    """
    _masks[output] = (TensorWeakRef(mask), output._version)


def _drop_mask(output: Tensor) -> None:
    if is_repeated():
        return
    reference, version = _masks.pop(output, (None, 0))
    mask = reference() if reference is not None else None
    if mask is not None and version == output._version:
        mask.data = output.detach()


def _versions(output: Tensor, sources: tuple[Tensor, ...]) -> tuple[int, ...]:
    return (output._version, *(tensor._version for tensor in sources))


def is_tracked(x: object) -> bool:
    """Whether this is a tensor that autograd follows, of the kind that rules are written for: real and strided."""
    return (
        isinstance(x, Tensor)
        and x.requires_grad
        and x.is_floating_point()
        and x.layout is torch.strided
        and not x.is_nested
    )


def may_overwrite(x: Tensor) -> bool:
    """Whether a rule may work in place on a tracked tensor; where not (a leaf, a view), stock does or refuses it."""
    return not x.is_leaf and not x._is_view() and is_dense(x)
