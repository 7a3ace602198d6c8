"""What a layer keeps of its input for the gradient of its weight."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from adabet.lean.keeping import Kept, as_it_is, keep, recipe
from adabet.lean.rules import autocast_dtype, is_repeated

# Inputs that a layer saved as they are, with their version then. To save one of them again, instead of a part or a cast
# of it, costs nothing.
_saved = WeakTensorKeyDictionary()


def kept_input(x: Tensor, used: Tensor, prepare: Callable[[Tensor], Tensor], *, whole: bool = True) -> Kept:
    """What to save of the input of a layer whose weight trains.

    Args:
        x: the input as it came.
        used: ``prepare(x)``, what the layer works on; ``x`` itself where there was nothing to prepare.
        prepare: casts, pads or thins out.
        whole: whether ``used`` is saved as a whole where nothing cheaper stands for it, not just a part of it.

    Returns:
        What stands for ``used``. If that ``is_itself`` and not ``whole``, the layer saves its part instead.
    """
    made = recipe(x)
    if made is not None:
        return made if used is x else made.then(prepare)
    if is_repeated():
        return as_it_is(used)
    if used is x and whole:
        _saved[x] = x._version
        return keep(x)
    if _saved.get(x) == x._version:
        return as_it_is(x).then(prepare)
    return as_it_is(used)


def is_ordinary(*tensors: Tensor | None) -> bool:
    """Whether a layer's input, weight and bias are such that stock takes them, and one of them trains."""
    given = [tensor for tensor in tensors if tensor is not None]
    types = {autocast_dtype(tensor) or tensor.dtype for tensor in given}
    return (
        any(tensor.requires_grad for tensor in given)
        and len(types) == 1
        and all(tensor.is_floating_point() and not tensor.is_nested for tensor in given)
    )


def copies_in_autocast(weight: Tensor) -> bool:
    """Whether stock would make, and keep, a copy of a weight in lower precision."""
    return autocast_dtype(weight) not in (None, weight.dtype)


def cast_like(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the type that the layer works in."""
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
