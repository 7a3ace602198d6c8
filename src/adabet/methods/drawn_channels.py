"""Methods that draw input channels from chosen layers, once or before every epoch, until a budget is met."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from adabet.errors import OptionError, UnknownNameError
from adabet.layers import Layers
from adabet.methods.channel_budget import ChannelBudget
from adabet.methods.channel_draws import ChannelPool, check_fill, generator_for, weighted_order
from adabet.methods.channel_gradients import Channels, gradient_norms, importance, sliceable
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.layer_choice import Given, given_values, top_by_budget, top_by_share, top_count
from adabet.methods.registry import Request
from adabet.methods.step_bytes import StepBytes
from adabet.methods.tensors import choose_tensors
from adabet.methods.units import COSTED
from adabet.selection import Selection

TRAIN_BN = ("frozen", "affine")

Draw = Literal["uniform", "highest rgn", "highest raw", "by raw norm", "by remembered norm"]


@dataclass(frozen=True)
class Variant:
    """A way to choose channels, of those that TraDy and MeDyate were compared in.

    Attributes:
        layers: to draw from: all, or those with the largest RGN or LaRa.
        draw: with equal chances; the highest first, or with chances proportional to a norm, by a full gradient taken
            before; or by the norms that training itself has shown.
        once: whether the first choice stays for the whole run.
    """

    layers: Literal["all", "rgn", "lara"]
    draw: Draw
    once: bool = False


@dataclass(frozen=True)
class DrawOptions:
    """What the methods of this family are told; see `adabet.methods.trady` and `adabet.methods.medyate`."""

    method: str
    variant: str
    units: int | None
    k: int | None
    share: float
    alpha: float
    ranking: Given | None
    preliminary: int
    per_step_accumulate: bool
    gradient_batches: int | None
    fill: str
    train_bn: str

    def check(self, request: Request, variants: Mapping[str, Variant]) -> Variant:
        """The variant, if the options make sense.

        Raises:
            UnknownNameError: if there is no such variant.
            OptionError: naming the option.
        """
        if self.variant not in variants:
            raise UnknownNameError("variant", self.variant, variants)
        if self.units is None and request.memory is None:
            raise OptionError(
                f"method {self.method!r} draws until a budget is met: give units= (memory units of the papers' cost "
                "model, such as 27946) or memory= (bytes of a training step, such as 200_000_000), or both"
            )
        if self.units is not None and self.units < 1:
            raise OptionError(f"expected units, a budget in memory units, of at least 1, got {self.units}")
        if self.train_bn not in TRAIN_BN:
            raise OptionError(f"expected train_bn to be one of {', '.join(TRAIN_BN)}; got {self.train_bn!r}")
        if self.gradient_batches is not None and self.gradient_batches < 1:
            raise OptionError(f"expected gradient_batches of at least 1, got {self.gradient_batches}")
        check_fill(self.fill)
        # these refuse their own options; better now than at the first draw
        top_by_share({}, self.share)
        top_by_budget({}, {}, 1, self.alpha)
        top_count({}, 1 if self.k is None else self.k)
        return variants[self.variant]


class DrawnChannels(Dynamic):
    """Draws channels; TraDy and its variants.

    Which layers they are drawn from is settled at the first draw, and remembered.
    """

    watched = 0
    """Copies of the slices' gradients that `watch` keeps."""

    def __init__(self, request: Request, options: DrawOptions, variant: Variant) -> None:
        self._request, self._options, self._variant = request, options, variant
        self._layers = request.find_layers()
        self._all = self._payable(sliceable(request.model, self._layers))
        self._values: dict[str, float] | None = None
        if options.ranking is not None and variant.layers != "all":
            self._values = given_values(options.ranking, variant.layers, request.model, self._layers.head_parameters)
            self._check_names(self._values)
        self._budget: ChannelBudget | None = None
        self._steps: dict[tuple[str, ...], StepBytes] = {}

    @property
    def pool(self) -> ChannelPool:
        """The channels that are drawn from; known from the first draw on."""
        return self._settled().pool

    def due(self, moment: Moment) -> bool:
        """At the start of every epoch, or of the run."""
        return moment.starts_run if self._variant.once else moment.starts_epoch

    def turn(self, moment: Moment) -> Turn:
        """Draw."""
        budget = self._settled()
        chosen = budget.pool.split(budget.take(self.order(moment)).tolist())
        self.drawn(chosen)
        units = sum(len(part) * budget.pool.costs[name].space for name, part in chosen.items())
        count = sum(map(len, chosen.values()))
        note = f"{count} of {budget.pool.size} input channels in {len(chosen)} layers, {units} memory units"
        return Turn(self.selection(chosen), note=f"{note}, train_bn={self._options.train_bn}")

    def order(self, moment: Moment) -> Tensor:
        """The channels of the pool in the order in which they are taken."""
        generator, pool = generator_for(self._request.seed, moment.epoch), self.pool
        draw = self._variant.draw
        if draw == "uniform":
            return weighted_order(torch.ones(pool.size), generator)
        request, groups = self._within(self._settled())
        norms = gradient_norms(
            request, pool, self.selection, groups=groups, batches=self._options.gradient_batches
        ).channels
        if draw == "by raw norm":
            return weighted_order(norms, generator)
        values = norms / pool.spaces if draw == "highest rgn" else norms
        return values.argsort(descending=True, stable=True)

    def drawn(self, channels: Channels) -> None:
        """Told what a draw gave, before it trains."""

    def selection(self, channels: Channels) -> Selection:
        """Input channels by layer as a selection, with the norms if these train."""
        names = {f"{name}.weight" for name in channels}
        if self._options.train_bn == "affine":
            names |= norms_of(self._layers)
        options = {
            "variant": self._options.variant,
            "units": self._options.units,
            "memory": self._request.memory,
            "train_bn": self._options.train_bn,
            "seed": self._request.seed,
        }
        return choose_tensors(
            self._request, self._layers, names, method=self._options.method, channels=channels, options=options
        )

    def state_dict(self) -> dict[str, Any]:
        """The layers that channels are drawn from."""
        return {"layers": list(self.pool.names)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._settle(self._all.only(state["layers"]))

    def _settled(self) -> ChannelBudget:
        return self._budget or self._settle(self._all.only(self._best_layers()))

    def _settle(self, pool: ChannelPool) -> ChannelBudget:
        self._budget = ChannelBudget(pool, self._options.units, self._step_bytes(pool), self._options.fill)
        return self._budget

    def _step_bytes(self, pool: ChannelPool) -> StepBytes | None:
        if self._request.memory is None:
            return None
        # what it measures takes time, and pools are often the same
        if pool.names not in self._steps:
            self._steps[pool.names] = StepBytes(self._request, self._layers, pool, self.selection, watched=self.watched)
        return self._steps[pool.names]

    def _best_layers(self) -> tuple[str, ...]:
        """The layers to draw from, of those of which the budget pays for at least one channel."""
        step = self._step_bytes(self._all)
        pool = self._all if step is None else step.affordable()
        variant, options = self._variant, self._options
        if variant.layers == "all":
            return pool.names
        values = {name: value for name, value in self._layer_values(pool).items() if name in pool.costs}
        if options.k is not None:
            return top_count(values, options.k)
        if variant.layers == "rgn":
            return top_by_share(values, options.share)
        if step is not None and options.units is None:
            return top_by_budget(values, step.layer_bytes(), step.room(), options.alpha)
        totals = {name: cost.total for name, cost in pool.costs.items()}
        return top_by_budget(values, totals, options.units or 0, options.alpha)

    def _layer_values(self, pool: ChannelPool) -> Mapping[str, float]:
        if self._values is not None:
            return self._values
        request, groups = self._within(ChannelBudget(pool, None, self._step_bytes(pool), "prefix"))
        found = importance(
            request,
            self._layers,
            pool,
            self.selection,
            epochs=self._options.preliminary,
            groups=groups,
            per_step=self._options.per_step_accumulate,
            batches=self._options.gradient_batches,
        )
        return found.values(self._variant.layers)

    def _within(self, budget: ChannelBudget) -> tuple[Request, Sequence[Channels] | None]:
        """The request, and sets of channels, with which gradients of all of them keep to the budget."""
        passes = budget.passes
        if passes is None:
            return self._request, None
        return replace(self._request, micro_batch=passes.micro_batch), passes.groups

    def _payable(self, pool: ChannelPool) -> ChannelPool:
        """The layers of which a single channel is within the units."""
        units = self._options.units
        found = pool.only(name for name, cost in pool.costs.items() if units is None or cost.space <= units)
        if not found.names:
            least = min(cost.space for cost in pool.costs.values())
            raise OptionError(f"expected units that pay for at least one input channel, from {least} on; got {units}")
        return found

    def _check_names(self, values: Mapping[str, float]) -> None:
        known = {layer.name for layer in self._layers}
        for name in values:
            if name not in known:
                raise UnknownNameError("layer in ranking", name, known)
        if not any(name in self._all.costs for name in values):
            raise OptionError("expected ranking to name at least one layer that channels can be drawn from")


def norms_of(layers: Layers) -> set[str]:
    """Full names of scale and shift of all norms, those that are tied to another layer included."""
    found: set[str] = set()
    for layer in layers:
        if layer.kind == "norm":
            found.update(layer.parameters)
        elif layer.kind in COSTED:
            found.update(name for name in layer.parameters if not name.startswith(f"{layer.name}."))
    return found
