"""Channel slices: train some channels of a layer and keep the others frozen, at the cost of the slice.

The slice is the trainable parameter, with one row a channel: its gradient and its optimizer state are of that size,
whatever optimizer or wrapper sees it. The layer still shows its full weight, built from the frozen one and
the slice by ``torch.nn.utils.parametrize``, and still saves and loads it under its own name.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from adabet.errors import OptionError, SelectionError
from adabet.freezing.channels import Channels, SliceOf
from adabet.layers import is_sharded

Axis = Literal["out", "in"]


class SlicedModule:
    """A layer of which only a slice trains; made by `slice_module`.

    Attributes:
        module: the layer.
        axis: what its channels count, ``"out"`` or ``"in"``.
        channels: the channels that train, ascending.
    """

    def __init__(self, module: nn.Module, axis: Axis, channels: Iterable[int], names: Sequence[str]) -> None:
        self.module = module
        self.axis: Axis = axis
        self.channels, places = _places(module, names, axis, channels)
        self._names = tuple(names)
        self._order = tuple(module._parameters)
        self._required_grad = {name: module.get_parameter(name).requires_grad for name in names}
        self._hooks = [
            module.register_state_dict_post_hook(_save_whole),
            module.register_load_state_dict_pre_hook(_load_whole),
        ]
        for name in names:
            if name in places:
                _insert(module, name, places[name], self._order)
            else:
                module.get_parameter(name).requires_grad_(True)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What trains, by its name in the layer: slices with one row a channel, or a whole bias."""
        parts = {name: part for name, part, _ in _slices(self.module)}
        return {name: parts[name] if name in parts else self.module.get_parameter(name) for name in self._names}

    def remove(self) -> None:
        """Give the layer back its plain parameters: the same objects as before, with the trained values."""
        module = self.module
        for name, _, slice_ in _slices(module):
            _write(module, name)
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            module._parameters[name] = slice_.full
        _in_order(module._parameters, self._order)
        for name, required_grad in self._required_grad.items():
            module.get_parameter(name).requires_grad_(required_grad)
        for hook in self._hooks:
            hook.remove()
        self._names, self._order, self._required_grad, self._hooks = (), (), {}, []


def slice_module(
    module: nn.Module,
    channels: Iterable[int],
    *,
    axis: Axis,
    parameters: Sequence[str] = ("weight", "bias"),
) -> SlicedModule:
    """Train only some channels of a layer; what is not in the slice keeps its value.

    Convolutions (grouped, depthwise and transposed too) and linear layers can be sliced along either axis, and layers
    whose parameters are all one-dimensional (norms) along their only one. Channels are counted over the whole layer.
    In a grouped convolution a channel stands for the weights that touch it, which are those within its group.

    The named parameters are replaced by slices, which are what an optimizer has to be given
    (``SlicedModule.parameters``); with ``axis="in"`` the bias trains whole. ``state_dict`` and ``load_state_dict``
    still speak of full-size tensors under the old names. The slice works with stock autograd; under ``adabet.lean``
    it is also all whose gradient is computed, and with ``axis="in"`` all of the layer's input that is kept.

    Args:
        module: the layer that owns the parameters.
        channels: numbers of the channels to train, in any order.
        axis: ``"out"`` for channels of the layer's output, ``"in"`` for those of its input.
        parameters: names to slice; those that the layer has set to None are skipped.

    Returns:
        The handle that `change` and ``remove()`` need.

    Raises:
        OptionError: if ``axis`` is neither ``"out"`` nor ``"in"``.
        SelectionError: if the layer lacks the channels or the parameters, if it is sliced or parametrized already, or
            if its weight has no clear channel axis.

    Examples:
        >>> layer = nn.Linear(8, 4)
        >>> handle = slice_module(layer, [1, 3], axis="out")
        >>> {name: tuple(parameter.shape) for name, parameter in handle.parameters.items()}
        {'weight': (2, 8), 'bias': (2,)}
        >>> layer.weight.shape, list(layer.state_dict())
        (torch.Size([4, 8]), ['weight', 'bias'])
        >>> handle.remove()
    """
    if axis not in ("out", "in"):
        raise OptionError(f"expected axis 'out' or 'in', got {axis!r}")
    return SlicedModule(module, axis, channels, _plain_parameters(module, parameters))


def change(handle: SlicedModule, channels: Iterable[int]) -> tuple[int, ...]:
    """Train other channels of the same layer from now on; values stay, gradients of slices are dropped.

    The trainable parameters stay the same objects, with new rows. Optimizer state is the caller's: keep the rows
    that the returned positions name, start the others anew.

    Returns:
        For each row of the new slices its row in the old ones, or -1 for a channel that has just come in.

    Raises:
        SelectionError: if the layer lacks the channels, or the slice was removed.

    Examples:
        >>> handle = slice_module(nn.Linear(8, 4), [1, 3], axis="out")
        >>> change(handle, [0, 3])
        (-1, 1)
    """
    if not handle._names:
        raise SelectionError("this slice was removed from its layer; make a new one with slice_module")
    module = handle.module
    new, places = _places(module, handle._names, handle.axis, channels)
    for name, part, slice_ in _slices(module):
        _write(module, name)
        slice_.place = places[name]
        part.data = slice_.place.take(slice_.full.data)
        part.grad = None
    old = {channel: row for row, channel in enumerate(handle.channels)}
    handle.channels = new
    return tuple(old.get(channel, -1) for channel in new)


