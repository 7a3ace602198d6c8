"""Take channels out of a model in place."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from adabet.methods.channel_removal.edges import Edges


class ChannelRemoval:
    """A model that loses channels, and what it was before.

    Its parameters and buffers stay the same objects, in the same modules; what they hold becomes smaller.

    Attributes:
        edges: the channels that can go, as `find_edges` found them in the whole model.
        kept: for each of them, whether it is still there.
    """

    def __init__(self, model: nn.Module, edges: Edges) -> None:
        self.edges = edges
        self.kept = torch.ones(edges.count, dtype=torch.bool)
        self._model = model
        self._shapes = {name: self._tensor(name).shape for name in edges.axes}
        first = {id(self._tensor(name)): name for name in edges.axes}
        everything = (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
        self._tied = {name: first[id(tensor)] for name, tensor in everything if id(tensor) in first}

    def used(self) -> Tensor:
        """For each channel, whether a weight that writes or reads it is not zero.

        The union over all layers of an edge: one weight anywhere keeps the channel. Where none would be left, the
        first stays, so that every layer still has an input and an output.
        """
        used = torch.zeros_like(self.kept)
        for name, axis in self.edges.voters:
            weight = self._tensor(name).detach()
            dense = (weight != 0).movedim(axis, 0).flatten(1).any(1).cpu()
            numbers = self.numbers(name, axis)
            used[numbers[dense & (numbers >= 0)]] = True
        for name, axis in self.edges.voters:
            numbers = self.numbers(name, axis)
            if not (numbers < 0).any() and not used[numbers].any():
                used[numbers[0]] = True
        return used

    @torch.no_grad()
    def keep(self, kept: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        """Take all other channels out of the model.

        Args:
            kept: for each channel whether it stays; what has gone before stays away.

        Returns:
            For each parameter that has become smaller, by full name, how to make a tensor of its former shape, such as
            its momentum, smaller in the same way.
        """
        after = self.kept & kept
        follow: dict[str, Callable[[Tensor], Tensor]] = {}
        for name, axes in self.edges.axes.items():
            indices = {}
            for axis, numbers in axes.items():
                stays = _among(numbers, after)[self._present(name, axis)]
                if not stays.all():
                    indices[axis] = stays.nonzero().flatten()
            if indices:
                tensor = self._tensor(name)
                tensor.data = _take(tensor.data, indices)
                tensor.grad = None
                if isinstance(tensor, nn.Parameter):
                    follow[name] = partial(_take, indices=indices)
        self.kept = after
        self._tell_modules()
        return follow

    def numbers(self, name: str, axis: int) -> Tensor:
        """The channel at each position of an axis as it is now; -1 where it stays in any case."""
        return self.edges.axes[name][axis][self._present(name, axis)]

    def tensors(self) -> dict[str, Tensor]:
        """The values of all tensors that channels can be taken out of, for `undo`."""
        return {name: self._tensor(name).data for name in self.edges.axes}

    def undo(self, tensors: Mapping[str, Tensor], kept: Tensor) -> None:
        """Put back what `tensors` and ``kept`` were."""
        for name, data in tensors.items():
            self._tensor(name).data = data
        self.kept = kept
        self._tell_modules()

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the model in its shape before all removals, zero for what is gone.

        In eval mode a whole model with these tensors computes what the smaller one does: weights that read a
        removed channel are zero.
        """
        first = self._tied.get(name)
        if first is None or tensor.shape == self._shapes[first]:
            return tensor
        whole = tensor
        for axis in self.edges.axes[first]:
            present = self._present(first, axis).nonzero().flatten().to(tensor.device)
            shape = list(whole.shape)
            shape[axis] = self._shapes[first][axis]
            whole = whole.new_zeros(shape).index_copy(axis, present, whole)
        return whole

    def _tensor(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        module = self._model.get_submodule(owner)
        found: Tensor = getattr(module, leaf)
        return found

    def _present(self, name: str, axis: int) -> Tensor:
        return _among(self.edges.axes[name][axis], self.kept)

    def _tell_modules(self) -> None:
        """Bring the sizes that modules remember up to date with their tensors."""
        owners = {name.rpartition(".")[0] for name in self._tied}
        for module in map(self._model.get_submodule, sorted(owners)):
            tensor = next(iter(module.parameters(recurse=False)), None)
            if isinstance(module, _ConvNd):
                _tell_convolution(module)
            elif isinstance(module, nn.Linear):
                module.out_features, module.in_features = module.weight.shape
            elif isinstance(module, _NormBase):
                sized = module.running_mean if tensor is None else tensor
                module.num_features = module.num_features if sized is None else len(sized)
            elif isinstance(module, nn.PReLU):
                module.num_parameters = module.weight.numel()


def _tell_convolution(module: _ConvNd) -> None:
    first, second = module.weight.shape[:2]
    if module.groups == 1:
        sizes = (first, second) if module.transposed else (second, first)
    else:
        inner = first if module.transposed else first * module.in_channels // module.out_channels
        sizes = inner, inner * module.out_channels // module.in_channels
        module.groups = inner
    module.in_channels, module.out_channels = sizes


def _among(numbers: Tensor, kept: Tensor) -> Tensor:
    """Which positions of an axis are there; those without a number always are."""
    return (numbers < 0) | kept[numbers]


def _take(tensor: Tensor, indices: Mapping[int, Tensor]) -> Tensor:
    for axis, index in indices.items():
        tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor
