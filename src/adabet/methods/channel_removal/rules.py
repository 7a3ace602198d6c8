"""What operations do to channels: one rule for each kind of operation.

A rule is told the tags of the model so far, the operation's result and its arguments, and returns the tags of the
result, or None where it cannot tell: then everything that the operation was given has to stay. An operation gets a
rule only if it still does the same to the channels that are left when others are gone. So a softmax over channels, a
layer or group norm, or a slice by fixed numbers has none.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from adabet.layers.batches import tensors_of
from adabet.methods.channel_removal.tags import FIXED, Tags, along, constant

Rule = Callable[..., Tensor | None]

LAYERS: dict[Any, Rule] = {}
"""Operations with weights of the model."""

MOVES: dict[Any, Rule] = {}
"""Operations without; one that is given a tensor of the model has no rule."""


def rule(table: dict[Any, Rule], names: Iterable[str]) -> Callable[[Rule], Rule]:
    """Enter a rule for the functions and methods of torch that have these names."""

    def enter(function: Rule) -> Rule:
        for name in names:
            for home in (torch, torch.Tensor, F):
                operation = getattr(home, name, None)
                if callable(operation):
                    table[operation] = function
        return function

    return enter


@rule(LAYERS, ["conv1d", "conv2d", "conv3d"])
def convolution(
    tags: Tags,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Dense ones make new channels, depthwise ones keep theirs; what lies between keeps its width."""
    del stride, padding, dilation
    return _convolution(tags, output, input, weight, bias, groups, transposed=False)