def _plain_parameters(module: nn.Module, names: Sequence[str]) -> list[str]:
    kind = type(module).__name__
    taken = [name for name in names if parametrize.is_parametrized(module, name)]
    if taken:
        raise SelectionError(f"{taken[0]} of {kind} is sliced or parametrized already; undo that first")
    unknown = [name for name in names if name not in module._parameters]
    if unknown:
        raise SelectionError(
            f"{kind} has no parameter {unknown[0]!r}; it owns {', '.join(module._parameters) or 'none'}"
        )
    present = [name for name in names if module._parameters[name] is not None]
    _refuse_sharded(module, (module._parameters[name] for name in present))
    if not present:
        raise SelectionError(f"{kind} has none of the parameters {', '.join(names)} to slice")
    return present


def _refuse_sharded(module: nn.Module, parameters: Iterable[nn.Parameter | None]) -> None:
    if any(parameter is not None and is_sharded(parameter) for parameter in parameters):
        raise SelectionError(
            f"{type(module).__name__} is split over processes by fully_shard, and so cannot train some channels only: "
            "select whole layers (channel_ratio=1)"
        )


def _places(
    module: nn.Module, names: Sequence[str], axis: Axis, channels: Iterable[int]
) -> tuple[tuple[int, ...], dict[str, Channels]]:
    """The channels in order, and where the slice lies in each tensor that is sliced."""
    shapes = {name: getattr(module, name).shape for name in names}
    groups, inner = 1, axis == "in"
    if isinstance(module, _ConvNd):
        count = module.in_channels if axis == "in" else module.out_channels
        groups, inner = module.groups, inner != module.transposed
    elif isinstance(module, nn.Linear):
        count = module.in_features if axis == "in" else module.out_features
    elif len(set(shapes.values())) == 1 and len(shapes[names[0]]) == 1:
        count = shapes[names[0]].numel()
        chosen = _checked(channels, count, module)
        return chosen, {name: Channels(chosen) for name in names}
    if not isinstance(module, _ConvNd | nn.Linear) or not set(names) <= {"weight", "bias"}:
        listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise SelectionError(
            f"{type(module).__name__} has no clear channel axis in {listed}; slice convolutions, linear layers and "
            "norms, and select this layer whole"
        )
    chosen = _checked(channels, count, module)
    places = {"weight": Channels(chosen, groups, inner)}
    if axis == "out":
        places["bias"] = Channels(chosen)
    return chosen, {name: place for name, place in places.items() if name in names}


def _checked(channels: Iterable[int], count: int, module: nn.Module) -> tuple[int, ...]:
    chosen = tuple(sorted(int(channel) for channel in channels))
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 0 or chosen[-1] >= count:
        raise SelectionError(
            f"expected distinct channels between 0 and {count - 1} of {type(module).__name__}, got {list(chosen)}"
        )
    return chosen


def _insert(module: nn.Module, name: str, place: Channels, order: tuple[str, ...]) -> None:
    full = module.get_parameter(name)
    full.requires_grad_(False)
    # parametrize turns the very object it finds into the slice; give it an alias, for the full parameter has to stay
    # what it is for whoever shares it. "Unsafe" skips its check that the size does not change.
    module._parameters[name] = nn.Parameter(full.data)
    parametrize.register_parametrization(module, name, SliceOf(full, place, order), unsafe=True)


def _slices(module: nn.Module) -> list[tuple[str, nn.Parameter, SliceOf]]:
    """Name, slice and parametrization of each sliced parameter."""
    if not parametrize.is_parametrized(module):
        return []
    stacks = cast(Mapping[str, parametrize.ParametrizationList], module.parametrizations)
    return [
        (name, cast(nn.Parameter, stack.original), stack[0])
        for name, stack in stacks.items()
        if isinstance(stack[0], SliceOf)
    ]


def _write(module: nn.Module, name: str) -> None:
    """Bring the full tensor up to date with its slice, as every use of it does."""
    _refuse_sharded(module, module.parameters())
    with torch.no_grad():
        getattr(module, name)


def _in_order(named: dict[str, Any], order: Iterable[str]) -> None:
    for name in order:
        if name in named:
            named[name] = named.pop(name)


def _save_whole(module: nn.Module, state: dict[str, Any], prefix: str, _: object) -> None:
    for name, _part, slice_ in _slices(module):
        _write(module, name)
        inside = f"{prefix}parametrizations.{name}"
        del state[f"{inside}.original"]
        state[prefix + name] = state.pop(f"{inside}.0.full")
        _in_order(state, [prefix + own for own in (*slice_.order, *module._buffers)])


def _load_whole(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _: object,
    __: bool,
    missing: list[str],
    *___: object,
) -> None:
    for name, part, slice_ in _slices(module):
        inside = f"{prefix}parametrizations.{name}"
        whole = state.pop(prefix + name, None)
        if whole is None:
            missing.append(prefix + name)
        fits = whole is not None and whole.shape == slice_.full.shape
        state[f"{inside}.0.full"] = slice_.full if whole is None else whole
        state[f"{inside}.original"] = slice_.place.take(whole) if fits else part
