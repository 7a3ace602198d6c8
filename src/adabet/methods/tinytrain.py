"""TinyTrain: layers with the most Fisher information for their parameters and operations, within budgets."""

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence

from adabet.errors import AdabetWarning, BudgetError, LayerError, OptionError
from adabet.layers import Layer, Layers
from adabet.memory import measure_memory
from adabet.methods.fisher import Fisher, fisher_information
from adabet.methods.registry import Request, register
from adabet.methods.tensors import choose_tensors
from adabet.ranking import SLICEABLE
from adabet.selection import Choice, Selection

TRAINED_COPIES = 3
"""Scalars that a trained parameter takes: itself, its gradient and its momentum."""

LEFT_OUT = ("embedding", "parameter")
"""Kinds of layers that do no products with their parameters, so that a score per operation means nothing."""

TRIALS = 24
"""Measurements that a search for what fits into memory takes at most, two training steps each."""

NO_ROOM = "expected budgets that leave room for one layer at least, none fits; raise them"

Channels = Mapping[str, tuple[int, ...] | None]
"""By layer name the output channels that would train, None for all."""


@register(
    "tinytrain",
    needs="labels, forward and backward through the whole model",
    source="Kwon et al., TinyTrain, ICML 2024, arXiv 2307.09988",
    budget=True,
)
def select_tinytrain(
    request: Request,
    *,
    memory_units: int | None = None,
    macs: float | None = None,
    gradient_batches: int = 1,
    last: float = 1.0,
    norms: bool = False,
    trials: int = TRIALS,
) -> Selection:
    """Layers with the most Fisher information per parameter and operation, and their best channels, within budgets.

    With P_i the Fisher potential of layer i (the sum over its output channels o of D_o, which is 1 / (2N) times the
    sum over samples of the squared sum of activation times gradient over the channel's places), W_i its parameters and
    M_i its multiply-accumulates, layers are taken by descending S_i = P_i / ((W_i / max W) (M_i / max M)) while the
    budgets hold; one that does not fit is passed over. Of each, the share ``request.channel_ratio`` of the output
    channels with the largest D_o trains. Without a budget, the share ``request.layer_ratio`` of the layers is taken.
    The head trains in any case and counts in all budgets.

    Budgets:
        memory_units: scalars, for one sample: of each layer that trains three for each trained parameter (itself, its
            gradient, its momentum) and its whole input, which the gradient of any output channel needs.
        macs: a share of the multiply-accumulates of a backward pass that trains everything. A layer's gradient of its
            weights takes as many as its forward pass, in proportion to the trained channels; so does the
            gradient of its input, which all layers after the earliest trained one need.
        ``request.memory``: bytes of a training step's peak, everything counted, as `adabet.measure_memory` measures it
            with what the other budgets allow, two steps for each of ``trials`` selections at most.

    Args:
        request: model, labelled batches, loss, ratios and budget, and what all methods share.
        memory_units: see above; None for no such budget.
        macs: see above; None for no such budget. The paper's is about 0.15.
        gradient_batches: how many batches to look at.
        last: share of the layers, counted from the head, that are looked at at all; fewer take less memory.
        norms: let norms compete as layers of their own.
        trials: measurements at most; once they are used up, the layers that were not tried stay frozen.

    Raises:
        OptionError: if an option makes no sense, or a batch has no labels.
        BudgetError: if not even the head alone fits.
        LayerError: if no layer can compete.
        DataError: if there is no batch.
        ActivationError: if activations or gradients are not finite.

    Warns:
        AdabetWarning: if no layer has a gradient.

    Departs from the paper: no meta-training before. Norms do not compete by default, since their few
    parameters and operations would put them all first; with ``tie_norm`` each trains with its layer. Attention blocks
    train whole. A mean loss's gradient is scaled to each sample's own loss, which changes no order. A layer's
    activation is its own output, before a norm or activation function that follows. The first layer's gradient with
    respect to the images, which nothing needs, is not counted; the paper's tables count it.

    Source: Kwon et al., TinyTrain (ICML 2024, arXiv 2307.09988).
    """
    _check(request, memory_units, macs, last, trials)
    layers = request.find_layers()
    rivals = _rivals(layers, last=last, norms=norms)
    found, _ = fisher_information(request, rivals, mode="channel-sum", gradient_batches=gradient_batches)
    if not any(found[layer.name].layer for layer in rivals):
        warnings.warn(
            "the loss has no gradient at any layer (a head of zeros gives none), so layers are taken in the order of "
            "the forward pass; train the head first",
            AdabetWarning,
            stacklevel=2,
        )
    order = _by_score(rivals, found)
    channels = {layer.name: _best_channels(layer, found[layer.name], request.channel_ratio) for layer in rivals}

    def select(chosen: Sequence[Layer]) -> Selection:
        return choose_tensors(
            request,
            layers,
            {name for layer in chosen for name in layer.parameters},
            method="tinytrain",
            channels={layer.name: part for layer in chosen if (part := channels[layer.name]) is not None},
            axis="out",
            options={
                "memory_units": memory_units,
                "macs": macs,
                "gradient_batches": gradient_batches,
                "last": last,
                "norms": norms,
                "trials": trials,
                "memory": request.memory,
                "layer_ratio": request.layer_ratio,
                "channel_ratio": request.channel_ratio,
            },
        )

    chosen = _within(order, layers, channels, memory_units, macs)
    if memory_units is None and macs is None and request.memory is None:
        chosen = order[: max(1, math.floor(request.layer_ratio * len(layers) + 1e-9))]
    if request.memory is not None:
        return _measured(request, request.memory, chosen, select, trials=trials, keeps_head=bool(layers.head))
    if not chosen and not layers.head:
        raise BudgetError(NO_ROOM)
    return select(chosen)


