"""Forward passes over unlabelled samples that leave, of every layer, only distances between the samples."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adabet.errors import ActivationError, AdabetWarning
from adabet.layers import Layer, Layers, find_layers, forward_call, observing
from adabet.layers.batches import Forward
from adabet.layers.trace import first_floating
from adabet.topology.distances import channel_squared_distances, squared_distances
from adabet.topology.lockstep import Lockstep
from adabet.topology.padding import mean_over_tokens, token_axes
from adabet.topology.pool import SLICE, Pool, collect, passes
from adabet.topology.samples import by_sample, check_alike, check_finite
from adabet.topology.sketch import Sketcher

CHANNEL_BYTES = 2**25
"""Room for the distances of channels at one time; more channels take another round of passes."""

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is in all, in steps of about equal length."""


@dataclass(frozen=True)
class Probe:
    """What forward passes over unlabelled samples showed.

    Attributes:
        layers: the model's layers.
        distances: for each candidate layer (by name) the distances between its activations, ``(n, n)``, float64.
        samples: n, the number of samples.
        exact: False if the distances come from sketches.
    """

    layers: Layers
    distances: dict[str, Tensor]
    samples: int
    exact: bool


class Prober:
    """Runs a model over pooled samples and measures distances at its layers.

    The model runs in eval mode without gradients and is left as it was: modes, hooks and random state.

    Sequences whose padding an ``attention_mask`` tells run without it, so that neither its amount nor its side counts.
    If all have the same number of tokens, a layer's output ``(samples, tokens, ...)`` is flattened like any other; if
    not, it is averaged over each sequence's tokens, so that batches of different lengths make one cloud. Sizes of
    layers are then those for a sequence of median length.

    Args:
        model: any module.
        batches: unlabelled (or labelled: ignored) batches; tensors, tuples or mappings.
        samples: how many samples to pool (40, as in the paper).
        samples_in_memory: most samples whose activations of one layer are in memory together; None for all of
            them in a single round of passes. Fewer take more passes: every two slices have to meet.
        sketch: size of a random projection instead of exact distances: a single round of passes in the memory of
            one slice; see `Sketcher` for its error. None for exact distances.
        slice_size: samples that run through the model in one call.
        seed: of the sketch.
        head: see `find_layers`.
        blocks: see `find_layers`.
        tie_norm: see `find_layers`.
        forward: how to run the model on a batch.
        progress: told whenever a layer is done with in all slices that run side by side, or with a sketch after
            every forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        *,
        samples: int = 40,
        samples_in_memory: int | None = None,
        sketch: int | None = None,
        slice_size: int = SLICE,
        seed: int = 0,
        head: str | Sequence[str] | None = "auto",
        blocks: Sequence[str] | None = None,
        tie_norm: bool = False,
        forward: Forward = forward_call,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.pool: Pool = collect(batches, samples=samples, slice_size=slice_size)
        self._rounds = list(passes(self.pool, samples_in_memory if sketch is None else None))
        self._sketcher = None if sketch is None else Sketcher(size=sketch, seed=seed)
        self._forward = forward
        self._progress = progress
        find = partial(find_layers, model, head=head, blocks=blocks, tie_norm=tie_norm, forward=forward)
        self.layers = find(self.pool.slices[self.pool.median])
        self._tokens = self._token_axes(find) if self.pool.varied else {"out": {}, "in": {}}

    def probe(self) -> Probe:
        """Distances between the samples at every candidate layer."""
        layers = self.layers.candidates
        if self._sketcher is None:
            squared = self._swept(layers, lambda _: squared_distances)
        else:
            squared = self._sketched(layers, self._sketcher, squared_distances)
        distances = {name: total.sqrt() for name, total in squared.items()}
        return Probe(self.layers, distances, self.pool.samples, exact=self._sketcher is None)

    def channel_distances(self, layers: Sequence[Layer], *, axis: str = "out") -> Iterable[tuple[Layer, Tensor]]:
        """Distances between the samples for every output (or input) channel of some layers.

        With a sketch they come from a sketch of each channel; channels of no more places than its size are exact.

        Yields:
            Each layer with its distances, ``(channels, n, n)``.

        Raises:
            ActivationError: if sequences differ in length: a channel of a mean over tokens is one number.
        """
        if any(layer.name in self._tokens[axis] for layer in layers):
            raise ActivationError(
                "expected sequences of one length to rank channels: of different lengths only the means over their "
                "tokens can be compared, and a channel of those is a single number; give such samples, or train all "
                "channels"
            )
        for group in self._groups(layers, axis):
            if self._sketcher is None:
                squared = self._swept(
                    group, lambda layer: partial(channel_squared_distances, channel_axis=layer.channel_axis or -1), axis
                )
            else:
                between = partial(channel_squared_distances, channel_axis=-2)
                squared = self._sketched(group, self._sketcher, between, axis, by_channel=True)
            for layer in group:
                yield layer, squared[layer.name].sqrt()

    def _groups(self, layers: Sequence[Layer], axis: str) -> Iterable[list[Layer]]:
        """Layers whose channels' distances (and sketches) fit into memory together."""
        group: list[Layer] = []
        room = CHANNEL_BYTES
        for layer in layers:
            channels = layer.out_channels if axis == "out" else layer.in_channels
            width = self.pool.samples + (0 if self._sketcher is None else self._sketcher.size)
            size = (channels or 0) * self.pool.samples * width * 4
            if group and size > room:
                yield group
                group, room = [], CHANNEL_BYTES
            group.append(layer)
            room -= size
        if group:
            yield group

    def _swept(
        self, layers: Sequence[Layer], measure: Callable[[Layer], Callable[..., Tensor]], axis: str = "out"
    ) -> dict[str, Tensor]:
        """Exact squared distances, all slices of a round side by side."""
        by_name = {layer.name: layer for layer in layers}
        totals: dict[str, Tensor] = {}
        done = torch.eye(self.pool.samples, dtype=torch.bool)
        steps_of_round = sum(layer.calls for layer in layers)
        for number, chosen in enumerate(self._rounds):
            rows = torch.cat([self._rows(index) for index in chosen])
            fresh = ~done[rows[:, None], rows]
            step = itertools.count(1)

            def meet(
                name: str,
                parts: list[Tensor],
                rows: Tensor = rows,
                fresh: Tensor = fresh,
                number: int = number,
                step: Iterator[int] = step,
            ) -> None:
                check_alike(name, [part.shape[1:] for part in parts])
                found = measure(by_name[name])(*parts)
                check_finite(name, found)
                if name not in totals:
                    totals[name] = found.new_zeros((*found.shape[:-2], self.pool.samples, self.pool.samples))
                totals[name][..., rows[:, None], rows] += found * fresh.to(found.device)
                # a layer may run more often than it did for one sample
                within = min(next(step), steps_of_round)
                self._report(number * steps_of_round + within, len(self._rounds) * steps_of_round)

            steps = Lockstep(meet)
            count = partial(self._count, steps, chosen)
            with self._listening(layers, steps.arrive, count, axis):
                steps.run([partial(self._forward, self.model, self.pool.slices[index]) for index in chosen])
            done[rows[:, None], rows] = True
        self._check_complete(layers, totals)
        return totals

    def _sketched(
        self,
        layers: Sequence[Layer],
        sketcher: Sketcher,
        between: Callable[..., Tensor],
        axis: str = "out",
        *,
        by_channel: bool = False,
    ) -> dict[str, Tensor]:
        """Squared distances between random projections, of whole layers or channels, one slice after the other."""
        axes = {layer.name: layer.channel_axis or -1 for layer in layers}
        parts: dict[str, list[list[Tensor]]] = {}
        shapes: dict[tuple[str, int], torch.Size] = {}
        for index, inputs in enumerate(self.pool.slices):
            calls: dict[str, list[Tensor]] = {}

            def keep(name: str, activation: Tensor, calls: dict[str, list[Tensor]] = calls) -> None:
                sketches = calls.setdefault(name, [])
                shape = activation.shape[1:]
                check_alike(name, [shapes.setdefault((name, len(sketches)), shape), shape])
                sketch = _channel_sketches(sketcher, activation, axes[name]) if by_channel else sketcher(activation)
                check_finite(name, sketch)
                sketches.append(sketch)

            with self._listening(layers, keep, partial(self.pool.sizes.__getitem__, index), axis):
                self._forward(self.model, inputs)
            for name, sketches in calls.items():
                parts.setdefault(name, []).append(sketches)
            self._report(index + 1, len(self.pool.slices))
        self._check_complete(layers, parts)
        totals: dict[str, Tensor] = {}
        for name, slices in parts.items():
            if len(slices) < len(self.pool.slices) or len(set(map(len, slices))) > 1:
                raise ActivationError(
                    f"layer {name!r} does not run alike for all batches; give batches that take the same path"
                )
            for call in zip(*slices, strict=True):
                totals[name] = between(*call) + totals.get(name, 0)
        return totals

    @contextmanager
    def _listening(
        self,
        layers: Sequence[Layer],
        receive: Callable[[str, Tensor], None],
        count: Callable[[], int],
        axis: str = "out",
    ) -> Iterator[None]:
        """Have each layer's activation passed on, sample by sample; ``count`` tells how many samples run."""
        named = dict(self.model.named_modules())

        def hook(layer: Layer, module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ARG001
            tensor = first_floating(output if axis == "out" else arguments)
            if tensor is not None:
                shape = layer.output_shape if axis == "out" else layer.input_shape
                tensor, shape = mean_over_tokens(tensor, shape, self._tokens[axis].get(layer.name, ()))
                receive(layer.name, by_sample(layer.name, tensor, count(), shape))

        with observing(self.model) as handles:
            for layer in layers:
                handles.append(named[layer.output_module].register_forward_hook(partial(hook, layer)))
            yield

    def _token_axes(self, find: Callable[[Any], Layers]) -> dict[str, dict[str, tuple[int, ...]]]:
        """Where layers' outputs, and inputs, hold tokens: what differs between sequences of different lengths."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AdabetWarning)  # said once already
            others = find(self.pool.slices[self.pool.farthest])
        return {axis: token_axes(tuple(self.layers), tuple(others), inputs=axis == "in") for axis in ("out", "in")}

    def _count(self, steps: Lockstep, chosen: Sequence[int]) -> int:
        """How many samples the slice has that is running now."""
        return self.pool.sizes[chosen[steps.index]]

    def _rows(self, index: int) -> Tensor:
        start = self.pool.starts[index]
        return torch.arange(start, start + self.pool.sizes[index])

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)

    @staticmethod
    def _check_complete(layers: Sequence[Layer], seen: dict[str, Any]) -> None:
        missing = [layer.name for layer in layers if layer.name not in seen]
        if missing:
            raise ActivationError(
                f"layer {missing[0]!r} ran for one sample but not for all of them: its samples cannot be compared"
            )


def _channel_sketches(sketcher: Sketcher, activation: Tensor, channel_axis: int) -> Tensor:
    """Sketches of every channel of an activation ``(n, ...)`` by itself, ``(n, channels, size or less)``."""
    channels = activation.movedim(channel_axis, 1)
    rows = channels.reshape(channels.shape[0] * channels.shape[1], -1)
    return sketcher(rows).view(channels.shape[0], channels.shape[1], -1)
