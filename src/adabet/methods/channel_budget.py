"""Budgets of draws: the papers' memory units, or bytes of a real training step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adabet.errors import BudgetError, DataError
from adabet.layers import Layers, inputs_of, join_samples, sample_count, take_samples
from adabet.layers.batches import tensors_of
from adabet.memory import measure_memory
from adabet.memory.bytes_by_layer import saved_bytes
from adabet.methods.channel_draws import ChannelPool, fill_units, fill_while
from adabet.methods.channel_gradients import Channels, Choose
from adabet.methods.registry import Request
from adabet.selection import Selection
from adabet.sizes import format_size

COPIES = 3
"""How often the gradient of the layer whose turn it is lies in memory beside the one that it is added to: as the
kernel wrote it, in the order of the slice, and as the kernel's scratch."""

STEPPING = 2
"""Temporary copies of all that trains that an optimizer makes in its step at most (Adam's, for tensors in a list)."""

SCALAR = 512
"""Bytes that the loss of a slice of the batch takes until the step ends: on a GPU the least that its allocator gives
out; on a CPU it is less."""

MARKS = 4
"""Depths at which base steps are measured; a draw is compared with the next one that reaches at least as deep."""


@dataclass(frozen=True)
class Base:
    """A measured step in which a single channel of every layer from some depth on trains.

    Attributes:
        weights: bytes of the model itself.
        state: bytes of optimizer state for each byte that trains.
        varying: bytes of saved activations and workspace of a whole micro-batch at most.
        saved: bytes that a forward pass over one sample keeps, by module path.
    """

    weights: int
    state: float
    varying: float
    saved: Mapping[str, int]