def units_of(layer: Layer, channels: Collection[int] | None = None) -> int:
    """Scalars that training a layer takes for one sample: see ``memory_units`` of `select_tinytrain`."""
    part = None if channels is None else tuple(channels)
    return TRAINED_COPIES * Choice.of(layer, part).parameter_count + layer.input_size


def backward_macs(layers: Layers, chosen: Channels) -> float:
    """Multiply-accumulates of a backward pass for one sample, the head trained: see ``macs`` of `select_tinytrain`.

    Args:
        layers: of the model.
        chosen: what trains beside the head.
    """
    total = 0.0
    started = False
    for layer in (*layers.candidates, *layers.head):
        if started:
            total += layer.macs
        if layer.head or layer.name in chosen:
            part = chosen.get(layer.name)
            total += layer.macs * (1.0 if part is None else len(part) / (layer.out_channels or 1))
            started = True
    return total


def _check(request: Request, memory_units: int | None, macs: float | None, last: float, trials: int) -> None:
    if not 0 <= request.layer_ratio <= 1:
        raise OptionError(f"expected a layer_ratio from 0 to 1, got {request.layer_ratio}")
    if not 0 < request.channel_ratio <= 1:
        raise OptionError(f"expected a channel_ratio above 0 and up to 1, got {request.channel_ratio}")
    if memory_units is not None and memory_units < 1:
        raise OptionError(f"expected memory_units of at least 1, got {memory_units}")
    if macs is not None and not 0 < macs <= 1:
        raise OptionError(f"expected macs, a share of a whole backward pass, above 0 and up to 1, got {macs}")
    if not 0 < last <= 1:
        raise OptionError(f"expected last, a share of the layers, above 0 and up to 1, got {last}")
    if trials < 1:
        raise OptionError(f"expected trials of at least 1 measurement, got {trials}")


def _rivals(layers: Layers, *, last: float, norms: bool) -> list[Layer]:
    """The layers that compete, in the order of a forward pass."""
    looked_at = layers.candidates[len(layers) - max(1, math.floor(last * len(layers) + 1e-9)) :]
    left_out = LEFT_OUT if norms else (*LEFT_OUT, "norm")
    rivals = [layer for layer in looked_at if layer.kind not in left_out and layer.macs]
    if not rivals:
        raise LayerError("expected a convolution, linear or attention layer to choose from; use the method 'head'")
    return rivals


