"""Find the best selection that fits a memory budget, and the cheapest way to train it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from adabet.errors import BudgetError, DataError, OptionError
from adabet.layers import inputs_of, on_bare_model, sample_count, take_samples
from adabet.lean.recompute import repeated_blocks
from adabet.memory import MemoryReport
from adabet.memory.measure import OptimizerFactory
from adabet.methods import rank
from adabet.methods.elastic_profile import Profile, profile_backward
from adabet.methods.registry import KINDS, find_method, no_budget
from adabet.planning.activations import stock_bytes
from adabet.planning.options import CHANNEL_RATIOS
from adabet.planning.plan import Plan
from adabet.planning.search import Search
from adabet.planning.settings import Settings
from adabet.planning.times import counted_profile
from adabet.planning.trials import Trials
from adabet.ranking import Ranking
from adabet.selection import Axis
from adabet.sizes import format_size, parse_size
from adabet.step import Loss

WORTH_A_SECOND_PASS = 1.02
"""How much more score recomputed blocks have to buy."""


@on_bare_model
def plan(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    memory: str | float,
    method: str = "adabet",
    layer_ratio: float = 1.0,
    channel_ratios: Sequence[float] = CHANNEL_RATIOS,
    axis: Axis = "out",
    time_ratio: float | None = None,
    profile: Profile | None = None,
    optimizer: str | OptimizerFactory = "sgd momentum",
    loss: Loss | None = None,
    micro_batch: int | None = None,
    unlabelled: Iterable[Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> Plan:
    """The best selection that trains within a memory budget, and the cheapest way to train it.

    Everything counts: weights, the batch, gradients, optimizer state, saved activations and workspace. Layers are worth
    their score (for AdaBet the Betti number) and cost what they add to the peak under lean: gradient, optimizer state,
    what they keep of their input, and how much further back the backward pass has to reach. Where a layer does not fit
    whole, a slice of its channels may; it is worth its share of the score. The set with the largest score is found for
    these costs, tried with a real step, and corrected by what that took. First the micro-batch gives way, then blocks
    are recomputed if that buys a larger score, then channels and layers are left out. What room is left when
    all layers train goes to a wider micro-batch.

    Planning starts from one sample and the head alone and only goes up, so that it stays within the budget itself.

    Args:
        model: any module; left as it was.
        batches: labelled batches as in training; the first one is tried, and the method looks at them.
        memory: the budget: bytes, or text such as ``"200MB"``.
        method: who scores the layers; one that ranks them.
        layer_ratio: share of the layers that may train at most.
        channel_ratios: shares of its channels that a convolution or linear layer may train where it does not fit whole:
            the best by their scores if the method ranks channels, else spread evenly. None for whole layers alone.
        axis: whether those are ``"out"`` channels (the paper's) or ``"in"``, which also keep less of the input.
        time_ratio: share of the time of a backward pass through everything that the plan's may take at most.
        profile: times of the layers for that, see `profile_backward`. Default: measured; where that takes more than
            the budget, since it needs the graph of everything for one sample, multiply-accumulates stand in for times.
        optimizer: see `measure_memory`.
        loss: see `measure_memory`.
        micro_batch: samples that are in memory at once whatever the plan says, where somebody else's loop makes the
            batches: what does not fit then are layers. None: one sample, or as many as there is room for.
        unlabelled: batches that the method looks at in place of those; one that needs labels has to find them here.
        seed: of the method.
        options: of the method, see `rank`.

    Returns:
        A plan that was measured to fit.

    Raises:
        BudgetError: if not even the head fits with one sample (or ``micro_batch``) at a time; names the smallest budget
            that works.
        OptionError: if the budget is no size, the method does not rank layers, or a ratio is outside its range.
        DataError: if there is no batch.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        >>> batches = [(torch.randn(8, 64), torch.zeros(8, dtype=torch.long))] * 5
        >>> found = plan(model, batches, memory="1MB", head="4")
        >>> found.measured <= found.budget, len(found.selection.layers)
        (True, 2)
    """
    budget = parse_size(memory)
    if find_method(method).budget:
        raise OptionError(f"method {method!r} keeps to a budget by itself: give memory to adabet.fit or adabet.select")
    if find_method(method).kind != KINDS[Ranking]:
        raise no_budget(find_method(method))
    if options.get("channels"):
        options["axis"] = axis
    if micro_batch is not None and micro_batch < 1:
        raise OptionError(f"expected micro_batch of at least 1 sample, got {micro_batch}")
    settings = Settings(layer_ratio, tuple(channel_ratios), axis, time_ratio, profile)
    held = list(_first(batches, samples=options.get("samples", 40) if unlabelled is None else 1))
    trials = Trials(model, held[0], budget, optimizer, loss, unit=micro_batch or 1)
    head = rank(model, held, method="head", **_shared(options)).select()
    base = trials.run(head, micro_batch=1)
    if base.training.total > budget:
        raise BudgetError(
            f"{format_size(budget)} is too little: training the head of {type(model).__name__} alone takes "
            f"{format_size(_rounded_up(base.training.total))} with {trials.unit} "
            f"{'sample' if trials.unit == 1 else 'samples'} at a time; give at least that"
        )
    ranking = rank(
        model,
        held if unlabelled is None else unlabelled,
        method=method,
        seed=seed,
        loss=loss,
        micro_batch=1,
        **_within(budget, base, method, options, unit=trials.unit),
    )
    if time_ratio is not None and profile is None:
        settings = replace(settings, profile=_profile(trials, ranking, base, loss))
    search = Search(trials, ranking, head, base, settings)
    best = search.best(recompute=False)
    if best.chosen != search.all and repeated_blocks(model):
        least = WORTH_A_SECOND_PASS * search.worth(best)
        again = search.best(recompute=True, over=least)
        best = again if search.worth(again) > least else best
    best = search.widen(best, fixed=micro_batch is not None)
    return Plan(
        selection=replace(best.selection, options={**best.selection.options, "budget": budget}),
        micro_batch=min(best.micro_batch * trials.unit, trials.samples),
        batch_size=trials.samples,
        recompute=best.recompute,
        budget=budget,
        predicted=round(best.predicted),
        measured=best.measured,
        optimizer=optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "optimizer"),
        full=round(search.everything()),
        notes=search.notes(best),
        options={"method": method, "layer_ratio": layer_ratio, "axis": axis, "time_ratio": time_ratio, "seed": seed},
    )


def _first(batches: Iterable[Any], *, samples: int) -> Iterable[Any]:
    """Batches from the front that hold so many samples.

    Raises:
        DataError: if there is none.
    """
    count = 0
    for batch in batches:
        yield batch
        count += sample_count(inputs_of(batch))
        if count >= samples:
            return
    if count == 0:
        raise DataError("expected batches to plan with, the loader is empty")


def _shared(options: dict[str, Any]) -> dict[str, Any]:
    """Of a method's options those that every method takes."""
    return {name: value for name, value in options.items() if name not in find_method("adabet").options}


def _within(budget: int, base: MemoryReport, method: str, options: dict[str, Any], *, unit: int) -> dict[str, Any]:
    """Options that keep the method's own forward passes within the budget, unless the user has decided.

    A forward pass of one sample takes no more than the head's step did. If all samples do not fit at once, AdaBet takes
    sketches from as many at a time as do.
    """
    own = find_method(method).options
    if "samples_in_memory" not in own or options.get("sketch") or options.get("samples_in_memory"):
        return options
    room = budget - base.training.weights - base.training.inputs
    each = max(1, (base.training.saved + base.training.workspace) // unit)
    samples = options.get("samples", 40)
    if room // each >= samples:
        return options
    return {**options, "sketch": 256, "slice_size": max(1, min(8, room // (2 * each)))}


def _profile(trials: Trials, ranking: Ranking, base: MemoryReport, loss: Loss | None) -> Profile:
    """Times of the backward pass over one sample, or counts where measuring them might take more than the budget."""
    layers = (*(ranked.layer for ranked in ranking.layers), *ranking.head)
    sample = take_samples(trials.batch, 0, 1)
    kept = stock_bytes(trials.model, inputs_of(sample))
    largest = max(parameter.nbytes for parameter in trials.model.parameters())
    peak = base.training
    # a piece gives one gradient of a weight, in two copies where a kernel has a layout of its own
    if peak.weights + peak.inputs + peak.saved + 2 * peak.workspace + kept + 2 * largest > trials.budget:
        return counted_profile(layers)
    return profile_backward(trials.model, sample, samples=1, loss=loss)


def _rounded_up(size: int) -> int:
    """Bytes rounded up to what `format_size` can show, so that the figure in a message works as a budget."""
    unit = int(10 ** max(0, len(str(size)) - 3))
    return -(-size // unit) * unit
