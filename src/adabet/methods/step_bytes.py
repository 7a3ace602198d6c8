"""What a training step of a draw of channels takes: predicted from above, and measured."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from adabet.errors import BudgetError, DataError
from adabet.layers import Layer, inputs_of, join_samples, sample_count, take_samples
from adabet.layers.batches import tensors_of
from adabet.memory import measure_memory
from adabet.memory.bytes_by_layer import saved_bytes
from adabet.methods.channel_draws import ChannelPool
from adabet.methods.channel_gradients import Channels, Choose
from adabet.methods.registry import Request
from adabet.selection import Axis, Selection
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
        peak: bytes of the step, of a whole batch.
        saved: bytes that a forward pass over one sample keeps, by module path.
    """

    weights: int
    state: float
    varying: float
    peak: int
    saved: Mapping[str, int]


@dataclass(frozen=True)
class Expected:
    """What a step is predicted to take at most.

    Attributes:
        fixed: bytes that are there all the time.
        stepping: temporary bytes of the optimizer's step.
        sample: bytes that each sample in memory adds.
        scratch: of the backward pass of each layer, bytes in any case and for each sample.
    """

    fixed: float
    stepping: float
    sample: float
    scratch: tuple[tuple[int, int], ...]

    def peak(self, samples: int) -> int:
        """Bytes with so many samples at once."""
        scratch = max((constant + samples * each for constant, each in self.scratch), default=0)
        return math.ceil(self.fixed + max(samples * self.sample + scratch, self.stepping))


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
        axis: whether these are input or output channels.
        watched: copies of the slices' gradients that the method itself keeps.
        reserved: bytes of the budget for whatever else it keeps.
    """

    def __init__(
        self,
        request: Request,
        layers: Iterable[Layer],
        pool: ChannelPool,
        choose: Choose,
        *,
        axis: Axis = "in",
        watched: int = 0,
        reserved: int = 0,
    ) -> None:
        self._request, self._choose, self._axis, self._watched = request, choose, axis, watched
        self._layers = {layer.name: layer for layer in layers}
        self.pool, self.budget, self._reserved = pool, (request.memory or 0) - reserved, reserved
        self._batch = next(iter(request.batches), None)
        if self._batch is None:
            raise DataError("expected batches to look at, the loader is empty")
        count = sample_count(inputs_of(self._batch))
        self.micro_batch = min(request.micro_batch or count, count)
        self._slices = -(-count // self.micro_batch)
        self._inputs = sum(tensor.nbytes for tensor in tensors_of(self._batch))
        self._bases: dict[int, Base] = {}

    def of_fewer(self, micro_batch: int) -> "StepBytes":
        """The same with fewer samples in memory at once, for gradients that nobody watches."""
        request = replace(self._request, micro_batch=micro_batch)
        return StepBytes(
            request, self._layers.values(), self.pool, self._choose, axis=self._axis, reserved=self._reserved
        )

    def predict(self, channels: Channels) -> int:
        """Bytes that a step with these channels takes at most."""
        return self._expect(channels).peak(self.micro_batch)

    def price(self, channels: Channels) -> float:
        """The same, or infinity if not even a step over one sample is predicted to be within the budget.

        What has a finite price can be measured within the budget: that begins with one sample if the price is too high.
        """
        expected = self._expect(channels)
        return expected.peak(self.micro_batch) if expected.peak(1) <= self.budget else math.inf

    def measure(self, channels: Channels) -> int:
        """Bytes that a step with these channels really takes.

        Approached from below where it is predicted to be above the budget, which may find more than it takes.
        """
        if self.predict(channels) > self.budget:
            return self._grown(channels).peak
        return self._measured(channels, self._choose(channels), self.micro_batch).peak

    @property
    def head(self) -> int:
        """Bytes of a step in which no channel trains."""
        return self._base(len(self.pool.names)).peak

    def affordable(self) -> ChannelPool:
        """The pool without the early layers that even one channel in each layer would be too much for.

        Raises:
            BudgetError: if that is so for all layers; names what the last one would take.
        """
        names = self.pool.names
        low, high = 0, 0 if self._base(0).peak <= self.budget else len(names)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._base(middle).peak <= self.budget else (middle + 1, high)
        if low == len(names):
            least = 1.01 * self._base(low - 1).peak + self._reserved
            raise BudgetError(
                f"{format_size(self.budget + self._reserved)} is too little: a step that trains one {self._axis}put "
                f"channel of {names[-1]!r} may take {format_size(least)} with a micro-batch of {self.micro_batch}; "
                "give at least that, or a smaller micro_batch"
            )
        return self.pool.only(names[low:])

    def room(self) -> int:
        """Bytes of the budget that are left for channels once the head trains."""
        return max(0, self.budget - self.head)

    def layer_bytes(self) -> dict[str, float]:
        """What all channels of a layer take: weights, gradients, optimizer state, and their input."""
        state = self._base(len(self.pool.names)).state
        found = {}
        for name, cost in self.pool.costs.items():
            scalars = cost.weight * (2 + state + self._watched) + cost.activation * self.micro_batch
            found[name] = cost.channels * scalars * self._weight(name).element_size()
        return found

    def _expect(self, channels: Channels) -> Expected:
        count = len(self.pool.names)
        depth = min((self.pool.names.index(name) for name in channels), default=count)
        base = self._base(depth if depth == count else depth - depth % -(-count // MARKS))
        selection = self._choose(channels)
        fixed, trained = self._fixed(channels, selection, base)
        saved = self._saved(selection)
        more = sum(max(0, size - base.saved.get(path, 0)) for path, size in saved.items())
        scratch = [self._scratch(name, len(part)) for name, part in channels.items()]
        return Expected(fixed, STEPPING * trained, base.varying / self.micro_batch + more, tuple(scratch))

    def _fixed(self, channels: Channels, selection: Selection, base: Base) -> tuple[float, int]:
        """Bytes that are there all the time, and bytes of what trains."""
        slices = self._slice_bytes(channels)
        trained = slices + self._other_bytes(selection)
        return base.weights + self._constant(slices) + slices + trained * (1 + base.state), trained

    def _constant(self, slices: int) -> int:
        """Bytes that a measured step does not have, or not all of them: the batch, losses, and what is watched."""
        return self._inputs + SCALAR * max(0, self._slices - 2) + slices * self._watched

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
                varying = base.varying * self.micro_batch / samples
                return replace(base, varying=varying, peak=math.ceil(base.peak - base.varying + varying))
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
            peak=peak.total - peak.inputs + self._constant(slices),
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
        chosen = (choice for choice in selection.choices if choice.channels is not None)
        sliced = {name for choice in chosen for name in choice.parameters if name.startswith(f"{choice.layer}.")}
        return sum(self._request.model.get_parameter(name).nbytes for name in {*selection.parameters} - sliced)

    def _scratch(self, name: str, count: int) -> tuple[int, int]:
        """Bytes that the backward pass of a layer takes for so many channels, on top of what it takes for one.

        In any case, and for each sample.
        """
        cost, layer, size = self.pool.costs[name], self._layers[name], self._weight(name).element_size()
        groups = getattr(self._request.model.get_submodule(name), "groups", 1)
        # in a grouped convolution the gradient is cut to the groups that the channels are in
        cut = layer.output_size * min(groups, count) // groups if groups > 1 else 0
        places = cost.activation if self._axis == "in" else layer.output_size // cost.channels
        return COPIES * count * cost.weight * size, (count * places + cut) * size

    def _weight(self, name: str) -> Tensor:
        return self._request.model.get_parameter(f"{name}.weight")