def _by_score(rivals: Sequence[Layer], found: Mapping[str, Fisher]) -> list[Layer]:
    """The layers by descending S_i, the earlier first among equals."""
    parameters = max(layer.parameter_count for layer in rivals)
    macs = max(layer.macs for layer in rivals)

    def score(layer: Layer) -> float:
        return found[layer.name].layer / ((layer.parameter_count / parameters) * (layer.macs / macs))

    return sorted(rivals, key=score, reverse=True)


def _best_channels(layer: Layer, fisher: Fisher, ratio: float) -> tuple[int, ...] | None:
    if ratio == 1 or layer.kind not in SLICEABLE or layer.channel_axis is None:
        return None
    count = max(1, math.floor(ratio * len(fisher.channels) + 1e-9))
    return tuple(sorted(sorted(range(len(fisher.channels)), key=lambda channel: -fisher.channels[channel])[:count]))


def _within(
    order: Sequence[Layer], layers: Layers, channels: Channels, memory_units: int | None, macs: float | None
) -> list[Layer]:
    """The layers that the formulas' budgets allow, best first."""
    everything = backward_macs(layers, dict.fromkeys((layer.name for layer in layers), None))
    most_macs = math.inf if macs is None else macs * everything
    most_units = math.inf if memory_units is None else memory_units
    head_units, head_macs = sum(map(units_of, layers.head)), backward_macs(layers, {})
    if head_units > most_units:
        raise BudgetError(
            f"expected memory_units of at least {head_units}, what the head alone takes; got {memory_units}"
        )
    if head_macs > most_macs:
        raise BudgetError(
            f"expected macs of at least {head_macs / everything:.4g}, the head's share of a backward pass; got {macs}"
        )
    taken: list[Layer] = []
    units = head_units
    for layer in order:
        more = units + units_of(layer, channels[layer.name])
        trained = {other.name: channels[other.name] for other in (*taken, layer)}
        if more <= most_units and backward_macs(layers, trained) <= most_macs:
            taken.append(layer)
            units = more
    return taken


def _measured(
    request: Request,
    budget: int,
    order: Sequence[Layer],
    select: Callable[[Sequence[Layer]], Selection],
    *,
    trials: int,
    keeps_head: bool,
) -> Selection:
    """The layers that a training step has room for, best first; one that does not fit is passed over.

    More layers never take less, so that those of a run that fits together need no measurement each.
    """
    batch = next(iter(request.batches))

    def peak(chosen: Sequence[Layer]) -> int:
        report = measure_memory(
            request.model,
            batch,
            select(chosen),
            loss=request.loss,
            optimizer=request.optimizer or "sgd momentum",
            micro_batch=request.micro_batch,
            inference=False,
        )
        return report.training.total

    if keeps_head and (least := peak([])) > budget:
        raise BudgetError(
            f"expected memory of at least {least} bytes, the peak of a step that trains the head alone; got {budget}"
        )
    taken: list[Layer] = []
    rest = list(order)
    fits, too_many = 0, len(rest) + 1  # how many of the rest fit, and how many do not, as far as is known
    for trial in range(1, trials + 1):
        tried = len(rest) if trial == 1 else _next_run(fits, too_many, len(rest))
        if not tried:
            break
        if peak([*taken, *rest[:tried]]) <= budget:
            fits = tried
        else:
            too_many = tried
        if request.progress is not None:
            request.progress(trial, trials)
        if fits == len(rest) or too_many == fits + 1:
            taken += rest[:fits]
            rest = rest[fits + 1 :]
            fits, too_many = 0, len(rest) + 1
    taken += rest[:fits]
    if not taken and not keeps_head:
        raise BudgetError(NO_ROOM)
    return select(taken)


def _next_run(fits: int, too_many: int, length: int) -> int:
    """How many layers to try: twice as many as fit, until a bound is known, then halfway to it."""
    return min(max(1, 2 * fits), length) if too_many > length else (fits + too_many) // 2