class StepBytes:
    """Predicts, from above, the peak of a training step for channels that might train, and measures it.

    Weights, the batch, slices, their gradients and optimizer state are known. What the forward pass keeps is counted by
    running it over one sample under lean without keeping anything. Workspace is that of a measured step that reaches at
    least as deep with one channel a layer, plus what a wider slice adds to it in its layer's backward pass; that much
    depends on the kernels, so what is drawn in the end is measured as well. A step is measured over one slice of the
    batch, or over two where there are more: each further one only leaves its loss behind, for which `SCALAR` is added.

    Args:
        request: its ``memory`` is the budget; the first batch stands for all: none may have larger samples or more.
        layers: the model's.
        pool: the layers that channels are drawn from.
        choose: makes selections of channels.
        watched: copies of the slices' gradients that the method itself keeps.
    """

    def __init__(
        self, request: Request, layers: Layers, pool: ChannelPool, choose: Choose, *, watched: int = 0
    ) -> None:
        self._request, self._choose, self._watched = request, choose, watched
        self._layers = {layer.name: layer for layer in layers}
        self.pool, self.budget = pool, request.memory or 0
        self._batch = next(iter(request.batches), None)
        if self._batch is None:
            raise DataError("expected batches to look at, the loader is empty")
        count = sample_count(inputs_of(self._batch))
        self.micro_batch = min(request.micro_batch or count, count)
        self._slices = -(-count // self.micro_batch)
        self._inputs = sum(tensor.nbytes for tensor in tensors_of(self._batch))
        self._bases: dict[int, Base] = {}

    def predict(self, channels: Channels) -> int:
        """Bytes that a step with these channels takes at most."""
        count = len(self.pool.names)
        depth = min((self.pool.names.index(name) for name in channels), default=count)
        return self._predict(channels, self._base(depth if depth == count else depth - depth % -(-count // MARKS)))

    def measure(self, channels: Channels) -> int:
        """Bytes that a step with these channels really takes.

        Approached from below where it is predicted to be above the budget, which may find more than it takes.
        """
        if self.predict(channels) > self.budget:
            return self._total(channels, self._grown(channels))
        return self._total(channels, self._measured(channels, self._choose(channels), self.micro_batch))

    def affordable(self) -> ChannelPool:
        """The pool without the early layers that even one channel in each layer would be too much for.

        Raises:
            BudgetError: if that is so for all layers; names what the last one would take.
        """
        names = self.pool.names
        low, high = 0, 0 if self._least(0) <= self.budget else len(names)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._least(middle) <= self.budget else (middle + 1, high)
        if low == len(names):
            raise BudgetError(
                f"{format_size(self.budget)} is too little: a step that trains one input channel of {names[-1]!r} "
                f"may take {format_size(1.01 * self._least(low - 1))} with a micro-batch of {self.micro_batch}; give "
                "at least that, or a smaller micro_batch"
            )
        return self.pool.only(names[low:])

    def room(self) -> float:
        """Bytes of the budget that are left for channels once the head trains."""
        return max(0.0, self.budget - self.predict({}))

    def layer_bytes(self) -> dict[str, float]:
        """What all channels of a layer take: weights, gradients, optimizer state, and their input."""
        state = self._base(len(self.pool.names)).state
        found = {}
        for name, cost in self.pool.costs.items():
            scalars = cost.weight * (2 + state + self._watched) + cost.activation * self.micro_batch
            found[name] = cost.channels * scalars * self._weight(name).element_size()
        return found

    def _least(self, depth: int) -> int:
        """Bytes of a step with one channel in each layer from a depth on."""
        return self._total(dict.fromkeys(self.pool.names[depth:], (0,)), self._base(depth))

    def _total(self, channels: Channels, measured: Base) -> int:
        return math.ceil(self._fixed(channels, self._choose(channels), measured)[0] + measured.varying)

    def _predict(self, channels: Channels, base: Base) -> int:
        selection = self._choose(channels)
        saved = self._saved(selection)
        more = sum(max(0, size - base.saved.get(path, 0)) for path, size in saved.items())
        scratch = max((self._scratch(name, len(part)) for name, part in channels.items()), default=0)
        fixed, trained = self._fixed(channels, selection, base)
        return math.ceil(fixed + max(base.varying + self.micro_batch * more + scratch, STEPPING * trained))

    def _fixed(self, channels: Channels, selection: Selection, base: Base) -> tuple[float, int]:
        """Bytes that are there all the time, and bytes of what trains."""
        slices = self._slice_bytes(channels)
        trained = slices + self._other_bytes(selection)
        scalars = SCALAR * max(0, self._slices - 2)
        fixed = base.weights + self._inputs + scalars + slices * (1 + self._watched) + trained * (1 + base.state)
        return fixed, trained

    def _base(self, depth: int) -> Base:
        if depth not in self._bases:
            self._bases[depth] = self._grown(dict.fromkeys(self.pool.names[depth:], (0,)))
        return self._bases[depth]

    def _grown(self, channels: Channels) -> Base:
        """A base step, measured with one sample first and then with as many as surely stay within the budget.

        With more samples, activations and workspace grow in proportion at most.
        """
        selection = self._choose(channels)
        samples = 1
        while True:
            base = self._measured(channels, selection, samples)
            room = self.budget - self._fixed(channels, selection, base)[0]
            further = min(self.micro_batch, math.floor(samples * room / max(1, base.varying)))
            if further <= samples:
                return replace(base, varying=base.varying * self.micro_batch / samples)
            samples = further

    def _measured(self, channels: Channels, selection: Selection, samples: int) -> Base:
        request = self._request
        part = take_samples(self._batch, 0, samples)
        report = measure_memory(
            request.model,
            # the second of two slices has the gradient of the first beside it, as any later one has
            join_samples([part] * min(2, self._slices)),
            selection,
            loss=request.loss,
            optimizer=request.optimizer or "sgd momentum",
            micro_batch=samples,
            inference=False,
        )
        peak, slices = report.training, self._slice_bytes(channels)
        return Base(
            weights=peak.weights - slices,
            state=peak.optimizer / max(1, slices + self._other_bytes(selection)),
            varying=peak.saved + peak.workspace,
            saved=self._saved(selection),
        )

    def _saved(self, selection: Selection) -> dict[str, int]:
        sizes: dict[str, int] = {}
        sample = take_samples(inputs_of(self._batch), 0, 1)
        for path, size in saved_bytes(self._request.model, selection, sample, self._request.forward).events:
            sizes[path] = sizes.get(path, 0) + size
        return sizes

    def _slice_bytes(self, channels: Channels) -> int:
        costs = self.pool.costs
        return sum(
            len(part) * costs[name].weight * self._weight(name).element_size() for name, part in channels.items()
        )

    def _other_bytes(self, selection: Selection) -> int:
        """Of the head, and of norms that train."""
        sliced = {f"{choice.layer}.weight" for choice in selection.choices if choice.channels is not None}
        return sum(self._request.model.get_parameter(name).nbytes for name in {*selection.parameters} - sliced)

    def _scratch(self, name: str, count: int) -> int:
        """Bytes that the backward pass of a layer takes for so many channels, on top of what it takes for one."""
        cost, layer = self.pool.costs[name], self._layers[name]
        groups = getattr(self._request.model.get_submodule(name), "groups", 1)
        # in a grouped convolution the gradient is cut to the groups that the channels are in
        cut = layer.output_size * min(groups, count) // groups if groups > 1 else 0
        scalars = COPIES * count * cost.weight + self.micro_batch * (count * cost.activation + cut)
        return scalars * self._weight(name).element_size()

    def _weight(self, name: str) -> Tensor:
        return self._request.model.get_parameter(f"{name}.weight")


@dataclass(frozen=True)
class ChannelBudget:
    """What a draw has to keep to; both budgets where both are given.

    Attributes:
        pool: the layers that channels are drawn from.
        units: memory units by the papers' cost model, or None.
        step: bytes of a step, or None.
        fill: what happens at a channel that does not fit, see `FILLS`.
    """

    pool: ChannelPool
    units: int | None
    step: StepBytes | None
    fill: str

    def take(self, order: Tensor) -> Tensor:
        """The channels of a draw, in its order, that the budget pays for."""
        if self.units is not None:
            order = fill_units(order, self.pool.spaces, self.units, fill=self.fill)
        return order if self.step is None else self._measured(order, self.step, self.fill)

    def groups(self) -> list[Channels] | None:
        """All channels of the pool in sets that the budget of bytes pays for; None if there is none."""
        if self.step is None:
            return None
        found: list[Channels] = []
        rest = list(range(self.pool.size))
        while rest:
            taken = self._measured(torch.tensor(rest), self.step, "prefix").tolist() or rest[:1]
            found.append(self.pool.split(taken))
            rest = rest[len(taken) :]
        return found

    def _measured(self, order: Tensor, step: StepBytes, fill: str) -> Tensor:
        """The channels whose step is predicted, and then measured, to be within the bytes."""

        def price(numbers: Sequence[int]) -> float:
            return step.predict(self.pool.split(numbers))

        missed = 0
        while True:
            taken = fill_while(order, self.pool.owners, price, step.budget - missed, fill=fill)
            channels = self.pool.split(taken.tolist())
            measured = step.measure(channels) if channels else 0
            if measured <= step.budget:
                return taken
            # by so much predictions are too low: what has just been tried is now predicted to be too much
            missed = max(missed, measured - step.predict(channels))