@rule(LAYERS, ["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"])
def transposed_convolution(
    tags: Tags,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor | None:
    """As a convolution with the weight's first two axes swapped."""
    del stride, padding, output_padding, dilation
    return _convolution(tags, output, input, weight, bias, groups, transposed=True)


def _convolution(
    tags: Tags, output: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, *, transposed: bool
) -> Tensor | None:
    axis = x.dim() - weight.dim() + 1
    name, inner = tags.name_of(weight), along(tags.of(x), axis)
    if name is None or inner is None or not _own(tags, bias):
        return None
    if groups == 1:
        tags.use(name, 0 if transposed else 1, inner, votes=True)
        outer = tags.use(name, 1 if transposed else 0, None, votes=True)
    elif groups == len(inner) and isinstance(tags.model.get_submodule(name.rpartition(".")[0]), _ConvNd):
        outer = inner.repeat_interleave(output.shape[axis] // groups)
        tags.use(name, 0, inner if transposed else outer)
    else:
        return None
    _use_vectors(tags, outer, bias)
    return _spread(outer, axis, output)


@rule(LAYERS, ["linear"])
def linear(
    tags: Tags,
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor | None:
    """Makes new channels."""
    name, inner = tags.name_of(weight), along(tags.of(input), -1)
    if name is None or inner is None or not _own(tags, bias):
        return None
    tags.use(name, 1, inner, votes=True)
    outer = tags.use(name, 0, None, votes=True)
    _use_vectors(tags, outer, bias)
    return _spread(outer, output.dim() - 1, output)


@rule(LAYERS, ["batch_norm", "instance_norm"])
def norm_of_each_channel(
    tags: Tags,
    _output: Tensor,
    input: Tensor,
    *others: Any,
    **named: Any,
) -> Tensor | None:
    """Batch and instance norms look at one channel at a time."""
    vectors, channels = tensors_of([list(others), named]), along(tags.of(input), 1)
    if channels is None or not _own(tags, *vectors):
        return None
    _use_vectors(tags, channels, *vectors)
    return tags.of(input)


@rule(LAYERS, ["prelu"])
def prelu(tags: Tags, _output: Tensor, input: Tensor, weight: Tensor) -> Tensor | None:
    """A slope for each channel, or one for all."""
    channels = along(tags.of(input), 1) if input.dim() > 1 else None
    if channels is None or not _own(tags, weight):
        return None
    if weight.numel() > 1:
        _use_vectors(tags, channels, weight)
    return tags.of(input)


ELEMENTWISE = (
    "relu relu6 leaky_relu elu selu celu gelu silu mish hardtanh hardswish hardsigmoid sigmoid tanh softplus "
    "softsign logsigmoid tanhshrink softshrink hardshrink threshold dropout dropout1d dropout2d dropout3d "
    "alpha_dropout feature_dropout feature_alpha_dropout exp log log1p sqrt rsqrt reciprocal square abs neg "
    "sign erf sin cos floor round pow nan_to_num add sub subtract mul multiply div divide true_divide maximum "
    "minimum where lerp addcmul addcdiv clamp clip clamp_min clamp_max __add__ __radd__ __iadd__ __sub__ "
    "__rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__ __itruediv__ __pow__ __neg__ clone "
    "contiguous detach float half bfloat16 double"
)


@rule(MOVES, [name + ending for name in ELEMENTWISE.split() for ending in ("", "_")])
def elementwise(tags: Tags, output: Tensor, *arguments: Any, **named: Any) -> Tensor | None:
    """What is added or multiplied shares its channels."""
    given = []
    for tensor in tensors_of([list(arguments), named]):
        own = tags.of(tensor)
        given.append(own.reshape((1,) * (output.dim() - own.dim()) + tuple(own.shape)))
    counting = [dim for dim in range(output.dim()) if any(not constant(own, dim) for own in given)]
    # a tensor with one element along an axis that counts channels serves all of them, so none of its own can go
    sharing = []
    for own in given:
        if any(own.shape[dim] == 1 for dim in counting if output.shape[dim] > 1):
            tags.join(own, torch.full_like(own, FIXED))
        else:
            sharing.append(own.expand(output.shape))
    for own in sharing[1:]:
        tags.join(sharing[0], own)
    return sharing[0] if sharing else None


@rule(MOVES, ["to", "type"])
def conversion(tags: Tags, _output: Tensor, *arguments: Any, **named: Any) -> Tensor | None:
    """Another type or device, the same channels."""
    given = tensors_of([list(arguments), named])
    return tags.of(given[0]) if len(given) == 1 else None


def pooling(tags: Tags, output: Tensor, input: Tensor, *_: Any, places: int, **__: Any) -> Tensor | None:
    """Mixes places, not channels."""
    return _mixed(tags.of(input), range(input.dim() - places, input.dim()), output)


POOLS = ("max_pool", "avg_pool", "lp_pool", "adaptive_max_pool", "adaptive_avg_pool")

for _places in (1, 2, 3):
    rule(MOVES, [f"{pool}{_places}d" for pool in POOLS])(partial(pooling, places=_places))


@rule(MOVES, ["interpolate", "upsample"])
def interpolation(tags: Tags, output: Tensor, input: Tensor, *_: Any, **__: Any) -> Tensor | None:
    """Mixes places, not channels."""
    return _mixed(tags.of(input), range(2, input.dim()), output)


@rule(MOVES, ["pad"])
def padding(
    tags: Tags,
    output: Tensor,
    input: Tensor,
    pad: Sequence[int],
    *_: Any,
    **__: Any,
) -> Tensor | None:
    """Adds places; where it adds channels there is no telling."""
    return _mixed(tags.of(input), range(input.dim() - len(pad) // 2, input.dim()), output)


@rule(MOVES, ["mean", "sum", "amax", "amin"])
def reduction(
    tags: Tags,
    _output: Tensor,
    input: Tensor,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    **_: Any,
) -> Tensor | None:
    """Over places, not over channels."""
    own = tags.of(input)
    dims = [dim] if isinstance(dim, int) else list(dim or range(own.dim()))
    if not all(constant(own, axis) for axis in dims):
        return None
    return own.amax(tuple(dims), keepdim=keepdim)


def reordering(tags: Tags, _output: Tensor, input: Tensor, *how: Any, method: Any, **named: Any) -> Tensor:
    """The tags go where the elements go."""
    moved: Tensor = method(tags.of(input), *how, **named)
    return moved


for _name in ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "unsqueeze", "flatten"):
    rule(MOVES, [_name])(partial(reordering, method=getattr(torch.Tensor, _name)))


@rule(MOVES, ["view", "reshape"])
def reshaping(tags: Tags, output: Tensor, input: Tensor, *shape: Any) -> Tensor | None:
    """Only what flattens all that follows the samples, for other shapes may hold numbers of channels."""
    sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    flat = len(sizes) == 2 and sizes[1] == -1 and output.shape[0] == input.shape[0] == 1
    return tags.of(input).flatten(1) if flat else None


@rule(MOVES, ["squeeze"])
def squeezing(tags: Tags, _output: Tensor, input: Tensor, *dims: Any, **named: Any) -> Tensor | None:
    """Of named axes: without names it would take an axis with one channel left for none."""
    given = (*dims, *named.values())
    if not given:
        return None
    wanted = given[0] if isinstance(given[0], tuple) else given
    if any(input.shape[dim] != 1 for dim in wanted):
        return None
    return tags.of(input).squeeze(*dims, **named)


@rule(MOVES, ["cat", "concat", "concatenate"])
def joining(tags: Tags, _output: Tensor, tensors: Sequence[Tensor], dim: int = 0, **named: Any) -> Tensor | None:
    """One after the other, along the axis that counts channels."""
    dim = named.get("axis", dim)
    parts = [tags.of(tensor) for tensor in tensors]
    if any(along(part, dim) is None for part in parts):
        return None
    return torch.cat(parts, dim)


@rule(MOVES, ["__getitem__"])
def indexing(tags: Tags, _output: Tensor, input: Tensor, index: Any) -> Tensor | None:
    """Places by number or range; channels only all of them."""
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts):
        return None
    own, dim = tags.of(input), 0
    counted = sum(part is not None and part is not Ellipsis for part in parts)
    for part in parts:
        if part is Ellipsis:
            dim += own.dim() - counted
        elif part is not None:
            if part != slice(None) and not constant(own, dim):
                return None
            dim += 1
    return own[index]


def _own(tags: Tags, *tensors: Tensor | None) -> bool:
    return all(tensor is None or tags.name_of(tensor) is not None for tensor in tensors)


def _use_vectors(tags: Tags, channels: Tensor, *vectors: Tensor | None) -> None:
    for vector in vectors:
        name = tags.name_of(vector)
        if name is not None:
            tags.use(name, 0, channels)


def _spread(channels: Tensor, axis: int, output: Tensor) -> Tensor:
    shape = [1] * output.dim()
    shape[axis] = -1
    return channels.view(shape).expand(output.shape)


def _mixed(own: Tensor, dims: Iterable[int], output: Tensor) -> Tensor | None:
    for dim in dims:
        if not constant(own, dim):
            return None
        own = own.narrow(dim, 0, 1)
    return own.expand(output.shape)
