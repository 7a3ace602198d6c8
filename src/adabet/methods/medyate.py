"""MeDyate: input channels drawn by the gradient norms that training has shown, from layers chosen by LaRa."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adabet.errors import OptionError
from adabet.methods.channel_draws import generator_for, weighted_order
from adabet.methods.channel_gradients import Channels
from adabet.methods.drawn_channels import Draw, DrawnChannels, DrawOptions, Variant
from adabet.methods.dynamic import Dynamic, Moment
from adabet.methods.layer_choice import Given
from adabet.methods.registry import Request, register

REMEMBERED: Draw = "by remembered norm"
VARIANTS = {
    "lara-medyate": Variant("lara", REMEMBERED),
    "prev-medyate": Variant("rgn", REMEMBERED),
    "lara-trady": Variant("lara", "uniform"),
    "lara-det-raw": Variant("lara", "highest raw"),
    "lara-prob-raw": Variant("lara", "by raw norm"),
}
"""The variants that the paper compares, by its names."""

NORM_SOURCES = ("epoch_sum", "last_step", "mean_step_norm")


@register(
    "medyate",
    needs="labels; gradients to rank the layers, unless ranking= is given",
    source="Quelennec et al., Memory-constrained dynamic fine-tuning with LaRa (MeDyate)",
    budget=True,
)
def start_medyate(
    request: Request,
    *,
    variant: str = "lara-medyate",
    units: int | None = None,
    k: int | None = None,
    alpha: float = 0.2,
    share: float = 0.97,
    norm_source: str = "epoch_sum",
    ranking: Given | None = None,
    preliminary: int = 1,
    per_step_accumulate: bool = False,
    gradient_batches: int | None = None,
    fill: str = "prefix",
    train_bn: str = "frozen",
) -> Dynamic:
    """Input channels drawn by the gradient norms they have shown, from layers that the budget pays a fifth of.

    Layers are ranked by ``LaRa = |dL/dW| / (C (C_w + C_a))``, the norm of the whole gradient over the memory units of
    all C channels. They are drawn from as deep down the ranking as it takes for the budget to be at most ``alpha`` of
    what all their channels cost. The first epoch's channels are drawn with equal chances, all later ones with chances
    proportional to the norm of the gradient that a channel had when it last trained. Channels that have not trained yet
    count as if they had the largest norm of the first epoch. The head always trains and costs nothing of the units.

    Args:
        request: as of ``"trady"``: model, labelled batches, and ``memory``, a budget of bytes for a step's peak.
        variant: ``"lara-medyate"``; ``"prev-medyate"`` draws from TraDy's layers; ``"lara-trady"`` draws every epoch
            with equal chances; ``"lara-det-raw"`` and ``"lara-prob-raw"`` take a full gradient before every epoch and
            choose the channels of the largest norm, or draw with chances proportional to it.
        units: budget in memory units.
        k: number of layers to draw from, instead of ``alpha`` or ``share``.
        alpha: largest share of the channels to draw from that the budget pays for.
        share: of the summed RGN, for ``"prev-medyate"``.
        norm_source: the norm that is remembered: ``"epoch_sum"``, of the sum of an epoch's gradients, which takes one
            more copy of the slices' gradients (``memory`` counts it); ``"last_step"``, of an epoch's last; or
            ``"mean_step_norm"``, the mean over its steps.
        ranking: as of ``"trady"``.
        preliminary: as of ``"trady"``.
        per_step_accumulate: as of ``"trady"``.
        gradient_batches: as of ``"trady"``.
        fill: as of ``"trady"``.
        train_bn: as of ``"trady"``.

    Raises:
        OptionError: if there is no budget, or an option makes no sense.
        UnknownNameError: if there is no such variant.
        BudgetError: if the bytes don't pay for a single channel.
        SelectionError: if the ranking is of another model.
        LayerError: if the model has no layer with input channels beside its head.

    Departs from the paper: as ``"trady"`` does in how layers are ranked; with ``memory`` the budget and all channels'
    cost are bytes. If no channel has shown a gradient, chances are equal; gradients that are not finite are passed
    over. The paper does not say of which gradient the norm is remembered. Drawing by LaRa within layers ("boosting"),
    which its appendix found to be of no use, is left out.

    Source: Quelennec et al., MeDyate: Algorithm 1, equations 9 and 10, appendix A.2.
    """
    options = DrawOptions(
        method="medyate",
        variant=variant,
        units=units,
        k=k,
        share=share,
        alpha=alpha,
        ranking=ranking,
        preliminary=preliminary,
        per_step_accumulate=per_step_accumulate,
        gradient_batches=gradient_batches,
        fill=fill,
        train_bn=train_bn,
    )
    found = options.check(request, VARIANTS)
    if norm_source not in NORM_SOURCES:
        raise OptionError(f"expected norm_source to be one of {', '.join(NORM_SOURCES)}; got {norm_source!r}")
    if found.draw != REMEMBERED:
        return DrawnChannels(request, options, found)
    return RememberedChannels(request, options, found, norm_source)


class RememberedChannels(DrawnChannels):
    """Draws by the norms of the gradients that channels had when they last trained."""

    def __init__(self, request: Request, options: DrawOptions, variant: Variant, norm_source: str) -> None:
        super().__init__(request, options, variant)
        self.watched = 1 if norm_source == "epoch_sum" else 0
        self._source = norm_source
        self._norms: Tensor | None = None
        self._drawn: Channels = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._seen: tuple[Tensor, Tensor] | None = None

    @property
    def watches(self) -> bool:
        """Always: norms come from the gradients of training itself."""
        return True

    def order(self, moment: Moment) -> Tensor:
        """First with equal chances, then by the norms."""
        self._remember()
        weights = torch.ones(self.pool.size) if self._norms is None else self._norms
        return weighted_order(weights, generator_for(self._request.seed, moment.epoch))

    def drawn(self, channels: Channels) -> None:
        """Start to watch other channels."""
        self._drawn, self._sums, self._counts, self._seen = channels, {}, {}, None

    def watch(self, moment: Moment, gradients: Mapping[str, Tensor]) -> None:  # noqa: ARG002 - every step counts alike
        """Add up what the norms are taken of, row by row; rows that are not finite are passed over."""
        for name in self._drawn:
            rows = gradients.get(f"{name}.weight")
            if rows is None:
                continue
            rows = rows.detach().flatten(1)
            values = rows if self._source == "epoch_sum" else rows.double().norm(dim=1, keepdim=True)
            finite = values.isfinite().all(1)
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(values)
                self._counts[name] = torch.zeros_like(finite, dtype=torch.int64)
            if self._source == "last_step":
                self._sums[name][finite] = values[finite]
            elif finite.all():
                self._sums[name] += values
            else:
                self._sums[name][finite] += values[finite]
            self._counts[name] += finite

    def state_dict(self) -> dict[str, Any]:
        """The layers, the norms of all channels, and those of the last epoch's, one number a channel."""
        numbers, values = self._last_norms()
        state = {**super().state_dict(), "seen": numbers, "seen_norms": values}
        return state if self._norms is None else {**state, "norms": self._norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self._seen = state["seen"].long().cpu(), state["seen_norms"].double().cpu()
        self._norms = state["norms"].double().cpu() if "norms" in state else None

    def _remember(self) -> None:
        """Take over what the last epoch has shown; at first, what it has not shown is as large as its largest."""
        numbers, values = self._last_norms()
        if not len(values):
            return
        if self._norms is None:
            self._norms = torch.full((self.pool.size,), float(values.max()), dtype=torch.float64)
        self._norms[numbers] = values

    def _last_norms(self) -> tuple[Tensor, Tensor]:
        """Numbers and norms of the channels that have trained since the last draw."""
        if self._seen is not None:
            return self._seen
        numbers, values = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.float64)]
        for name, sums in self._sums.items():
            counts = self._counts[name].cpu()
            norms = sums.double().norm(dim=1).cpu()
            if self._source == "mean_step_norm":
                norms = norms / counts.clamp(min=1)
            known = (counts > 0) & norms.isfinite()
            numbers.append(self.pool.numbers(name, self._drawn[name])[known])
            values.append(norms[known])
        return torch.cat(numbers), torch.cat(values)
